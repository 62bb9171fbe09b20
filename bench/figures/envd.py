"""The daemon inside: commands."""

import peer
from client import create, execute, kill
from table import Table, timed


def measure(table: Table) -> None:
    sandbox = create()
    try:
        for _ in range(20):
            execute(sandbox)
        executed = [timed(execute, sandbox)[0] for _ in range(table.samples(500))]
    finally:
        kill(sandbox)
    table.times("exec of true, over RPC", executed, p50=2)
    if table.root is None:
        table.missing("exec / runc exec", "no BENCH_ROOT")
        return
    inside = peer.exec_true(table.root, table.samples(30, 10))
    table.times("peer: runc exec true", inside)
    table.ratio("exec / runc exec", executed, inside, most=0.1)
