"""What the operator sets and reads: limits by route, figures for Prometheus, lines of the log as JSON."""

import json
import re
import time
import urllib.error
import urllib.request

import pytest
from conftest import DATA, Server, free_port, run
from e2b import RateLimitException, Sandbox

LIMITS = {"POST /v2/sandboxes": {"rate": 1, "burst": 1, "period_s": 2}, "GET /v2/sandboxes": {"rate": 1, "burst": 1, "period_s": 3600}}


@pytest.fixture(scope="module")
def figures() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def server(figures):
    made = Server()
    try:
        made.log.unlink(missing_ok=True)
        yield made.start("--rate-limits", json.dumps(LIMITS), "--admin-listen", figures, "--log-format", "json")
    finally:
        made.end()


def get(url: str, **headers: str):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_the_package_waits_as_it_is_told(server):
    began = time.monotonic()
    made = [Sandbox.create("base", timeout=60) for _ in range(2)]
    took = time.monotonic() - began
    for sandbox in made:
        sandbox.kill()
    assert 1 < took < 20, "the second one waited for its turn, and came"


def test_without_patience_it_is_an_error(server):
    url = f"http://127.0.0.1:{server.port}/v2/sandboxes"
    key = {"X-API-Key": json.loads((DATA / "credentials.json").read_text())["api_key"]}
    status, headers, _ = get(url, **key)
    assert (status, headers["RateLimit-Limit"], headers["RateLimit-Remaining"]) == (200, "1", "0")
    status, headers, body = get(url, **key)
    assert (status, json.loads(body)) == (429, {"code": 429, "message": "Rate limit exceeded"})
    assert headers["Should-Retry"] == "true" and 3500 < int(headers["Retry-After"]) <= 3600
    with pytest.raises(RateLimitException):
        Sandbox.list().next_items()
    # Nobody's requests are nobody's limit.
    assert get(url)[0] == 401


def test_figures_are_told_on_their_own_listener(server, figures):
    key = {"X-API-Key": json.loads((DATA / "credentials.json").read_text())["api_key"]}
    assert get(f"http://127.0.0.1:{server.port}/templates", **key)[0] == 200
    status, headers, text = get(f"http://{figures}/metrics")
    assert status == 200 and headers["Content-Type"].startswith("application/openmetrics-text")
    value = lambda name: float(re.search(rf"(?m)^{re.escape(name)} ([0-9.e+]+)$", text)[1])
    assert value('soulbox_requests_total{method="GET",route="/templates",status="200"}') >= 1
    assert value('soulbox_node_memory_total_bytes') > 1e8
    assert value('soulbox_sandboxes{state="running"}') == 0
    assert text.endswith("# EOF\n")
    # The public listener tells them nobody.
    assert get(f"http://127.0.0.1:{server.port}/metrics", **key)[0] == 404


def test_a_request_is_found_in_the_log_by_the_id_that_its_client_has(server):
    key = json.loads((DATA / "credentials.json").read_text())["api_key"]
    status, headers, _ = get(f"http://127.0.0.1:{server.port}/sandboxes/i0000000000000000000a?token=hidden", **{"X-API-Key": key})
    assert status == 404
    # Agent and front write into one file, and every line of both is one object.
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {line["target"].split("::")[0] for line in lines} >= {"soulbox", "soulbox_api"}, lines
    assert all(line["level"] in ("INFO", "WARN", "ERROR") and line["fields"]["message"] for line in lines), lines
    (found,) = (line for line in lines if line["fields"].get("request_id") == headers["X-E2B-Trace-ID"])
    told = {name: found["fields"][name] for name in ("message", "method", "route", "status")}
    assert told == {"message": "request", "method": "GET", "route": "/sandboxes/{sandbox_id}", "status": 404}
    assert found["fields"]["took_ms"] >= 0
    text = server.log.read_text()
    assert key not in text and "hidden" not in text and "i0000000000000000000a" not in text


def test_mistakes_are_named(tmp_path):
    for flags, said in (
        (("--admin-listen", "0.0.0.0:9090"), "a loopback address"),
        (("--rate-limits", '{"GET /nowhere": {"rate": 1, "burst": 1}}'), "`GET /nowhere` is none"),
        (("--rate-limits", "5/s"), "JSON of routes"),
    ):
        done = run("serve", "--data-dir", str(tmp_path), *flags)
        assert done.returncode == 2 and said in done.stderr, done
