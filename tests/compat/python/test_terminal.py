"""Terminals."""

import threading
import time

from e2b import CommandExitException, PtySize, Sandbox


def collected(handle, until_text: str, within: float = 15) -> str:
    """What a terminal shows up to and including a text."""
    seen: list[str] = []
    done = threading.Event()

    def read() -> None:
        try:
            for _, _, data in handle:
                if data:
                    seen.append(data.decode(errors="replace"))
                if until_text in "".join(seen):
                    break
        finally:
            done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(within) and until_text in "".join(seen), "".join(seen)
    return "".join(seen)


def test_envd_084_size_resize_and_exit(sandbox: Sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(terminal.pid, b"echo cols=$(tput cols)\n")
    collected(terminal, "cols=80")
    sandbox.pty.resize(terminal.pid, PtySize(rows=24, cols=100))
    again = sandbox.pty.connect(terminal.pid)
    sandbox.pty.send_stdin(terminal.pid, b"echo cols=$(tput cols)\n")
    collected(again, "cols=100")
    last = sandbox.pty.connect(terminal.pid)
    sandbox.pty.send_stdin(terminal.pid, b"exit\n")
    assert last.wait().exit_code == 0


def test_envd_085_its_environment(sandbox: Sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"FOO": "bar"})
    sandbox.pty.send_stdin(terminal.pid, b'echo "<$TERM $LANG $FOO>"\n')
    collected(terminal, "<xterm-256color C.UTF-8 bar>")
    assert sandbox.pty.kill(terminal.pid)


def test_envd_087_kill(sandbox: Sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(terminal.pid)
    deadline = time.monotonic() + 10
    while True:
        try:
            sandbox.commands.run(f"kill -0 {terminal.pid}")
        except CommandExitException:
            break
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.1)
    assert not sandbox.pty.kill(999_999)


def test_envd_092_control_c_interrupts(sandbox: Sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(terminal.pid, b"sleep 300\n")
    time.sleep(1)
    sandbox.pty.send_stdin(terminal.pid, b"\x03")
    sandbox.pty.send_stdin(terminal.pid, b"echo status=$?\n")
    collected(terminal, "status=130")
    assert sandbox.pty.kill(terminal.pid)


def test_envd_093_it_is_a_terminal(sandbox: Sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(terminal.pid, b"tty\n")
    collected(terminal, "/dev/pts/")
    assert sandbox.pty.kill(terminal.pid)
