"""Measures a running server and prints a table; one file a subject, each with `measure(table)`.

Environment: E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL of the server; BENCH_ROOT, the root file system that runc is
to run as the peer (left out: no ratios); BENCH_AGENT, the pid of the server, and BENCH_WARM, its number of warm slots; BENCH_BINARY,
the path of soulbox, and BENCH_RECORDS, that of soulbox-bench.
"""

import argparse
import importlib
import os

from table import Table

SUBJECTS = ("lifecycle", "envd", "ingress", "isolation", "interpreter", "agents", "control", "records", "templates", "pause")

arguments = argparse.ArgumentParser(prog="figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"which of {', '.join(SUBJECTS)} [default: all]")
arguments.add_argument("--json", metavar="PATH", help="write the figures as well")
arguments.add_argument("--quick", action="store_true", help="a tenth of the samples, for trying it out")
chosen = arguments.parse_args()
unknown = set(chosen.subjects) - set(SUBJECTS)
if unknown:
    arguments.error(f"there is no subject {', '.join(sorted(unknown))}")
table = Table(scale=10 if chosen.quick else 1, root=os.environ.get("BENCH_ROOT"))
for subject in chosen.subjects or SUBJECTS:
    importlib.import_module(subject).measure(table)
if chosen.json:
    table.save(chosen.json)
