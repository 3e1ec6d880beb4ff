"""Reads jobs and runs. Each query of jobs uses an index, because the table of jobs may be long."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import CompoundSelect, func, select, union_all
from sqlalchemy.orm import Session, aliased, undefer

from executor.database import manual_runs
from executor.database.literals import (
    CLAIMED_ELSEWHERE_LITERAL,
    DUE_LITERAL,
    ENDED_LITERALS,
    PENDING_LITERAL,
    PROCESSING_LITERAL,
)
from executor.database.statements import is_integer_text, may_begin_id
from executor.database.tables.jobs import Job, Run
from executor.model import SETTLED_REPORT_STATES, JobStatus, RunStatus

#: The SQL literal of each status of an open job. An open job is pending or processing.
_OPEN_STATUS_LITERALS = {JobStatus.PENDING: PENDING_LITERAL, JobStatus.PROCESSING: PROCESSING_LITERAL}
#: The maximum number of ids that a search for a prefix returns. If several ids match, an error message lists them.
MAX_IDS_WITH_PREFIX = 6


def find_job(session: Session, reference: str) -> Job | None:
    """Return the job that `reference` names. `reference` is a row id, or a `fulcrum_id` or its beginning.

    Returns None if no job matches, or if more than one job matches.
    """
    if is_integer_text(reference) and (job := session.get(Job, int(reference))) is not None:
        return job
    if not may_begin_id(reference):
        return None
    has_prefix = Job.fulcrum_id.startswith(reference.lower(), autoescape=True)
    matches = session.scalars(select(Job).where(has_prefix).limit(2)).all()
    return matches[0] if len(matches) == 1 else None


def get_job(session: Session, job_id: int) -> Job | None:
    """Return the job with this row id, or None if it does not exist."""
    return session.get(Job, job_id) if is_integer_text(str(job_id)) else None


def get_one_job(session: Session, job_id: int) -> Job:
    """Return the job with this row id. If it does not exist, the caller's transaction raises DatabaseRefused."""
    return session.get_one(Job, job_id)


def list_jobs(  # noqa: PLR0913 (one parameter for each filter)
    session: Session,
    *,
    statuses: Sequence[str] = (),
    action: str | None = None,
    service_ids: Collection[str] | None = None,
    only_with_due_report: bool = False,
    since: datetime | None = None,
    before_id: int | None = None,
    limit: int = 50,
) -> Sequence[Job]:
    """Return the newest jobs that match all filters.

    With `only_with_due_report`, return only jobs whose report is due. With `since`, return only jobs that were received
    at this time or later. With `before_id`, return only jobs whose row id is lower.
    """
    stmt = select(Job).order_by(Job.id.desc()).limit(limit)
    if statuses:
        stmt = stmt.where(Job.status.in_(statuses))
        if set(statuses) <= _OPEN_STATUS_LITERALS.keys():
            stmt = stmt.where(Job.id.in_(_ids_of_open_jobs(statuses)))
        elif set(statuses) == {JobStatus.FAILED}:
            # The index of ended jobs contains the status, so no row of a job that did not fail is read.
            ended_job = aliased(Job)
            is_failed = ended_job.status.in_(ENDED_LITERALS) & (ended_job.status == JobStatus.FAILED)
            stmt = stmt.where(Job.id.in_(select(ended_job.id).where(is_failed)))
    if action:
        stmt = stmt.where(Job.action == action)
    if service_ids is not None:
        stmt = stmt.where(Job.service_id.in_(service_ids))
    if before_id is not None:
        stmt = stmt.where(Job.id < before_id)
    if only_with_due_report:
        due_job = aliased(Job)
        stmt = stmt.where(Job.id.in_(select(due_job.id).where(due_job.report_state == DUE_LITERAL)))
    if since is not None:
        # Rows are inserted in the order in which the jobs arrive. So the search for the newest job before `since` reads
        # only the rows that are listed, and the column `received_at` needs no index.
        newest_job_before = select(Job.id).where(Job.received_at < since).order_by(Job.id.desc()).limit(1)
        stmt = stmt.where(Job.id > (session.scalar(newest_job_before) or 0))
    return session.scalars(stmt).all()


def _ids_of_open_jobs(statuses: Sequence[str]) -> CompoundSelect[int]:
    """Return a query for the ids of the jobs with these statuses, which must be statuses of open jobs.

    The query reads only the partial indexes of open jobs, which have few entries. Without this query, the database
    would start at the newest row, and would read many ended jobs before it found an old open job.
    """
    open_job = aliased(Job)
    selects = [
        select(open_job.id).where(open_job.status == _OPEN_STATUS_LITERALS[JobStatus(status)]) for status in statuses
    ]
    return union_all(*selects)


def find_open_job(session: Session, service_id: str) -> Job | None:
    """Return the service's processing job, or else its oldest pending job, or None if it has neither."""
    stmt = select(Job).where(Job.service_id == service_id, Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING]))
    is_pending = Job.status == JobStatus.PENDING  # SQL sorts false before true, so the processing job is first
    return session.scalar(stmt.order_by(is_pending, Job.id).limit(1))


def count_jobs(session: Session, *, should_count_ended_jobs: bool = True) -> dict[str, int]:
    """Return the number of jobs in each status. The key `reports_due` has the number of due reports.

    If `should_count_ended_jobs` is False, ended jobs are not counted, and the numbers for their statuses are 0. This is
    much faster if there are many ended jobs.
    """
    counts = {status.value: 0 for status in JobStatus}
    # There is one query for each partial index, because a single query for all statuses would read the whole table.
    open_conditions = (Job.status == PENDING_LITERAL, Job.status == PROCESSING_LITERAL)
    ended_conditions = (Job.status.in_(ENDED_LITERALS),) if should_count_ended_jobs else ()
    for condition in (*open_conditions, *ended_conditions):
        stmt = select(Job.status, func.count()).where(condition).group_by(Job.status)
        counts |= dict(session.execute(stmt).all())
    return counts | {"reports_due": count_due_reports(session)}


def count_due_reports(session: Session) -> int:
    """Return the number of ended jobs whose report is due."""
    stmt = select(func.count()).select_from(Job).where(Job.report_state == DUE_LITERAL)
    return session.scalar(stmt) or 0


def stored_fulcrum_ids(session: Session, fulcrum_ids: Sequence[str]) -> set[str]:
    """Return the ids in `fulcrum_ids` for which the table of jobs has a row."""
    return set(session.scalars(select(Job.fulcrum_id).where(Job.fulcrum_id.in_(fulcrum_ids))))


def settled_fulcrum_ids(session: Session, fulcrum_ids: Sequence[str]) -> list[str]:
    """Return the ids in `fulcrum_ids` whose jobs have ended in this database and need no report any more."""
    is_settled = Job.report_state.in_(SETTLED_REPORT_STATES)
    return list(session.scalars(select(Job.fulcrum_id).where(Job.fulcrum_id.in_(fulcrum_ids), is_settled)))


def runs_of_job(session: Session, job_id: int) -> Sequence[Run]:
    """Return the runs of a job, oldest first."""
    return session.scalars(select(Run).where(Run.job_id == job_id).order_by(Run.id)).all()


def runs_with_stories(session: Session, job_ids: Sequence[int]) -> Sequence[Run]:
    """Return the runs of these jobs, oldest first, each with the column `story`, which other queries do not load.

    The story is a summary of the Ansible tasks, steps and Proxmox tasks of the run (`executor.runs.story`).
    """
    stmt = select(Run).where(Run.job_id.in_(job_ids)).options(undefer(Run.story))
    return session.scalars(stmt.order_by(Run.id)).all()


def find_run(session: Session, ident: str) -> Run | None:
    """Return the run with this ident, or None if it does not exist."""
    return session.scalar(select(Run).where(Run.ident == ident))


def recent_runs(
    session: Session,
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
    stmt = select(Run, Job).join(Job, Job.id == Run.job_id).order_by(Run.id.desc()).limit(limit)
    if job_id is not None:
        stmt = stmt.where(Run.job_id == job_id)
    if since is not None:
        stmt = stmt.where(Run.started_at >= since)
    if only_failed:
        stmt = stmt.where(Run.status.is_not(None), Run.status != RunStatus.SUCCESSFUL)
    return [(run, job) for run, job in session.execute(stmt)]


def fulcrum_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return at most MAX_IDS_WITH_PREFIX values of `fulcrum_id` that have this prefix. The newest job is first."""
    if not may_begin_id(prefix):
        return []
    has_prefix = Job.fulcrum_id.startswith(prefix.lower(), autoescape=True)
    stmt = select(Job.fulcrum_id).where(has_prefix).order_by(Job.id.desc())
    return session.scalars(stmt.limit(MAX_IDS_WITH_PREFIX)).all()


def service_ids_with_prefix(session: Session, prefix: str) -> Sequence[str]:
    """Return at most MAX_IDS_WITH_PREFIX service ids with this prefix. The service with the newest job is first."""
    has_prefix = Job.service_id.startswith(prefix.lower(), autoescape=True)
    stmt = select(Job.service_id).where(has_prefix).group_by(Job.service_id).order_by(func.max(Job.id).desc())
    return [service_id for service_id in session.scalars(stmt.limit(MAX_IDS_WITH_PREFIX)) if service_id]


def count_open_jobs(session: Session) -> dict[str, int]:
    """Return the number of jobs in each of the statuses pending and processing."""
    open_statuses = (JobStatus.PENDING, JobStatus.PROCESSING)
    stmt = select(Job.status, func.count()).where(Job.status.in_(open_statuses)).group_by(Job.status)
    return {status.value: 0 for status in open_statuses} | dict(session.execute(stmt).all())


def jobs_with_postponed_report(session: Session, limit: int) -> Sequence[Job]:
    """Return at most `limit` jobs whose report has failed and is still due. The job that ended first is first."""
    stmt = select(Job).where(Job.report_state == DUE_LITERAL, Job.report_attempts > 0)
    return session.scalars(stmt.order_by(Job.finished_at, Job.id).limit(limit)).all()


def jobs_claimed_elsewhere(session: Session, limit: int) -> Sequence[Job]:
    """Return at most `limit` jobs that another installation has claimed, oldest first.

    The other installation uses the token of this agent, but another database. This database stores the
    jobs as failed. They are open only at FulcrumCore.
    """
    stmt = select(Job).where(Job.report_state == CLAIMED_ELSEWHERE_LITERAL)
    return session.scalars(stmt.order_by(Job.finished_at, Job.id).limit(limit)).all()


def count_jobs_open_only_at_fulcrum(session: Session) -> dict[str, int]:
    """Return the number of due reports that have failed, and of the jobs that `jobs_claimed_elsewhere` returns.

    The keys are values of the label `cause` of the Prometheus metric that shows the numbers.
    """
    is_postponed = (Job.report_state == DUE_LITERAL) & (Job.report_attempts > 0)
    is_claimed_elsewhere = Job.report_state == CLAIMED_ELSEWHERE_LITERAL
    conditions = {"report_not_accepted": is_postponed, "claimed_elsewhere": is_claimed_elsewhere}
    count_jobs_where = select(func.count()).select_from(Job).where
    return {cause: session.scalar(count_jobs_where(condition)) or 0 for cause, condition in conditions.items()}


def jobs_by_fulcrum_id(session: Session, fulcrum_ids: Sequence[str]) -> dict[str, Job]:
    """Return the rows of the jobs with these ids. The keys are the values of `fulcrum_id`."""
    jobs = session.scalars(select(Job).where(Job.fulcrum_id.in_(fulcrum_ids)))
    return {job.fulcrum_id: job for job in jobs}


def agent_id_of_newest_job(session: Session) -> str | None:
    """Return the agent id in the service of the newest job that has a stored service; None if it contains no id."""
    newest_service = select(Job.service).where(Job.service.is_not(None)).order_by(Job.id.desc()).limit(1)
    service = session.scalar(newest_service) or {}
    return str(service["agentId"]).lower() if service.get("agentId") else None


def oldest_due_report_time(session: Session) -> datetime | None:
    """Return the earliest time at which a job with a due report ended, or None if no report is due."""
    return session.scalar(select(func.min(Job.finished_at)).where(Job.report_state == DUE_LITERAL))


def oldest_pending_time(session: Session) -> datetime | None:
    """Return the earliest time at which a pending job was received, or None if no job is pending."""
    return session.scalar(select(func.min(Job.received_at)).where(Job.status == PENDING_LITERAL))


def oldest_pending_jobs(session: Session, limit: int) -> Sequence[Job]:
    """Return at most `limit` pending jobs, in the order in which they were received."""
    stmt = select(Job).where(Job.status == PENDING_LITERAL).order_by(Job.received_at, Job.id)
    return session.scalars(stmt.limit(limit)).all()


def services_of_jobs_ended_since(session: Session, moment: datetime) -> frozenset[str]:
    """Return the ids of the services with a job that ended at `moment` or later."""
    stmt = select(Job.service_id).where(Job.status.in_(ENDED_LITERALS), Job.finished_at >= moment)
    return frozenset(service_id for service_id in session.scalars(stmt) if service_id)


def busy_services(session: Session, service_id: str | None = None) -> frozenset[str]:
    """Return the ids of the services with an open job, a due report, or a run in progress that an operator started.

    With `service_id`, check only this service.
    """
    # There is one query for each partial index, because a single query with OR would read the whole table.
    conditions = (
        Job.status == PENDING_LITERAL,
        Job.status == PROCESSING_LITERAL,
        Job.report_state == DUE_LITERAL,
    )
    has_wanted_service = Job.service_id.is_not(None) if service_id is None else Job.service_id == service_id
    busy_ids: set[str | None] = set()
    for condition in conditions:
        busy_ids |= set(session.scalars(select(Job.service_id).where(condition, has_wanted_service)))
    busy_ids |= manual_runs.services_with_run_in_progress(session, service_id)
    return frozenset(busy_id for busy_id in busy_ids if busy_id)
