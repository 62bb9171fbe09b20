"""What `allowOut` and `denyOut` open and close, at create and on a live sandbox, over restarts, in the topology of test_network.py."""

import json
import os
import urllib.error
import urllib.request

import pytest
from conftest import exit_code, run_file, server_within
from e2b import Sandbox
from server import until
from topology import PUBLIC, REFUSED, UPLINK

ONE, TWO = PUBLIC
EVERYTHING = "0.0.0.0/0"


@pytest.fixture(scope="module")
def server(net):
    with server_within(net) as made:
        yield made


def ask(method: str, path: str, body=None, key: str | None = None) -> tuple[int, dict | None]:
    request = urllib.request.Request(
        os.environ["E2B_API_URL"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-API-Key": key or os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture
def made(server):
    """Makes a sandbox with a network configuration: `made(denyOut=[...])`."""
    all_of_them = []

    def make(internet: bool | None = None, template: str = "base", **network) -> Sandbox:
        body = {"templateID": template, "timeout": 300, "network": network}
        status, said = ask("POST", "/v2/sandboxes", body if internet is None else body | {"allow_internet_access": internet})
        assert status == 201, said
        all_of_them.append(Sandbox.connect(said["sandboxID"]))
        return all_of_them[-1]

    yield make
    for sandbox in all_of_them:
        sandbox.kill()


def put(sandbox: Sandbox, **network) -> None:
    status, said = ask("PUT", f"/sandboxes/{sandbox.sandbox_id}/network", network)
    assert status == 204, said


def reached(sandbox: Sandbox, *addresses: str) -> list[str]:
    """Which of the addresses answer by every protocol; one that answers by some is an error."""
    targets = [t for address in addresses for t in (f"tcp:{address}:80", f"udp:{address}:7:x", f"ping:{address}")]
    answered = json.loads(run_file(sandbox, "reach.py", *(f"'{target}'" for target in targets)))
    found = [address for address in addresses if sum(f":{address}" in target for target in answered) == 3]
    assert len(answered) == 3 * len(found), answered
    return found


def resolves(sandbox: Sandbox) -> bool:
    return exit_code(sandbox, "RES_OPTIONS='timeout:1 attempts:1' getent ahostsv4 named.example") == 0


def built(name: str, defaults: dict) -> str:
    """A template of that name, whose sandboxes get these defaults."""
    status, of = ask("POST", "/v3/templates", {"name": name, "sandboxDefaults": defaults})
    assert status == 202, of
    template, build = of["templateID"], of["buildID"]
    status, said = ask("POST", f"/v2/templates/{template}/builds/{build}", {"fromImage": "e2bdev/base", "steps": []})
    assert status == 202, said
    until("the build is over", lambda: ask("GET", f"/templates/{template}/builds/{build}/status")[1]["status"] in ("ready", "error"), 60)
    return name


def test_what_a_template_denies_is_denied_where_a_create_says_nothing(made):
    template = built("denies", {"network": {"denyOut": [ONE]}})
    sandbox = made(template=template)
    assert reached(sandbox, *PUBLIC) == [TWO]
    # A create, and a change of a live sandbox, win.
    assert reached(made(template=template, denyOut=[TWO]), *PUBLIC) == [ONE]
    put(sandbox, denyOut=[])
    assert reached(sandbox, *PUBLIC) == [ONE, TWO]


def test_cp_092_everything_denied(made):
    assert reached(made(), *PUBLIC) == [ONE, TWO], "the control"
    sandbox = made(denyOut=[EVERYTHING])
    assert reached(sandbox, *PUBLIC) == []
    assert not resolves(sandbox)
    assert sandbox.commands.run("echo still here").stdout == "still here\n"


def test_cp_093_allowed_beats_denied(made):
    only = made(allowOut=[ONE], denyOut=[EVERYTHING])
    assert reached(only, *PUBLIC) == [ONE]
    assert not resolves(only), "a name is a message"
    # Both lists name it, in ranges that overlap.
    both = made(allowOut=["1.1.1.0/24", "1.1.1.1"], denyOut=["1.0.0.0/8", "1.1.1.1", "8.0.0.0/7"])
    assert reached(both, *PUBLIC) == [ONE]
    assert resolves(both)
    assert reached(made(denyOut=[TWO]), *PUBLIC) == [ONE]
    assert reached(made(allowOut=[ONE]), *PUBLIC) == [ONE, TWO], "allowing denies nothing"


def test_cp_094_a_domain_needs_everything_denied(server):
    body = {"templateID": "base", "network": {"allowOut": ["example.com"]}}
    status, said = ask("POST", "/v2/sandboxes", body)
    assert status == 400 and "ALL_TRAFFIC" in said["message"]


def test_cp_096_private_addresses_cannot_be_allowed(net, made):
    body = {"templateID": "base", "network": {"denyOut": ["not-a-cidr"]}}
    status, said = ask("POST", "/v2/sandboxes", body)
    assert status == 400 and said["message"] == "invalid denied CIDR not-a-cidr"
    for address in REFUSED:
        assert net.fetch(net.host, f"http://{address}/")["asked"] == address, "the control"
    ranges = ["10.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"]
    for deny in ([], [EVERYTHING]):
        for allow in (ranges, [EVERYTHING], list(REFUSED)):
            assert reached(made(allowOut=allow, denyOut=deny), *REFUSED, UPLINK) == [], (allow, deny)


def test_cp_097_no_internet_but_what_is_allowed(made):
    closed = made(internet=False)
    assert reached(closed, *PUBLIC) == []
    some = made(internet=False, allowOut=[TWO])
    assert reached(some, *PUBLIC) == [TWO]
    for sandbox in (closed, some):
        assert ask("GET", f"/sandboxes/{sandbox.sandbox_id}")[1]["allowInternetAccess"] is False


def test_cp_097_what_is_allowed_survives_a_pause(made):
    sandbox = made(internet=False, allowOut=[TWO])
    sandbox.pause()
    assert ask("GET", f"/sandboxes/{sandbox.sandbox_id}")[1]["allowInternetAccess"] is False
    Sandbox.connect(sandbox.sandbox_id)
    assert reached(sandbox, *PUBLIC) == [TWO]
    assert ask("GET", f"/sandboxes/{sandbox.sandbox_id}")[1]["allowInternetAccess"] is False


def test_cp_098_a_paused_one_is_not_changed(made):
    sandbox = made(denyOut=[ONE])
    sandbox.pause()
    status, said = ask("PUT", f"/sandboxes/{sandbox.sandbox_id}/network", {"denyOut": [TWO]})
    assert status == 409, said
    Sandbox.connect(sandbox.sandbox_id)
    assert reached(sandbox, *PUBLIC) == [TWO], "it is as it was"


def test_cp_099_lists_are_kept_over_pauses(made):
    some, all_but = made(internet=False, allowOut=[TWO]), made(denyOut=[ONE])
    put(all_but, denyOut=[TWO])
    for _ in range(2):
        for sandbox in (some, all_but):
            sandbox.pause()
            Sandbox.connect(sandbox.sandbox_id)
        assert reached(some, *PUBLIC) == [TWO]
        assert reached(all_but, *PUBLIC) == [ONE], "the change is kept, not what its create said"


def test_a_rollback_keeps_what_may_be_reached_now(made):
    sandbox = made(denyOut=[ONE])
    status, snapshot = ask("POST", f"/sandboxes/{sandbox.sandbox_id}/snapshots", {})
    assert status == 201, snapshot
    put(sandbox, denyOut=[TWO])
    status, said = ask("POST", f"/sandboxes/{sandbox.sandbox_id}/rollback", {"snapshotID": snapshot["snapshotID"]})
    assert status == 204, said
    assert reached(sandbox, *PUBLIC) == [ONE]


def test_cp_098_a_live_change(made):
    sandbox, other = made(), made(denyOut=[TWO])
    assert reached(sandbox, *PUBLIC) == [ONE, TWO]
    put(sandbox, denyOut=[EVERYTHING])
    assert reached(sandbox, *PUBLIC) == [] and not resolves(sandbox)
    put(sandbox, denyOut=[EVERYTHING], allowOut=[TWO])
    assert reached(sandbox, *PUBLIC) == [TWO]
    put(sandbox, denyOut=["8.8.8.0/24"], allowOut=["1.1.1.1"])
    assert reached(sandbox, *PUBLIC) == [ONE] and resolves(sandbox)
    put(sandbox, allow_internet_access=False)
    assert reached(sandbox, *PUBLIC) == []
    put(sandbox)
    assert reached(sandbox, *PUBLIC) == [ONE, TWO] and resolves(sandbox)
    assert "network" not in ask("GET", f"/sandboxes/{sandbox.sandbox_id}")[1]
    assert reached(other, *PUBLIC) == [ONE], "another sandbox's rules are its own"
    assert ask("PUT", "/sandboxes/iaaaaaaaaaaaaaaaaaaaa/network", {})[0] == 404
    assert ask("PUT", f"/sandboxes/{sandbox.sandbox_id}/network", {}, key="e2b_" + "0" * 40)[0] == 401


def test_the_package_updates_a_network(made):
    sandbox = made()
    sandbox.update_network({"deny_out": [EVERYTHING], "allow_out": [ONE]})
    assert reached(sandbox, *PUBLIC) == [ONE]
    assert sandbox.get_info().network["deny_out"] == [EVERYTHING]


def test_a_denied_connection_is_cut(net, made):
    """One that was open before the change sends nothing more."""
    sandbox = made()
    code = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1); s.connect(('8.8.8.8', 7))\n"
        "def ask(text):\n  try:\n    s.send(text); return s.recv(99) == text\n  except OSError: return False\n"
        "print(ask(b'before the change'), flush=True)\nopen('/tmp/ready', 'w').close()\n"
        "import os\nwhile not os.path.exists('/tmp/go'): time.sleep(0.05)\nprint(ask(b'after the change'))"
    )
    sandbox.files.write("/tmp/old.py", code)
    running = sandbox.commands.run("python3 /tmp/old.py", background=True)
    until("the first answer", lambda: sandbox.files.exists("/tmp/ready"))
    put(sandbox, denyOut=[TWO])
    sandbox.files.write("/tmp/go", "")
    assert running.wait().stdout == "True\nFalse\n"
    assert "before the change" in str(net.seen()) and "after the change" not in str(net.seen())


def test_many_ranges(made):
    ranges = [f"{a}.{b}.0.0/16" for a in (11, 12, 13) for b in range(0, 170, 2)]
    sandbox = made(denyOut=[*ranges, TWO])
    assert reached(sandbox, *PUBLIC) == [ONE]
    put(sandbox, denyOut=[EVERYTHING], allowOut=[*ranges[1:], TWO])
    assert reached(sandbox, *PUBLIC) == [TWO]


def elements(net, name: str) -> str:
    listed = net.host.run("nft", "list", "ruleset").stdout
    return "".join(part.split("}")[0] for part in listed.split(f"set {name} {{")[1:])


def test_rules_outlive_front_and_agent_and_end_with_the_sandbox(net, server, made):
    sandbox, changed = made(allowOut=[ONE], denyOut=[EVERYTHING]), made()
    put(changed, denyOut=[ONE])
    os.kill(server.front(), 9)
    until("a new front", lambda: server.front() is not None and server.answers())
    for _ in range(2):
        assert reached(sandbox, *PUBLIC) == [ONE] and reached(changed, *PUBLIC) == [TWO]
        assert ask("GET", f"/sandboxes/{changed.sandbox_id}")[1]["network"]["denyOut"] == [ONE]
        server.kill()
        server.start("--insecure")
    # The next agent knows what the sets hold: it can take it out again.
    put(changed)
    assert reached(changed, *PUBLIC) == [ONE, TWO]
    sandbox.kill()
    until("nothing is left in the sets", lambda: "elements" not in elements(net, "allow") + elements(net, "deny"))
