"""Runs inside a sandbox: tries all the targets of its arguments at once and prints, as JSON, those that answered.

A target is `tcp:ADDRESS:PORT` (a connection is made), `udp:ADDRESS:PORT:PAYLOAD` and `ping:ADDRESS` (something comes back).
"""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

PATIENCE = 1.5
# A datagram may be lost on a busy machine, so it is sent more than once.
TRIES = 3


def answered(target: str) -> bool:
    kind, address, *rest = target.split(":", 3)
    try:
        if kind == "tcp":
            socket.create_connection((address, int(rest[0])), PATIENCE).close()
            return True
        protocol = socket.IPPROTO_ICMP if kind == "ping" else 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol) as asking:
            asking.settimeout(PATIENCE / TRIES)
            asking.connect((address, 0 if kind == "ping" else int(rest[0])))
            for _ in range(TRIES):
                # An echo request; the kernel fills in its own identifier and checksum.
                asking.send(b"\x08\0\0\0\0\0\0\1" if kind == "ping" else rest[1].encode())
                try:
                    return len(asking.recv(4096)) > 0
                except TimeoutError:
                    pass
            return False
    except OSError:
        return False


with ThreadPoolExecutor(256) as pool:
    print(json.dumps([target for target, yes in zip(sys.argv[1:], pool.map(answered, sys.argv[1:])) if yes]))
