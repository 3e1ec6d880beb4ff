"""Divides the time of each critical job into periods, in each of which one agent runs the job. No function commits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from executor.database.statements import insert_into, rows_changed
from executor.database.tables import CriticalJob, db_now, utc_now

#: A period ends after this share of the interval, so that a timer that fires a little early does not skip a period.
PERIOD_SHARE = 0.8


def try_start_period(session: Session, name: str, interval_s: float, *, force: bool = False) -> bool:
    """Start the next period of a critical job if the last one is over. Return True to one caller, which runs the job.

    `force` starts a period in any case.
    """
    now = utc_now()
    new_row = {"name": name, "interval_s": interval_s, "failures": 0, "runs": 0}
    # Two agents may insert at the same time: one row results, and the UPDATE below succeeds for one of them.
    session.execute(insert_into(session, CriticalJob).values(new_row).on_conflict_do_nothing(index_elements=["name"]))
    is_due = or_(CriticalJob.due_at.is_(None), CriticalJob.due_at <= db_now(), CriticalJob.interval_s != interval_s)
    stmt = update(CriticalJob).where(CriticalJob.name == name)
    stmt = stmt if force else stmt.where(is_due)
    values = {"due_at": db_now(interval_s * PERIOD_SHARE), "interval_s": interval_s, "last_started_at": now}
    return rows_changed(session, stmt.values(**values)) == 1


def record_period_result(session: Session, name: str, *, error: str | None) -> None:
    """Store how the run of a critical job ended."""
    now = utc_now()
    values: dict[str, Any] = {"last_finished_at": now, "runs": CriticalJob.runs + 1, "last_error": error}
    if error is None:
        values |= {"last_ok_at": now, "failures": 0}
    else:
        values |= {"failures": CriticalJob.failures + 1}
    session.execute(update(CriticalJob).where(CriticalJob.name == name).values(**values))
