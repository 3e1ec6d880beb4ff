"""Reads the playbook runs of jobs, the playbook runs that operators started, and the events of jobs.

A `Reader` is an SQLAlchemy connection or session. A row that a function returns has the attributes of the class in the
function's return type, but is not an object of the ORM.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select

from executor.database.core_tables import (  # tables for SQLAlchemy Core
    MANUAL_RUN_COLUMNS,
    RUN_COLUMNS,
    job_events,
    jobs,
    manual_runs,
    read_row,
    read_rows,
    runs,
)
from executor.model import RunStatus

if TYPE_CHECKING:  # The import of these classes would import the ORM, which is slow.
    from executor.database.core_tables import Reader
    from executor.database.tables.jobs import Job, JobEvent, ManualRun, Run


def runs_of_job(reader: Reader, job_id: int) -> Sequence[Run]:
    """Return the runs of a job, oldest first, without the column `story` (a summary of the run)."""
    return read_rows(reader, select(*RUN_COLUMNS).where(runs.c.job_id == job_id).order_by(runs.c.id))


def runs_with_stories(reader: Reader, job_ids: Sequence[int]) -> Sequence[Run]:
    """Return the runs of these jobs, oldest first, each with the column `story`, which other queries do not read.

    The story is a summary of the run: its Ansible tasks, its Proxmox tasks, and the steps that the Ansible action
    plugins reported, such as "cloning the template 9000".
    """
    return read_rows(reader, select(runs).where(runs.c.job_id.in_(job_ids)).order_by(runs.c.id))


def find_run(reader: Reader, ident: str) -> Run | None:
    """Return the run with this ident, or None if it does not exist. Its column `story` is not read."""
    run: Run | None = read_row(reader, select(*RUN_COLUMNS).where(runs.c.ident == ident))
    return run


def newest_job_runs(
    reader: Reader,
    limit: int,
    *,
    job_id: int | None = None,
    since: datetime | None = None,
    only_failed: bool = False,
) -> Sequence[tuple[Run, Job]]:
    """Return the newest runs, each with its job. With `job_id`, return only runs of this job.

    With `since`, return only runs that started at this time or later. With `only_failed`, return only runs that have
    ended without success.
    """
    stmt = select(*RUN_COLUMNS).order_by(runs.c.id.desc()).limit(limit)
    if job_id is not None:
        stmt = stmt.where(runs.c.job_id == job_id)
    if since is not None:
        stmt = stmt.where(runs.c.started_at >= since)
    if only_failed:
        stmt = stmt.where(runs.c.status.is_not(None), runs.c.status != RunStatus.SUCCESSFUL)
    newest_runs = read_rows(reader, stmt)
    jobs_of_runs = read_rows(reader, select(jobs).where(jobs.c.id.in_({run.job_id for run in newest_runs})))
    job_by_id = {job.id: job for job in jobs_of_runs}
    # On PostgreSQL, a job and its runs may be deleted between the two statements.
    return [(run, job_by_id[run.job_id]) for run in newest_runs if run.job_id in job_by_id]


def find_manual_run(reader: Reader, ident: str) -> ManualRun | None:
    """Return the run that an operator started and that has this ident, with its output; None if it does not exist."""
    run: ManualRun | None = read_row(reader, select(manual_runs).where(manual_runs.c.ident == ident))
    return run


def newest_manual_runs(reader: Reader, limit: int) -> Sequence[ManualRun]:
    """Return at most `limit` runs that operators started, newest first. Their column `output` is not read."""
    stmt = select(*MANUAL_RUN_COLUMNS).order_by(manual_runs.c.started_at.desc(), manual_runs.c.id)
    return read_rows(reader, stmt.limit(limit))


def events_of_job(reader: Reader, job_id: int) -> Sequence[JobEvent]:
    """Return the events of a job, oldest first."""
    return read_rows(reader, select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.id))
