"""A template whose layer was made by an enemy: what the server does with it as root touches nothing outside of the sandbox.

The layer is the base template's with its folders replaced by links and worse, put into the pool by hand.
"""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import exit_code, on_host
from e2b import Sandbox
from e2b.exceptions import SandboxException
from server import DATA, Server, run, until


def btrfs(*arguments: str) -> None:
    subprocess.run(["btrfs", *arguments], check=True, capture_output=True)


class Layer:
    """A copy of the base template's layer that may be changed, and then a template of its own."""

    def __init__(self) -> None:
        pool = DATA / "pool"
        manifest = json.loads((pool / "templates/base.json").read_text())
        self.name = "hostile-" + secrets.token_hex(4)
        digest = hashlib.sha256(self.name.encode()).hexdigest()
        of_base = pool / "layers" / manifest["layers"][-1]
        if not of_base.exists():
            of_base = next((pool / "layers").glob(f"*{manifest['layers'][-1].split(':')[-1]}*"))
        self.root = of_base.with_name(of_base.name.replace(manifest["layers"][-1].split(":")[-1], digest))
        btrfs("subvolume", "snapshot", str(of_base), str(self.root))
        layer = manifest["layers"][-1].replace(manifest["layers"][-1].split(":")[-1], digest)
        self.manifest = pool / "templates" / f"{self.name}.json"
        self.text = manifest | {
            "name": self.name,
            "template_id": secrets.token_hex(10),
            "build_id": f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}",
            "layers": [*manifest["layers"][:-1], layer],
        }

    def tree(self) -> Path:
        """Where its root lies: the subvolume itself or a folder of it."""
        return self.root if (self.root / "etc").exists() else next(path for path in self.root.iterdir() if (path / "etc").exists())

    def link(self, name: str, target: str | Path) -> None:
        path = self.tree() / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.exists() or path.is_symlink():
            path.unlink()
        path.symlink_to(target)

    def publish(self) -> str:
        btrfs("property", "set", "-ts", str(self.root), "ro", "true")
        self.manifest.write_text(json.dumps(self.text))
        return self.name

    def remove(self) -> None:
        self.manifest.unlink(missing_ok=True)
        btrfs("property", "set", "-ts", str(self.root), "ro", "false")
        btrfs("subvolume", "delete", str(self.root))


# --- the layers -----------------------------------------------------------------------------------------------

FOLDERS = ("dev", "dev/pts", "dev/shm", "proc", "sys", "etc", "run", "tmp", "usr/lib/soulbox")
CLIMBS = ("../" * 12, "/proc/1/root", "/proc/self/root/../../..")


def climbing(layer: Layer, canary: Path, up: str) -> None:
    layer.link("dev/shm", f"{up}{canary}")
    layer.link("etc/hosts", f"{up}{canary}/hosts")


def accounts(layer: Layer, _: Path) -> None:
    path = layer.tree() / "etc/passwd"
    path.unlink()
    os.mkfifo(path)


def privileges(layer: Layer, _: Path) -> None:
    programs = layer.tree() / "usr/bin"
    for name, owner in (("shell-of-root", 0), ("shell-of-another", 4242)):
        shutil.copy(programs / "dash", programs / name)
        os.chown(programs / name, owner, 0)
        os.chmod(programs / name, 0o6755)
    # Everything permitted and effective: VFS_CAP_REVISION_2 of linux/capability.h.
    shutil.copy(programs / "sleep", programs / "powerful")
    os.setxattr(programs / "powerful", "security.capability", bytes.fromhex("01000002" + "ffffffff" + "00000000" + "ff010000" + "00000000"))


def devices(layer: Layer, _: Path) -> None:
    """Past the check of the build."""
    os.mknod(layer.tree() / "dev/disk", 0o60666, os.makedev(7, 0))
    os.mknod(layer.tree() / "usr/memory", 0o20666, os.makedev(1, 1))


def nothing(layer: Layer, _: Path) -> None:
    for name in ("proc", "dev", "usr/lib/soulbox"):
        shutil.rmtree(layer.tree() / name)


LAYERS = (
    {f"link {name}": lambda layer, canary, name=name: layer.link(name, canary) for name in FOLDERS}
    | {f"climb {up}": lambda layer, canary, up=up: climbing(layer, canary, up) for up in CLIMBS}
    | {"accounts": accounts, "privileges": privileges, "devices": devices, "nothing": nothing}
)


@pytest.fixture(scope="module")
def canary_folder(tmp_path_factory):
    """A folder of the host's where links lead."""
    folder = tmp_path_factory.mktemp("of-the-host")
    for name in ("pts", "shm", "soulbox"):
        (folder / name).mkdir()
    for name in ("hostname", "hosts", "resolv.conf", "passwd", "null", "urandom"):
        (folder / name).write_text("of the host")
    return folder


@pytest.fixture
def canary(canary_folder):
    """It must stay as it is."""
    state = lambda: {path: path.lstat().st_mtime_ns for path in canary_folder.rglob("*")}
    before = state()
    yield canary_folder
    assert state() == before
    assert str(canary_folder) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture(scope="module")
def templates(canary_folder):
    """Case to template; all of them are there before the server starts, which looks for new ones only now and then."""
    made: list[Layer] = []
    # Mounts the pool, and leaves nothing that a server would not expect.
    first = Server()
    try:
        first.start("--warm", "0", "--parked", "0")
        found = {}
        for case, prepare in LAYERS.items():
            layer = Layer()
            made.append(layer)
            prepare(layer, canary_folder)
            found[case] = layer.publish()
        first.stop()
        first.start("--warm", "0", "--parked", "1")
        yield first, found
    finally:
        if not (DATA / "pool/templates").is_dir():
            first.start("--warm", "0", "--parked", "0")
        for layer in made:
            layer.remove()
        first.end()


@pytest.fixture
def server(templates):
    return templates[0]


@pytest.fixture
def named(templates):
    return templates[1]


def started(name: str) -> Sandbox | None:
    """The sandbox, or nothing where the create is refused with an error."""
    try:
        return Sandbox.create(name, timeout=60)
    except SandboxException as error:
        assert "404" not in str(error), "the control: the template is there"
        return None


def command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def works(server) -> None:
    """Another sandbox, of a template that is in order."""
    assert server.answers()
    with Sandbox.create("base", timeout=60) as fresh:
        assert fresh.commands.run("echo fresh").stdout == "fresh\n"


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_links(server, named, canary, name):
    """Mounts of proc, of devices and of our programs go to where these lead: inside, or nowhere."""
    sandbox = started(named[f"link {name}"])
    if sandbox:
        with sandbox:
            try:
                assert exit_code(sandbox, f"grep -q 'of the host' {canary}/hosts", user="root") != 0
                sandbox.files.write(f"/{name}/written", "x", user="root")
            except SandboxException:
                pass
    assert not (canary / "written").exists()
    works(server)


@pytest.mark.parametrize("up", CLIMBS)
def test_links_that_climb(server, named, canary, up):
    sandbox = started(named[f"climb {up}"])
    if sandbox:
        with sandbox:
            assert exit_code(sandbox, "grep -q 'of the host' /etc/hosts", user="root") != 0
    works(server)


def test_accounts_that_are_a_fifo(server, named):
    """envd reads them for every command: the create or the command fails, in time."""
    sandbox = started(named["accounts"])
    if sandbox:
        with sandbox, pytest.raises(Exception):
            sandbox.commands.run("true", timeout=10, request_timeout=10)
    works(server)


def test_programs_with_privilege_mean_nothing_outside(server, named):
    """Set-user-id for ids that the sandbox has, and file capabilities: of its own user namespace."""
    with Sandbox.create(named["privileges"], timeout=60) as sandbox:
        process = on_host(sandbox)
        base = int(process.read("uid_map").split()[1])
        said = sandbox.commands.run("shell-of-root -p -c 'id -u; grep CapEff /proc/self/status'").stdout.split()
        assert said[0] == "0"
        assert int(said[-1], 16) & ~int(process.status()["CapBnd"], 16) == 0
        assert sandbox.commands.run("shell-of-another -p -c 'id -u'").stdout == "4242\n"
        # More than the bounding set has cannot be had: refused, or without.
        code = exit_code(sandbox, "powerful 0")
        assert code in (0, 126, 1)
        seconds = str(10**6 + secrets.randbelow(10**6))
        sandbox.commands.run(f"shell-of-root -p -c 'exec sleep {seconds}'", background=True, timeout=0)
        owners = lambda: [path.stat().st_uid for path in Path("/proc").glob("[0-9]*") if command_of(path) == f"sleep\0{seconds}\0".encode()]
        until("it runs", lambda: owners() != [])
        assert owners() == [base]
    works(server)


def test_a_layer_that_brings_a_device_is_of_no_use(server, named):
    """The node is there; the devices cgroup refuses it."""
    with Sandbox.create(named["devices"], timeout=60) as sandbox:
        for path in ("/dev/disk", "/usr/memory"):
            assert exit_code(sandbox, f"test -e {path}", user="root") == 0, "the control"
            for how in ("head -c 1", "dd if=/dev/null count=1 of="):
                command = f"{how} {path}" if not how.endswith("=") else f"{how}{path}"
                assert exit_code(sandbox, f"{command} > /dev/null 2>&1", user="root") != 0, path
    works(server)


def test_a_root_without_anything(server, named):
    """Nothing to mount on: an error that names the folder, not a hang."""
    assert started(named["nothing"]) is None
    works(server)


def test_a_manifest_that_leads_elsewhere(server):
    """Names of layers are digests and no paths: such a manifest is none."""
    manifest = DATA / "pool/templates/elsewhere.json"
    base = json.loads((DATA / "pool/templates/base.json").read_text())
    try:
        for layer in ("../../../../etc", "/etc", "..", ""):
            manifest.write_text(json.dumps(base | {"name": "elsewhere", "template_id": secrets.token_hex(10), "layers": [layer]}))
            listed = run("template", "list", "--local", "--data-dir", str(DATA))
            assert "elsewhere" not in listed.stdout or listed.returncode != 0
    finally:
        manifest.unlink(missing_ok=True)
    works(server)
