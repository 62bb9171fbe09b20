"""`soulbox db`: schema, backup and restore, from one kind of database to the other; and what is refused."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Server, free_port, run
from e2b import Sandbox
from postgres import Cluster


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        yield made.start()
    finally:
        made.end()


def db(*arguments, data, url: str | None = None):
    return run("db", *map(str, arguments), "--data-dir", str(data), env={"SOULBOX_DATABASE_URL": url} if url else {})


def rows(backup) -> list[str]:
    """Its lines in an order of their own: the databases have their columns in different ones."""
    return sorted(json.dumps(json.loads(line), sort_keys=True) for line in backup.read_text().splitlines())


def test_a_backup_goes_from_sqlite_to_postgres_and_back(server, cluster, tmp_path):
    made = Sandbox.create(timeout=60, metadata={"a": 'b "ü"'})
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    # While the server runs.
    taken = db("backup", first, data=server.data)
    assert taken.returncode == 0, taken.stderr
    assert first.stat().st_mode & 0o777 == 0o600
    url = cluster.database()
    restored = db("restore", first, data=server.data, url=url)
    assert restored.returncode == 0, restored.stderr
    assert db("backup", second, data=server.data, url=url).returncode == 0
    assert rows(first) == rows(second)
    assert made.sandbox_id in second.read_text()
    again = db("restore", first, data=server.data, url=url)
    assert again.returncode == 1 and "not empty" in again.stderr
    # And into a new data directory, which a server could then use.
    other = tmp_path / "data"
    restored = db("restore", second, data=other)
    assert restored.returncode == 0, restored.stderr
    assert db("backup", third, data=other).returncode == 0
    assert rows(first) == rows(third)
    owner = (other / "control/control.db").stat().st_uid
    assert owner == (server.data / "control/control.db").stat().st_uid != 0
    made.kill()


def test_damaged_and_foreign_backups_change_nothing(server, tmp_path):
    whole, bad, data = tmp_path / "whole", tmp_path / "bad", tmp_path / "data"
    assert db("backup", whole, data=server.data).returncode == 0
    lines = whole.read_text().splitlines(keepends=True)
    head = json.loads(lines[0])
    for text, why in [
        ("", "cut off"),
        ("hello\n", "not understood"),
        ('{"rows":0}\n', "no backup of soulbox"),
        ("".join(lines[:-1]), "cut off"),
        ("".join(lines)[:-20], "cut off"),
        (lines[0] + lines[-1], "more or fewer rows"),
        (json.dumps(head | {"schema": 99}) + "\n" + "".join(lines[1:]), "schema version 99"),
        (lines[0] + '{"table":"pg_user","row":{"a":1}}\n', "no table"),
        (lines[0] + '{"table":"teams","row":{"a) --":1}}\n', "columns"),
        (lines[0] + '{"table":"teams","row":{"nonsense":1}}\n', "nothing was restored"),
    ]:
        bad.write_text(text)
        refused = db("restore", bad, data=data)
        assert refused.returncode == 1 and why in refused.stderr, (text[:80], refused.stderr)
    assert db("restore", whole, data=data).returncode == 0, "nothing was in the way"
    missing = db("restore", tmp_path / "none", data=data)
    assert missing.returncode == 1 and "failed to open" in missing.stderr
    existing = db("backup", whole, data=server.data)
    assert existing.returncode == 1 and "failed to make" in existing.stderr
    running = db("restore", whole, data=server.data)
    assert running.returncode == 1 and "another server uses" in running.stderr


def test_a_newer_schema_is_refused_by_every_command(server, cluster, tmp_path):
    whole, data = tmp_path / "whole", tmp_path / "data"
    assert db("backup", whole, data=server.data).returncode == 0
    assert db("restore", whole, data=data).returncode == 0
    same = db("migrate", data=data)
    assert same.returncode == 0 and "already" in same.stderr
    later = (
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) "
        "VALUES (99, 'later', true, '', 0)"
    )
    with sqlite3.connect(data / "control/control.db") as file:
        file.execute(later.replace("'', 0", "x'00', 0"))
    url = cluster.database()
    assert db("migrate", data=data, url=url).returncode == 0
    cluster.query(url.split("/")[3].split("?")[0], later)
    for where in ({}, {"url": url}):
        for command in (("migrate",), ("backup", tmp_path / "no"), ("restore", whole)):
            refused = db(*command, data=data, **where)
            assert refused.returncode == 1, (command, where)
            assert "schema version 99" in refused.stderr and "hint: use the soulbox" in refused.stderr, refused.stderr
    assert not (tmp_path / "no").exists()


def test_a_server_does_not_start_on_a_newer_schema(cluster):
    url = cluster.database()
    made = Server()
    os.environ["SOULBOX_DATABASE_URL"] = url
    try:
        assert db("migrate", data=made.data, url=url).returncode == 0
        name = url.split("/")[3].split("?")[0]
        cluster.query(
            name,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) "
            "VALUES (99, 'later', true, '', 0)",
        )
        made.log.write_text("")
        with pytest.raises(AssertionError, match="the server ended"):
            made.start()
        assert made.process.wait(5) == 3
        said = made.log.read_text()
        assert "schema version 99, this soulbox knows versions up to" in said and "starting another one" not in said
        assert "error: the records are of a newer soulbox" in said
    finally:
        os.environ.pop("SOULBOX_DATABASE_URL", None)
        made.end()


def test_a_server_does_not_start_on_a_newer_file(server):
    server.stop()
    records = server.data / "control/control.db"
    with closing(sqlite3.connect(records)) as file, file:
        file.execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', 1, x'', 0)"
        )
    try:
        with pytest.raises(AssertionError, match="the server ended"):
            server.start()
        assert server.process.wait(5) == 3
    finally:
        with closing(sqlite3.connect(records)) as file, file:
            file.execute("DELETE FROM _sqlx_migrations WHERE version = 99")
    server.start()


def test_urls_that_cannot_work(tmp_path):
    for url, why in [("mysql://u:secret@h/d", "postgres://"), ("postgres://u:secret@h/d?sslmode=require", "TLS")]:
        refused = db("migrate", data=tmp_path, url=url)
        assert refused.returncode == 2 and why in refused.stderr and "secret" not in refused.stderr, refused.stderr
    nowhere = f"postgres://u:secret@127.0.0.1:{free_port()}/d"
    refused = db("migrate", data=tmp_path, url=nowhere)
    assert refused.returncode == 1 and "failed to connect" in refused.stderr and "secret" not in refused.stderr
    none = db("migrate", data=tmp_path)
    assert none.returncode == 1 and "there is no database" in none.stderr
    assert Path(tmp_path, "control").exists() is False


def test_without_postgres_there_is_no_second_front(server):
    refused = run("api", "--data-dir", str(server.data), "--listen", f"127.0.0.1:{free_port()}")
    assert refused.returncode == 1
    assert "SOULBOX_DATABASE_URL" in refused.stderr
