"""The attacks once more, in a sandbox that was paused and resumed, and in a fork: CRIU has made its processes, and everything that holds
them was put up anew."""

import pytest
from conftest import on_host
from e2b import Sandbox
from sized import create

# Their `sandbox` and `own` are those below.
from test_isolation import (  # noqa: F401
    outcomes,
    test_calls_of_32_bit_programs_are_refused,
    test_capabilities,
    test_chroot_does_not_lead_out,
    test_devices_are_the_few_that_programs_need,
    test_every_attempt_has_its_outcome,
    test_ids_are_a_range_of_its_own,
    test_init_and_agent_have_no_more_either,
    test_init_of_envd_is_not_for_the_inside,
    test_namespaces_are_its_own,
    test_nothing_of_the_host_is_inside,
    test_refused,
    test_sandboxes_do_not_see_each_other,
    test_secrets_of_the_kernel_are_masked,
    test_sudo_gives_no_more_than_root_has,
)
from test_limits import (  # noqa: F401
    fill,
    test_files_in_memory_count,
    test_inotify_instances_are_a_share,
    test_memory_is_not_swapped_out,
    test_memory_of_the_template,
    test_processor_time,
)
from test_privileges import (  # noqa: F401
    test_a_root_that_kills_everybody_ends_its_sandbox,
    test_no_map_without_a_helper,
)
from test_tenants import (  # noqa: F401
    test_no_descriptor_is_inherited,
    test_root_inside_is_nobody_outside,
    test_unix_sockets_of_envd_lead_nowhere,
    test_usage_of_others_is_not_visible,
)


def restored(sandbox: Sandbox, origin: str) -> Sandbox:
    """The sandbox after a pause, or a fork in its place."""
    if origin == "resumed":
        sandbox.pause()
        return Sandbox.connect(sandbox.sandbox_id, timeout=600)
    (fork,) = sandbox.fork(count=1, timeout=600)
    sandbox.kill()
    return fork


@pytest.fixture(scope="module", params=["resumed", "forked"])
def origin(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sandbox(server, origin):
    with restored(Sandbox.create("base", timeout=600), origin) as made:
        yield made


@pytest.fixture
def own(server, origin):
    made = []

    def make(**limits) -> Sandbox:
        made.append(restored(create(**limits) if limits else Sandbox.create("base", timeout=600), origin))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


def test_processes_are_limited(sandbox):
    assert on_host(sandbox).limit("pids", "pids.max", "pids.max") == "4096"


def test_what_was_written_before_counts(server, origin):
    """The disk is one limit for the time before and after."""
    sandbox = create(diskSizeMB=128)
    assert sandbox.commands.run(fill("/home/user/before", 60), timeout=60).stdout == "60\n"
    with restored(sandbox, origin) as again:
        outcome, written = again.commands.run(fill("/home/user/after", 200), timeout=60).stdout.splitlines()
        assert outcome in ("Disk quota exceeded", "No space left on device")
        assert 30 < int(written) <= 128 - 60
        assert again.commands.run("stat -c %s /home/user/before").stdout == f"{60 << 20}\n"
