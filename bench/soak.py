"""Creates a sandbox, runs a command, kills it, from four threads for SOAK_SECONDS; prints the rate."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from e2b import Sandbox

end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "60"))


def work(_: int) -> int:
    done = 0
    while time.monotonic() < end:
        with Sandbox.create("base", timeout=60) as sandbox:
            assert sandbox.commands.run("echo alive").stdout == "alive\n"
        done += 1
    return done


with ThreadPoolExecutor(4) as pool:
    started = time.monotonic()
    done = sum(pool.map(work, range(4)))
print(f"{done} sandboxes, {done / (time.monotonic() - started):.1f} a second, no failure")
