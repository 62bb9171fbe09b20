"""What a sandbox reaches: the public internet or nothing, never the host, its networks or another sandbox.

The server runs in a network namespace whose only way out is a second one, the world, which owns public, private and
metadata addresses (topology.py). Every "refused" has its control: the same address answers the server's own host.
"""

import json

import pytest
from conftest import HERE, exit_code, on_host, run_file, server_within
from e2b import Sandbox
from server import run
from topology import HOST_PRIVATE, HOST_PUBLIC, NAME, PUBLIC, REFUSED, UPLINK

GATEWAY, INNER = "169.254.0.22", "169.254.0.21"
SERVICE_PORT = 8080
# curl: could not connect (refused), and timed out.
NOT_CONNECTED = (7, 28)


@pytest.fixture(scope="module")
def server(net):
    net.serve_on_host(net.stack, SERVICE_PORT)
    with server_within(net) as made:
        yield made


@pytest.fixture(scope="module")
def closed(server):
    with Sandbox.create("base", timeout=600, allow_internet_access=False) as made:
        yield made


def curl(sandbox: Sandbox, url: str) -> int:
    """The exit code of curl, run as root inside."""
    return exit_code(sandbox, f"curl -g -s -o /dev/null --max-time 2 '{url}'", user="root")


def reached(sandbox: Sandbox, *targets: str) -> list[str]:
    """Which of the targets answer root inside; see reach.py."""
    return json.loads(run_file(sandbox, "reach.py", *(f"'{target}'" for target in targets)))


def everything(address: str, label: str) -> list[str]:
    """All that an address of the world answers."""
    return [f"tcp:{address}:80", f"udp:{address}:7:{label}", f"ping:{address}"]


def resolves(sandbox: Sandbox, name: str = NAME) -> bool:
    return exit_code(sandbox, f"RES_OPTIONS='timeout:1 attempts:1' getent ahostsv4 {name}") == 0


# --- public addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(sandbox, address):
    answer = json.loads(sandbox.commands.run(f"curl -sS --max-time 5 http://{address}/").stdout)
    # Behind the host's address: its own means nothing outside.
    assert answer == {"asked": address, "from": UPLINK}
    assert reached(sandbox, *everything(address, "open")) == everything(address, "open")


def test_names_are_resolved(sandbox):
    assert json.loads(sandbox.commands.run(f"curl -sS --max-time 5 http://{NAME}/").stdout)["asked"] == PUBLIC[0]
    assert not resolves(sandbox, "unknown.example")


def test_refusals_from_outside_are_told(sandbox):
    """The error quotes a packet by the address that it had outside; the program inside must be told all the same."""
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect(('1.1.1.1', 9)); s.send(b'x'); "
        "s.recv(1)"
    )
    said = sandbox.commands.run(f'python3 -c "{code}" 2>&1 || true').stdout
    assert "ConnectionRefusedError" in said, said


def test_nothing_public_when_denied(net, closed):
    for address in PUBLIC:
        assert net.fetch(net.host, f"http://{address}/")["asked"] == address, "the control"
        assert reached(closed, *everything(address, f"denied to {address}")) == []
        assert curl(closed, f"http://{address}/") in NOT_CONNECTED
    assert "denied" not in str(net.seen())


def test_no_names_when_denied(net, closed, sandbox):
    """A name is a message to whoever answers for it."""
    assert resolves(sandbox) and not resolves(closed)
    assert not resolves(closed, "secret.example")
    assert reached(sandbox, f"tcp:{GATEWAY}:53", f"udp:{PUBLIC[1]}:7:control") != []
    # The gateway refuses every question; test_connections.py asks it.
    assert reached(closed, f"tcp:{GATEWAY}:54", f"udp:{PUBLIC[1]}:53:secret") == []
    assert "control" in str(net.seen()) and "secret" not in str(net.seen())
    assert closed.commands.run("echo still here").stdout == "still here\n"


def test_uploads_pass_an_uplink_with_a_small_mtu(net, sandbox):
    """As in many clouds and behind every tunnel: what is told about the size of packets must reach the sender."""
    net.host.run("ip", "link", "set", "uplink", "mtu", "1400")
    try:
        upload = f"head -c 3000000 /dev/zero | curl -sS --max-time 5 --data-binary @- http://{PUBLIC[1]}/"
        assert json.loads(sandbox.commands.run(upload, timeout=10).stdout)["asked"] == PUBLIC[1]
    finally:
        net.host.run("ip", "link", "set", "uplink", "mtu", "1500")


# --- what is always refused -----------------------------------------------------------------------------------


def test_private_addresses_are_refused(net, sandbox, closed):
    for address in REFUSED:
        assert net.fetch(net.host, f"http://{address}/")["asked"] == address, "the control"
    targets = [target for address in REFUSED for target in [*everything(address, "inside"), f"udp:{address}:53:inside"]]
    for inside in (sandbox, closed):
        assert reached(inside, *targets) == []
    assert "inside" not in str(net.seen())
    # With a reset, not with silence: a program learns at once.
    assert {curl(sandbox, f"http://{address}/") for address in REFUSED} == {7}


def test_other_ways_to_write_an_address_are_refused(sandbox):
    for written in ("2852039166", "0xa9fea9fe", "169.254.43518", "[::ffff:169.254.169.254]", "[::ffff:10.9.9.9]"):
        assert curl(sandbox, f"http://{written}/") in NOT_CONNECTED, written
    # The same ways lead to an address that is open.
    for written in ("16843009", "0x01010101", "1.1.257", "[::ffff:1.1.1.1]"):
        assert curl(sandbox, f"http://{written}/") == 0, written


def host_addresses(net) -> list[str]:
    shown = json.loads(net.host.run("ip", "-j", "-4", "address").stdout)
    return [info["local"] for link in shown for info in link["addr_info"]]


def test_the_host_is_refused(net, server, sandbox, closed):
    """Every address that it has, the service address of the installation among them, and the gateway's."""
    addresses = host_addresses(net)
    assert {"127.0.0.1", UPLINK, HOST_PUBLIC, HOST_PRIVATE} < set(addresses)
    assert any(address.startswith("100.") for address in addresses)
    for address in addresses:
        assert net.status(net.host, f"http://{address}:{server.port}/health") == 200, "the control"
    ways = lambda address: [f"tcp:{address}:{SERVICE_PORT}", f"udp:{address}:{SERVICE_PORT}:x", f"tcp:{address}:{server.port}"]
    services = [target for address in addresses for target in ways(address)]
    assert json.loads(net.host.run("python3", str(HERE / "reach.py"), *services).stdout) == services, "the control"
    # 127.0.0.1 is the sandbox's own, where ping answers and nothing of the host's listens.
    pings = [f"ping:{address}" for address in (*addresses, GATEWAY) if address != "127.0.0.1"]
    targets = [*services, *ways(GATEWAY), *pings]
    for inside in (sandbox, closed):
        assert reached(inside, *targets) == []


def test_the_gateway_answers_names_and_nothing_else(sandbox):
    scan = f"""
import socket
found = []
for port in range(1, 65536):
    with socket.socket() as s:
        s.settimeout(2)
        if s.connect_ex(('{GATEWAY}', port)) == 0: found.append(port)
print(found)
"""
    sandbox.files.write("/tmp/scan.py", scan)
    assert sandbox.commands.run("python3 /tmp/scan.py", timeout=60).stdout == "[53]\n"


def test_sandboxes_do_not_reach_each_other(net, sandbox, own):
    other = own()
    other.commands.run("python3 -m http.server 8000 --bind 0.0.0.0", background=True, timeout=0)
    assert exit_code(other, "for i in $(seq 50); do curl -s -o /dev/null localhost:8000 && exit 0; sleep 0.1; done; exit 1") == 0
    assert reached(other, f"tcp:{INNER}:8000", f"tcp:{INNER}:49983") != [], "the control"
    outer = outer_addresses(net)
    assert len(outer) >= 2
    targets = [t for address in outer for t in (f"tcp:{address}:8000", f"tcp:{address}:49983", f"ping:{address}")]
    # The address that it knows itself by is its own: nothing listens there.
    assert reached(sandbox, *targets, f"tcp:{INNER}:8000", f"tcp:{GATEWAY}:8000", f"tcp:{GATEWAY}:49983") == []
    # Nor does the world reach one, though it knows the way.
    net.world.run("ip", "route", "add", "100.64.0.0/10", "via", UPLINK)
    try:
        assert json.loads(net.world.run("python3", str(HERE / "reach.py"), *targets).stdout) == []
    finally:
        net.world.run("ip", "route", "delete", "100.64.0.0/10", "via", UPLINK)


def outer_addresses(net) -> list[str]:
    """The slots' own addresses, out of the map that rewrites them."""
    found = []
    for line in net.host.run("nft", "list", "ruleset").stdout.replace(",", "\n").splitlines():
        name, colon, address = line.replace("elements = {", "").replace("}", "").partition(" : ")
        if colon and name.strip().startswith('"sb'):
            found.append(address.strip())
    return found


# --- forged packets -------------------------------------------------------------------------------------------


def test_no_other_source_address(net, sandbox):
    """Nothing inside makes a packet by hand (test_isolation.py: raw sockets); this is the polite way."""
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_IP, 15, 1); "  # IP_FREEBIND
        "s.bind(('10.9.9.9', 0)); s.sendto(b'borrowed', ('1.1.1.1', 7))"
    )
    assert exit_code(sandbox, f'python3 -c "{code}"', user="root") != 0
    assert "borrowed" not in str(net.seen())


FORGE = r"""
import socket, struct, sys
source, target, payload = sys.argv[1], sys.argv[2], sys.argv[3].encode()
udp = struct.pack("!HHHH", 4444, 7, 8 + len(payload), 0) + payload
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(head + udp, (target, 0))
"""


def test_forged_packets_stop_at_the_host(net, sandbox):
    """Made by root of the host in the sandbox's namespace: what would leave if a sandbox could forge."""
    inside = ["nsenter", f"--net=/proc/{on_host(sandbox).pid}/ns/net", "--", "python3", "-c", FORGE]
    sources = [("own", INNER), *[("forged", s) for s in ("10.9.9.9", "8.8.8.8", UPLINK, GATEWAY, *outer_addresses(net)[:3])]]
    for kind, source in sources:
        net.host.run(*inside, source, "1.1.1.1", f"{kind} {source}")
    assert reached(sandbox, "udp:1.1.1.1:7:after the forged ones") != []
    arrived = [payload for payload, _ in net.seen()]
    assert f"own {INNER}" in arrived, "the control"
    assert [payload for payload in arrived if payload.startswith("forged")] == []


def test_root_inside_cannot_change_its_network(sandbox):
    before = sandbox.commands.run("ip address; ip route; ip neighbour").stdout
    for command in (
        "ip address add 10.9.9.9/24 dev eth0",
        "ip link set eth0 down",
        "ip link set eth0 address 02:00:00:00:00:01",
        "ip link add type veth",
        "ip route add 10.0.0.0/8 via 169.254.0.22",
        "ip neighbour replace 169.254.0.22 lladdr 02:00:00:00:00:02 dev eth0",
    ):
        assert exit_code(sandbox, command, user="root") != 0, command
    assert sandbox.commands.run("ip address; ip route; ip neighbour").stdout == before


# --- IPv6 -------------------------------------------------------------------------------------------------------


def test_no_ipv6_but_loopback(net, server, sandbox):
    addresses = json.loads(sandbox.commands.run("ip -j -6 address").stdout)
    assert [info["local"] for link in addresses for info in link.get("addr_info", [])] == ["::1"]
    serve = "python3 -m http.server 8006 --bind ::1 > /dev/null 2>&1 & "
    serve += "for i in $(seq 50); do curl -s -o /dev/null '[::1]:8006' && break; sleep 0.1; done; "
    assert sandbox.commands.run(serve + "curl -s -o /dev/null -w '%{http_code}' 'http://[::1]:8006/'; kill %1").stdout == "200"
    # The host's end of the pair has a link-local address, and a service that listens there.
    links = json.loads(net.host.run("ip", "-j", "-6", "address").stdout)
    local = [info["local"] for link in links for info in link["addr_info"] if info["local"].startswith("fe80")]
    assert local
    for address in local:
        assert curl(sandbox, f"http://[{address}%25eth0]:{SERVICE_PORT}/") in (*NOT_CONNECTED, 6)
    assert curl(sandbox, "http://[2001:db8::1]/") in NOT_CONNECTED


# --- the operator's exceptions, and others' rules ------------------------------------------------------------------


def test_forwarding_that_another_table_drops_is_noticed(net, server, sandbox):
    """As Docker and ufw leave a host. We accept nothing that another table drops, so `doctor` says what to do."""
    def doctor() -> dict:
        said = json.loads(run("doctor", "--json", "--data-dir", str(server.data), within=net.host.enter).stdout)
        return next(check for check in said["checks"] if check["name"] == "forwarding not dropped")

    assert doctor()["state"] == "ok"
    net.host.run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }")
    try:
        assert curl(sandbox, "http://1.1.1.1/") in NOT_CONNECTED
        found = doctor()
        assert found["state"] == "missing" and "sb+" in found["mend"]
        # What `doctor` proposes, as iptables of today writes it.
        for direction in ("iifname", "oifname"):
            net.host.run("nft", f'insert rule ip filter FORWARD {direction} "sb*" counter accept')
        assert curl(sandbox, "http://1.1.1.1/") == 0
        assert curl(sandbox, "http://10.9.9.9/") in NOT_CONNECTED
        assert doctor()["state"] == "ok"
    finally:
        net.host.run("nft", "delete table ip filter")
    assert curl(sandbox, "http://1.1.1.1/") == 0


def test_the_operator_opens_a_range(net, server, sandbox):
    """Last, since it starts the server anew: `--egress-allow-internal` opens that range to those who may go out."""
    assert curl(sandbox, "http://10.9.9.9/") in NOT_CONNECTED
    server.stop()
    server.start("--insecure", "--egress-allow-internal", "10.9.9.0/24")
    # A sandbox of the server before it is under the new rules too.
    with Sandbox.create("base") as fresh, Sandbox.create("base", allow_internet_access=False) as shut:
        for made in (sandbox, fresh):
            answer = json.loads(made.commands.run("curl -sS --max-time 5 http://10.9.9.9/").stdout)
            assert answer == {"asked": "10.9.9.9", "from": UPLINK}
            others = [f"tcp:{address}:80" for address in REFUSED if not address.startswith("10.9.9.")]
            host = [f"tcp:{address}:{SERVICE_PORT}" for address in (HOST_PRIVATE, HOST_PUBLIC, UPLINK)]
            assert reached(made, *others, *host) == []
        assert reached(shut, "tcp:10.9.9.9:80", "tcp:1.1.1.1:80") == []
