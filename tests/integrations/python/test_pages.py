"""Programs of docs/integrations, run as they stand."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import PNG, ROOT, SINE, TEMPLATE, please, program

pytestmark = pytest.mark.usefixtures("nothing_left")
PAGES = ROOT / "docs/integrations"
EXAMPLES = {"langchain": "langchain_agent", "langgraph": "langgraph_agent", "autogen": "autogen_team"}
PROVIDERS = {
    "anthropic": "anthropic",
    "codestral": "mistral",
    "groq": "groq",
    "fireworks": "fireworks",
    "together": "together",
    "watsonx": "watsonx",
}


def run(fake, folder, page: str, *arguments: str) -> subprocess.CompletedProcess:
    path = folder / "program.py"
    path.write_text(program(PAGES / f"{page}.md", "Python"))
    # No key of this machine, and none but these.
    environment = {name: value for name, value in os.environ.items() if name.startswith("E2B_") or name == "PATH"} | {
        "PYTHONPATH": str(ROOT / "integrations/python/src"),
        "SOULBOX_TEMPLATE": TEMPLATE,
        "HOME": str(folder),
        "ANTHROPIC_API_KEY": "k",
        "ANTHROPIC_BASE_URL": f"{fake.http}/anthropic",
        "MISTRAL_API_KEY": "k",
        "MISTRAL_BASE_URL": f"{fake.http}/mistral",
        "GROQ_API_KEY": "k",
        "GROQ_BASE_URL": f"{fake.http}/groq",
        "FIREWORKS_API_KEY": "k",
        "FIREWORKS_BASE_URL": f"{fake.http}/fireworks/inference",
        "TOGETHER_API_KEY": "k",
        "TOGETHER_BASE_URL": f"{fake.http}/together",
        "WATSONX_URL": f"{fake.https}/watsonx",
        "WATSONX_APIKEY": "k",
        "WATSONX_USERNAME": "somebody",
        "WATSONX_VERSION": "5.2",
        "WATSONX_PROJECT_ID": "0d0e1b5c-77a1-4d5b-9d5d-2f6a0f6c2f11",
        "WX_CLIENT_VERIFY_REQUESTS": str(fake.ca),
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": f"{fake.http}/compatible/v1",
    }
    command = [sys.executable, path, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)


def ended_well(ended: subprocess.CompletedProcess) -> bool:
    """The official package's asynchronous transport may abort in an exit, after everything: nothing of this package or the server."""
    return ended.returncode == 0 or (ended.returncode == -signal.SIGABRT and "Traceback" not in ended.stderr)


@pytest.mark.parametrize("page", PROVIDERS)
def test_a_provider_as_it_stands(fake, tmp_path, page):
    ended = run(fake, tmp_path, page)
    assert ended_well(ended), ended
    assert "5050" in ended.stdout, "what the code printed and the model said"
    asked = fake.requests(PROVIDERS[page])
    assert len(asked) == 2 and all(one["violation"] is None for one in asked)


@pytest.mark.parametrize("page", ["anthropic", "codestral"])
def test_a_provider_draws(fake, tmp_path, page):
    ended = run(fake, tmp_path, page, please(SINE))
    assert ended_well(ended), ended
    assert (tmp_path / "chart-1.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("page", ["groq", "watsonx"])
def test_a_provider_that_refuses(fake, tmp_path, page):
    ended = run(fake, tmp_path, page, "[scenario: error-400]")
    assert ended.returncode == 1 and "400" in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


@pytest.mark.parametrize("page", ["langchain", "langgraph"])
def test_ci_089_an_agent_saves_a_chart(fake, tmp_path, page):
    ended = run(fake, tmp_path, page, please("print('drawing')\n" + SINE))
    assert ended_well(ended), ended
    assert (tmp_path / "chart-1.png").read_bytes().startswith(PNG)
    assert "drawing" in ended.stdout
    asked = fake.requests("compatible")
    assert len(asked) == 2 and all(one["violation"] is None for one in asked), asked
    names = {tool["function"]["name"] for tool in asked[0]["body"]["tools"]}
    assert names == {"run_code", "run_command", "read_file", "write_file", "list_files"}


@pytest.mark.parametrize("page", EXAMPLES)
def test_an_example_as_it_stands(fake, tmp_path, page):
    assert program(PAGES / f"{page}.md", "Python") == (ROOT / f"examples/{EXAMPLES[page]}.py").read_text()
    ended = run(fake, tmp_path, page)
    assert ended_well(ended), ended
    assert "5050" in ended.stdout
