"""Packages that wrap the official one name themselves in its user agent: the server takes it as it comes."""

import os
import re
import socket
import threading
from urllib.parse import urlsplit

from e2b import ConnectionConfig, Sandbox
from generation import OLD

PATIENCE = 30
CREATE = "POST /sandboxes" if OLD else "POST /v2/sandboxes"
NAME = "acme-agent/1.2 (+https://acme.example)"


class Listener:
    """A relay to the server that keeps what clients send; it ends with the connections of the test."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.heard: list[bytearray] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(self.target, PATIENCE)
            heard = bytearray()
            self.heard.append(heard)
            for source, sink, keep in [(client, server, heard), (server, client, None)]:
                threading.Thread(target=self.copy, args=(source, sink, keep), daemon=True).start()

    @staticmethod
    def copy(source: socket.socket, sink: socket.socket, keep: bytearray | None) -> None:
        source.settimeout(PATIENCE)
        try:
            while part := source.recv(1 << 16):
                if keep is not None:
                    keep.extend(part)
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()

    def agents(self, request: str) -> set[str]:
        """The user agents of all requests whose first line begins so."""
        # No line break before it: the body of the request before may have none.
        pattern = re.escape(request.encode()) + rb"[^\r]*\r\n(?:[^\r]+\r\n)*?user-agent: ([^\r]+)\r\n"
        return {name.decode() for heard in self.heard for name in re.findall(pattern, bytes(heard), re.IGNORECASE)}


def test_envd_164_an_integration_names_itself(monkeypatch):
    server = urlsplit(os.environ["E2B_API_URL"])
    listener = Listener((server.hostname, server.port))
    monkeypatch.setenv("E2B_API_URL", listener.url)
    monkeypatch.setenv("E2B_SANDBOX_URL", listener.url)
    ConnectionConfig.set_integration(NAME)
    try:
        with Sandbox.create(timeout=60) as sandbox:
            sandbox.files.write("/tmp/named", "text")
            assert sandbox.files.read("/tmp/named") == "text"
            assert sandbox.commands.run("cat /tmp/named").stdout == "text"
    finally:
        ConnectionConfig.set_integration(None)
        listener.socket.close()
    for request in (CREATE, "POST /files", "GET /files", "DELETE /sandboxes/"):
        names = listener.agents(request)
        assert names and all(name.endswith(f" {NAME}") for name in names), (request, names)
