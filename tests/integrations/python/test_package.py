"""The package as it is handed out: its checkers are silent, and its wheel serves an environment that has nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE

PACKAGE = ROOT / "integrations/python"
PYRIGHT = ROOT / ".cache/node-pyright/node_modules/.bin/pyright"
OURS = [PACKAGE, ROOT / "tests/integrations/python", *sorted((ROOT / "examples").glob("*_agent.py")), ROOT / "examples/autogen_team.py"]


def run(*command, **more) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, **more)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def ruff(*arguments) -> str:
    return run(sys.executable, "-m", "ruff", *arguments, "--no-cache", "--config", PACKAGE / "pyproject.toml", *OURS)


def test_the_linter_is_silent():
    ruff("check")
    ruff("format", "--check")


def test_the_type_checker_is_silent():
    assert "0 errors, 0 warnings" in run(PYRIGHT, "--pythonpath", sys.executable, cwd=PACKAGE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PACKAGE)
    (found,) = folder.glob("*.whl")
    assert len(list(folder.glob("*.tar.gz"))) == 1
    return found


def test_the_wheel_has_what_it_should(wheel):
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
        (metadata,) = (files.read(name).decode() for name in files.namelist() if name.endswith("METADATA"))
    sources = {str(path.relative_to(PACKAGE / "src")) for path in (PACKAGE / "src").rglob("*") if path.suffix in (".py", ".typed")}
    assert names == sources and "soulbox_agents/py.typed" in names
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert len(needed) == 1 and needed[0].startswith("Requires-Dist: e2b-code-interpreter"), "no provider's client is needed"


def test_it_installs_into_a_clean_environment_and_works(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    code = f"""
import importlib.util
from e2b_code_interpreter import Sandbox
from soulbox_agents import Toolbox
assert importlib.util.find_spec("anthropic") is None and importlib.util.find_spec("openai") is None
with Sandbox.create({TEMPLATE!r}, timeout=60) as sandbox:
    print(Toolbox(sandbox).execute({{"id": "1", "function": {{"name": "run_code", "arguments": '{{"code": "6 * 7"}}'}}}})["content"])
"""
    environment = {name: value for name, value in os.environ.items() if name.startswith("E2B_") or name == "PATH"}
    assert run(python, "-c", code, env=environment, cwd=tmp_path) == "42\n"
