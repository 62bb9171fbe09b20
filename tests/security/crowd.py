"""Runs inside a sandbox: opens that many connections, prints how many came about, and leaves a process that keeps them.

usage: crowd.py tcp|udp|dns ADDRESS COUNT (for dns each of them is a question to the gateway, from a port of its own)
"""

import os
import socket
import struct
import sys
import time

GATEWAY = "169.254.0.22"
kind, address, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
QUESTION = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x05named\x07example\0\0\1\0\1"
kept = []


def open_one() -> bool:
    if kind == "tcp":
        try:
            kept.append(socket.create_connection((address, 80), 2))
            return True
        except OSError:
            return False
    target = (GATEWAY, 53) if kind == "dns" else (address, 7)
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    kept.append(asking)
    asking.settimeout(0.5)
    asking.connect(target)
    for _ in range(2):
        try:
            asking.send(QUESTION if kind == "dns" else b"crowd")
            return len(asking.recv(512)) > 0
        except OSError:
            continue
    return False


came, refused = 0, 0
for _ in range(count):
    if open_one():
        came += 1
    else:
        refused += 1
        # Each refusal by silence takes its time; some are enough to tell.
        if kind == "udp" and refused == 5:
            break
print(came, flush=True)
if os.fork() == 0:
    # Its own session and no pipe of the command, which ends now.
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    time.sleep(600)
