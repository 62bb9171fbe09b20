"""Limits: what goes over them is refused or ended, and the sandbox lives on."""

import pytest
from e2b import CommandExitException


def test_memory(own):
    sandbox = own()
    limit = sandbox.get_info().memory_mb
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run(f"python3 -c 'x = bytearray({limit * 2} << 20)'")
    assert caught.value.exit_code != 0
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_processes(own):
    sandbox = own()
    # Its output goes nowhere, or the children would keep the command's pipes open.
    bomb = "python3 -c 'import os, time\nwhile True:\n  if os.fork() == 0: time.sleep(60)' > /dev/null 2>&1"
    with pytest.raises(CommandExitException):
        sandbox.commands.run(bomb, timeout=60)
    sandbox.commands.run("pkill -9 -u user python3", user="root")
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_disk(own):
    sandbox = own()
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("fallocate -l 100G /home/user/big && sync")
    assert "No space" in caught.value.stderr or "quota" in caught.value.stderr.lower(), caught.value.stderr
    sandbox.commands.run("rm -f /home/user/big")
    sandbox.files.write("/home/user/small", "fits")
