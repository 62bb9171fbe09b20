"""Commands: foreground, background, input, users, time and ends."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2b import CommandExitException, InvalidArgumentException, NotFoundException, Sandbox, TimeoutException


def gone(sandbox: Sandbox, pid: int, within: float = 5) -> bool:
    deadline = time.monotonic() + within
    while any(process.pid == pid for process in sandbox.commands.list()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_envd_035_output_and_exit_code(sandbox):
    result = sandbox.commands.run("echo hi")
    assert (result.stdout, result.stderr, result.exit_code) == ("hi\n", "", 0)
    assert not result.error


def test_envd_036_special_characters(sandbox):
    assert sandbox.commands.run("echo '!@#$%^&*()_+ äöü 日本'").stdout == "!@#$%^&*()_+ äöü 日本\n"


def test_envd_037_several_lines(sandbox):
    assert sandbox.commands.run("a=1\nb=2\necho $((a + b))\n").stdout == "3\n"


def test_envd_038_stderr_is_apart(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_envd_039_exit_code_is_an_exception(sandbox):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo before; exit 3")
    assert caught.value.exit_code == 3
    assert caught.value.stdout == "before\n"
    assert caught.value.error == "exit status 3"


def test_envd_040_a_signal_is_an_exception(sandbox):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("kill -9 $$")
    assert caught.value.exit_code == -1
    assert caught.value.error == "signal: killed"


def test_envd_043_a_cut_character_is_replaced(sandbox):
    stdout = sandbox.commands.run("head -c 8191 /dev/zero | tr '\\0' a; printf '\\xe2'").stdout
    assert stdout == "a" * 8191 + "\ufffd"


def test_envd_044_ten_mebibytes_in_order(sandbox):
    stdout = sandbox.commands.run("seq -w 1 1310720").stdout
    assert len(stdout) == 10 << 20
    assert stdout == "".join(f"{n:07}\n" for n in range(1, 1310721))


def test_envd_045_users(sandbox):
    who = "echo $(whoami) $HOME $USER $LOGNAME"
    assert sandbox.commands.run(who).stdout == "user /home/user user user\n"
    assert sandbox.commands.run(who, user="root").stdout == "root /root root root\n"


def test_envd_046_supplementary_groups(sandbox):
    assert "sudo" in sandbox.commands.run("id -nG").stdout.split()


def test_envd_047_sudo(sandbox):
    assert sandbox.commands.run("sudo -n id -u").stdout == "0\n"


def test_envd_048_working_directories(sandbox):
    sandbox.commands.run("mkdir -p ~/inner")
    for cwd, expected in [(None, "/home/user"), ("/tmp", "/tmp"), ("~", "/home/user"), ("inner", "/home/user/inner")]:
        assert sandbox.commands.run("pwd", cwd=cwd).stdout == f"{expected}\n", cwd


def test_envd_049_a_missing_working_directory(sandbox):
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        sandbox.commands.run("pwd", cwd="/no/such/place")


def test_envd_052_environment(own):
    sandbox = own(envs={"A": "sandbox", "B": "sandbox"})
    assert sandbox.commands.run("echo $A $B", envs={"B": "command"}).stdout == "sandbox command\n"
    assert sandbox.commands.run("echo $A $B").stdout == "sandbox sandbox\n"


def test_envd_053_the_sandbox_knows_itself(sandbox):
    result = sandbox.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID")
    is_sandbox, sandbox_id, template_id = result.stdout.split()
    assert (is_sandbox, sandbox_id) == ("true", sandbox.sandbox_id)
    assert template_id == sandbox.get_info().template_id


def test_envd_055_sudo_keeps_no_command_environment(sandbox):
    assert sandbox.commands.run('sudo echo "$FOO"').stdout == "\n"


def test_envd_056_a_timeout_ends_the_wait(sandbox):
    started = time.monotonic()
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 10", timeout=1)
    assert 0.9 < time.monotonic() - started < 6


def test_envd_057_a_timed_out_command_is_gone(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("exec sleep 4321", timeout=1)
    deadline = time.monotonic() + 5
    while "sleep 4321" in sandbox.commands.run("ps axww -o args | grep -v grep").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_output_streams_while_the_command_runs(sandbox):
    seen: list[tuple[float, str]] = []
    started = time.monotonic()
    sandbox.commands.run(
        "for i in 1 2 3; do echo $i; sleep 0.5; done",
        on_stdout=lambda text: seen.append((time.monotonic() - started, text)),
    )
    assert "".join(text for _, text in seen) == "1\n2\n3\n"
    assert seen[0][0] < 0.5 and seen[-1][0] - seen[0][0] > 0.8, seen


def test_envd_060_a_background_command_outlives_its_client(sandbox):
    handle = sandbox.commands.run("sleep 1; echo done > /tmp/outlived", background=True)
    handle.disconnect()
    deadline = time.monotonic() + 10
    while not sandbox.files.exists("/tmp/outlived"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_envd_061_reconnect_hears_the_rest(sandbox):
    handle = sandbox.commands.run("echo first; sleep 2; echo second; exit 7", background=True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    assert again.pid == handle.pid
    with pytest.raises(CommandExitException) as caught:
        again.wait()
    assert caught.value.exit_code == 7 and caught.value.stdout.endswith("second\n")


def test_envd_063_two_listeners_hear_the_same(sandbox):
    handle = sandbox.commands.run("sleep 1; echo heard; sleep 0.2", background=True)
    other = sandbox.commands.connect(handle.pid)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda each: each.wait().stdout, [handle, other]))
    assert results == ["heard\n", "heard\n"]


def test_envd_067_list_describes_and_forgets(sandbox):
    handle = sandbox.commands.run("sleep 300", background=True, envs={"K": "v"}, cwd="/tmp")
    process = next(p for p in sandbox.commands.list() if p.pid == handle.pid)
    assert process.cmd == "/bin/bash"
    assert process.args == ["-l", "-c", "sleep 300"]
    assert process.cwd == "/tmp" and process.envs.get("K") == "v"
    assert handle.kill()
    assert gone(sandbox, handle.pid)


def test_envd_068_kill(sandbox):
    handle = sandbox.commands.run("exec sleep 300", background=True)
    assert sandbox.commands.kill(handle.pid)
    assert gone(sandbox, handle.pid)
    with pytest.raises(CommandExitException):
        sandbox.commands.run(f"kill -0 {handle.pid}")
    assert not sandbox.commands.kill(999_999)


def test_envd_071_stdin(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "text, ")
    sandbox.commands.send_stdin(handle.pid, b"bytes\n")
    sandbox.commands.send_stdin(handle.pid, "")
    sandbox.commands.send_stdin(handle.pid, "!@#$ ünï\nlast\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "text, bytes\n!@#$ ünï\nlast\n"


def test_envd_073_stdin_is_closed_by_default(sandbox):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("read x", timeout=10)
    assert caught.value.exit_code == 1


def test_envd_076_stdin_of_nobody(sandbox):
    with pytest.raises(NotFoundException):
        sandbox.commands.send_stdin(999_999, "text")


def test_connect_to_nobody(sandbox):
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999_999)


def test_many_commands_at_once(sandbox):
    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(lambda n: sandbox.commands.run(f"sleep 0.5; echo {n}").stdout, range(50)))
    assert results == [f"{n}\n" for n in range(50)]


def test_a_slow_listener_does_not_stall_the_sandbox(sandbox):
    handle = sandbox.commands.run("yes", background=True)
    thread = threading.Thread(target=lambda: sandbox.commands.run("echo meanwhile"))
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert handle.kill()


def test_envd_151_the_tools_that_agents_expect(sandbox):
    result = sandbox.commands.run(
        "python --version; node --version; yarn --version; hostname; stat -c '%U %a' ~ /usr/local /code;"
        " for tool in python3 npm npx git gh curl jq sudo ss pgrep socat tput gcc make; do command -v $tool > /dev/null"
        " || echo missing $tool; done"
    )
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Python 3.11.")
    assert lines[1:4] == ["v20.9.0", "1.22.19", "e2b.local"]
    assert lines[4].startswith("user ") and lines[5].endswith(" 777") and lines[6].endswith(" 777")
    assert lines[7:] == []


def test_node_22_is_a_switch_away(own):
    sandbox = own()
    assert sandbox.commands.run("use-node 22").stdout.startswith("v22.")
    assert sandbox.commands.run("node --version; npm --version").stdout.startswith("v22.")
