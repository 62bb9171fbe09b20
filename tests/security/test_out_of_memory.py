"""Memory that has run out: whoever owns the sandbox is told, and nobody else notices."""

import json
import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import exit_code
from e2b import Sandbox
from server import until

# SIGKILL, as a shell says it.
KILLED = 137
TAKE = "python3 -c 'x = bytearray(600 << 20); x[::4096] = bytes(len(x[::4096]))'; exit $?"

# Segments of System V live without a process. So what the kernel ends leaves memory behind that nothing can give back, to the last page.
HOARD = """
#include <string.h>
#include <sys/shm.h>
int main(void) {
    for (size_t size = 8 << 20;;) {
        int segment = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);
        char *at = segment < 0 ? (char *)-1 : shmat(segment, 0, 0);
        if (at == (char *)-1) { if (size > 1 << 16) size >>= 3; else return 1; continue; }
        for (size_t page = 0; page < size; page += 4096) at[page] = 1;
    }
}
"""


def ask(path: str) -> tuple[int, dict]:
    request = urllib.request.Request(os.environ["E2B_API_URL"] + path, headers={"X-API-Key": os.environ["E2B_API_KEY"]})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def said(sandbox: Sandbox, start: str) -> list[dict]:
    """The lines of its log that begin so."""
    status, answer = ask(f"/v2/sandboxes/{sandbox.sandbox_id}/logs?direction=forward")
    assert status == 200
    return [line for line in answer["logs"] if line["message"].startswith(start)]


def use_up(sandbox: Sandbox) -> None:
    """All of its memory, for good. Then whatever the daemon does is too much, and there is nobody else to end."""
    sandbox.files.write("/tmp/hoard.c", HOARD)
    sandbox.commands.run("gcc -O1 -static -o /tmp/hoard /tmp/hoard.c")
    for _ in range(3):
        attempt(lambda: sandbox.commands.run("exec /tmp/hoard", user="root", timeout=10, request_timeout=10))

    def over() -> bool:
        with ThreadPoolExecutor(32) as callers:
            work = lambda number: attempt(lambda: sandbox.files.write(f"/tmp/{number}", b"x" * (1 << 20), request_timeout=5))
            list(callers.map(work, range(32)))
        return not sandbox.is_running()

    until("it has ended", over, 60)


def attempt(work) -> None:
    try:
        work()
    except Exception:  # whatever the package makes of a daemon that fails, and then is gone
        pass


def test_programs_that_were_ended_for_it_are_in_the_log(own, neighbour):
    sandbox = own(memoryMB=256)
    assert exit_code(sandbox, TAKE) == KILLED
    # By somebody inside, which is no news.
    assert exit_code(neighbour, "sh -c 'kill -9 $$'; exit $?") == KILLED
    until("its log tells", lambda: said(sandbox, "out of memory"), 30)
    (line,) = said(sandbox, "out of memory")
    assert (line["level"], line["fields"]["memory_mb"]) == ("warn", "256") and int(line["fields"]["killed"]) >= 1
    assert sandbox.commands.run("echo answers").stdout == "answers\n"
    assert exit_code(sandbox, TAKE) == KILLED
    until("it tells again", lambda: len(said(sandbox, "out of memory")) == 2, 30)
    assert said(neighbour, "out of memory") == []


def test_a_sandbox_that_ends_of_it_says_so(own, neighbour):
    sandbox = own(memoryMB=256)
    use_up(sandbox)
    status, answer = ask(f"/sandboxes/{sandbox.sandbox_id}")
    assert status == 404 and answer["message"].endswith(": it ran out of memory (out_of_memory)"), answer
    (line,) = said(sandbox, "sandbox ended")
    assert (line["level"], line["fields"]["cause"]) == ("error", "out_of_memory")
    assert neighbour.commands.run("echo answers", timeout=10).stdout == "answers\n"


def test_another_end_is_not_called_so(own):
    """Root inside ends everything. Programs that were ended for want of memory a while before have nothing to do with it."""
    sandbox = own(memoryMB=256)
    assert exit_code(sandbox, TAKE) == KILLED
    until("it was counted", lambda: said(sandbox, "out of memory"), 30)
    # The host counts every five seconds, and twice before it forgets.
    with pytest.raises(Exception):
        sandbox.commands.run("sleep 12; kill -9 -1; sleep 60", user="root", timeout=30, request_timeout=30)
    until("it has ended", lambda: not sandbox.is_running(), 10)
    status, answer = ask(f"/sandboxes/{sandbox.sandbox_id}")
    assert status == 404 and answer["message"].endswith(": the daemon inside ended (agent_died)"), answer
    (line,) = said(sandbox, "sandbox ended")
    assert (line["level"], line["fields"]["cause"]) == ("error", "agent_died")
