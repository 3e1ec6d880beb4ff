"""Divides time into periods for each critical job, so that only one agent executes the critical job in each period.

A critical job is periodic work of the agents, for example GetPendingJobs, which polls FulcrumCore for jobs. A period
starts when an agent starts to execute the critical job. Some critical jobs have no periods, because every agent
executes them: `record_executions` only stores their executions. In this module, an agent is one agent process. No
function commits.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, or_, update
from sqlalchemy.orm import Session

from executor.database.statements import execute_and_count, insert_into
from executor.database.tables.agents import CriticalJob
from executor.database.times import db_now, utc_now

#: A period lasts for this share of the critical job's interval. If it lasted for the whole interval, an agent whose
#: timer fires a little early would skip an execution, because the previous period would not be over yet.
PERIOD_SHARE = 0.8
#: An agent that gets no answer from FulcrumCore waits for this number of intervals before it starts a period that is
#: due. Meanwhile, an agent that gets answers can start the period.
DELAY_IN_INTERVALS = 2.0


def try_start_period(  # noqa: PLR0913 (one parameter for each reason to start early or late)
    session: Session,
    name: str,
    interval_s: float,
    *,
    is_first: bool = False,
    is_requested: bool = False,
    waits_for_other_agents: bool = False,
    boot_id: str = "",
) -> bool:
    """Start the next period of a critical job if its previous period is over.

    Returns True if this call started the period. The caller must then execute the critical job. If several agents call
    this function at the same time without `is_requested`, only one of the calls returns True.

    `is_first` is True in an agent's first call after the agent's start. In this call, if `interval_s` differs from
    the stored interval, the period starts even if the previous period is not over. `is_requested` is True if a part of
    the agent has requested an execution now: the period starts even if the previous period is not over. With
    `waits_for_other_agents`, this agent starts the period only DELAY_IN_INTERVALS intervals after the period is due, so
    that an agent that gets answers from FulcrumCore can start the period first. `boot_id` is the id that the agent
    process chose at its start; it is stored in the column `node`.
    """
    # If two agents insert the row at the same time, only one row is stored. Then both run the UPDATE below. The first
    # UPDATE sets `due_at`. Without `is_requested`, the second UPDATE then finds that the critical job is not due.
    _insert_critical_job_if_missing(session, name, interval_s)
    stmt = update(CriticalJob).where(CriticalJob.name == name)
    if not is_requested:
        is_due = _is_period_over(interval_s, DELAY_IN_INTERVALS * interval_s if waits_for_other_agents else 0.0)
        stmt = stmt.where(or_(is_due, CriticalJob.interval_s != interval_s) if is_first else is_due)
    columns = {"due_at": db_now(interval_s * PERIOD_SHARE), "interval_s": interval_s, "last_started_at": utc_now()}
    columns["node"] = boot_id or None
    return execute_and_count(session, stmt.values(**columns)) == 1


def _is_period_over(interval_s: float, delay_s: float) -> ColumnElement[bool]:
    """Return the SQL condition that the period of a critical job has been over for `delay_s`.

    The agents may have different intervals. `due_at` results from the interval of the agent that started the period. An
    agent with a shorter interval does not wait until `due_at`: for this agent, the period lasts for PERIOD_SHARE of the
    agent's own interval.
    """
    stored_interval_s = CriticalJob.interval_s
    is_own_interval_shorter = stored_interval_s > interval_s
    ends_sooner_by_s = case((is_own_interval_shorter, PERIOD_SHARE * (stored_interval_s - interval_s)), else_=0.0)
    is_over = CriticalJob.due_at <= db_now(ends_sooner_by_s - delay_s)
    # A new `due_at` is less than one interval in the future. If it is later, the database's clock was set back.
    was_clock_set_back = CriticalJob.due_at > db_now(stored_interval_s)
    return or_(CriticalJob.due_at.is_(None), is_over, was_clock_set_back)


def record_period_result(session: Session, name: str, *, error: str | None) -> None:
    """Store that an execution of a critical job ended. `error` is None if it succeeded."""
    session.execute(update(CriticalJob).where(CriticalJob.name == name).values(**_result_columns(1, error)))


def record_executions(  # noqa: PLR0913 (one parameter for each stored value)
    session: Session,
    name: str,
    interval_s: float,
    *,
    started_at: datetime,
    execution_count: int,
    error: str | None,
    boot_id: str = "",
) -> None:
    """Add an agent's executions to the stored number of executions of a critical job that has no periods.

    `execution_count` is the number of executions since the previous call. `started_at` is the start of the newest
    execution, and `error` is the newest execution's error, or None. Of the other executions, only the number is stored.
    """
    _insert_critical_job_if_missing(session, name, interval_s)
    columns = _result_columns(execution_count, error)
    # No period starts at this `due_at`: it is only shown to operators.
    columns |= {"due_at": db_now(interval_s * PERIOD_SHARE), "interval_s": interval_s, "last_started_at": started_at}
    columns["node"] = boot_id or None
    session.execute(update(CriticalJob).where(CriticalJob.name == name).values(**columns))


def _insert_critical_job_if_missing(session: Session, name: str, interval_s: float) -> None:
    # `runs` is the number of executions, and `failures` the number of errors stored since the last success.
    new_row = {"name": name, "interval_s": interval_s, "failures": 0, "runs": 0}
    session.execute(insert_into(session, CriticalJob).values(new_row).on_conflict_do_nothing(index_elements=["name"]))


def _result_columns(execution_count: int, error: str | None) -> dict[str, Any]:
    """Return the columns to store after `execution_count` executions. `error` is None if the last one succeeded."""
    now = utc_now()
    columns: dict[str, Any] = {"last_finished_at": now, "runs": CriticalJob.runs + execution_count, "last_error": error}
    if error is None:
        return columns | {"last_ok_at": now, "failures": 0}
    return columns | {"failures": CriticalJob.failures + 1}
