"""Fills every table of a database, as after months of work. A move to another database must preserve every row."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import JSON, Engine, Table, insert, select, update
from sqlalchemy.orm import Session
from support.database_contents import OTHER_TENANT, TENANT, fill

from executor.database import job_events, manual_runs, moves, pauses, secret_references, web_sessions
from executor.database.engine import read_only_session, transaction
from executor.database.manual_runs import NewManualRun
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import Job, Run
from executor.database.times import utc_now
from executor.model import JobEventKind, RunStatus

#: Text that a wrong encoding, a wrong quotation or a wrong collation would change.
TEXT_HARD_TO_STORE = "Zürich 東京 🚀 'quoted' \"twice\" \\n %s :name {{ braces }} \x1b[31m Ä a Z _"


def fill_every_table(engine: Engine) -> None:
    """Write rows into every table. No agent runs afterwards."""
    fill(engine)
    with transaction(engine) as session:
        session.execute(
            update(AgentProcessRow)
            .where(AgentProcessRow.stopped_at.is_(None))
            .values(stopped_at=utc_now(), draining=True)
        )
        _add_events_params_and_stories(session)
        _add_manual_runs(session)
        pauses.start(session, who="root", reason=TEXT_HARD_TO_STORE)
        secret_references.bind(session, TENANT, ["vault://one", "vault://two"])
        web_sessions.add(session, digest="d" * 64, name="zoë", lifetime=timedelta(days=1))
        for table in moves.tables_to_move():
            if session.execute(select(table).limit(1)).first() is None:
                session.execute(insert(table), _any_row(table))


def _any_row(table: Table) -> dict[str, Any]:
    """Return a row with a value in each column, for a table that refers to no other table."""
    values = {bool: True, int: 1 << 30, float: 0.1, str: "zé"}
    # A type that is not in `values` is that of a time.
    return {
        column.name: {"text": TEXT_HARD_TO_STORE}
        if isinstance(column.type, JSON)
        else values.get(column.type.python_type, utc_now())
        for column in table.columns
    }


def _add_events_params_and_stories(session: Session) -> None:
    """Give each job an event and parameters, and each run a story: the summary of what the run has done."""
    for job in session.scalars(select(Job)):
        job_events.add_event(session, job.id, JobEventKind.REQUEUED, TEXT_HARD_TO_STORE)
        job.params = {"text": TEXT_HARD_TO_STORE, "numbers": [0, -1, 1.5, 10**30, True, None], "empty": {}}
    for run in session.scalars(select(Run)):
        run.story = {"tasks": [{"name": TEXT_HARD_TO_STORE, "seconds": 0.25}]}


def _add_manual_runs(session: Session) -> None:
    for number, service_id in enumerate((TENANT, OTHER_TENANT)):
        run = NewManualRun(
            ident=f"update-{number}",
            service_id=service_id,
            vmid=100 + number,
            action="update",
            who="root",
            host="pve-ops",
            pid=7,
        )
        assert manual_runs.start(session, run, lease_s=-1.0) is None
        manual_runs.finish(
            session,
            run.ident,
            status=RunStatus.SUCCESSFUL,
            reason="",
            upids=[],
            output=TEXT_HARD_TO_STORE * (1 + number * 500),
        )


def all_rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table but `moves`, in an order that does not depend on the engine."""
    with read_only_session(engine) as session:
        return {
            table.name: sorted((tuple(row) for row in session.execute(select(table))), key=lambda row: str(row[:2]))
            for table in moves.tables_to_move()
        }
