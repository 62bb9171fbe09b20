"""The server under test and the programs: what the suites of `soulbox agent` and `soulbox mcp` have in common.

E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL name the server, SOULBOX_BINARY and SOULBOX_FAKE_PROVIDER the programs,
INTERPRETER_TEMPLATE the template; tests/integrations/run.sh sets them.
"""

import json
import os
import urllib.request
from pathlib import Path

BINARY = str(Path(os.environ.get("SOULBOX_BINARY", "target/ci/soulbox")).resolve())
TEMPLATE = os.environ.get("INTERPRETER_TEMPLATE", "code-interpreter-slim")


def environment() -> dict[str, str]:
    """What a program of ours needs of this one's."""
    kept = ("PATH", "HOME", "E2B_", "LANG", "RUST_")
    return {name: value for name, value in os.environ.items() if name.startswith(kept)}


def ask(url: str, method: str = "GET", body: dict | None = None, headers: dict[str, str] | None = None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers or {}, method=method)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def api(method: str, path: str):
    return ask(os.environ["E2B_API_URL"] + path, method, headers={"X-API-Key": os.environ["E2B_API_KEY"]})


def sandboxes(kind: str) -> list[str]:
    """Those that run and whose metadata have this key."""
    return [one["sandboxID"] for one in api("GET", "/sandboxes") if kind in one.get("metadata", {})]


def kill(sandbox: str) -> None:
    api("DELETE", f"/sandboxes/{sandbox}")


def end_all(kind: str) -> None:
    """Fails where a test has left one behind."""
    left = sandboxes(kind)
    for sandbox in left:
        kill(sandbox)
    assert left == []
