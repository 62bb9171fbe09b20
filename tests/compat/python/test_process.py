"""Programs as the daemon runs them: ends, tags, followers, input, keepalives, surroundings. Past what SDKs ask for."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import TEMPLATE
from e2b import (
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    SandboxException,
    TimeoutException,
)
from generation import newer
from wire import Wire, encoded, envelope, until

CONNECT, LIST, SIGNAL = "process.Process/Connect", "process.Process/List", "process.Process/SendSignal"
INPUT, CLOSE, UPDATE = "process.Process/SendInput", "process.Process/CloseStdin", "process.Process/Update"
TERM, KILL = "SIGNAL_SIGTERM", "SIGNAL_SIGKILL"
MISSING = {"pid": 999_999}


@pytest.fixture(scope="module")
def wire(sandbox):
    return Wire.to(sandbox)


def listed(wire: Wire, pid: int) -> bool:
    return any(process["pid"] == pid for process in wire.ok(LIST, {}).get("processes", []))


def test_envd_041_a_missing_program_is_127(wire):
    stream = wire.start("no-such-program")
    assert stream.pid() > 0
    outcome = stream.outcome()
    assert outcome.end["exitCode"] == 127 and b"no-such-program" in outcome.stderr


def test_envd_042_a_file_that_is_no_program_is_126(wire):
    assert wire.start("/etc/passwd").outcome().end["exitCode"] == 126


def test_envd_050_a_directory_that_the_user_may_not_enter(wire, sandbox):
    sandbox.commands.run("mkdir -p -m 700 /srv/closed", user="root")
    stream = wire.start("pwd", cwd="/srv/closed")
    assert stream.next() is None and stream.end["error"]["code"] == "invalid_argument"
    with pytest.raises(SandboxException):
        sandbox.commands.run("pwd", cwd="/srv/closed")
    assert sandbox.commands.run("pwd", cwd="/srv/closed", user="root").stdout == "/srv/closed\n"


def test_envd_051_the_home_of_somebody_else(sandbox):
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.run("pwd", cwd="~root")


def test_envd_054_nothing_of_the_daemon_leaks(wire):
    names = {line.split(b"=")[0] for line in wire.start("/usr/bin/env").outcome().stdout.splitlines()}
    expected = {b"PATH", b"HOME", b"USER", b"LOGNAME", b"E2B_SANDBOX", b"E2B_SANDBOX_ID", b"E2B_TEMPLATE_ID"}
    assert names == expected


def test_envd_062_what_nobody_hears_is_dropped(sandbox):
    handle = sandbox.commands.run("sleep 0.5; seq 300000; touch /tmp/passed; sleep 2; echo tail", background=True)
    handle.disconnect()
    # More than any pipe holds, so it would block if anything waited for a listener.
    until("the program gets on", lambda: sandbox.files.exists("/tmp/passed"))
    assert sandbox.commands.connect(handle.pid).wait().stdout == "tail\n"


def test_envd_064_a_listener_that_stalls_and_leaves(wire):
    stalled = wire.run("read line; head -c 50000000 /dev/zero; echo end >&2", stdin=True)
    pid = stalled.pid()
    other = wire.stream(CONNECT, {"process": {"pid": pid}})
    assert other.pid() == pid
    wire.ok(INPUT, {"process": {"pid": pid}, "input": {"stdin": encoded("\n")}})
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(other.outcome)
        time.sleep(1)
        assert not heard.done(), "it would have been lost to the one that stalls"
        stalled.close()
        outcome = heard.result(30)
    assert (len(outcome.stdout), outcome.stderr) == (50_000_000, b"end\n")


def test_envd_065_the_end_is_kept_for_a_while(wire, sandbox):
    handle = sandbox.commands.run("exit 7", background=True)
    until("it ends", lambda: not listed(wire, handle.pid))
    late = wire.stream(CONNECT, {"process": {"pid": handle.pid}})
    assert late.pid() == handle.pid
    assert late.outcome().end["exitCode"] == 7
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999_999)


def test_envd_066_a_followers_time_is_not_the_programs(sandbox, wire):
    handle = sandbox.commands.run("exec sleep 60", background=True)
    with pytest.raises(TimeoutException):
        sandbox.commands.connect(handle.pid, timeout=1).wait()
    assert listed(wire, handle.pid)
    assert handle.kill()


def test_envd_069_killed_before_it_is_done(sandbox):
    handle = sandbox.commands.run("sleep 30 && echo done", background=True)
    began = time.monotonic()
    assert handle.kill()
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.error == "signal: killed" and time.monotonic() - began < 10
    until("it is in no list", lambda: all(p.pid != handle.pid for p in sandbox.commands.list()))


def test_envd_070_signals(wire):
    stream = wire.run("exec sleep 60")
    pid = stream.pid()
    assert wire.refused(SIGNAL, {"process": {"pid": pid}}) == "unimplemented"
    wire.ok(SIGNAL, {"process": {"pid": pid}, "signal": TERM})
    end = stream.outcome().end
    assert (end["status"], end["exitCode"], end.get("exited", False)) == ("signal: terminated", -1, False)
    assert wire.refused(SIGNAL, {"process": MISSING, "signal": KILL}) == "not_found"


def test_envd_072_closing_twice(wire, sandbox):
    handle = sandbox.commands.run("cat; sleep 1", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "text")
    for _ in range(2):
        sandbox.commands.close_stdin(handle.pid)
    result = handle.wait()
    assert (result.stdout, result.exit_code) == ("text", 0)


def test_envd_074_stdin_is_open_unless_refused(wire):
    stream = wire.start("cat")
    pid = stream.pid()
    wire.ok(INPUT, {"process": {"pid": pid}, "input": {"stdin": encoded("kept open")}})
    wire.ok(CLOSE, {"process": {"pid": pid}})
    assert stream.outcome().stdout == b"kept open"


def test_envd_075_stdin_that_was_refused(sandbox):
    handle = sandbox.commands.run("exec sleep 60", background=True)
    with pytest.raises(SandboxException, match="stdin not enabled or closed"):
        sandbox.commands.send_stdin(handle.pid, "text")
    assert handle.kill()


def test_envd_077_input_as_a_stream(wire):
    stream = wire.start("cat", stdin=True)
    selector = {"pid": stream.pid()}
    data = [envelope({"data": {"input": {"stdin": encoded(f"{n},")}}}) for n in range(3)]
    sent = wire.stream(
        "process.Process/StreamInput",
        None,
        content=iter([envelope({"start": {"process": selector}}), *data]),
    )
    assert sent.next() == {} and sent.next() is None and sent.end == {}
    # The end of that stream is not the end of the input.
    wire.ok(INPUT, {"process": selector, "input": {"stdin": encoded("more")}})
    wire.ok(CLOSE, {"process": selector})
    assert stream.outcome().stdout == b"0,1,2,more"


@newer("stream_input")
def test_sdk_08_the_packages_input_stream(sandbox, wire):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, iter(["a", "b", b"c"]))
    assert listed(wire, handle.pid), "still open"
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "abc"
    with pytest.raises(NotFoundException):
        sandbox.commands.stream_input(999_999, iter(["a"]))


def test_envd_078_silence_is_kept_alive(wire):
    outcome = wire.run("sleep 3.5", headers={"Keepalive-Ping-Interval": "1"}).outcome()
    assert outcome.keepalives == 3
    for interval in ("0", "-1", "never"):
        assert wire.run("sleep 0.2", headers={"Keepalive-Ping-Interval": interval}).outcome().keepalives == 0


def test_envd_079_a_child_that_holds_the_output(sandbox):
    began = time.monotonic()
    assert sandbox.commands.run("(sleep 2; echo child) & echo parent").stdout == "parent\nchild\n"
    assert time.monotonic() - began > 1.8
    began = time.monotonic()
    assert sandbox.commands.run("sleep 20 > /dev/null 2>&1 & echo parent").stdout == "parent\n"
    assert time.monotonic() - began < 5


def test_envd_080_an_orphan_does_not_delay_the_end(sandbox):
    handle = sandbox.commands.run("sleep 40 & sleep 40", background=True)
    began = time.monotonic()
    assert handle.kill()
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.error == "signal: killed"
    assert time.monotonic() - began < 5


def test_envd_081_commands_die_first_and_are_nice_to_none(sandbox):
    facts = sandbox.commands.run("cat /proc/self/oom_score_adj; nice; ionice").stdout.split("\n")
    assert facts[:3] == ["100", "0", "best-effort: prio 4"] or facts[:3] == ["100", "0", "none: prio 4"], facts


def test_envd_083_a_sandbox_without_nice(own):
    sandbox = own()
    sandbox.commands.run("rm -f /usr/bin/nice /usr/bin/ionice", user="root")
    assert sandbox.commands.run("echo runs").stdout == "runs\n"


def test_envd_086_a_terminal_is_found_again(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    terminal.disconnect()
    again = sandbox.pty.connect(terminal.pid)
    assert again.pid == terminal.pid
    sandbox.pty.send_stdin(terminal.pid, b"echo $((40 + 2)); exit\n")
    shown: list[bytes] = []
    again.wait(on_pty=shown.append)
    assert b"42" in b"".join(shown)


def test_envd_088_pipes_and_terminals_are_not_mixed_up(wire, sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    pipe = wire.start("cat", stdin=True)
    pid = pipe.pid()
    assert wire.refused(INPUT, {"process": {"pid": terminal.pid}, "input": {"stdin": "YQ=="}}) == "internal"
    assert wire.refused(INPUT, {"process": {"pid": pid}, "input": {"pty": "YQ=="}}) == "internal"
    answer = wire.call(CLOSE, {"process": {"pid": terminal.pid}})
    assert answer.status_code == 500 and "Ctrl+D" in answer.json()["message"]
    assert sandbox.pty.kill(terminal.pid)
    wire.ok(SIGNAL, {"process": {"pid": pid}, "signal": KILL})


def test_envd_089_the_size_of_no_terminal(wire):
    stream = wire.run("exec sleep 60")
    pid = stream.pid()
    size = {"size": {"cols": 80, "rows": 24}}
    assert wire.refused(UPDATE, {"process": {"pid": pid}, "pty": size}) == "internal"
    wire.ok(UPDATE, {"process": {"pid": pid}})
    wire.ok(SIGNAL, {"process": {"pid": pid}, "signal": KILL})


def test_envd_090_tags_among_tags(wire):
    streams = {tag: wire.run("exec sleep 60", tag=tag) for tag in ("one", "two", "three")}
    pids = {tag: stream.pid() for tag, stream in streams.items()}
    for tag, pid in pids.items():
        assert wire.stream(CONNECT, {"process": {"tag": tag}}).pid() == pid
    assert wire.refused(SIGNAL, {"process": {"tag": "four"}, "signal": KILL}) == "not_found"
    assert wire.stream(CONNECT, {"process": {"tag": "four"}}).code() == "not_found"
    wire.ok(SIGNAL, {"process": {"tag": "two"}, "signal": KILL})
    assert streams["two"].outcome().end["status"] == "signal: killed"
    assert {tag for tag, pid in pids.items() if listed(wire, pid)} == {"one", "three"}
    for tag in ("one", "three"):
        wire.ok(SIGNAL, {"process": {"tag": tag}, "signal": KILL})


def test_ci_102_a_tag_outlives_its_program_a_little(wire):
    stream = wire.run("sleep 0.5; exit 9", tag="short")
    pid = stream.pid()
    process = next(p for p in wire.ok(LIST, {})["processes"] if p["pid"] == pid)
    assert process["tag"] == "short"
    assert wire.stream(CONNECT, {"process": {"tag": "short"}}).pid() == pid
    stream.outcome()
    late = wire.stream(CONNECT, {"process": {"tag": "short"}})
    assert late.pid() == pid and late.outcome().end["exitCode"] == 9


def test_ci_103_the_size_that_programs_see(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=10, cols=40))
    sandbox.pty.resize(terminal.pid, PtySize(rows=33, cols=121))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    shown: list[bytes] = []
    terminal.wait(on_pty=shown.append)
    assert b"33 121" in b"".join(shown)


def test_envd_091_two_hundred_commands_at_once(sandbox):
    began = time.monotonic()
    with ThreadPoolExecutor(200) as pool:
        results = list(pool.map(lambda n: sandbox.commands.run(f"sleep 1; echo {n}").stdout, range(200)))
    assert results == [f"{n}\n" for n in range(200)]
    assert time.monotonic() - began < 60


def test_a_hundred_thousand_single_bytes():
    """Clients that count small frames must not take a chatty program for an attack."""
    with Sandbox.create(TEMPLATE, timeout=300) as sandbox:
        sandbox.files.write("/tmp/bytes.py", "import os\nfor n in range(100000): os.write(1, b'x')\n")
        assert sandbox.commands.run("python3 /tmp/bytes.py", timeout=100).stdout == "x" * 100_000
        sandbox.files.write("/tmp/slow.py", "import os, time\nfor n in range(3000):\n os.write(1, b'y'); time.sleep(0.001)\n")
        done = threading.Event()
        handle = sandbox.commands.run("python3 /tmp/slow.py", background=True, timeout=100)
        # The handle is not read while it writes, which is when frames pile up.
        done.wait(4)
        assert handle.wait().stdout == "y" * 3000
