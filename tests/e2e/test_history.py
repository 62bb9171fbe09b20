"""Logs and metrics of sandboxes outlive the server that noted them, and are noted once."""

import os
import time
from collections import Counter

from conftest import Server, until
from e2b import Sandbox
from test_control_plane import Client, Team


def client(server: Server) -> Client:
    return Client(server, **{"X-API-Key": os.environ["E2B_API_KEY"]})


def lines(server: Server, sandbox_id: str) -> Counter:
    """How often the log has each message."""
    status, said = client(server).call("GET", f"/v2/sandboxes/{sandbox_id}/logs?direction=forward")
    assert status == 200, said
    times = [line["timestamp"] for line in said["logs"]]
    assert times == sorted(times)
    return Counter(line["message"] for line in said["logs"])


def points(server: Server, sandbox_id: str) -> list[int]:
    status, said = client(server).call("GET", f"/sandboxes/{sandbox_id}/metrics")
    assert status == 200, said
    return [point["timestampUnix"] for point in said]


def test_what_was_noted_is_there_after_a_restart(server):
    sandbox = Sandbox.create(timeout=300)
    sandbox.commands.run("true")
    until("two samples are taken", lambda: len(points(server, sandbox.sandbox_id)) >= 2, 30)
    before = lines(server, sandbox.sandbox_id)
    assert before["sandbox started"] == 1, before
    assert any("process" in message for message in before), before
    assert server.stop() == 0
    stopped = time.time()
    server.start()
    # The daemon tells all that it has to a server that knows nothing yet.
    sandbox.commands.run("true")
    after = lines(server, sandbox.sandbox_id)
    assert after["sandbox adopted by this server"] == 1, after
    assert all(after[message] >= count for message, count in before.items()), (before, after)
    assert after["sandbox started"] == 1, after
    assert any(at < stopped for at in points(server, sandbox.sandbox_id))

    sandbox.kill()
    assert lines(server, sandbox.sandbox_id)["sandbox ended"] == 1
    assert server.stop() == 0
    server.start()
    ended = lines(server, sandbox.sandbox_id)
    assert ended["sandbox ended"] == ended["sandbox started"] == 1, ended
    assert all(ended[message] >= count for message, count in after.items()), (after, ended)
    assert any(at < stopped for at in points(server, sandbox.sandbox_id))


def test_a_server_that_is_killed_loses_its_last_seconds_only(server):
    sandbox = Sandbox.create(timeout=300)
    sandbox.commands.run("true")
    # Lines are written every two seconds; nobody reads them here, which would write them as well.
    time.sleep(6)
    server.kill()
    server.start()
    found = lines(server, sandbox.sandbox_id)
    assert found["sandbox started"] == 1, found
    sandbox.kill()


def test_another_team_reads_nothing_of_it(server):
    sandbox = Sandbox.create(timeout=300)
    other = Team(server)
    path = f"sandboxes/{sandbox.sandbox_id}"
    for _ in range(2):
        assert other.client.call("GET", f"/v2/{path}/logs") == (200, {"logs": []})
        assert other.client.call("GET", f"/{path}/metrics") == (200, [])
        sandbox.kill()


def test_a_copy_does_not_tell_what_was_done_in_the_first(server):
    """Its daemon goes on from the memory of the first one's, and a snapshot may be another team's."""
    first = Sandbox.create(timeout=300)
    first.commands.run("echo of the first")
    snapshot = first.create_snapshot()
    copy = Sandbox.create(snapshot.snapshot_id, timeout=300)
    copy.commands.run("echo of the copy")
    said = client(server).call("GET", f"/v2/sandboxes/{copy.sandbox_id}/logs?direction=forward")[1]["logs"]
    assert [line["fields"]["command"] for line in said if line["message"] == "process_start"] == ["/bin/bash -l -c echo of the copy"]
    for sandbox in (first, copy):
        sandbox.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)
