"""A DNS server for one test domain: every name under it is one address, every other name does not exist.

usage: resolver.py LISTEN_ADDRESS DOMAIN ADDRESS. Answers over UDP on port 53 until it is ended.
"""

import socket
import struct
import sys

A, IN = 1, 1
NXDOMAIN = 3


def question(query: bytes) -> tuple[str, int, int]:
    """Name, type and end of the first question."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii").lower())
        at += 1 + query[at]
    kind, _ = struct.unpack_from("!HH", query, at + 1)
    return ".".join(labels), kind, at + 5


def reply(query: bytes, domain: str, address: str) -> bytes:
    name, kind, end = question(query)
    ours = name == domain or name.endswith("." + domain)
    answers = [struct.pack("!HHHIH4s", 0xC00C, A, IN, 1, 4, socket.inet_aton(address))] if ours and kind == A else []
    # Response, recursion desired and available; authority and additional sections empty.
    flags = 0x8180 | (0 if ours else NXDOMAIN)
    head = query[:2] + struct.pack("!HHHHH", flags, 1, len(answers), 0, 0)
    return head + query[12:end] + b"".join(answers)


def main() -> None:
    listen, domain, address = sys.argv[1:]
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((listen, 53))
    print("ready", flush=True)
    while True:
        query, client = server.recvfrom(4096)
        try:
            server.sendto(reply(query, domain, address), client)
        except (IndexError, struct.error, UnicodeDecodeError):
            continue  # no question in it


main()
