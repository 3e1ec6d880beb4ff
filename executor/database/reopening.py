"""Ends the backoff of a job or of its report, and reopens ended jobs that FulcrumCore lists as open.

A reopened job gets another attempt, or its result is reported again. The report of an ended job is due while the agent
must send it, or send it again. FulcrumCore lists a job as open if the job's status there is Pending or Processing.

No function of this module commits: the caller commits the transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, func, null, update
from sqlalchemy.orm import Session

from executor.database import job_events
from executor.database.statements import execute_and_count
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.model import SETTLED_REPORT_STATES, JobEventKind, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

#: The error codes of jobs whose last attempt ended before it started a run: FulcrumCore had deleted the job or given it
#: to another agent (JOB_GONE), or another installation had claimed the job (JOB_CLAIMED_ELSEWHERE). Such a job has no
#: result of a run. The column `started_at` may contain the start of a run of an earlier attempt.
#: "Another installation" is one with another database, but with the token of this agent.
CODES_WITHOUT_RESULT = (ErrorCode.JOB_GONE, ErrorCode.JOB_CLAIMED_ELSEWHERE)
#: For this time after a job's deadline, another installation that runs the job may still report the job's result.
MAX_REPORT_DELAY = timedelta(minutes=2)
#: The new values in the row of an ended job that gets another attempt.
_COLUMNS_OF_NEW_ATTEMPT: dict[str, Any] = {
    "status": JobStatus.PENDING,
    "report_state": ReportState.NONE,
    "finished_at": None,
    "error_code": None,
    "error_message": None,
    "operator_detail": None,
    "owner": None,
    "lease_until": None,
    "available_at": None,
    "claimed_at": None,  # when FulcrumCore accepted this agent's claim of the job
    "report_claimed_until": None,  # until this time, one agent process alone may send the report
}


def retry_now(session: Session, job_id: int) -> str:
    """End a job's backoff: the backoff of a pending job, or the backoff of a due report.

    If the report state is REPORTED or ENDED_BY_FULCRUM (FulcrumCore had ended the job before the report), the report
    becomes due again. FulcrumCore accepts this report only if the job is open at FulcrumCore. A job that another
    installation has claimed gets a new attempt by this installation. The attempt runs the job's playbook if FulcrumCore
    lists the job as Pending or Processing, and otherwise ends without a run. Returns "attempt" if the job is pending
    now, "report" if its report is due now, and "" otherwise.
    """
    end_job_backoff = update(Job).where(Job.id == job_id, Job.status == JobStatus.PENDING).values(available_at=None)
    # Normally, `claim_sent_at` is the time of this agent's claim. If it is set, and FulcrumCore lists the job as
    # Processing, a worker runs the job and sends no claim. It is set here for this effect only.
    continue_job_claimed_elsewhere = (
        update(Job)
        .where(Job.id == job_id, Job.report_state == ReportState.CLAIMED_ELSEWHERE)
        .values(_COLUMNS_OF_NEW_ATTEMPT | {"claim_sent_at": utc_now(), "epoch": Job.epoch + 1})
    )
    if execute_and_count(session, end_job_backoff) or execute_and_count(session, continue_job_claimed_elsewhere):
        return "attempt"
    report_states = (ReportState.DUE, ReportState.REPORTED, ReportState.ENDED_BY_FULCRUM)
    has_result_to_report = (Job.id == job_id) & Job.report_state.in_(report_states)
    end_report_backoff = update(Job).where(has_result_to_report).values(report_state=ReportState.DUE, report_after=None)
    return "report" if execute_and_count(session, end_report_backoff) else ""


def reopen(
    session: Session, fulcrum_ids: Collection[str], *, are_claimed_at_fulcrum: bool, now_at_fulcrum: datetime
) -> int:
    """Reopen jobs that have ended in this database, but that FulcrumCore lists as open. Return their number.

    Such jobs exist if FulcrumCore refused claims or reports of the jobs for a while, or if FulcrumCore's database was
    restored from a backup. A job with the report state REPORTED or ENDED_BY_FULCRUM is reported again. The report
    state ABANDONED means that the agent could not claim or could not report the job. A job with this state is reported
    if it has the result of a run. Otherwise it gets another attempt.

    `are_claimed_at_fulcrum` is True if FulcrumCore lists the jobs as Processing, and False if it lists them as Pending.
    `now_at_fulcrum` is the current time by FulcrumCore's clock.

    A job that another installation has claimed gets another attempt only if FulcrumCore lists the job as Pending. If
    FulcrumCore still lists the job as Processing more than MAX_REPORT_DELAY after its deadline, no installation may run
    the job any more. Then this agent reports that the job failed, because an open job would block its service for ever.
    """
    code = func.coalesce(Job.error_code, "")
    # In a settled report state, the agent sends no report, unless the job is reopened.
    may_be_reopened = Job.fulcrum_id.in_(fulcrum_ids) & Job.report_state.in_(SETTLED_REPORT_STATES)
    is_claimed_elsewhere = code == ErrorCode.JOB_CLAIMED_ELSEWHERE
    was_not_reported = Job.report_state.in_((ReportState.ABANDONED, ReportState.CLAIMED_ELSEWHERE))
    has_no_result = was_not_reported & (Job.started_at.is_(None) | code.in_(CODES_WITHOUT_RESULT))
    if are_claimed_at_fulcrum:
        may_be_reopened &= ~is_claimed_elsewhere | (Job.deadline_at < now_at_fulcrum - MAX_REPORT_DELAY)
        has_no_result &= ~is_claimed_elsewhere
    columns = {
        # Keep the time of this agent's claim, because FulcrumCore may have accepted the claim. With this time, a worker
        # runs a job that is Processing at FulcrumCore. Delete the time if another installation has claimed the job.
        "claim_sent_at": case((is_claimed_elsewhere, null()), else_=Job.claim_sent_at),
        "claimed_at": utc_now() if are_claimed_at_fulcrum else None,
        "epoch": Job.epoch + 1,
    }
    start_new_attempts = (
        update(Job).where(may_be_reopened, has_no_result).values(_COLUMNS_OF_NEW_ATTEMPT | columns).returning(Job.id)
    )
    report_again = (
        update(Job)
        # Without the jobs that `start_new_attempts` has changed: their report state is NONE now.
        .where(may_be_reopened)
        .values(report_state=ReportState.DUE, report_after=None, report_attempts=0, reported_at=None)
        .returning(Job.id)
    )
    job_ids = [*session.scalars(start_new_attempts), *session.scalars(report_again)]
    for job_id in job_ids:
        job_events.add_event(session, job_id, JobEventKind.REOPENED, "FulcrumCore lists the job as open")
    return len(job_ids)
