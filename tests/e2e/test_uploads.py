"""Files of COPY steps on their way to the disk."""

import http.client
import json
import os
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from conftest import DATA

LENGTH = 500 << 20
BLOCK = bytes(1 << 20)


def asked(method: str, path: str, body: dict | None = None) -> dict:
    request = urllib.request.Request(
        os.environ["E2B_API_URL"] + path,
        method=method,
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
        data=None if body is None else json.dumps(body).encode(),
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or b"null")


def resident(pid: int) -> int:
    """KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def header() -> bytes:
    """Of one file of zeros that fills the archive."""
    fields = b"zeros".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % (LENGTH - 1536) + b"00000000000\0"
    block = bytearray((fields + b" " * 8 + b"0").ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_cli_066_an_upload_takes_no_memory(server):
    name = f"upload-{uuid.uuid4().hex[:12]}"
    template = asked("POST", "/v3/templates", {"name": name})["templateID"]
    files_hash = uuid.uuid4().hex * 2
    link = urlsplit(asked("GET", f"/templates/{template}/files/{files_hash}")["url"])
    front, most, over = server.front(), 0, threading.Event()
    before = resident(front)

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, resident(front))
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    connection = http.client.HTTPConnection(link.netloc, timeout=60)
    connection.putrequest("PUT", f"{link.path}?{link.query}")
    connection.putheader("Content-Length", str(LENGTH))
    connection.endheaders()
    connection.send(header())
    for _ in range(LENGTH // len(BLOCK) - 1):
        connection.send(BLOCK)
    connection.send(BLOCK[512:])
    status = connection.getresponse().status
    over.set()
    watching.join()
    kept = [path for path in (DATA / "control/archives").rglob(files_hash + "*")]
    sizes = [path.stat().st_size for path in kept]
    for path in kept:
        path.unlink()
    asked("DELETE", f"/templates/{template}")
    assert status == 201 and sizes == [LENGTH], (status, sizes)
    assert most - before < 64 << 10, f"{before} KiB became {most} KiB"
