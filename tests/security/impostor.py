"""A program that has taken the place of envd: it owns envd's sockets, and says to the server whatever a test likes.

envd itself is held still meanwhile (held.py), so that only the impostor answers. What the rest of the sandbox sees is unchanged.
"""

import os
import socket
import threading
from pathlib import Path

from held import Held, take_descriptor

# How long an impostor's connection may last, whatever it is doing.
PATIENCE = 60


def sockets_of(pid: int) -> list[socket.socket]:
    taken = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(path).startswith("socket:"):
            made = socket.socket(fileno=take_descriptor(pid, int(path.name)))
            if made.family in (socket.AF_INET, socket.AF_INET6) and made.type == socket.SOCK_STREAM:
                taken.append(made)
            else:
                made.close()
    return taken


class Impostor:
    """In place of the envd `pid` until the end of the `with`. `script(connection)` is what it does with each connection: those that envd had,
    and those to come."""

    def __init__(self, pid: int, script) -> None:
        self.held = Held(pid)
        self.script = script
        self.open: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.requests: list[bytes] = []
        self.ended = threading.Event()

    def __enter__(self) -> "Impostor":
        self.held.__enter__()
        self.run(self.bury)
        try:
            for taken in sockets_of(self.held.pid):
                self.open.append(taken)
                listening = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                self.run(self.accept if listening else self.play, taken)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        for one in self.open:
            try:
                if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    # envd has a copy: without this the peer would wait on.
                    one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self.threads:
            thread.join(PATIENCE)
        for one in self.open:
            one.close()
        self.held.__exit__()

    def run(self, work, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def bury(self) -> None:
        while not self.ended.wait(0.005):
            self.held.bury_the_dead()

    def accept(self, listening: socket.socket) -> None:
        # The description is envd's too, and stays without blocking.
        while not self.ended.wait(0.005):
            try:
                made, _ = listening.accept()
            except BlockingIOError:
                continue
            except OSError:
                return
            self.open.append(made)
            self.run(self.play, made)

    def play(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        try:
            while request := self.request(connection):
                self.requests.append(request)
                self.script(self, connection, request)
        except (OSError, ValueError):
            pass
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def request(self, connection: socket.socket) -> bytes:
        """One request with its body, as far as it says its length."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(body) < length:
            piece = connection.recv(65536)
            if not piece:
                return b""
            body += piece
        return head + b"\r\n\r\n" + body


def flood(head: bytes, piece: bytes, limit: int = 1 << 30):
    """A script that sends a head and then the same bytes for as long as anybody takes them, up to `limit`."""

    def script(impostor: Impostor, connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        sent = 0
        while sent < limit and not impostor.ended.is_set():
            connection.sendall(piece)
            sent += len(piece)

    return script


def say(*parts: bytes):
    """A script that answers every request with these bytes."""

    def script(_: Impostor, connection: socket.socket, __: bytes) -> None:
        for part in parts:
            connection.sendall(part)

    return script


def silence(impostor: Impostor, _: socket.socket, __: bytes) -> None:
    impostor.ended.wait(PATIENCE)


def end(_: Impostor, connection: socket.socket, __: bytes) -> None:
    connection.shutdown(socket.SHUT_RDWR)
