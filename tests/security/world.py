"""The internet of the network tests: every address of its namespace, in one process, until it is ended.

HTTP on port 80 answers which address was asked and from where, as JSON, and takes any upload; UDP port 7 echoes; UDP port 53 is a name server
that knows one name. `GET /seen` lists the payloads that came to the UDP ports, with their sources.

usage: world.py NAME ADDRESS (the name server says NAME is ADDRESS)
"""

import json
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IP_PKTINFO = 8
seen: list[list[str]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = seen if self.path == "/seen" else {"asked": self.connection.getsockname()[0], "from": self.client_address[0]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_) -> None:
        pass


def udp(port: int, answer) -> None:
    """Answers from the very address that was asked."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_IP, IP_PKTINFO, 1)
    server.bind(("0.0.0.0", port))
    while True:
        data, ancillary, _, client = server.recvmsg(4096, 256)
        seen.append([data.decode("latin-1"), client[0]])
        local = struct.unpack("I4s4s", ancillary[0][2])[2]
        reply = answer(data)
        if reply is not None:
            info = struct.pack("I4s4s", 0, local, bytes(4))
            try:
                server.sendmsg([reply], [(socket.SOL_IP, IP_PKTINFO, info)], 0, client)
            except OSError:
                continue  # a forged source that leads nowhere


def name_server(name: str, address: str):
    def answer(query: bytes) -> bytes | None:
        labels, at = [], 12
        try:
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii").lower())
                at += 1 + query[at]
            kind, _ = struct.unpack_from("!HH", query, at + 1)
        except (IndexError, struct.error, UnicodeDecodeError):
            return None
        ours = ".".join(labels) == name
        answers = [struct.pack("!HHHIH4s", 0xC00C, 1, 1, 1, 4, socket.inet_aton(address))] if ours and kind == 1 else []
        head = query[:2] + struct.pack("!HHHHH", 0x8180 | (0 if ours else 3), 1, len(answers), 0, 0)
        return head + query[12 : at + 5] + b"".join(answers)

    return answer


threading.Thread(target=udp, args=(7, lambda data: data), daemon=True).start()
threading.Thread(target=udp, args=(53, name_server(*sys.argv[1:])), daemon=True).start()
web = ThreadingHTTPServer(("0.0.0.0", 80), Handler)
print("ready", flush=True)
web.serve_forever()
