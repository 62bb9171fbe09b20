"""What a sandbox reaches after a pause, and a fork of it: its interface and the rules for it were made anew. In the topology of test_network.py."""

import pytest
from e2b import Sandbox

# Their sandboxes are those below.
from test_network import (  # noqa: F401
    server,
    test_forged_packets_stop_at_the_host,
    test_names_are_resolved,
    test_no_ipv6_but_loopback,
    test_no_names_when_denied,
    test_nothing_public_when_denied,
    test_private_addresses_are_refused,
    test_public_addresses_are_reached,
    test_root_inside_cannot_change_its_network,
    test_sandboxes_do_not_reach_each_other,
    test_the_host_is_refused,
)
from test_neighbourhood import test_abstract_sockets_are_its_own, test_the_metadata_service_by_any_spelling  # noqa: F401
from test_restored import origin, own, restored  # noqa: F401


@pytest.fixture(scope="module")
def sandbox(server, origin):  # noqa: F811
    with restored(Sandbox.create("base", timeout=600), origin) as made:
        yield made


@pytest.fixture(scope="module")
def closed(server, origin):  # noqa: F811
    with restored(Sandbox.create("base", timeout=600, allow_internet_access=False), origin) as made:
        yield made
