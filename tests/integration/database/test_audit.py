"""The audit: which entries the operators' commands add, and that the database lets no entry be changed or deleted."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from support.cli_world import Cli, claim
from support.databases import PostgresCluster

from executor.database import audit, audit_queries, database_check, job_queue, schema
from executor.database.engine import open_engine, read_only_session, transaction
from executor.database.tables.audit import AuditEntry
from executor.redaction import redactor

SERVICE = "aaaa1111-0000-4000-8000-000000000000"
#: The statements that would change or delete an entry, on each kind of database.
TAMPERING = {
    "sqlite": (
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
        "REPLACE INTO audit (id, at, who, verb, subject_kind, subject_id) VALUES (1, '2026-01-01', 'x', 'y', 'z', '1')",
    ),
    "postgresql": ("UPDATE audit SET who = 'nobody'", "DELETE FROM audit", "TRUNCATE audit"),
}


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Open an SQLite or PostgreSQL database for this test alone: one test deletes its tables."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_engine")
        return
    cluster: PostgresCluster = request.getfixturevalue("postgres")
    with cluster.fresh_database() as url:
        separate_engine = open_engine(url)
        yield separate_engine
        separate_engine.dispose()


def add_audit_entry(engine: Engine, **more: Any) -> None:
    values: dict[str, Any] = {"who": "alice", "verb": "forget", "subject_kind": "mapping", "subject_id": SERVICE}
    with transaction(engine) as session:
        audit.add_entry(session, **(values | more))


def entries(engine: Engine) -> list[AuditEntry]:
    with read_only_session(engine) as session:
        return list(audit_queries.list_entries(session))


# --- the table ----------------------------------------------------------------------------------------------------


def test_an_entry_has_user_verb_reason_and_the_values_before_and_after(engine: Engine) -> None:
    add_audit_entry(engine, before={"state": "active"}, after=None, reason="the VM was never ours")
    (entry,) = entries(engine)
    assert (entry.who, entry.verb, entry.subject_kind, entry.subject_id) == ("alice", "forget", "mapping", SERVICE)
    assert (entry.before, entry.after, entry.reason) == ({"state": "active"}, None, "the VM was never ours")
    assert entry.at.tzinfo is not None


def test_the_database_refuses_to_change_or_delete_an_entry(engine: Engine) -> None:
    add_audit_entry(engine)
    add_audit_entry(engine, verb="adopt")
    for statement in TAMPERING[engine.dialect.name]:
        with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
            connection.execute(text(statement))
    assert [(entry.id, entry.who, entry.verb) for entry in entries(engine)] == [
        (2, "alice", "adopt"),
        (1, "alice", "forget"),
    ]


def test_an_entry_is_rolled_back_with_its_change(engine: Engine) -> None:
    def add_entry_and_fail() -> None:
        with transaction(engine) as session:
            audit.add_entry(session, who="alice", verb="forget", subject_kind="mapping", subject_id=SERVICE)
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        add_entry_and_fail()
    assert entries(engine) == []


def test_the_table_is_dropped_and_created_by_its_migration(engine: Engine) -> None:
    add_audit_entry(engine)
    schema.downgrade(engine, "0001")
    schema.upgrade(engine)
    assert (entries(engine), database_check.find_problems(engine)) == ([], [])
    add_audit_entry(engine)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text("DELETE FROM audit"))


def test_a_secret_in_a_reason_or_a_value_is_masked(engine: Engine) -> None:
    redactor.add("open-sesame-7431")
    try:
        add_audit_entry(engine, reason="token open-sesame-7431", after={"note": "with open-sesame-7431"})
    finally:
        redactor.discard("open-sesame-7431")
    (entry,) = entries(engine)
    assert "open-sesame" not in f"{entry.reason} {entry.after}"


# --- the commands ------------------------------------------------------------------------------------------------


def test_a_cancelled_job_is_in_the_audit_with_its_user_and_reason(smith: Cli) -> None:
    job_id = smith.submit()
    smith.ok("jobs", "cancel", str(job_id), "--yes", "--reason", "ordered by mistake")
    (entry,) = smith.json("audit", "list")
    assert (entry["who"], entry["verb"], entry["subject_kind"]) == (pwd.getpwuid(os.getuid()).pw_name, "cancel", "job")
    assert entry["subject_id"] == smith.row(job_id).fulcrum_id
    assert (entry["before"]["status"], entry["after"]["status"]) == ("pending", "failed")
    assert entry["reason"] == "ordered by mistake"


def test_a_cancel_request_of_a_running_job_is_in_the_audit(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        claim(session)
    smith.ok("jobs", "cancel", str(job_id), "--yes")
    (entry,) = smith.json("audit", "list")
    assert (entry["before"]["cancel_requested"], entry["after"]["cancel_requested"]) == (False, True)


def test_a_retried_job_is_in_the_audit(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        job_queue.requeue(session, claim(session), backoff_s=3600, reason="VM_LOCKED")
    smith.ok("jobs", "retry", str(job_id), SUDO_USER="bob")
    (entry,) = smith.json("audit", "list", "--verb", "retry")
    assert entry["who"].endswith("(sudo by bob)")
    assert entry["before"]["available_at"] is not None
    assert entry["after"]["available_at"] is None


def test_a_command_that_changed_nothing_adds_no_entry(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        claim(session)
    assert smith("jobs", "retry", str(job_id)).returncode == 1
    assert smith.json("audit", "list") == []
    assert smith.ok("audit", "list") == "no changes match\n"


def test_the_list_can_be_limited_to_one_subject_and_shows_the_differences(smith: Cli) -> None:
    first, second = smith.submit(), smith.submit()
    for job_id in (first, second):
        smith.ok("jobs", "cancel", str(job_id), "--yes")
    fulcrum_id = smith.row(first).fulcrum_id
    assert [entry["subject_id"] for entry in smith.json("audit", "list", "--subject", fulcrum_id[:8])] == [fulcrum_id]
    assert len(smith.json("audit", "list", "--limit", "1")) == 1
    assert "status: pending -> failed" in smith.ok("audit", "list")
