"""R14: a database that an earlier version left behind, with jobs under way, is taken up, and taken back one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, inspect, select, text
from support.databases import PostgresCluster
from support.recorded_databases import OWNER, file_of, replay, revisions

from executor.database import engine as database
from executor.database import job_queue, mappings
from executor.database.engine import Job, open_engine, reading, transaction
from executor.model import JobResult, JobStatus, ReportState

#: What earlier versions have, by what tells one row from another.
TABLES = {"jobs": "id", "runs": "id", "mappings": "id", "nodes": "id", "critical_jobs": "name"}
KINDS = ("sqlite", "postgresql")


@pytest.fixture(params=[(revision, kind) for revision in revisions() for kind in KINDS], ids="-".join)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Engine]]:
    """Open a database as it was recorded, with its revision."""
    revision, kind = request.param
    if kind == "sqlite":
        yield from _replayed(f"sqlite:///{tmp_path / 'smith.db'}", revision)
        return
    postgres: PostgresCluster = request.getfixturevalue("postgres")
    with postgres.fresh_database("template0") as url:
        yield from _replayed(url, revision)


def _replayed(url: str, revision: str) -> Iterator[tuple[str, Engine]]:
    engine = open_engine(url)
    replay(engine, revision)
    yield revision, engine
    engine.dispose()


def rows(engine: Engine, known: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return every row of the tables that all versions have; with `known` those columns alone."""
    with engine.connect() as connection:
        asked = {
            name: text(f"SELECT {', '.join(known[name]) if known else '*'} FROM {name} ORDER BY {key}")  # noqa: S608
            for name, key in TABLES.items()
        }
        return {name: [dict(row) for row in connection.execute(ask).mappings()] for name, ask in asked.items()}


def columns(engine: Engine) -> dict[str, list[str]]:
    """Return the columns that this version of the schema has."""
    return {name: [column["name"] for column in inspect(engine).get_columns(name)] for name in TABLES}


def shape(engine: Engine) -> dict[str, Any]:
    """Return the tables with columns, indexes and keys, as the database itself tells them."""
    looked = inspect(engine)
    return {
        name: (
            {column["name"]: (str(column["type"]), column["nullable"]) for column in looked.get_columns(name)},
            {index["name"]: (index["column_names"], index["unique"]) for index in looked.get_indexes(name)},
            looked.get_pk_constraint(name)["constrained_columns"],
            sorted(key["referred_table"] for key in looked.get_foreign_keys(name)),
        )
        for name in looked.get_table_names()
    }


def take_up_the_work(engine: Engine) -> None:
    """Do what the agent does after its start, as far as the database is concerned."""
    with reading(engine) as session:
        in_flight = session.scalars(select(Job.id).where(Job.status == JobStatus.PROCESSING)).all()
        epochs = dict(session.execute(select(Job.id, Job.epoch)).all())
        due = {job.id for job in job_queue.due_reports(session, 100)}
    assert len(in_flight) >= 3
    assert due
    with transaction(engine) as session:
        assert dict(job_queue.reap(session, alone_as="node-of-now")) == dict.fromkeys(in_flight, JobStatus.PENDING)
        for job_id in due:
            job_queue.note_reported(session, job_id, ReportState.REPORTED)
    taken = {}
    while job := _claimed(engine):
        taken[job.id] = job
    assert set(in_flight) < set(taken), "those that waited are taken, too"
    assert all(job.epoch > epochs[job_id] for job_id, job in taken.items()), "the owner of then is fenced off"
    with transaction(engine) as session:
        started = next(job for job in taken.values() if job.run_ident and not job.cancel_requested)
        mapping = mappings.live(session, str(started.service_id))
        assert mapping is not None
        assert mapping.marker == mappings.marker_for(str(started.service_id))
        vm = {"vmid": mapping.vmid, "node": "pve2", "status": "stopped"}
        mappings.apply_result(session, mapping.id, vm)
        job_queue.finish(session, job_queue.lease_of(started), JobResult(succeeded=True, vm=vm))


def _claimed(engine: Engine) -> Job | None:
    with transaction(engine) as session:
        return job_queue.claim(session, "node-of-now", lease_s=30)


def test_what_an_earlier_version_left_is_taken_up_and_can_be_taken_back(recorded: tuple[str, Engine]) -> None:
    revision, engine = recorded
    before, shape_before, known = rows(engine), shape(engine), columns(engine)
    assert {row["status"] for row in before["jobs"]} == set(JobStatus)
    assert OWNER in {row["owner"] for row in before["jobs"]}

    database.upgrade(engine)
    assert database.check(engine) == []
    assert rows(engine, known) == before
    take_up_the_work(engine)
    worked = rows(engine, known)

    if revision == database.head_revision():
        return  # recorded by this version: there is nothing between to go back over
    database.downgrade(engine, revision)
    assert rows(engine) == worked
    assert shape(engine) == shape_before, "the earlier version finds the schema that it made"
    database.upgrade(engine)
    assert (rows(engine, known), database.check(engine)) == (worked, [])
    assert JobStatus.PROCESSING in {row["status"] for row in worked["jobs"]}, "with jobs under way all the time"


def test_each_record_is_is_of_both_engines() -> None:
    assert revisions()
    for revision in revisions():
        assert all(file_of(revision, kind).is_file() for kind in KINDS), revision
