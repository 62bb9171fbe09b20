"""Two network namespaces, `host` for the server and `world` for everything that it could reach, joined by one veth pair.

Both are anonymous: they end with the processes that hold them, so that nothing stays behind however a test ends.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server import until

HERE = Path(__file__).parent
# Loaded here: between fork and exec is no time for it.
libc = ctypes.CDLL(None)
NAME = "named.example"

# What the world owns, beside its end of the link.
PUBLIC = ("1.1.1.1", "8.8.8.8")
REFUSED = {
    "10.9.9.9": "a private network",
    "172.16.5.5": "a private network",
    "192.168.77.1": "a private network",
    "169.254.169.254": "the metadata service of a cloud",
    "100.100.100.200": "the metadata service of another, in the shared range",
    "198.18.0.9": "a range for benchmarks",
}
# What the host of the server owns: all of it must be out of reach.
UPLINK = "203.0.113.2"
WORLD = "203.0.113.1"
HOST_PUBLIC, HOST_PRIVATE = "9.9.9.9", "10.8.0.1"


class Namespace:
    """A network namespace with a mount namespace of its own, held by a sleeping process."""

    def __init__(self, stack: ExitStack) -> None:
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 3600"],
            stdout=subprocess.PIPE,
            **APART,
        )
        stack.callback(self.end)
        self.holder.stdout.readline()
        self.enter = ("nsenter", f"--net=/proc/{self.holder.pid}/ns/net", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--")

    def run(self, *command: str, **more) -> subprocess.CompletedProcess:
        finished = subprocess.run([*self.enter, *command], capture_output=True, text=True, timeout=20, **more)
        assert finished.returncode == 0, (command, finished.stderr)
        return finished

    def start(self, stack: ExitStack, *command: str, **more) -> subprocess.Popen:
        process = subprocess.Popen([*self.enter, *command], **APART, **more)
        stack.callback(end, process)
        return process

    def end(self) -> None:
        end(self.holder)


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait(10)


def die_with_parent() -> None:
    """Even a test run that is killed leaves no namespace behind."""
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# Ctrl-C is for the test run, which then ends all of them in order.
APART = {"start_new_session": True, "preexec_fn": die_with_parent}


class Topology:
    def __init__(self, stack: ExitStack) -> None:
        self.host, self.world = Namespace(stack), Namespace(stack)
        ip = lambda namespace, line: namespace.run("ip", *line.split())
        for namespace in (self.host, self.world):
            ip(namespace, "link set lo up")
        ip(self.host, f"link add uplink type veth peer name uplink netns {self.world.holder.pid}")
        for namespace, address in ((self.host, UPLINK), (self.world, WORLD)):
            ip(namespace, f"address add {address}/30 dev uplink")
            ip(namespace, "link set uplink up")
        ip(self.host, f"route add default via {WORLD}")
        for address in (*PUBLIC, *REFUSED):
            ip(self.world, f"address add {address}/32 dev lo")
        for address in (HOST_PUBLIC, HOST_PRIVATE):
            ip(self.host, f"address add {address}/32 dev lo")
            ip(self.world, f"route add {address}/32 via {UPLINK}")
        # The mount holds the file when its name is gone.
        with tempfile.NamedTemporaryFile("w", prefix="soulbox-resolv-") as resolver:
            resolver.write("nameserver 8.8.8.8\noptions timeout:1 attempts:1\n")
            resolver.flush()
            self.host.run("mount", "--bind", resolver.name, os.path.realpath("/etc/resolv.conf"))
        world = self.world.start(stack, sys.executable, str(HERE / "world.py"), NAME, PUBLIC[0], stdout=subprocess.PIPE)
        assert world.stdout.readline() == b"ready\n"

    def relay(self, stack: ExitStack, port: int) -> None:
        """Makes 127.0.0.1:`port` of the test reach 127.0.0.1:`port` of the host's namespace."""
        # Open here no longer than until the relay has it: without the relay, connections are refused instead of waiting.
        with socket.create_server(("127.0.0.1", port)) as listening:
            arguments = (sys.executable, str(HERE / "relay.py"), str(listening.fileno()), str(port))
            self.host.start(stack, *arguments, pass_fds=[listening.fileno()])

    def fetch(self, namespace: Namespace, url: str) -> dict:
        """What an HTTP server says to a program of a namespace."""
        return json.loads(namespace.run("curl", "-sS", "--noproxy", "*", "--max-time", "3", url).stdout)

    def seen(self) -> list[list[str]]:
        """Payload and source of all that came to the world's UDP ports."""
        return self.fetch(self.world, "http://127.0.0.1/seen")

    def serve_on_host(self, stack: ExitStack, port: int) -> None:
        """A service of the host's that listens on every address of it, by TCP and UDP, IPv6 too."""
        code = f"""
import http.server, socket, threading
def echo():
    listening = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    listening.bind(('::', {port}))
    while True:
        data, client = listening.recvfrom(4096)
        listening.sendto(data, client)
threading.Thread(target=echo, daemon=True).start()
http.server.ThreadingHTTPServer.address_family = socket.AF_INET6
http.server.ThreadingHTTPServer(('::', {port}), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
        self.host.start(stack, sys.executable, "-c", code, cwd="/proc/sys/fs/inotify", stderr=subprocess.DEVNULL)
        until("the service of the host", lambda: self.status(self.host, f"http://127.0.0.1:{port}/") == 200)

    def status(self, namespace: Namespace, url: str) -> int:
        ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "3", url]
        return int(subprocess.run([*namespace.enter, *ask], capture_output=True, text=True, timeout=20).stdout)


@contextmanager
def topology():
    with ExitStack() as stack:
        yield Topology(stack), stack
