"""Divides time into periods for each critical job, so that only one agent runs the job in each period.

A critical job is periodic work of the agent, such as Heartbeat. No function commits.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from executor.database.statements import execute_and_count, insert_into, is_wait_over
from executor.database.tables import CriticalJob, db_now, utc_now

#: A period lasts for this share of the job's interval. If a period lasted for the whole interval, an agent whose timer
#: fires a little early would skip a run, because the previous period would not be over yet.
PERIOD_SHARE = 0.8


def try_start_period(session: Session, name: str, interval_s: float) -> bool:
    """Start the next period of a critical job if its previous period is over.

    Returns True if this call started the period. The caller must then run the job. If several agents call this function
    at the same time, only one of the calls returns True.
    """
    # If two agents insert the row at the same time, only one row is stored. Then both run the UPDATE below. The first
    # UPDATE sets `due_at`, so the second one finds that the job is not due.
    _insert_if_missing(session, name, interval_s)
    has_new_interval = CriticalJob.interval_s != interval_s  # the stored `due_at` results from the earlier interval
    is_due = or_(is_wait_over(CriticalJob.due_at, interval_s), has_new_interval)
    stmt = update(CriticalJob).where(CriticalJob.name == name, is_due)
    columns = {"due_at": db_now(interval_s * PERIOD_SHARE), "interval_s": interval_s, "last_started_at": utc_now()}
    return execute_and_count(session, stmt.values(**columns)) == 1


def record_period_result(session: Session, name: str, *, error: str | None) -> None:
    """Store that a run of a critical job ended. `error` is None if the run succeeded."""
    session.execute(update(CriticalJob).where(CriticalJob.name == name).values(**_result_columns(1, error)))


def record_runs(  # noqa: PLR0913 (one parameter for each stored value)
    session: Session, name: str, interval_s: float, *, started_at: datetime, run_count: int, error: str | None
) -> None:
    """Store the last `run_count` runs of a critical job that every agent runs. At most the last of them has failed.

    `started_at` and `error` are those of the last run.
    """
    _insert_if_missing(session, name, interval_s)
    columns = _result_columns(run_count, error)
    columns |= {"due_at": db_now(interval_s * PERIOD_SHARE), "interval_s": interval_s, "last_started_at": started_at}
    session.execute(update(CriticalJob).where(CriticalJob.name == name).values(**columns))


def _insert_if_missing(session: Session, name: str, interval_s: float) -> None:
    new_row = {"name": name, "interval_s": interval_s, "failures": 0, "runs": 0}
    session.execute(insert_into(session, CriticalJob).values(new_row).on_conflict_do_nothing(index_elements=["name"]))


def _result_columns(run_count: int, error: str | None) -> dict[str, Any]:
    """Return the new values of the columns after `run_count` runs. `error` is the error of the last run, or None."""
    now = utc_now()
    columns: dict[str, Any] = {"last_finished_at": now, "runs": CriticalJob.runs + run_count, "last_error": error}
    if error is None:
        return columns | {"last_ok_at": now, "failures": 0}
    return columns | {"failures": CriticalJob.failures + 1}
