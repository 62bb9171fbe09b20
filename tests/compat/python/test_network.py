"""What a sandbox reaches: its resolver, package mirrors where the operator allows them, and nothing of the host."""

import os

import pytest
from e2b import CommandExitException


def test_localhost_works_inside(sandbox):
    result = sandbox.commands.run(
        "python3 -m http.server 7000 --bind 127.0.0.1 > /dev/null 2>&1 & "
        "for i in $(seq 50); do curl -sf -o /dev/null localhost:7000 && break; sleep 0.1; done; "
        "curl -s -o /dev/null -w '%{http_code}' http://localhost:7000/; kill %1"
    )
    assert result.stdout == "200"


def test_the_host_is_not_reached(sandbox):
    """The server's own port, by the gateway's address and by the host's own one."""
    port = os.environ["E2B_API_URL"].rsplit(":", 1)[1]
    for address in ("169.254.0.22", "127.0.0.1"):
        with pytest.raises(CommandExitException):
            sandbox.commands.run(f"curl -s --max-time 3 http://{address}:{port}/health")


def test_metadata_services_are_not_reached(sandbox):
    with pytest.raises(CommandExitException):
        sandbox.commands.run("curl -s --max-time 3 http://169.254.169.254/")


def test_no_internet_when_denied(own):
    sandbox = own(allow_internet_access=False)
    with pytest.raises(CommandExitException):
        sandbox.commands.run("curl -s --max-time 3 http://1.1.1.1/")
    assert sandbox.commands.run("echo still works").stdout == "still works\n"


def test_its_address_is_always_the_same(sandbox, own):
    show = "ip -4 -o addr show scope global | awk '{print $4}'; hostname; cat /etc/resolv.conf"
    here = sandbox.commands.run(show).stdout
    assert here.splitlines()[:2] == ["169.254.0.21/30", "e2b.local"]
    assert own().commands.run(show).stdout == here
