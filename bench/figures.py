"""Measures a running server and prints a table; --json PATH writes the figures as well.

Environment: E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL of the server; BENCH_ROOT, the root file system that runc is
to run as the peer (left out: no ratios). Budgets are those of docs/ARCHITECTURE.md's design; a missed one is marked, not hidden.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

API, INGRESS = urlsplit(os.environ["E2B_API_URL"]), urlsplit(os.environ["E2B_SANDBOX_URL"])
KEY = {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}
local = threading.local()


def call(base, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
    """One request over this thread's kept-alive connection."""
    name = f"{base.netloc}"
    connections = local.__dict__.setdefault("connections", {})
    connection = connections.get(name)
    if connection is None:
        connection = connections[name] = http.client.HTTPConnection(base.hostname, base.port, timeout=60)
        connection.connect()
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def create(template: str = "base") -> dict:
    status, body = call(API, "POST", "/v2/sandboxes", json.dumps({"templateID": template, "timeout": 600}).encode(), KEY)
    assert status == 201, (status, body)
    return json.loads(body)


def kill(sandbox: dict) -> None:
    status, body = call(API, "DELETE", f"/sandboxes/{sandbox['sandboxID']}", None, KEY)
    assert status == 204, (status, body)


def execute(sandbox: dict, program: str = "/bin/true") -> None:
    """Start over the Connect protocol, read to the end of the stream."""
    message = json.dumps({"process": {"cmd": program, "args": []}}).encode()
    headers = {
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
        "X-Access-Token": sandbox["envdAccessToken"],
        "E2b-Sandbox-Id": sandbox["sandboxID"],
        "E2b-Sandbox-Port": "49983",
    }
    body = struct.pack("!BI", 0, len(message)) + message
    status, answer = call(INGRESS, "POST", "/process.Process/Start", body, headers)
    assert status == 200 and b'"end"' in answer, (status, answer)


def timed(function, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*arguments)
    return (time.perf_counter() - start) * 1000, result


def at(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def summary(values: list[float]) -> dict[str, float]:
    return {"p50": at(values, 50), "p95": at(values, 95), "p99": at(values, 99), "n": len(values)}


def creates(count: int, pause: float) -> tuple[list[float], list[float]]:
    created, killed = [], []
    for _ in range(count):
        took, sandbox = timed(create)
        created.append(took)
        killed.append(timed(kill, sandbox)[0])
        time.sleep(pause)
    return created, killed


def burst(count: int) -> list[float]:
    """That many creates at once, each timed from the common start to a finished command."""
    barrier = threading.Barrier(count)

    def one(_) -> tuple[float, dict]:
        call(API, "GET", "/health", None, {})
        barrier.wait()
        return timed(create)

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(one, range(count)))
        for _, sandbox in results:
            execute(sandbox)
        list(pool.map(lambda result: kill(result[1]), results))
    return [took for took, _ in results]


def python_sdk(count: int) -> list[float]:
    from e2b import Sandbox

    def first_command() -> Sandbox:
        sandbox = Sandbox.create("base", timeout=120)
        sandbox.commands.run("true")
        return sandbox

    times = []
    for _ in range(count):
        took, sandbox = timed(first_command)
        times.append(took)
        sandbox.kill()
    return times


def used_memory() -> float:
    """MiB that are neither free nor cache."""
    fields = {line.split(":")[0]: int(line.split()[1]) for line in open("/proc/meminfo")}
    return (fields["MemTotal"] - sum(fields[k] for k in ("MemFree", "Buffers", "Cached", "SReclaimable"))) / 1024


def idle_memory(count: int) -> float:
    first = create()
    time.sleep(3)
    before = used_memory()
    more = [create() for _ in range(count)]
    time.sleep(3)
    each = (used_memory() - before) / count
    for sandbox in [first, *more]:
        kill(sandbox)
    return each


def runc(root: str, count: int) -> tuple[list[float], list[float]]:
    """`runc run` and `runc exec` of true on the same root file system."""
    bundle = tempfile.mkdtemp(prefix="soulbox-bench-")
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    try:
        subprocess.run(["runc", "spec"], cwd=bundle, **quiet)
        path = os.path.join(bundle, "config.json")
        config = json.load(open(path))
        config["root"] = {"path": root, "readonly": True}
        config["process"] |= {"terminal": False, "args": ["/bin/true"]}
        json.dump(config, open(path, "w"))
        name = f"soulbox-bench-{os.getpid()}"
        run = [timed(lambda: subprocess.run(["runc", "run", "-b", bundle, name], **quiet))[0] for _ in range(count)]
        config["process"]["args"] = ["/bin/sleep", "600"]
        json.dump(config, open(path, "w"))
        subprocess.run(["runc", "run", "-d", "-b", bundle, name], **quiet)
        try:
            inside = [timed(lambda: subprocess.run(["runc", "exec", name, "/bin/true"], **quiet))[0] for _ in range(count)]
        finally:
            subprocess.run(["runc", "delete", "--force", name], **quiet)
        return run, inside
    finally:
        shutil.rmtree(bundle)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", metavar="PATH")
    arguments.add_argument("--quick", action="store_true", help="a tenth of the samples, for trying it out")
    chosen = arguments.parse_args()
    scale = 10 if chosen.quick else 1
    figures: dict[str, dict] = {}

    def show(name: str, values: list[float], p50: float | None = None, p95: float | None = None, p99: float | None = None):
        figures[name] = summary(values) | {"budget": {"p50": p50, "p95": p95, "p99": p99}}
        cells = []
        for key, budget in (("p50", p50), ("p95", p95), ("p99", p99)):
            missed = "!" if budget and figures[name][key] > budget else " "
            cells.append(f"{figures[name][key]:9.2f}{missed}{f'({budget:g})' if budget else '':7}")
        print(f"{name:44} {''.join(cells)} n={len(values)}", flush=True)

    print(f"{'milliseconds (budget, ! missed)':44} {'p50':>9}{'':8}{'p95':>9}{'':8}{'p99':>9}")
    creates(20, 0)  # the first ones warm caches of both sides
    back_to_back, killed = creates(300 // scale, 0)
    show("create, one at a time, back to back", back_to_back, p50=3, p99=10)
    paused, _ = creates(100 // scale, 0.1)
    show("create, one at a time, 100 ms between", paused, p50=3, p99=10)
    show("kill, to 204", killed, p50=3)
    for count in (20, 50):
        time.sleep(3)  # slots are made ready again
        bursts = [took for _ in range(max(1, 5 // scale)) for took in (time.sleep(2), burst(count))[1]]
        show(f"create, {count} at once", bursts, p95=60 if count == 50 else None)
    show("create to first command, Python SDK", python_sdk(100 // scale), p50=14)
    sandbox = create()
    for _ in range(20):
        execute(sandbox)
    executed = [timed(execute, sandbox)[0] for _ in range(500 // scale)]
    show("exec of true, over RPC", executed, p50=2)
    kill(sandbox)

    each = idle_memory(100 // scale)
    figures["idle memory of a sandbox"] = {"MiB": each, "budget": {"MiB": 2}}
    print(f"{'idle sandbox, memory of the host':44} {each:9.2f}{'!' if each > 2 else ' '}(2)  MiB")

    root = os.environ.get("BENCH_ROOT")
    if root:
        run, inside = runc(root, 30 // min(scale, 3))
        show("peer: runc run true", run)
        show("peer: runc exec true", inside)
        for name, ours, theirs, budget in (
            ("create / runc run", back_to_back, run, 0.15),
            ("exec / runc exec", executed, inside, 0.1),
        ):
            ratio = statistics.median(ours) / statistics.median(theirs)
            figures[name] = {"ratio": ratio, "budget": {"ratio": budget}}
            print(f"{name:44} {ratio:9.3f}{'!' if ratio > budget else ' '}({budget})")
    if chosen.json:
        with open(chosen.json, "w") as file:
            json.dump(figures, file, indent=2)


main()
