"""`smith db`, and the message of every command about a database that it cannot use."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from support.cli_world import Cli

#: One command of every kind that needs a database.
NEEDY = (
    ("status",),
    ("jobs", "list"),
    ("jobs", "retry", "1"),
    ("mappings", "list"),
    ("runs", "list"),
    ("critical", "list"),
    ("db", "check"),
    ("db", "current"),
    ("db", "downgrade", "--yes"),
)


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.mark.parametrize("args", NEEDY)
def test_a_query_creates_no_database(args: tuple[str, ...], smith: Cli) -> None:
    done = smith(*args)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"smith: no database yet at {smith.file}: `smith run` creates it")
    assert done.stderr.count("\n") == 1
    assert not smith.data.exists()


def test_upgrade_creates_the_database_with_mode_0600(smith: Cli) -> None:
    assert "schema was none and is now" in smith.ok("db", "upgrade")
    assert stat.S_IMODE(smith.file.stat().st_mode) == 0o600
    assert "already" in smith.ok("db", "upgrade")
    assert smith.ok("db", "check") == "the database has no errors and is up to date\n"
    assert smith.json("db", "check") == {"ok": True, "problems": []}
    found = smith.json("db", "current")
    assert found["current"] == found["newest"]


def test_downgrade_needs_a_confirmation_and_upgrade_reverts_it(smith: Cli) -> None:
    smith.ok("db", "upgrade")
    refused = smith("db", "downgrade")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    newest = smith.json("db", "current")["newest"]
    assert smith.json("db", "current")["current"] == newest
    assert f"schema was {newest} and is now" in smith.ok("db", "downgrade", "--yes")
    assert smith.json("db", "current")["current"] != newest
    smith.ok("db", "downgrade", "--to", "0001", "--yes")
    question = smith("audit", "list")  # whose table 0002 makes
    assert question.returncode == 6
    assert "run `smith db upgrade`" in question.stderr
    checked = smith("db", "check")
    assert checked.returncode == 6
    assert "run `smith db upgrade`" in checked.stderr
    smith.ok("db", "upgrade")
    assert smith.json("jobs", "list") == []


def test_an_unknown_revision_gives_a_message_of_one_line(smith: Cli) -> None:
    smith.ok("db", "upgrade")
    done = smith("db", "downgrade", "--to", "no-such-revision", "--yes")
    assert done.returncode == 6
    assert done.stderr.startswith("smith: ")
    assert "no-such-revision" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [("jobs", "list"), ("db", "check"), ("db", "upgrade"), ("db", "downgrade", "--yes")])
def test_a_newer_schema_is_refused_and_not_changed(args: tuple[str, ...], smith: Cli) -> None:
    smith.submit()
    with contextlib.closing(sqlite3.connect(smith.file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        if args == ("jobs", "list"):
            connection.execute("ALTER TABLE jobs RENAME TO tasks")
    done = smith(*args)
    assert (done.returncode, done.stdout) == (6, "")
    assert "9999" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_file_gives_one_line_and_exit_code_6(smith: Cli) -> None:
    smith.submit()
    with smith.file.open("r+b") as file:
        file.write(b"this is no database at all, whatever its name says")
    for args in (("jobs", "list"), ("db", "check"), ("db", "upgrade")):
        done = smith(*args)
        assert done.returncode == 6, args
        assert done.stderr.startswith(f"smith: the database sqlite:///{smith.file} cannot be used")
        assert done.stderr.count("\n") == 1


def test_a_damaged_page_is_found_by_check(smith: Cli) -> None:
    for _ in range(40):
        smith.submit(params={"text": "x" * 3000})
    size = smith.file.stat().st_size
    with smith.file.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))
    done = smith("db", "check")
    assert done.returncode == 6
    assert done.stderr.startswith("smith: ")
    assert "Traceback" not in done.stderr


def test_an_unreachable_database_gives_exit_code_6_without_its_password(smith: Cli) -> None:
    pytest.importorskip("psycopg")
    done = smith("jobs", "list", SMITH_DATABASE_URL="postgresql+psycopg://smith:hunter2pass@127.0.0.1:9/smith")
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("smith: the database postgresql+psycopg://")
    assert "hunter2pass" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_query_does_not_wait_for_a_writer(smith: Cli) -> None:
    """An agent's transaction is open, and stays open: a question that waited would end in `database is locked`."""
    job_id = smith.submit()
    with contextlib.closing(sqlite3.connect(smith.file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE jobs SET action = 'changed'")
        assert smith.json("jobs", "show", str(job_id))["action"] == "create"
        assert smith.json("status")["jobs"]["pending"] == 1
        writer.execute("ROLLBACK")
