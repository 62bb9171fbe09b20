"""Files over plain HTTP: bodies of every form, ranges, encodings, names, sizes, and a full disk."""

import gzip
import hashlib
import io
import json
import time
import urllib.parse

import pytest
from e2b import NotEnoughSpaceException, Sandbox
from generation import newer
from wire import Wire

IDENTITY = {"Accept-Encoding": "identity"}
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def wire(sandbox):
    return Wire.to(sandbox)


@pytest.fixture
def folder(sandbox, request):
    path = f"/home/user/tr-{request.node.name.removeprefix('test_')[:20]}"
    sandbox.files.make_dir(path)
    return path


def files(path: str | None = None, **query) -> str:
    return "/files?" + urllib.parse.urlencode(query | ({"path": path} if path is not None else {}))


def form(*parts: tuple[str, bytes]) -> dict:
    body = b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n' + data + b"\r\n"
        for name, data in parts
    )
    return {"headers": {"Content-Type": "multipart/form-data; boundary=edge"}, "content": body + b"--edge--\r\n"}


def get(wire, path: str, headers: dict | None = None):
    return wire.request("GET", files(path), IDENTITY | (headers or {}))


def raw(wire, path: str, accept: str | None):
    """Status, encoding and undecoded body for an Accept-Encoding; none at all for None."""
    request = wire.client.build_request("GET", wire.base + files(path), headers=wire.headers)
    del request.headers["accept-encoding"]
    if accept is not None:
        request.headers["accept-encoding"] = accept
    answer = wire.client.send(request, stream=True)
    body = b"".join(answer.iter_raw())
    return answer.status_code, answer.headers.get("content-encoding", "identity"), body


def test_envd_118_names_folders_and_overwriting(sandbox, folder):
    path = f"{folder}/ordner/日本 'x' \"y\" % &.txt"
    sandbox.files.write(path, "a longer first text")
    sandbox.files.write(path, "short")
    assert sandbox.files.read(path) == "short"
    assert sandbox.files.list(f"{folder}/ordner")[0].path == path
    assert sandbox.files.get_info(f"{folder}/ordner").owner == "user"


def test_envd_121_the_same_file_twice(wire, sandbox, folder):
    answer = wire.request("POST", files(), **form((f"{folder}/a", b"1"), (f"{folder}/b", b"2"), (f"{folder}/./a", b"3")))
    assert answer.status_code == 200, "different spellings are different names"
    answer = wire.request("POST", files(), **form((f"{folder}/c", b"1"), (f"{folder}/c", b"2")))
    assert answer.status_code == 400 and sandbox.files.read(f"{folder}/c") == "1"


def test_envd_122_every_way_of_sending(sandbox, folder):
    data = bytes(range(256)) * 1000
    text = "text äöü " * 10_000
    for name, sent in {"octets": data, "text": text, "stream": io.BytesIO(data)}.items():
        for options in ({"use_octet_stream": True}, {"gzip": True}, {}):
            if isinstance(sent, io.BytesIO):
                sent.seek(0)
            path = f"{folder}/{name}"
            sandbox.files.write(path, sent, **options)
            expected = text.encode() if name == "text" else data
            assert bytes(sandbox.files.read(path, format="bytes")) == expected, (name, options)
            assert bytes(sandbox.files.read(path, format="bytes", gzip=True)) == expected


@newer("upload of an iterator")
def test_envd_122_in_pieces(sandbox, folder):
    data = bytes(range(256)) * 1000
    pieces = (data[at : at + 1000] for at in range(0, len(data), 1000))
    sandbox.files.write(f"{folder}/pieces", pieces)
    assert bytes(sandbox.files.read(f"{folder}/pieces", format="bytes")) == data


def test_envd_123_bodies_that_are_none(wire, folder):
    def post(path, headers, content):
        return wire.request("POST", files(path), headers, content=content).status_code

    assert post(None, OCTETS, b"x") == 400
    assert post(f"{folder}/x", {"Content-Type": "text/plain"}, b"x") == 400
    assert post(f"{folder}/x", OCTETS | {"Content-Encoding": "gzip"}, b"not compressed") == 400
    assert post(f"{folder}/x", OCTETS | {"Content-Encoding": "br"}, b"x") == 400
    assert post(f"{folder}/y", OCTETS | {"Content-Encoding": "GZIP"}, gzip.compress(b"text")) == 200
    assert post(f"{folder}/z", OCTETS | {"Content-Encoding": "identity"}, b"text") == 200
    assert get(wire, f"{folder}/y").content == b"text"



def test_envd_127_a_gibibyte_each_way(wire, sandbox, folder):
    """The daemon's memory stays flat, which the sandbox's limit of 1 GiB less its page cache would show."""
    piece = bytes(range(256)) * 4096
    total, digest = 1 << 10, hashlib.sha256()
    for _ in range(total):
        digest.update(piece)
    peak = 0

    def pieces():
        nonlocal peak
        for n in range(total):
            if n % 64 == 0:
                peak = max(peak, int(sandbox.commands.run("ps -o rss= -C envd || true", user="root").stdout or 0))
            yield piece

    answer = wire.request("POST", files(f"{folder}/big"), OCTETS, content=pieces(), timeout=110)
    assert answer.status_code == 200, answer.text
    with wire.client.stream("GET", wire.base + files(f"{folder}/big"), headers=wire.headers | IDENTITY) as answer:
        assert answer.headers["content-length"] == str(1 << 30)
        got = hashlib.sha256()
        for n, chunk in enumerate(answer.iter_raw(1 << 20)):
            got.update(chunk)
            if n % 128 == 0:
                peak = max(peak, int(sandbox.commands.run("ps -o rss= -C envd || true", user="root").stdout or 0))
    assert got.digest() == digest.digest()
    assert 0 < peak < 40_000, f"{peak} KiB"
    sandbox.files.remove(f"{folder}/big")


def test_envd_128_parts_and_conditions(wire, sandbox, folder):
    path = f"{folder}/file.txt"
    sandbox.files.write(path, "0123456789")
    part = get(wire, path, {"Range": "bytes=0-4"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "01234", "bytes 0-4/10")
    assert get(wire, path, {"Range": "bytes=-3"}).text == "789"
    assert get(wire, path, {"Range": "bytes=20-"}).status_code == 416
    whole = get(wire, path)
    assert whole.headers["accept-ranges"] == "bytes"
    assert get(wire, path, {"If-Modified-Since": whole.headers["last-modified"]}).status_code == 304
    assert get(wire, path, {"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}).status_code == 200
    assert get(wire, path, {"Range": "bytes=0-4", "Accept-Encoding": "identity;q=0"}).status_code == 406


def test_envd_129_which_encoding(wire, sandbox, folder):
    path, text = f"{folder}/file", b"compressible " * 1000
    sandbox.files.write(path, text)
    for accept, expected in [
        (None, "identity"),
        ("gzip", "gzip"),
        ("br", "identity"),
        ("gzip;q=0.5, identity", "identity"),
        ("*;q=0, gzip", "gzip"),
    ]:
        status, encoding, body = raw(wire, path, accept)
        assert (status, encoding) == (200, expected), accept
        assert (gzip.decompress(body) if encoding == "gzip" else body) == text
    assert raw(wire, path, "*;q=0")[0] == 406


@pytest.mark.parametrize(
    "name, expected",
    [
        ("plain.txt", "inline; filename=plain.txt"),
        ("two words.txt", 'inline; filename="two words.txt"'),
        ('quo"te', 'inline; filename="quo\\"te"'),
        ("back\\slash", 'inline; filename="back\\\\slash"'),
        ("日本.txt", "inline; filename*=utf-8''%E6%97%A5%E6%9C%AC.txt"),
        (".hidden", "inline; filename=.hidden"),
    ],
)
def test_envd_130_the_name_to_save_it_by(wire, sandbox, name, expected):
    sandbox.files.write(f"/tmp/names/{name}", "x")
    assert get(wire, f"/tmp/names/{name}").headers["content-disposition"] == expected


def test_envd_131_a_full_disk(own):
    sandbox: Sandbox = own()
    sandbox.files.write("/home/user/there", "x")
    sandbox.commands.run("head -c 100G /dev/zero > /home/user/filler; true", timeout=110)
    piece = bytes(1 << 20)
    wire = Wire.to(sandbox)
    for path in ("/home/user/new", "/home/user/there"):
        answer = wire.request("POST", files(path), OCTETS, content=(piece for _ in range(64)))
        assert answer.status_code == 507, answer.text
        assert answer.json()["code"] == 507
        with pytest.raises(NotEnoughSpaceException):
            sandbox.files.write(path, piece * 64)
    sandbox.files.remove("/home/user/filler")
    sandbox.files.remove("/home/user/new")


def test_envd_132_a_file_keeps_its_mode_and_changes_hands(sandbox, folder):
    path = f"{folder}/script"
    sandbox.files.write(path, "#!/bin/sh\n", user="root")
    sandbox.commands.run(f"chmod 750 {path}", user="root")
    sandbox.files.write(path, "#!/bin/sh\necho ran\n")
    info = sandbox.files.get_info(path)
    assert (info.mode, info.owner) == (0o750, "user")
    assert sandbox.commands.run(path).stdout == "ran\n"


def test_envd_135_limits_of_metadata(wire, sandbox, folder):
    def write(path, **headers):
        return wire.request("POST", files(path), OCTETS | headers, content=b"new").status_code

    for n, headers in enumerate(
        (
            {"X-Metadata-" + "k" * 247: "v"},
            {"X-Metadata-Key": "café".encode()},
            {f"X-Metadata-Key{n}": "v" * 1000 for n in range(5)},
        )
    ):
        assert write(f"{folder}/fresh{n}", **headers) == 400, n
        assert not sandbox.files.exists(f"{folder}/fresh{n}"), "checked before the file is made"
    sandbox.files.write(f"{folder}/kept", "old")
    assert write(f"{folder}/kept", **{"X-Metadata-" + "k" * 247: "v"}) == 400
    assert sandbox.files.read(f"{folder}/kept") == "old"
    assert write(f"{folder}/longest", **{"X-Metadata-" + "k" * 246: "v"}) == 200


def test_envd_141_composing(wire, sandbox, folder):
    for name, text in {"a": "one ", "b": "two ", "c": "three"}.items():
        sandbox.files.write(f"{folder}/{name}", text)
    sandbox.files.write(f"{folder}/whole", "before")

    def compose(sources, destination):
        body = {"source_paths": [f"{folder}/{name}" for name in sources], "destination": destination}
        return wire.request("POST", "/files/compose", json=body)

    whole = f"{folder}/whole"
    assert compose(["a", "missing"], whole).status_code == 404
    assert compose([], whole).status_code == 400
    assert compose(["a"], "").status_code == 400
    assert compose(["a", "whole"], whole).status_code == 400
    assert sandbox.files.read(whole) == "before" and sandbox.files.exists(f"{folder}/a")
    answer = compose(["a", "b", "c"], whole)
    assert answer.status_code == 200
    assert answer.json() == {"path": whole, "name": "whole", "type": "file"}
    assert sandbox.files.read(whole) == "one two three"
    assert [entry.name for entry in sandbox.files.list(folder)] == ["whole"]


def test_envd_142_environment_and_metrics(own):
    # Its own, since the page cache of one that has moved gigabytes is full.
    sandbox: Sandbox = own()
    wire = Wire.to(sandbox)
    for path in ("/envs", "/metrics"):
        assert wire.without_token().request("GET", path).status_code == 401
    assert wire.request("GET", "/envs").json()["E2B_SANDBOX_ID"] == sandbox.sandbox_id
    metrics = wire.request("GET", "/metrics").json()
    names = "ts cpu_count cpu_used_pct mem_total mem_used mem_cache disk_total disk_used mem_total_mib mem_used_mib"
    assert set(names.split()) <= set(metrics)
    info = sandbox.get_info()
    assert metrics["cpu_count"] == info.cpu_count
    assert metrics["mem_total"] == info.memory_mb << 20
    assert 0 < metrics["mem_used"] < metrics["mem_total"]
    assert metrics["mem_used_mib"] == metrics["mem_used"] >> 20
    assert metrics["disk_total"] == 10 << 30

    # The figures are this sandbox's and nobody else's: what it writes lies on its disk and in its page cache.
    sandbox.commands.run("head -c 50M /dev/urandom > written; sync")
    written = 50 << 20
    for _ in range(20):
        after = wire.request("GET", "/metrics").json()
        if after["disk_used"] >= metrics["disk_used"] + written:
            break
        time.sleep(0.5)
    assert written <= after["disk_used"] - metrics["disk_used"] < 2 * written
    assert written <= after["mem_cache"] - metrics["mem_cache"] < 2 * written
    # Nobody but the host has a say in them.
    lie = {"X-Soulbox-Usage": json.dumps({"cpuMicros": 0, "memory": 1, "cache": 1, "disk": 1})}
    assert wire.request("GET", "/metrics", lie).json()["disk_used"] >= written
