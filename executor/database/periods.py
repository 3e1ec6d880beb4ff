"""Divides time into periods for each critical job, so that only one agent runs the job in each period.

A critical job is periodic work of the agent, such as Heartbeat. No function commits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from executor.database.statements import insert_into, rows_changed
from executor.database.tables import CriticalJob, db_now, utc_now

#: A period lasts for this share of the job's interval. If it lasted for the whole interval, an agent whose timer fires
#: a little early would find the last period not over, and would skip a run.
PERIOD_SHARE = 0.8


def try_start_period(session: Session, name: str, interval_s: float, *, force: bool = False) -> bool:
    """Start the next period of a critical job if its last period is over.

    Returns True if this call started the period: then its caller must run the job. Of several simultaneous callers,
    only one gets True. `force` starts a period even if the last period is not over.
    """
    now = utc_now()
    new_row = {"name": name, "interval_s": interval_s, "failures": 0, "runs": 0}
    # Two agents may insert the row at the same time. One row results, and the UPDATE below changes it for only one of
    # the two agents.
    session.execute(insert_into(session, CriticalJob).values(new_row).on_conflict_do_nothing(index_elements=["name"]))
    is_due = or_(CriticalJob.due_at.is_(None), CriticalJob.due_at <= db_now(), CriticalJob.interval_s != interval_s)
    stmt = update(CriticalJob).where(CriticalJob.name == name)
    stmt = stmt if force else stmt.where(is_due)
    values = {"due_at": db_now(interval_s * PERIOD_SHARE), "interval_s": interval_s, "last_started_at": now}
    return rows_changed(session, stmt.values(**values)) == 1


def record_period_result(session: Session, name: str, *, error: str | None) -> None:
    """Store that a run of a critical job ended. `error` is None if the run succeeded."""
    now = utc_now()
    values: dict[str, Any] = {"last_finished_at": now, "runs": CriticalJob.runs + 1, "last_error": error}
    if error is None:
        values |= {"last_ok_at": now, "failures": 0}
    else:
        values |= {"failures": CriticalJob.failures + 1}
    session.execute(update(CriticalJob).where(CriticalJob.name == name).values(**values))
