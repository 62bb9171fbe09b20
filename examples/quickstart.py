"""A tour of a sandbox with the official Python package: pip install e2b, then eval "$(soulbox env)"."""

import os
import time
import urllib.error
import urllib.request

from e2b import Sandbox

started = last = time.perf_counter()


def step(what: str) -> None:
    global last
    now = time.perf_counter()
    print(f"{(now - last) * 1000:8.1f} ms  {what}", flush=True)
    last = now


def fetch(sandbox: Sandbox, port: int) -> str:
    """Asks a server in the sandbox: by its own host name, or through the one URL that serves all sandboxes."""
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    url = os.environ.get("E2B_SANDBOX_URL") or f"https://{sandbox.get_host(port)}"
    for _ in range(50):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:  # 502 until the server in there listens
            if error.code != 502:
                raise
            time.sleep(0.05)
    raise SystemExit(f"nothing answered on port {port}")


with Sandbox.create(timeout=120) as sandbox:
    step(f"created {sandbox.sandbox_id}")

    result = sandbox.commands.run("python3 -c 'print(sum(range(1_000_001)))'")
    assert result.stdout == "500000500000\n", result
    step(f"ran a Python program: {result.stdout.strip()}")

    lines: list[str] = []
    sandbox.commands.run("for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done", on_stdout=lines.append)
    assert "".join(lines) == "".join(f"line {i}\n" for i in range(1, 6)), lines
    step(f"streamed a long command in {len(lines)} pieces")

    sandbox.files.write("/home/user/hello.txt", "hello, sandbox\n")
    assert sandbox.files.read("/home/user/hello.txt") == "hello, sandbox\n"
    step("wrote a file and read it back")

    step("listed /home/user: " + ", ".join(sorted(entry.name for entry in sandbox.files.list("/home/user"))))

    server = sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True)
    assert "hello.txt" in fetch(sandbox, 8000)
    step("served HTTP inside and fetched it from outside")
    assert server.kill()

step("killed")
print(f"{(time.perf_counter() - started) * 1000:8.1f} ms  in all")
