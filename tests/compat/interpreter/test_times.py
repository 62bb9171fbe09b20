"""Times and memory, with five times the figure where it is a time; `make bench` has the figures themselves."""

import json
import statistics
import time

from conftest import Port

INSIDE = """
import json, time, urllib.request
took = []
for _ in range(100):
    request = urllib.request.Request("http://127.0.0.1:49999/execute", b'{"code": "1+1"}', {"Content-Type": "application/json"})
    start = time.perf_counter()
    text = urllib.request.urlopen(request).read()
    took.append(time.perf_counter() - start)
    assert b'"text":"2"' in text, text
print(json.dumps(took))
"""

# Of the interpreter, the process that kernels are forked from, and both kernels; what they share counts once.
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


def timed(port, method, path, body=None) -> tuple[float, str]:
    start = time.monotonic()
    status, _, text = port.ask(method, path, body)
    assert status == 200, text
    return time.monotonic() - start, text


def test_ci_059_a_start_from_nothing(own):
    sandbox = own()
    port = Port(sandbox)
    timed(port, "GET", "/health")
    sandbox.commands.run("kill -9 $(pgrep -f lib/soulbox/[i]nterpreter)", user="root")
    assert timed(port, "GET", "/health")[0] < 1.0 * 5


def test_ci_060_contexts_come_and_go(port):
    made, restarted, removed = [], [], []
    for _ in range(5):
        took, text = timed(port, "POST", "/contexts", {})
        identifier = json.loads(text)["id"]
        made.append(took)
        restarted.append(timed(port, "POST", f"/contexts/{identifier}/restart")[0])
        removed.append(timed(port, "DELETE", f"/contexts/{identifier}")[0])
    assert statistics.median(made) < 0.2 * 5
    assert statistics.median(restarted) < 0.2 * 5
    assert statistics.median(removed) < 0.1 * 5


def test_ci_061_an_execution_asked_for_inside(sandbox):
    sandbox.files.write("/tmp/inside.py", INSIDE)
    took = json.loads(sandbox.commands.run("python3 /tmp/inside.py").stdout)
    assert statistics.median(took) < 0.01 * 5


def test_ci_062_idle_memory(own):
    sandbox = own()
    sandbox.run_code("1+1", language="js")
    kibibytes = int(sandbox.run_code(MEMORY).text)
    assert 20 << 10 < kibibytes < 180_000_000 >> 10, f"{kibibytes} KiB"
