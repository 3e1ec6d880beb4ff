"""`smith db`, and what each command prints if it cannot use the database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from support.cli_world import Cli
from support.databases import PostgresCluster

from executor.agent.database_lock import exclusive_database
from executor.cli.database import holding_database_lock
from executor.database import agent_queries, nodes, schema
from executor.database.engine import open_engine, transaction
from executor.database.nodes import AgentProcess
from executor.database.tables.agents import AgentProcessRow
from executor.database.times import utc_now
from executor.errors import DatabaseError

#: One command of every kind that needs a database.
NEEDS_DATABASE = (
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


@pytest.mark.parametrize("args", NEEDS_DATABASE)
def test_a_command_that_finds_no_database_creates_none(args: tuple[str, ...], smith: Cli) -> None:
    done = smith(*args)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"smith: no database yet at {smith.file}: `smith run` creates it")
    assert done.stderr.count("\n") == 1
    assert not smith.data.exists()


def test_upgrade_creates_the_database_with_mode_0600(smith: Cli) -> None:
    assert "the schema was created" in smith.ok("db", "upgrade")
    assert stat.S_IMODE(smith.file.stat().st_mode) == 0o600
    assert "already" in smith.ok("db", "upgrade")
    assert smith.ok("db", "check") == "the database has no errors and is up to date\n"
    assert smith.json("db", "check") == {"ok": True, "problems": []}
    revisions = smith.json("db", "current")
    assert revisions["current"] == revisions["newest"]


def test_downgrade_needs_a_confirmation_and_upgrade_reverts_it(smith: Cli) -> None:
    smith.ok("db", "upgrade")
    refused = smith("db", "downgrade")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    newest = smith.json("db", "current")["newest"]
    assert smith.json("db", "current")["current"] == newest
    assert f"the schema was downgraded from revision {newest} to" in smith.ok("db", "downgrade", "--yes")
    assert smith.json("db", "current")["current"] != newest
    smith.ok("db", "downgrade", "--to", "0001", "--yes")
    audit_list = smith("audit", "list")  # reads a table that only revision 0002 creates
    assert audit_list.returncode == 6
    assert "run `smith db upgrade`" in audit_list.stderr
    check = smith("db", "check")
    assert check.returncode == 6
    assert "run `smith db upgrade`" in check.stderr
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
def test_a_database_with_the_schema_of_a_newer_version_is_refused_and_not_changed(
    args: tuple[str, ...], smith: Cli
) -> None:
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


def test_without_the_driver_for_postgresql_the_error_says_what_to_install(smith: Cli) -> None:
    """With None in sys.modules, an import fails as if the module were not installed."""
    (smith.folder / "sitecustomize.py").write_text("import sys\nsys.modules['psycopg'] = None\n")
    url = "postgresql://smith@127.0.0.1:9/smith"
    done = smith("jobs", "list", SMITH_DATABASE_URL=url, PYTHONPATH=str(smith.folder))
    expected_error = "smith: PostgreSQL needs the driver psycopg: install agent-smith[postgres]\n"
    assert (done.returncode, done.stderr) == (6, expected_error)


def test_a_query_does_not_wait_for_a_writer(smith: Cli) -> None:
    """The transaction of an agent stays open; a query that waited for its end would fail with `database is locked`."""
    job_id = smith.submit()
    with contextlib.closing(sqlite3.connect(smith.file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE jobs SET action = 'changed'")
        assert smith.json("jobs", "show", str(job_id))["action"] == "create"
        assert smith.json("status")["jobs"]["pending"] == 1
        writer.execute("ROLLBACK")


def test_an_agent_that_finds_the_database_locked_by_a_command_names_the_commands_process(tmp_path: Path) -> None:
    file = tmp_path / "smith.db"
    lock_file = Path(f"{file}.lock")
    lock_file.write_text("pid 1 on an earlier host")
    with (
        holding_database_lock(lock_file),
        pytest.raises(DatabaseError, match=f"in use by pid {os.getpid()} on [^ ]+: only one"),
        exclusive_database(f"sqlite:///{file}"),
    ):
        pass


def test_a_downgrade_of_postgresql_finds_one_running_agent_among_many_stopped_ones(
    smith: Cli, postgres: PostgresCluster
) -> None:
    with postgres.fresh_database() as url:
        engine = open_engine(url)
        with transaction(engine) as session:
            for number in range(15):
                agent = AgentProcess(boot_id=f"n{number}", host="h", pid=number, version="1", concurrency=1)
                nodes.store_agent_start(session, agent)
            session.execute(update(AgentProcessRow).where(AgentProcessRow.id != "n14").values(stopped_at=utc_now()))
            session.execute(
                update(AgentProcessRow)
                .where(AgentProcessRow.id == "n14")
                .values(seen_at=utc_now() - timedelta(seconds=1))
            )
        refused = smith("db", "downgrade", "--yes", SMITH_DATABASE_URL=url)
        assert refused.returncode == 6
        assert "agent n14 on h uses this database: stop the agent first" in refused.stderr
        with transaction(engine) as session:
            session.execute(update(AgentProcessRow).values(stopped_at=utc_now()))
        engine.dispose()
        assert "the schema was downgraded from revision" in smith.ok("db", "downgrade", "--yes", SMITH_DATABASE_URL=url)


def test_a_downgrade_is_refused_if_an_agent_starts_while_the_downgrade_waits_for_its_lock(
    postgres: PostgresCluster,
) -> None:
    def refuse(session: Session) -> None:
        assert agent_queries.processes_without_stop_time(session) == []
        raise DatabaseError("an agent has started")

    with postgres.fresh_database() as url:
        engine = open_engine(url)
        before = schema.current_revision(engine)
        with pytest.raises(DatabaseError, match="an agent has started"):
            schema.downgrade(engine, check_in_transaction=refuse)
        assert schema.current_revision(engine) == before
        schema.downgrade(
            engine, check_in_transaction=lambda session: agent_queries.processes_without_stop_time(session) and None
        )
        assert schema.current_revision(engine) != before
        engine.dispose()
