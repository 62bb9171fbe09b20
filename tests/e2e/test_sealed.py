"""Snapshots in a store: sealed, dropped here, fetched again, refused when anything of them was changed; one server with a store for all."""

import base64
import hashlib
import hmac
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import DATA, Server, run, until
from e2b import Sandbox, SandboxException, SandboxState

STORE = DATA / "store"
# Holds what is only in memory, and counts.
HOLDER = """
import hashlib, http.server, os, threading, time
heap = os.urandom(int(os.environ["HEAP"]) << 20)
state = {"count": 0}
deleted = open("/home/user/deleted", "w+b")
deleted.write(b"still here")
deleted.flush()
os.unlink("/home/user/deleted")
def count():
    while True:
        state["count"] += 1
        time.sleep(0.02)
threading.Thread(target=count, daemon=True).start()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/touch":
            global heap
            heap = os.urandom(1 << 20) + heap[1 << 20:]
        deleted.seek(0)
        body = f"{os.getpid()} {state['count']} {hashlib.sha256(heap).hexdigest()} {deleted.read().decode()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest):
        pass
http.server.HTTPServer(("127.0.0.1", 8000), Answer).serve_forever()
"""
FILES = """
import os
os.makedirs("/srv/kept/folder")
open("/srv/kept/plain", "w").write("plain")
os.link("/srv/kept/plain", "/srv/kept/linked")
os.symlink("plain", "/srv/kept/symlink")
with open("/srv/kept/sparse", "wb") as sparse:
    sparse.truncate(64 << 20)
    sparse.seek(32 << 20)
    sparse.write(b"middle")
program = "/srv/kept/program"
open(program, "w").write("#!/bin/sh\\n")
os.chown(program, 1000, 33)
os.chmod(program, 0o6755)
os.setxattr(program, "user.note", b"noted")
# CAP_NET_BIND_SERVICE, as setcap writes it.
os.setxattr(program, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.utime(program, ns=(1, 1234567890123456789))
os.mkfifo("/srv/kept/fifo")
os.unlink("/etc/issue.net") if os.path.exists("/etc/issue.net") else os.unlink("/etc/issue")
"""
LOOK = """
import hashlib, os
for folder, folders, names in sorted(os.walk("/srv/kept")):
    for name in sorted(names + folders):
        path = os.path.join(folder, name)
        it = os.lstat(path)
        attributes = {key: os.getxattr(path, key).hex() for key in sorted(os.listxattr(path, follow_symlinks=False))} if name == "program" else {}
        print(path, oct(it.st_mode), it.st_uid, it.st_gid, it.st_size, it.st_blocks, it.st_nlink, it.st_mtime_ns, attributes)
print(os.path.exists("/etc/issue"), os.path.exists("/etc/issue.net"))
print(os.path.samefile("/srv/kept/plain", "/srv/kept/linked"), os.readlink("/srv/kept/symlink"))
print(hashlib.sha256(open("/srv/kept/sparse", "rb").read()).hexdigest())
"""


@pytest.fixture(scope="module")
def server():
    shutil.rmtree(STORE, ignore_errors=True)
    made = Server()
    try:
        yield made.start("--store", str(STORE), "--warm", "2")
    finally:
        made.end()
        shutil.rmtree(STORE, ignore_errors=True)


@pytest.fixture
def create(server):
    made = []

    def make(heap: int = 2) -> Sandbox:
        sandbox = Sandbox.create(timeout=300)
        made.append(sandbox)
        sandbox.files.write("/home/user/holder.py", HOLDER)
        sandbox.commands.run("python3 /home/user/holder.py", background=True, timeout=0, envs={"HEAP": str(heap)})
        until("it answers", lambda: state(sandbox), 30)
        return sandbox

    yield make
    for sandbox in made:
        sandbox.kill()


def state(sandbox: Sandbox, path: str = "/") -> list[str]:
    """Process, count, digest of the heap, and what the deleted file says."""
    return sandbox.commands.run(f"curl --silent --max-time 5 http://127.0.0.1:8000{path} || true").stdout.split(maxsplit=3)


def admin(*arguments: str):
    """What the command prints, or the error of one that failed."""
    done = run("admin", "snapshot", *arguments, "--json", "--data-dir", str(DATA))
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def snapshots_of(sandbox: Sandbox) -> list[dict]:
    mine = [snapshot for snapshot in admin("list") if snapshot["sandbox_id"] == sandbox.sandbox_id]
    return sorted(mine, key=lambda snapshot: snapshot["created_at"])


def chunks() -> set[Path]:
    return set((STORE / "chunks").glob("*/*"))


def largest(of: set[Path]) -> Path:
    return max(of, key=lambda path: path.stat().st_size)


def into_the_store(sandbox: Sandbox) -> str:
    """Paused, sealed, and not here any more; the name of the snapshot."""
    sandbox.pause()
    (snapshot,) = snapshots_of(sandbox)
    assert snapshot["local"] and not snapshot["sealed"] and snapshot["memory"]
    name = snapshot["snapshot_id"]
    assert admin("seal", name)["added_bytes"] > 0
    assert admin("drop-local", name) == {"snapshot_id": name, "local": False, "sealed": True}
    assert not (DATA / "pool/snapshots" / name).exists() and not (DATA / "memory/images" / name).exists()
    (snapshot,) = snapshots_of(sandbox)
    assert snapshot["sealed"] and not snapshot["local"]
    return name


def refused(sandbox: Sandbox) -> str:
    with pytest.raises(SandboxException) as error:
        Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert sandbox.get_info().state == SandboxState.PAUSED
    return str(error.value)


def test_a_pause_goes_on_from_the_store_alone(server, create):
    sandbox = create(heap=20)
    sandbox.commands.run(f"python3 - <<'END'\n{FILES}\nEND", user="root")
    look = f"python3 - <<'END'\n{LOOK}\nEND"
    files = sandbox.commands.run(look, user="root").stdout
    assert "security.capability" in files and "user.note" in files
    seen = []
    watching = sandbox.files.watch_dir("/home/user")
    pid, count, heap, deleted = state(sandbox)
    name = into_the_store(sandbox)
    server.kill()
    server.start("--store", str(STORE), "--warm", "2")
    assert sandbox.get_info().state == SandboxState.PAUSED
    again = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    now = state(again)
    assert (now[0], now[2], now[3]) == (pid, heap, deleted) and int(now[1]) > int(count)
    assert again.commands.run(look, user="root").stdout == files
    # The watcher in the daemon is one of the restored things too.
    again.files.write("/home/user/later", "later")
    until("the change is told", lambda: seen.extend(watching.get_new_events()) or any(event.name == "later" for event in seen))
    assert not [left for folder in ("pool", "memory") for left in (DATA / folder / "restores").glob("*")]
    # A pause of what came from the store is as good as any.
    again.pause()
    assert state(Sandbox.connect(sandbox.sandbox_id, timeout=300))[2] == heap
    until("no copy of it is left", lambda: name not in [copy["snapshot_id"] for copy in admin("list")])


def test_what_was_changed_in_the_store_is_refused(server, create):
    sandbox = create()
    heap, before = state(sandbox)[2], chunks()
    name = into_the_store(sandbox)
    chunk = largest(chunks() - before)
    whole = chunk.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    for wrong in (bytes(flipped), whole[:-1], b""):
        chunk.write_bytes(wrong)
        assert "was changed in the store" in refused(sandbox)
    chunk.unlink()
    assert "is missing in the store" in refused(sandbox)
    chunk.write_bytes(whole)

    artifact = STORE / "snapshots" / f"{name}.json"
    right = artifact.read_text()
    artifact.write_text(right.replace('"version', '"Version', 1).replace('\\"version', '\\"Version', 1))
    assert "mark" in refused(sandbox)
    seed = bytes.fromhex(json.loads((DATA / "secrets.json").read_text())["token_seed"])
    other = bytes(32)
    artifact.write_text(marked(other, b"soulbox sealed snapshot 1", json.loads(right)["manifest"]))
    assert "does not carry this installation's mark" in refused(sandbox)

    # Under the right key, but of another kernel.
    form = json.loads(json.loads(right)["manifest"])
    note = json.loads(form["note"])
    manifest = json.loads(json.loads(note["manifest"])["manifest"])
    manifest["memory"]["fingerprint"]["kernel"] = "5.0.0-other"
    note["manifest"] = marked(seed, b"soulbox snapshot manifest 1", json.dumps(manifest))
    form["note"] = json.dumps(note)
    artifact.write_text(marked(seed, b"soulbox sealed snapshot 1", json.dumps(form)))
    assert "the kernel was `5.0.0-other`" in refused(sandbox)
    assert not (DATA / "pool/snapshots" / name).exists()

    artifact.write_text(right)
    assert state(Sandbox.connect(sandbox.sandbox_id, timeout=300))[2] == heap


def marked(secret: bytes, purpose: bytes, text: str) -> str:
    key = hmac.digest(secret, purpose, "sha256")
    return json.dumps({"mark": hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), "manifest": text})


def test_a_second_seal_stores_what_changed_and_a_collection_what_is_needed(server, create):
    sandbox = create(heap=60)
    sandbox.files.write("/home/user/data", base64.b64encode(b"data" * 1000))
    made, sealed = [], []
    for path in ("/", "/touch"):
        heap = state(sandbox, path)[2]
        made.append((sandbox.create_snapshot(), heap))
        name = snapshots_of(sandbox)[-1]["snapshot_id"]
        sealed.append(admin("seal", name))
        admin("drop-local", name)
    first, second = sealed
    print(f"sealed {first}, then {second}")
    assert first["added_bytes"] > 60 << 20
    assert second["bytes"] > 60 << 20 and second["added_bytes"] < first["added_bytes"] / 5

    # Two at once of one that is not here.
    with ThreadPoolExecutor(2) as threads:
        children = list(threads.map(lambda _: Sandbox.create(made[0][0].snapshot_id, timeout=120), range(2)))
    assert [state(child)[2] for child in children] == [made[0][1]] * 2
    for child in children:
        child.kill()
    dry = admin("collect", "--dry-run")
    assert dry["kept_bytes"] > 60 << 20
    stored = sum(path.stat().st_size for path in chunks())
    assert dry["kept_bytes"] + dry["deleted_bytes"] == stored
    admin("collect")
    assert admin("collect", "--dry-run")["deleted_objects"] == 0
    Sandbox.delete_snapshot(made[0][0].snapshot_id)
    until("it is nowhere", lambda: len(snapshots_of(sandbox)) == 1)
    collected = admin("collect")
    assert 0 < collected["deleted_bytes"] < second["added_bytes"] * 2 + (8 << 20)
    child = Sandbox.create(made[1][0].snapshot_id, timeout=120)
    assert state(child)[2] == made[1][1]
    child.kill()
    Sandbox.delete_snapshot(made[1][0].snapshot_id)


def test_mistakes_are_told(server, create):
    assert "there is no snapshot `nothing`" in admin("seal", "nothing")
    assert "there is no snapshot `nothing`" in admin("drop-local", "nothing")
    assert "no name for" in admin("seal", "../x")
    sandbox = create()
    sandbox.pause()
    (snapshot,) = snapshots_of(sandbox)
    assert "is not sealed" in admin("drop-local", snapshot["snapshot_id"])
    before = chunks()
    admin("seal", snapshot["snapshot_id"])
    # What would be lost is not dropped.
    largest(chunks() - before).write_bytes(b"")
    assert "was changed in the store" in admin("drop-local", snapshot["snapshot_id"])
    assert admin("seal", snapshot["snapshot_id"])["added_objects"] == 1
    admin("drop-local", snapshot["snapshot_id"])
    sandbox.kill()
    until("it is nowhere", lambda: not snapshots_of(sandbox))


def test_without_a_store_nothing_is_sealed(server, create):
    sandbox = create()
    sandbox.pause()
    (snapshot,) = snapshots_of(sandbox)
    server.stop()
    server.start("--warm", "2")
    try:
        assert "`store` is not set" in admin("seal", snapshot["snapshot_id"])
        assert "--store DIR" in admin("collect")
        assert state(Sandbox.connect(sandbox.sandbox_id, timeout=300))
    finally:
        server.stop()
        server.start("--store", str(STORE), "--warm", "2")
