"""Finds jobs whose result must be reported, and stores FulcrumCore's answers: step 7 of a job (see ARCHITECTURE.md).

The outbox is the set of ended jobs whose result FulcrumCore has not acknowledged. The report of such a job is due: the
agent must send it, or send it again. If several agent processes use the database, a process claims a report before it
sends the report.

No function of this module commits: the caller commits the transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Select, false, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from executor.database import job_events
from executor.database.literals import CLAIMED_ELSEWHERE_LITERAL, DUE_LITERAL
from executor.database.statements import MAX_BACKOFF_S, execute_and_count, is_wait_over
from executor.database.tables.jobs import Job
from executor.database.times import db_now, utc_now
from executor.model import JobEventKind, JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

#: The maximum duration of a claim of a report. If a stored claim ends more than MAX_CLAIM_S in the future, the
#: database's clock was set back after the claim. Then the claim counts as over.
MAX_CLAIM_S = 3600.0
#: With these execution options, an UPDATE changes only rows, not the session's objects for the rows.
UPDATE_ROWS_ONLY = {"synchronize_session": False}
_COLUMNS_OF_ENDED_CLAIM = {"report_claimed_until": None}


def jobs_with_due_report(session: Session, limit: int) -> Sequence[Job]:
    """Return at most `limit` jobs whose report is due, not in backoff, and not claimed by an agent process.

    The job that ended first is first.
    """
    return session.scalars(_due_reports_query(limit)).all()


def claim_due_reports(session: Session, limit: int, *, claim_duration_s: float) -> Sequence[Job]:
    """Claim the reports of the jobs that `jobs_with_due_report` returns, for `claim_duration_s`. Return these jobs.

    No other agent process sends a claimed report. The caller sends the reports, and then releases the reports that it
    has not sent (`release_reports`). If the caller's process ends before that, another agent process sends the reports
    after `claim_duration_s`. A report that is sent twice does no harm: FulcrumCore refuses it the second time.
    """
    jobs = session.scalars(_due_reports_query(limit).with_for_update(skip_locked=True)).all()
    if jobs:
        claim = (
            update(Job)
            .where(Job.id.in_([job.id for job in jobs]))
            .values(report_claimed_until=db_now(claim_duration_s))
        )
        stored_claims = session.execute(
            claim.returning(Job.id, Job.report_claimed_until), execution_options=UPDATE_ROWS_ONLY
        )
        claim_end_by_job_id = {job_id: claimed_until for job_id, claimed_until in stored_claims}
        for job in jobs:
            set_committed_value(job, "report_claimed_until", claim_end_by_job_id[job.id])
    return jobs


def release_reports(session: Session, jobs: Collection[Job]) -> None:
    """End this process's claims of the reports that are still due, so that other agent processes can send the reports.

    `jobs` are jobs that `claim_due_reports` returned. If another agent process has claimed a report after this
    process's claim was over, the report stays claimed.
    """
    own_claims = [(Job.id == job.id) & (Job.report_claimed_until == job.report_claimed_until) for job in jobs]
    stmt = update(Job).where(or_(false(), *own_claims), Job.report_state == ReportState.DUE)
    session.execute(stmt.values(report_claimed_until=None), execution_options=UPDATE_ROWS_ONLY)


def _due_reports_query(limit: int) -> Select[Job]:
    return (
        select(Job)
        .where(Job.report_state == DUE_LITERAL)  # SQLite uses the index of due reports only for an SQL literal
        .where(is_wait_over(Job.report_after, MAX_BACKOFF_S))
        .where(is_wait_over(Job.report_claimed_until, MAX_CLAIM_S))
        .order_by(Job.finished_at, Job.id)
        .limit(limit)
    )


def has_unacknowledged_reports(session: Session) -> bool:
    """Return whether the outbox has a job. A job counts even if its report is in backoff or claimed."""
    return session.scalar(select(Job.id).where(Job.report_state == DUE_LITERAL).limit(1)) is not None


def _is_report_due(job_id: int, epoch: int | None) -> ColumnElement[bool]:
    """Return the SQL condition that the job's report is due, and that the job still has this epoch.

    FulcrumCore may list an ended job again as Pending or Processing. Then the next attempt of the job has another epoch
    and another result. FulcrumCore's answer to the report of the earlier result must not change the state of the new
    report. If `epoch` is None (only in tests and the bench), the epoch is not compared.
    """
    is_due = (Job.id == job_id) & (Job.report_state == ReportState.DUE)
    return is_due if epoch is None else is_due & (Job.epoch == epoch)


def set_report_state(
    session: Session, job_id: int, state: ReportState, note: str = "", *, epoch: int | None = None
) -> None:
    """Store the state that a report has after FulcrumCore's answer. `note` explains the state to operators, or is ''.

    If the job's report is not due, or the job has another epoch, nothing is stored.
    """
    session.execute(
        update(Job)
        .where(_is_report_due(job_id, epoch))
        .values(
            report_state=state,
            reported_at=utc_now(),
            report_note=note or None,
            report_after=None,
            **_COLUMNS_OF_ENDED_CLAIM,
        )
    )


def postpone_report(session: Session, job_id: int, *, backoff_s: float, note: str, epoch: int | None = None) -> None:
    """Store that a report failed, and that the reporter may retry it after `backoff_s`.

    If the job's report is not due, or the job has another epoch, nothing is stored.
    """
    stmt = (
        update(Job)
        .where(_is_report_due(job_id, epoch))
        .values(
            report_attempts=Job.report_attempts + 1,
            report_after=db_now(min(backoff_s, MAX_BACKOFF_S)),
            report_note=note,
            **_COLUMNS_OF_ENDED_CLAIM,
        )
    )
    if execute_and_count(session, stmt):
        job_events.add_event(session, job_id, JobEventKind.REPORT_POSTPONED, note)


def replace_result(session: Session, job_id: int, result: JobResult, *, epoch: int | None = None) -> None:
    """Make a completed job a failed job with the error in `result`, because FulcrumCore refused the report of success.

    The report stays due, and the reporter next reports the failure. If the job's report is not due, or the job has
    another epoch, nothing is stored.
    """
    stmt = (
        update(Job)
        .where(_is_report_due(job_id, epoch))
        .values(status=JobStatus.FAILED, error_code=result.code, error_message=result.message)
    )
    if execute_and_count(session, stmt):
        job_events.add_event(session, job_id, JobEventKind.RESULT_REPLACED, result.message)


def update_jobs_claimed_elsewhere(session: Session, processing_ids: Collection[str]) -> None:
    """Update the report states of the jobs that another installation has claimed.

    The other installation uses the token of this agent, but another database. This database stores such a job as failed
    with the code JOB_CLAIMED_ELSEWHERE. `processing_ids` are the ids of all jobs that FulcrumCore lists as claimed by
    this agent. FulcrumCore knows only the token, so the jobs of the other installation are among them. A job of the
    other installation has the report state CLAIMED_ELSEWHERE while FulcrumCore lists it, and ABANDONED otherwise. In
    both states, this installation sends no report.
    """
    has_code_claimed_elsewhere = Job.error_code == ErrorCode.JOB_CLAIMED_ELSEWHERE
    is_listed_again = (
        Job.fulcrum_id.in_(processing_ids) & has_code_claimed_elsewhere & (Job.report_state == ReportState.ABANDONED)
    )
    session.execute(update(Job).where(is_listed_again).values(report_state=ReportState.CLAIMED_ELSEWHERE))
    stored_ids = session.scalars(select(Job.fulcrum_id).where(Job.report_state == CLAIMED_ELSEWHERE_LITERAL))
    # `unlisted_ids`: the ids of jobs of the other installation that FulcrumCore no longer lists as claimed.
    unlisted_ids = set(stored_ids).difference(processing_ids)
    is_unlisted = Job.fulcrum_id.in_(unlisted_ids) & (Job.report_state == ReportState.CLAIMED_ELSEWHERE)
    session.execute(update(Job).where(is_unlisted).values(report_state=ReportState.ABANDONED))


def end_report_backoffs(session: Session) -> int:
    """End the backoff of every due report, and return the number of these reports.

    The agent calls this function when FulcrumCore answers again after an outage.
    """
    is_in_backoff = (Job.report_state == ReportState.DUE) & Job.report_after.is_not(None)
    return execute_and_count(session, update(Job).where(is_in_backoff).values(report_after=None))
