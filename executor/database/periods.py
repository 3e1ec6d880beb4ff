"""The periods of the critical jobs: in each period one agent runs the job. No function commits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from executor.database.statements import insert_into, rows_changed
from executor.database.tables import CriticalJob, db_now, utc_now


def try_start_period(session: Session, name: str, interval_s: float, *, force: bool = False) -> bool:
    """Start the next period of a critical job if it is due. True for one caller only: that caller runs the job.

    `force` starts it in any case. A period ends at 80 % of the interval, so that a timer that fires a little early
    does not skip a period.
    """
    now = utc_now()
    first = {"name": name, "interval_s": interval_s, "failures": 0, "runs": 0}
    # Two nodes may insert at once: one row results, and the UPDATE below succeeds for one of them.
    session.execute(insert_into(session, CriticalJob).values(first).on_conflict_do_nothing(index_elements=["name"]))
    is_due = or_(CriticalJob.due_at.is_(None), CriticalJob.due_at <= db_now(), CriticalJob.interval_s != interval_s)
    stmt = update(CriticalJob).where(CriticalJob.name == name)
    stmt = stmt if force else stmt.where(is_due)
    values = {"due_at": db_now(interval_s * 0.8), "interval_s": interval_s, "last_started_at": now}
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
