"""The rest of what a program tries on a network: addresses written in other ways, other families of addresses, and the link itself.

The server runs in the namespaces of topology.py, as in test_network.py.
"""

import json
import socket
import struct

import pytest
from conftest import exit_code, on_host
from test_network import GATEWAY, NOT_CONNECTED, curl, outer_addresses, reached, server  # noqa: F401

# 169.254.169.254 and its kin, as libraries, browsers and shells may take them.
METADATA = (
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "0251.0376.0251.0376", "025177524776", "169.254.43518", "169.16689662",
    "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[0:0:0:0:0:ffff:a9fe:a9fe]", "[::169.254.169.254]", "[64:ff9b::169.254.169.254]",
    "[fd00:ec2::254]", "[fe80::a9fe:a9fe%25eth0]", "169.254.170.2", "169.254.169.253", "100.100.100.200", "192.0.0.192",
)  # fmt: skip
# The same ways of writing, for an address that is open.
OPEN = ("1.1.1.1", "16843009", "0x01010101", "0x1.0x1.0x1.0x1", "01.01.01.01", "0100200401", "1.1.257", "1.65793", "[::ffff:1.1.1.1]", "[::ffff:101:101]")


def test_the_metadata_service_by_any_spelling(sandbox):
    for written in METADATA:
        assert curl(sandbox, f"http://{written}/latest/meta-data/") in (*NOT_CONNECTED, 3, 6), written
    for written in OPEN:
        assert curl(sandbox, f"http://{written}/") == 0, f"the control: {written}"


def test_the_metadata_service_by_a_name_that_means_it(net, sandbox):
    """An answer of a name server decides nothing: the address is refused."""
    sandbox.commands.run("echo '169.254.169.254 metadata.example' >> /etc/hosts; echo '1.1.1.1 open.example' >> /etc/hosts", user="root")
    assert curl(sandbox, "http://metadata.example/") in NOT_CONNECTED
    assert curl(sandbox, "http://open.example/") == 0, "the control"


LINK = r"""
import json, socket, struct, fcntl
said = {}
def attempt(what, action):
    try:
        action()
        said[what] = 'done'
    except OSError as error:
        said[what] = error.errno
attempt('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
attempt('raw 6', lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))
def broadcast():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.sendto(b'broadcast', ('255.255.255.255', 7))
attempt('broadcast', broadcast)
def multicast(group):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton('169.254.0.21'))
    s.sendto(b'multicast', (group, 5353))
attempt('multicast', lambda: multicast('224.0.0.251'))
attempt('wide multicast', lambda: multicast('239.255.255.250'))
def all_nodes():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.sendto(b'six', ('ff02::1%eth0', 5353))
attempt('all nodes', all_nodes)
def neighbour():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # SIOCSARP of the gateway to an address of ours.
    fcntl.ioctl(s, 0x8955, struct.pack('HH4s8sH14si16s', 2, 0, socket.inet_aton('169.254.0.22'), b'', 1, b'\2' * 14, 4, b'eth0'))
attempt('arp entry', neighbour)
attempt('promiscuous', lambda: fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14s', b'eth0', 0x143, b'')))
def route():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.bind((0, 0))
    # RTM_NEWADDR of 10.9.9.9/24 on interface 2.
    message = struct.pack('=BBBBI', 2, 24, 0, 0, 2) + struct.pack('=HH4s', 8, 2, socket.inet_aton('10.9.9.9'))
    s.send(struct.pack('=LHHLL', 16 + len(message), 20, 5 | 0x400, 1, 0) + message)
    code = struct.unpack('=i', s.recv(4096)[16:20])[0]
    if code: raise OSError(-code, '')
attempt('netlink address', route)
print(json.dumps(said))
"""


def test_the_link_is_not_its_own(net, sandbox):
    """No packet by hand, no address, neighbour or route of its own choice, and what it may send to everybody stops at the host."""
    sandbox.files.write("/tmp/link.py", LINK)
    before = sandbox.commands.run("ip neighbour; ip address").stdout
    said = json.loads(sandbox.commands.run("python3 /tmp/link.py", user="root").stdout)
    for what, refused in {"packet": (97,), "raw": (1,), "raw 6": (1,), "arp entry": (1,), "promiscuous": (1,), "netlink address": (1,)}.items():
        assert said[what] in refused, (what, said)
    assert sandbox.commands.run("ip neighbour; ip address").stdout == before
    assert reached(sandbox, "udp:1.1.1.1:7:after all of it") != []
    seen = str(net.seen())
    assert "after all of it" in seen and "broadcast" not in seen and "multicast" not in seen and "six" not in seen


SPOOF = r"""
import socket, struct
# An answer to a question that nobody asked: the gateway and a neighbour's address are at this hardware address. Then an advertisement of a router.
packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x806))
packet.bind(('eth0', 0))
mine = open('/sys/class/net/eth0/address').read().strip().replace(':', '')
mine = bytes.fromhex(mine)
for claimed in ('169.254.0.22', '100.64.0.9', '203.0.113.1', '9.9.9.9'):
    address = socket.inet_aton(claimed)
    arp = struct.pack('!HHBBH6s4s6s4s', 1, 0x800, 6, 4, 2, mine, address, b'\xff' * 6, address)
    packet.send(b'\xff' * 6 + mine + b'\x08\x06' + arp)
source = socket.inet_pton(socket.AF_INET6, 'fe80::1')
target = socket.inet_pton(socket.AF_INET6, 'ff02::1')
body = struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0) + struct.pack('!BBBBIII16s', 3, 4, 64, 0xC0, 1800, 1800, 0, socket.inet_pton(socket.AF_INET6, '2001:db8:bad::'))
packet.send(b'\x33\x33\0\0\0\1' + mine + b'\x86\xdd' + struct.pack('!IHBB16s16s', 6 << 28, len(body), 58, 255, source, target) + body)
"""


def test_what_a_forged_link_would_do(net, server, sandbox, own):
    """Made by root of the host in the sandbox's namespace, since nothing inside can: the host's neighbours and addresses stay what they are."""
    other = own()
    neighbours = lambda: {line.rsplit(maxsplit=1)[0].strip() for line in net.host.run("ip", "neighbour").stdout.splitlines() if "PERMANENT" in line}
    addresses = lambda: {info["local"] for link in json.loads(net.host.run("ip", "-j", "address").stdout) for info in link["addr_info"]}
    before = neighbours(), addresses()
    assert before[0], "the control: slots have permanent neighbours"
    net.host.run("nsenter", f"--net=/proc/{on_host(sandbox).pid}/ns/net", "--", "python3", "-c", SPOOF)
    # Slots that are made meanwhile have theirs, too.
    assert before[0] <= neighbours() and before[1] <= addresses()
    for claimed in ("169.254.0.22 ", "100.64.0.9 ", "9.9.9.9 "):
        assert not any(line.startswith(claimed) for line in net.host.run("ip", "neighbour").stdout.splitlines()), claimed
    assert "2001:db8:bad" not in net.host.run("ip", "-6", "route").stdout + net.host.run("ip", "-6", "address").stdout
    for made in (sandbox, other):
        assert curl(made, "http://1.1.1.1/") == 0
    assert reached(sandbox, *(f"tcp:{address}:49983" for address in outer_addresses(net))) == []


def test_abstract_sockets_are_its_own(server, sandbox, own):
    """The name of an abstract unix socket belongs to the network namespace: the host's and a neighbour's are others."""
    name = "soulbox-security-test"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(f"\0{name}")
    listening.listen()
    connect = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}')"
    serve = f"import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('\\0{name}'); s.listen(); print('bound', flush=True); time.sleep(20)"
    try:
        assert exit_code(sandbox, f'python3 -c "{connect}" 2> /dev/null', user="root") == 1
        other = own()
        running = other.commands.run(f'python3 -c "{serve}"', background=True)
        assert next(out for out, _, _ in running if out) == "bound\n", "the same name is free there"
        assert exit_code(other, f'python3 -c "{connect}"') == 0, "the control"
        assert exit_code(sandbox, f'python3 -c "{connect}" 2> /dev/null', user="root") == 1
    finally:
        listening.close()


def test_names_lead_to_no_other_port_of_the_gateway(net, sandbox):
    """DNS over TCP and UDP on port 53, and a question that asks for more than an answer."""
    query = lambda name, kind: struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"".join(bytes([len(l)]) + l for l in name.encode().split(b".")) + struct.pack("!BHH", 0, kind, 1)
    code = f"""
import json, socket, struct
said = {{}}
def udp(port, payload, patience=0.3):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(patience)
        s.sendto(payload, ('{GATEWAY}', port))
        try: return s.recv(4096).hex()
        except OSError: return None
for kind, payload in {[(kind, query("named.example", number).hex()) for kind, number in (("A", 1), ("ANY", 255), ("AXFR", 252), ("TXT", 16))]}:
    said[kind] = udp(53, bytes.fromhex(payload), 3)
said['other port'] = [port for port in (22, 80, 443, 853, 5353, 8053, 49983) if udp(port, bytes.fromhex({query("named.example", 1).hex()!r}))]
for size in (0, 1, 11, 12, 600, 65000):
    said[f'garbage {{size}}'] = udp(53, b'\\xff' * size)
update = bytes.fromhex({struct.pack("!HHHHHH", 7, 0x2800, 1, 0, 1, 0).hex()!r})
said['update'] = udp(53, update)
said['still'] = udp(53, bytes.fromhex({query("named.example", 1).hex()!r}), 3)
print(json.dumps(said))
"""
    sandbox.files.write("/tmp/names.py", code)
    said = json.loads(sandbox.commands.run("python3 /tmp/names.py", timeout=60).stdout)
    assert said["A"] and said["still"], "the control"
    assert said["other port"] == []
    for what in ("AXFR", "ANY", "TXT", "update", *(name for name in said if name.startswith("garbage"))):
        # Nothing, or a refusal that is no longer than its question is asked to be.
        assert said[what] is None or len(said[what]) // 2 <= 512, what
    assert said["update"] is None or int(said["update"][6:8], 16) & 15 != 0


@pytest.mark.parametrize("name", ["localhost", "e2b.local", "host.docker.internal", "gateway", "_gateway", "metadata.google.internal"])
def test_no_name_leads_to_the_host(net, server, sandbox, name):
    """Whatever a name of that kind means inside, it is not a port of the server's."""
    assert curl(sandbox, f"http://{name}:{server.port}/health") in (*NOT_CONNECTED, 6)
