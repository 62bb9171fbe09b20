"""The code interpreter, and as its peer a real Jupyter kernel (ipykernel by jupyter_client) in the same sandbox.

Needs the template code-interpreter-slim; the row of the official package needs `.cache/venv-interpreter`.
"""

import json
import subprocess
import time
from pathlib import Path

from client import API, INGRESS, KEY, call, create, kill, to_port
from table import Table, timed

TEMPLATE = "code-interpreter-slim"
PACKAGE = Path(".cache/venv-interpreter/bin/python")

# Proportional: what kernels share with the process that they were forked from counts once.
MEMORY = """
import glob
total = 0
for path in glob.glob('/proc/[0-9]*'):
    try:
        command = open(path + '/cmdline').read()
        if 'soulbox/interpreter' in command or 'soulbox/kernels' in command:
            total += sum(int(line.split()[1]) for line in open(path + '/smaps_rollup') if line.startswith('Pss:'))
    except OSError:
        pass
total
"""

PEER = """
import json, sys, time
from jupyter_client.manager import start_new_kernel
starts, cells = [], []
for _ in range(int(sys.argv[1])):
    start = time.perf_counter()
    manager, client = start_new_kernel(kernel_name='python3')
    client.execute_interactive('1', output_hook=lambda message: None)
    starts.append((time.perf_counter() - start) * 1000)
    if not cells:
        for _ in range(int(sys.argv[2])):
            start = time.perf_counter()
            client.execute_interactive('1+1', output_hook=lambda message: None)
            cells.append((time.perf_counter() - start) * 1000)
    client.stop_channels()
    manager.shutdown_kernel(now=True)
print(json.dumps([starts, cells]))
"""

SDK = """
import json, sys, time
from e2b_code_interpreter import Sandbox
firsts, cells = [], []
for _ in range(int(sys.argv[1])):
    with Sandbox.create(sys.argv[3], timeout=300) as sandbox:
        start = time.perf_counter()
        assert sandbox.run_code('1+1').text == '2'
        firsts.append((time.perf_counter() - start) * 1000)
        if not cells:
            for _ in range(int(sys.argv[2])):
                start = time.perf_counter()
                sandbox.run_code('1+1')
                cells.append((time.perf_counter() - start) * 1000)
print(json.dumps([firsts, cells]))
"""


def ask(sandbox: dict, method: str, path: str, body: dict | None = None) -> bytes:
    headers = to_port(sandbox, 49999) | {"Content-Type": "application/json"}
    status, answer = call(INGRESS, method, path, None if body is None else json.dumps(body).encode(), headers)
    assert status == 200, (status, answer[:500])
    return answer


def run(sandbox: dict, code: str, **more) -> list[dict]:
    lines = [json.loads(line) for line in ask(sandbox, "POST", "/execute", {"code": code} | more).splitlines()]
    assert not any(line["type"] == "error" for line in lines), lines
    return lines


def result(lines: list[dict]) -> str:
    return next(line["text"] for line in lines if line["type"] == "result")


def has_snapshot() -> bool:
    """Whether a create goes on from the template's snapshot, which a server makes when it first sees the template."""
    for _ in range(30):
        sandbox = create(TEMPLATE)
        found = result(run(sandbox, "import os; os.path.exists('/run/soulbox/generation')"))
        kill(sandbox)
        if found == "True":
            return True
        time.sleep(1)
    return False


def beginnings(count: int) -> tuple[list[float], list[float], list[float]]:
    """A create; from its answer until the interpreter is healthy; and the first execution after that."""
    created, healthy, first = [], [], []
    for _ in range(count):
        took, sandbox = timed(create, TEMPLATE)
        created.append(took)
        healthy.append(timed(ask, sandbox, "GET", "/health")[0])
        first.append(timed(run, sandbox, "1+1")[0])
        kill(sandbox)
    return created, healthy, first


def contexts(sandbox: dict, count: int) -> tuple[list[float], list[float]]:
    made, restarted = [], []
    for _ in range(count):
        took, answer = timed(ask, sandbox, "POST", "/contexts", {})
        identifier = json.loads(answer)["id"]
        made.append(took)
        restarted.append(timed(ask, sandbox, "POST", f"/contexts/{identifier}/restart")[0])
        ask(sandbox, "DELETE", f"/contexts/{identifier}")
    return made, restarted


def measure(table: Table) -> None:
    status, body = call(API, "GET", "/templates", None, KEY)
    if status != 200 or TEMPLATE.encode() not in body:
        table.missing("code interpreter", f"the template {TEMPLATE} is not built")
        return
    if not has_snapshot():
        table.missing("interpreter: from a snapshot", "the server made none; what follows is without")
    created, healthy, first = beginnings(table.samples(20, 3))
    table.times("interpreter: create", created)
    table.times("interpreter: healthy after create", healthy)
    table.times("interpreter: first execution", first, p50=60)
    sandbox = create(TEMPLATE)
    run(sandbox, "1+1")
    time.sleep(1)
    table.value("interpreter: idle, with Python and Node", int(result(run(sandbox, MEMORY))) / 1024, "MiB", most=150)
    warm = [timed(run, sandbox, "1+1")[0] for _ in range(table.samples(1000, 100))]
    table.times("interpreter: 1+1", warm)
    made, restarted = contexts(sandbox, table.samples(50, 5))
    table.times("interpreter: new context", made, p50=60)
    table.times("interpreter: restart of a context", restarted)
    table.times("interpreter: 10 MB of stdout", [timed(run, sandbox, "print('x' * 10_000_000)")[0] for _ in range(table.samples(10, 3))])
    run(sandbox, "import numpy, pandas\nframe = pandas.DataFrame(numpy.random.rand(100_000, 5), columns=list('abcde'))")
    table.times("interpreter: table of 100,000 rows", [timed(run, sandbox, "frame")[0] for _ in range(table.samples(10, 3))])
    peer = f"import subprocess\nprint(subprocess.run(['python3', '-c', {PEER!r}, '{table.samples(10, 3)}', '{table.samples(300, 50)}'], capture_output=True, check=True).stdout.decode())"
    printed = "".join(line["text"] for line in run(sandbox, peer) if line["type"] == "stdout")
    starts, cells = json.loads(printed)
    table.times("peer: start of ipykernel, to its first cell", starts)
    table.times("peer: 1+1 by jupyter_client", cells)
    table.ratio("interpreter: new context / ipykernel", made, starts, most=0.1)
    kill(sandbox)
    if not PACKAGE.exists():
        table.missing("interpreter: 1+1, Python SDK", "scripts/setup.sh clients was not run")
        return
    arguments = [PACKAGE, "-c", SDK, str(table.samples(20, 3)), str(table.samples(1000, 100)), TEMPLATE]
    said = subprocess.run(arguments, capture_output=True, check=True, text=True).stdout
    firsts, cells = json.loads(said)
    table.times("interpreter: first run_code, Python SDK", firsts)
    table.times("interpreter: 1+1, Python SDK", cells, p50=10)
