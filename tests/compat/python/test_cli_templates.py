"""Templates by the official command line: made of a Dockerfile, listed, published, deleted, scaffolded and migrated."""

import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from conftest import api
from e2b import Sandbox
from test_cli import cli, home  # noqa: F401  fixtures

NOWHERE = {"E2B_API_URL": "http://127.0.0.1:1"}
ESBUILD = Path(".cache/clients/node_modules/.bin/esbuild").resolve()
PACKAGES = Path(".cache/node-latest/node_modules").resolve()


@pytest.fixture
def names():
    """Names of templates of this test alone, which are deleted after it."""
    made = []

    def make(prefix: str = "c") -> str:
        made.append(f"{prefix}-{uuid.uuid4().hex[:12]}")
        return made[-1]

    yield make
    for name in made:
        api("DELETE", f"/templates/{name}")


@pytest.fixture
def create(cli, tmp_path):  # noqa: F811
    """Builds a Dockerfile in a folder of this test alone."""

    def make(name: str, dockerfile: str, *arguments: str) -> subprocess.CompletedProcess:
        (tmp_path / "Dockerfile").write_text(dockerfile)
        return cli("template", "create", name, "-p", str(tmp_path), *arguments)

    return make


@pytest.fixture
def plain(create, names):
    """A template that is nothing but its base."""
    name = names()
    done = create(name, "FROM e2bdev/base\n")
    assert done.returncode == 0, done
    return name


def listed(name: str) -> dict:
    answer = api("GET", "/templates")
    assert answer.status == 200, answer.text
    return next((it for it in json.loads(answer.body) if name in it["aliases"]), {})


def test_cli_032_a_dockerfile_becomes_a_template(create, names, tmp_path):
    (tmp_path / "hello.txt").write_text("from the folder")
    name = names()
    done = create(name, "FROM debian:12\nRUN echo ran > /ran.txt\nCOPY hello.txt /srv/\n")
    assert done.returncode == 0, done
    with Sandbox.create(name, timeout=60) as sandbox:
        seen = sandbox.commands.run("cat /ran.txt /srv/hello.txt; id -un; pwd").stdout
        assert seen == "ran\nfrom the folderuser\n/home/user\n"


def test_cli_033_names(create, cli, names):  # noqa: F811
    name = names("lower")
    done = create(name.replace("lower", "LOWER"), "FROM e2bdev/base\n")
    assert done.returncode == 0, done
    assert listed(name)
    done = cli("template", "create", "bad name", env=NOWHERE)
    assert done.returncode == 1 and "name" in done.stdout + done.stderr, done
    assert "ECONNREFUSED" not in done.stdout + done.stderr


def test_cli_034_memory_is_an_even_number(create, names):
    name = names()
    done = create(name, "FROM e2bdev/base\n", "--memory-mb", "513")
    assert done.returncode == 1 and not listed(name), done
    answer = api("POST", "/v3/templates", json.dumps({"name": name, "memoryMB": 513}).encode())
    assert answer.status == 400 and "Memory must be divisible by 2" in answer.text


def test_cli_035_cpus(create, names):
    name = names()
    done = create(name, "FROM e2bdev/base\n", "--cpu-count", "3")
    assert done.returncode == 1 and "CPU count must be 1 or an even number" in done.stdout + done.stderr, done
    answer = api("POST", "/v3/templates", json.dumps({"name": name, "cpuCount": 33}).encode())
    assert answer.status == 400, answer.text
    for cpus in (1, 2, 4):
        answer = api("POST", "/v3/templates", json.dumps({"name": name, "cpuCount": cpus}).encode())
        assert answer.status == 202, answer.text


def test_cli_036_a_start_command_runs_in_a_new_sandbox(create, names):
    name = names()
    done = create(name, "FROM e2bdev/base\n", "-c", "sleep 1")
    assert done.returncode == 1 and not listed(name), done
    start = "python3 -m http.server 8321"
    done = create(name, "FROM e2bdev/base\n", "-c", start, "--ready-cmd", "ss -Htuln sport = :8321 | grep -q .")
    assert done.returncode == 0, done
    with Sandbox.create(name, timeout=60) as sandbox:
        answer = sandbox.commands.run("curl -s -o /dev/null -w '%{http_code}' localhost:8321/")
        assert answer.stdout == "200"


def test_cli_037_a_step_that_fails(create, names):
    done = create(names(), "FROM e2bdev/base\nRUN false\n")
    assert done.returncode == 1, done
    assert "failed to run command 'false': exit status 1" in done.stdout + done.stderr, done


def test_cli_038_more_than_one_stage(create, names):
    name = names()
    done = create(name, "FROM debian:12 AS one\nRUN true\nFROM debian:12\nCOPY --from=one /etc/hostname /x\n")
    assert done.returncode == 1, done
    assert listed(name).get("buildStatus") not in ("building", "waiting")


def test_cli_039_list(cli, plain):  # noqa: F811
    done = cli("template", "list")
    line = next(line for line in done.stdout.splitlines() if plain in line)
    fields = line.split()
    assert fields[0] == "Private" and fields[3:5] == ["2", "1024"], line
    done = cli("template", "list", "-f", "json")
    shown = next(it for it in json.loads(done.stdout) if plain in it["aliases"])
    assert shown["names"][0].endswith(f"/{plain}") and shown["buildStatus"] == "ready"


def test_cli_040_publish_and_unpublish(cli, plain):  # noqa: F811
    done = cli("template", "publish", plain, "-y")
    assert done.returncode == 0 and listed(plain)["public"] is True, done
    assert f"Published as: {listed(plain)['names'][0]}" in done.stdout, done
    done = cli("template", "unpublish", plain, "-y")
    assert done.returncode == 0 and listed(plain)["public"] is False, done


def test_cli_041_delete(cli, plain):  # noqa: F811
    with Sandbox.create(plain, timeout=60) as sandbox:
        for state in ("running", "paused"):
            done = cli("template", "delete", plain, "-y")
            assert done.returncode == 1 and listed(plain), (state, done)
            assert "sandbox" in (done.stdout + done.stderr).lower(), (state, done)
            if state == "running":
                sandbox.beta_pause() if hasattr(sandbox, "beta_pause") else sandbox.pause()
    done = cli("template", "delete", plain, "-y")
    assert done.returncode == 0 and not listed(plain), done


def test_cli_042_delete_nothing(cli, plain):  # noqa: F811
    assert cli("template", "delete").returncode == 0
    done = cli("template", "delete", plain)
    assert done.returncode == 1 and listed(plain), done


def test_cp_157_templates_from_create_to_delete(cli, create, names):  # noqa: F811
    name = names()
    assert create(name, "FROM e2bdev/base\nRUN echo made > /made\n").returncode == 0
    assert name in cli("template", "list").stdout
    assert cli("template", "publish", name, "-y").returncode == 0 and listed(name)["public"] is True
    made = cli("sandbox", "create", name, "-d", "--timeout", "60")
    assert made.returncode == 0, made
    sandbox = Sandbox.connect(made.stdout.strip())
    assert sandbox.files.read("/made") == "made\n"
    assert cli("sandbox", "kill", sandbox.sandbox_id).returncode == 0
    done = cli("template", "delete", name, "-y")
    assert done.returncode == 0, done
    assert name not in cli("template", "list").stdout


def test_cli_043_the_old_build_needs_no_server(cli, tmp_path):  # noqa: F811
    done = cli("template", "build", "-p", str(tmp_path), env=NOWHERE)
    assert done.returncode == 1 and "deprecated" in (done.stdout + done.stderr).lower(), done
    assert "ECONNREFUSED" not in done.stdout + done.stderr


def builds(folder: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
    )
    # The asynchronous package's transport aborts in one exit of twenty, after everything: nothing of the server's.
    aborted = done.returncode == -signal.SIGABRT and "Build finished" in done.stdout.splitlines()[-1]
    assert done.returncode == 0 or aborted, done


@pytest.mark.parametrize("language", ["typescript", "python-sync", "python-async"])
def test_cli_044_a_scaffold_builds(cli, names, tmp_path, language):  # noqa: F811
    name = names("init")
    done = cli("template", "init", "-n", name, "-l", language, cwd=tmp_path)
    assert done.returncode == 0, done
    folder = tmp_path / name
    if language == "typescript":
        # Without the types it is what every Node runs.
        assert ESBUILD.exists(), "run scripts/setup.sh clients"
        (folder / "node_modules").symlink_to(PACKAGES)
        bundle = ("--bundle", "--platform=node", "--format=esm", "--external:e2b", "--outfile=build.mjs")
        builds(folder, str(ESBUILD), "build.prod.ts", *bundle)
        builds(folder, "node", "build.mjs")
    else:
        builds(folder, sys.executable, "build_prod.py")
    assert listed(name)["buildStatus"] == "ready"


def test_cli_045_migrate_an_old_folder(cli, names, tmp_path):  # noqa: F811
    name = names("old")
    (tmp_path / "e2b.toml").write_text(f'id = "abc"\nname = "{name}"\ndockerfile = "e2b.Dockerfile"\ncpu_count = 1\nmemory_mb = 512\n')
    (tmp_path / "e2b.Dockerfile").write_text("FROM debian:12\nRUN echo kept > /kept\n")
    done = cli("template", "migrate", "-l", "python-sync", cwd=tmp_path)
    assert done.returncode == 0, done
    assert (tmp_path / "e2b.toml.old").exists() and (tmp_path / "e2b.Dockerfile.old").exists()
    builds(tmp_path, sys.executable, "build_prod.py")
    assert (listed(name)["cpuCount"], listed(name)["memoryMB"]) == (1, 512)
    with Sandbox.create(name, timeout=60) as sandbox:
        assert sandbox.commands.run("cat /kept").stdout == "kept\n"
