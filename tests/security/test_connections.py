"""Connections that one sandbox may have at once: the host tracks those of all sandboxes in one table, and what fills it cuts off the others.

As in test_network.py, the server's network is a namespace whose uplink leads to another one, the world. The cap is small here.
"""

import json

import pytest
from conftest import exit_code, run_file, server_within
from e2b import Sandbox
from server import until
from topology import PUBLIC

CAP = 100
GATEWAY = "169.254.0.22"


@pytest.fixture(scope="module")
def server(net):
    with server_within(net, "--max-connections", str(CAP)) as made:
        yield made


def opened(sandbox: Sandbox, kind: str, count: int) -> int:
    """How many of so many connections came about; the program keeps them until the sandbox ends."""
    return int(run_file(sandbox, "crowd.py", kind, PUBLIC[0], str(count)))


def tracked(net, server) -> int:
    """What the host tracks of this installation's sandboxes, whose addresses are all in 100.64.0.0/10."""
    listed = net.host.run("cat", "/proc/net/nf_conntrack").stdout.splitlines()
    return sum(" src=100." in line for line in listed)


def reaches_out(sandbox: Sandbox) -> bool:
    return exit_code(sandbox, f"curl -s -o /dev/null --max-time 3 http://{PUBLIC[1]}/") == 0


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_no_more_connections_than_the_cap(net, server, kind):
    with Sandbox.create("base", timeout=120) as greedy, Sandbox.create("base", timeout=120) as neighbour:
        assert reaches_out(greedy), "the control"
        # The one before may still be tracked.
        assert CAP - 1 <= opened(greedy, kind, 2 * CAP) <= CAP
        assert tracked(net, server) <= CAP + 2
        assert not reaches_out(greedy)
        # With a reset, not with silence.
        assert exit_code(greedy, f"curl -s -o /dev/null --max-time 3 http://{PUBLIC[1]}/") == 7
        # Names are no connections.
        assert exit_code(greedy, "getent ahostsv4 named.example") == 0
        assert reaches_out(neighbour)
        assert greedy.commands.run("echo still here").stdout == "still here\n"
    until("nothing of them is tracked", lambda: tracked(net, server) == 0)
    with Sandbox.create("base", timeout=120) as next_one:
        assert reaches_out(next_one)


def test_a_restarted_server_knows_the_cap(net, server):
    """Its rules are new, the counts are not."""
    with Sandbox.create("base", timeout=120) as greedy:
        assert opened(greedy, "tcp", 2 * CAP) == CAP
        server.stop()
        server.start("--insecure", "--max-connections", str(CAP))
        assert not reaches_out(greedy)
        with Sandbox.create("base", timeout=120) as neighbour:
            assert reaches_out(neighbour)


def test_a_flood_of_names_takes_no_place(net, server):
    with Sandbox.create("base", timeout=120) as flood:
        assert opened(flood, "dns", 5 * CAP) == 5 * CAP
        assert tracked(net, server) == 0
        assert reaches_out(flood)


def test_names_are_refused_at_once_where_nothing_may_go_out(net, server):
    ask = (
        "import json, socket, struct, time\n"
        "query = struct.pack('!6H', 7, 0x100, 1, 0, 0, 0) + b'\\x05named\\x07example\\0\\0\\1\\0\\1'\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(3); start = time.monotonic()\n"
        f"u.connect(('{GATEWAY}', 53)); u.send(query); by_udp = u.recv(512)\n"
        f"t = socket.create_connection(('{GATEWAY}', 53), 3); t.sendall(struct.pack('!H', len(query)) + query); by_tcp = t.recv(512)[2:]\n"
        "print(json.dumps([by_udp[3] & 15, by_tcp[3] & 15, by_udp[:2] == by_tcp[:2] == query[:2], time.monotonic() - start]))"
    )

    def codes(sandbox: Sandbox) -> list:
        sandbox.files.write("/tmp/ask.py", ask)
        return json.loads(sandbox.commands.run("python3 /tmp/ask.py").stdout)

    only = {"allow_out": [PUBLIC[0]], "deny_out": ["0.0.0.0/0"]}
    with Sandbox.create("base", timeout=120) as sandbox:
        assert codes(sandbox)[:3] == [0, 0, True], "the control"
    asked = str(net.seen()).count("named")
    assert asked > 0, "the control"
    for denied in ({"allow_internet_access": False}, {"network": only}):
        with Sandbox.create("base", timeout=120, **denied) as closed:
            *answers, took = codes(closed)
            assert answers == [5, 5, True] and took < 2  # REFUSED, and the query's own number
            assert exit_code(closed, "getent ahostsv4 named.example") == 2
    assert str(net.seen()).count("named") == asked, "no question has left"


@pytest.mark.parametrize("wrong", ["0", "many", "1000001"])
def test_a_cap_that_is_none_is_refused(wrong):
    from server import run

    said = run("serve", "--max-connections", wrong)
    assert said.returncode == 2 and "a number from 1 to 1000000" in said.stderr
