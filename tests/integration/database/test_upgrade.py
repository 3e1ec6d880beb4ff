"""A database of an earlier version, with jobs in flight, is upgraded, used, and downgraded by one step.

This is promise R14 of `docs/promises.md`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from support.agent_steps import claim_next_job, due_reports, finish, job_row, reap_and_claim_jobs
from support.database_contents import CLUSTER, OWNER
from support.databases import PostgresCluster
from support.recorded_databases import KINDS, file_of, replay, revisions
from support.table_contents import TABLES, columns, only, rows, shape, shared

from executor.agent.refusals import Http403Counter
from executor.agent.reporter import Reporter
from executor.agent.state import AgentState
from executor.database import database_check, mapping_queries, mappings, outbox, queries, reopening, schema
from executor.database.engine import open_engine, read_only_session, transaction
from executor.database.revisions import head_revision
from executor.database.tables.all_tables import METADATA
from executor.database.tables.jobs import Job, Run
from executor.database.tables.mappings import Mapping as MappingRow
from executor.database.times import utc_now
from executor.fulcrum.client import FulcrumClient
from executor.model import JobStatus, MappingState, ReportState

AGENT_ID = "2c5ea4c0-4067-11e9-8bad-9b1deb4d3b7d"
RECORDS = [(revision, kind) for revision in revisions() for kind in KINDS]
#: Records of versions with a grace period: a deleted VM still exists until it is purged.
RECORDS_WITH_PURGES = [record for record in RECORDS if record[0] >= "0003"]
with_purges = pytest.mark.parametrize("recorded", RECORDS_WITH_PURGES, ids="-".join, indirect=True)


@pytest.fixture(params=RECORDS, ids="-".join)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Engine]]:
    """Open a database as it was recorded; return the revision of its schema and an engine."""
    revision, kind = request.param
    if kind == "sqlite":
        yield from _replay_and_open(f"sqlite:///{tmp_path / 'smith.db'}", revision)
        return
    postgres: PostgresCluster = request.getfixturevalue("postgres")
    with postgres.fresh_database("template0") as url:
        yield from _replay_and_open(url, revision)


def _replay_and_open(url: str, revision: str) -> Iterator[tuple[str, Engine]]:
    engine = open_engine(url)
    replay(engine, revision)
    yield revision, engine
    engine.dispose()


@pytest.fixture
def upgraded(recorded: tuple[str, Engine]) -> Engine:
    """Open a recorded database and upgrade it."""
    schema.upgrade(recorded[1])
    return recorded[1]


def test_an_upgrade_keeps_every_row_and_so_do_a_step_back_and_another_upgrade(recorded: tuple[str, Engine]) -> None:
    revision, engine = recorded
    before, shape_before, old_columns = rows(engine), shape(engine), columns(engine)
    assert {row["status"] for row in before["jobs"]} == set(JobStatus)
    assert OWNER in {row["owner"] for row in before["jobs"]}

    schema.upgrade(engine)
    assert database_check.find_problems(engine) == []
    assert rows(engine, old_columns) == before
    work_as_an_agent(engine)
    after_use, newest_shape = rows(engine, old_columns), shape(engine)
    assert JobStatus.PROCESSING in {row["status"] for row in after_use["jobs"]}, "jobs must be in flight in every step"

    schema.downgrade(engine)
    shared_columns = shared(old_columns, columns(engine))
    assert set(shared_columns) == set(old_columns)
    assert rows(engine, shared_columns) == only(after_use, shared_columns)
    schema.upgrade(engine)
    assert (rows(engine, shared_columns), database_check.find_problems(engine)) == (only(after_use, shared_columns), [])
    assert shape(engine) == newest_shape

    if revision == head_revision():
        return  # the newest schema was recorded: the step back above was the downgrade to an earlier version
    schema.downgrade(engine, revision)
    assert rows(engine) == after_use
    assert shape(engine) == shape_before, "the earlier version must find the schema that it had created"
    schema.upgrade(engine)
    assert (rows(engine, old_columns), database_check.find_problems(engine)) == (after_use, [])


def work_as_an_agent(engine: Engine) -> None:
    """Mark the due reports as sent, claim every job, and finish one whose run had started."""
    due = due_reports(engine)
    assert due
    with transaction(engine) as session:
        for job_id in due:
            outbox.set_report_state(session, job_id, ReportState.REPORTED)
    claimed_jobs = reap_and_claim_jobs(engine)
    finish(engine, next(job for job in claimed_jobs.values() if job.run_ident and not job.cancel_requested))


def test_after_an_upgrade_the_jobs_in_flight_and_the_pending_ones_finish_and_their_reports_are_due(
    upgraded: Engine,
) -> None:
    claimed_jobs = reap_and_claim_jobs(upgraded)
    for job in claimed_jobs.values():
        finish(upgraded, job)
    with read_only_session(upgraded) as session:
        waiting = queries.list_jobs(session, statuses=[JobStatus.PENDING])
        assert queries.count_jobs(session)[JobStatus.PROCESSING] == 0
    for job in waiting:
        assert job.available_at is not None
        assert job.available_at > utc_now(), "only a backoff keeps a job from being claimed"
        with transaction(upgraded) as session:
            assert reopening.retry_now(session, job.id) == "attempt"
        again = claim_next_job(upgraded)
        assert again is not None
        assert (again.id, again.attempt) == (job.id, job.attempt + 1)
        finish(upgraded, again)
    with read_only_session(upgraded) as session:
        assert queries.count_jobs(session)[JobStatus.PENDING] == 0
        new_runs = set(session.scalars(select(Run.job_id).where(Run.ident.startswith("upgraded-"))))
    ended = claimed_jobs | {job.id: job for job in waiting}
    local = {job_id for job_id, job in ended.items() if job.report_state == ReportState.LOCAL}
    assert set(ended) - local <= set(due_reports(upgraded))
    assert local.isdisjoint(due_reports(upgraded))
    failed = {job_id for job_id in ended if job_row(upgraded, job_id).status == JobStatus.FAILED}
    assert new_runs == set(ended) - failed
    assert failed == {job_id for job_id, job in ended.items() if job.defect or job.cancel_requested}


class Core(ThreadingHTTPServer):
    """A FulcrumCore that accepts and records every report."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.reports: dict[str, tuple[str, dict[str, Any]]] = {}


class _Answers(BaseHTTPRequestHandler):
    server: Core

    def do_POST(self) -> None:
        _, fulcrum_id, outcome = self.path.rsplit("/", 2)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        assert fulcrum_id not in self.server.reports, "a report is sent once"
        self.server.reports[fulcrum_id] = (outcome, json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@pytest.fixture
def core() -> Iterator[Core]:
    server = Core()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def expected_report(job: Job) -> tuple[str, dict[str, Any]]:
    """Return the call that reports an ended job, and the members that its body must at least contain."""
    if job.status == JobStatus.FAILED:
        return "fail", {"errorMessage": job.error_message}
    return "complete", {"agentInstanceId": f"{AGENT_ID}/{(job.result or {})['vmid']}"}


def test_after_an_upgrade_due_reports_are_sent_and_postponed_ones_keep_their_backoff(
    upgraded: Engine, core: Core
) -> None:
    due = due_reports(upgraded)
    assert {job.status for job in due.values()} == {JobStatus.COMPLETED, JobStatus.FAILED}
    with read_only_session(upgraded) as session:
        unreported = {job.id: job for job in queries.list_jobs(session, only_unreported=True)}
    assert all(job.report_after is not None for job_id, job in unreported.items() if job_id not in due)
    client = FulcrumClient(f"http://127.0.0.1:{core.server_port}", lambda: "token", read_timeout_s=5)
    reporter = Reporter(
        engine=upgraded,
        fulcrum=client,
        state=AgentState(agent_id=AGENT_ID),
        http_403_counter=Http403Counter(fulcrum=client),
    )

    reporter.send_due_reports()
    assert set(core.reports) == {job.fulcrum_id for job in due.values()}
    assert {job_row(upgraded, job_id).report_state for job_id in due} == {ReportState.REPORTED}
    with transaction(upgraded) as session:
        assert {reopening.retry_now(session, job_id) for job_id in set(unreported) - set(due)} <= {"report"}
    reporter.send_due_reports()
    assert set(core.reports) == {job.fulcrum_id for job in unreported.values()}
    for job in unreported.values():
        outcome, body = core.reports[job.fulcrum_id]
        expected_outcome, expected = expected_report(job)
        assert (outcome, body | expected) == (expected_outcome, body)
    assert due_reports(upgraded) == {}


@with_purges
def test_after_an_upgrade_only_the_deleted_vm_whose_purge_is_due_is_purged(upgraded: Engine) -> None:
    with read_only_session(upgraded) as session:
        (due,) = mappings.mappings_due_for_deletion(session, CLUSTER)
        pending = mapping_queries.list_mappings(session, states=[MappingState.PENDING_DELETION])
    (later,) = (mapping for mapping in pending if mapping.id != due.id)
    assert due.delete_at is not None
    assert later.delete_at is not None
    assert due.delete_at < utc_now() < later.delete_at
    claimed_jobs = reap_and_claim_jobs(upgraded)
    (purge,) = (job for job in claimed_jobs.values() if job.service_id == due.service_id)
    assert (purge.action, purge.report_state) == ("delete", ReportState.LOCAL)

    finish(upgraded, purge)
    with read_only_session(upgraded) as session:
        purged, kept = session.get_one(MappingRow, due.id), session.get_one(MappingRow, later.id)
        assert mappings.mappings_due_for_deletion(session, CLUSTER) == []
    assert purged.state == MappingState.DELETED
    assert purged.deleted_at is not None
    assert (kept.state, kept.delete_at) == (MappingState.PENDING_DELETION, later.delete_at)
    ended = job_row(upgraded, purge.id)
    assert (ended.status, ended.report_state) == (JobStatus.COMPLETED, ReportState.LOCAL)


@with_purges
def test_a_recorded_database_holds_every_state_of_a_mapping_and_of_a_report(upgraded: Engine) -> None:
    states = {
        MappingState.RESERVED,
        MappingState.ACTIVE,
        MappingState.PENDING_DELETION,
        MappingState.DELETED,
        MappingState.VM_LOST,
    }
    reports = {
        ReportState.NONE,
        ReportState.DUE,
        ReportState.REPORTED,
        ReportState.ENDED_BY_FULCRUM,
        ReportState.ABANDONED,
        ReportState.LOCAL,
    }
    with read_only_session(upgraded) as session:
        assert states <= set(session.scalars(select(MappingRow.state)))
        assert reports <= set(session.scalars(select(Job.report_state)))


def test_the_rows_of_every_table_are_compared() -> None:
    assert set(TABLES) == {table.name for table in METADATA.sorted_tables}


def test_each_schema_is_recorded_on_sqlite_and_on_postgresql() -> None:
    assert revisions()
    for revision in revisions():
        assert all(file_of(revision, kind).is_file() for kind in KINDS), revision
