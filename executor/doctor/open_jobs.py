"""Compares the agent's open jobs in FulcrumCore (pending or processing) with the rows of the agent's database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from executor.agent.poller import COMPARISON_INTERVAL_S
from executor.database import queries
from executor.database.job_queue import CLAIMED_ELSEWHERE_TEXT
from executor.database.tables.jobs import Job
from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.database_reads import read_database
from executor.errors import DatabaseError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumJob
from executor.model import ENDED_STATUSES, ReportState
from executor.settings.settings import Settings
from executor.views.text import count_with_noun

_RESULT_FACTORY = ResultFactory(Area.FULCRUM)
CHECK_NAME = "open jobs"
#: The maximum number of pages of processing jobs that are read, and the maximum number of pending jobs that are read.
MAX_PAGES = 5
MAX_PENDING_JOBS = 500
#: The maximum number of jobs for which a warning is shown.
MAX_SHOWN_JOBS = 5
#: The text about a processing job that has no row in the agent's database, with the possible causes.
#: CLAIMED_ELSEWHERE_TEXT is "another installation with this agent's token has claimed the job".
NO_ROW_TEXT = (
    f"the agent's database has no row of the job: {CLAIMED_ELSEWHERE_TEXT}, or the database was lost (then the "
    "agent stores the job again at its next start)"
)


def check_open_jobs(client: FulcrumClient, agent_id: str, settings: Settings) -> Iterator[CheckResult]:
    """Warn of jobs that are open in FulcrumCore, but that the agent neither processes nor reports.

    Only the oldest jobs are compared, to limit the duration. Raises FulcrumError.
    """
    processing_jobs, processing_count = client.oldest_processing_jobs_of_agent(agent_id, max_pages=MAX_PAGES)
    pending_jobs = client.pending_jobs(limit=MAX_PENDING_JOBS).jobs
    open_jobs = [*processing_jobs, *pending_jobs]
    try:
        rows = _read_rows(settings, [job.id for job in open_jobs])
    except DatabaseError:
        yield _RESULT_FACTORY.skip(
            CHECK_NAME, "the database cannot be read, so the open jobs are not compared with its rows"
        )
        return
    jobs_without_progress = [(job, cause) for job in open_jobs if (cause := why_no_progress(job, rows.get(job.id)))]
    for job, cause in jobs_without_progress[:MAX_SHOWN_JOBS]:
        row = rows.get(job.id)
        remedies = [f"smith jobs retry {row.id}"] if row else []
        yield _RESULT_FACTORY.warn(
            CHECK_NAME, f"job {job.id} ({job.action}) is {job.status} in FulcrumCore, but {cause}", *remedies
        )
    if len(jobs_without_progress) > MAX_SHOWN_JOBS:
        yield _RESULT_FACTORY.warn(
            CHECK_NAME,
            f"{len(jobs_without_progress) - MAX_SHOWN_JOBS} more open jobs are neither processed nor reported; "
            "`smith status` shows the jobs in the database",
        )
    if not jobs_without_progress:
        unread_count = processing_count - len(processing_jobs)
        unread_text = f"; the newest {unread_count} processing jobs were not compared" if unread_count > 0 else ""
        processing_text = count_with_noun(processing_count, "processing job")
        pending_text = count_with_noun(len(pending_jobs), "pending job")
        text = f"no problem with {processing_text} and {pending_text}"
        yield _RESULT_FACTORY.ok(CHECK_NAME, f"{text}{unread_text}")


def why_no_progress(fulcrum_job: FulcrumJob, row: Job | None) -> str:
    """Return why the agent neither processes nor reports a job that is open in FulcrumCore; '' if there is no problem.

    `fulcrum_job` is the job in FulcrumCore's answer, and `row` is its row in the agent's database. A pending job
    without a row is no problem, because the agent receives this job when it polls FulcrumCore the next time. Pure
    function.
    """
    if row is None:
        return NO_ROW_TEXT if fulcrum_job.status == "Processing" else ""
    if row.status not in ENDED_STATUSES:
        return ""
    # DUE: FulcrumCore has not acknowledged the result. `report_attempts` is the number of reports that have failed, and
    # `report_note` says why the last of them failed.
    if row.report_state == ReportState.DUE:
        return f"FulcrumCore does not accept the job's result: {row.report_note}" if row.report_attempts else ""
    if row.report_state == ReportState.CLAIMED_ELSEWHERE and fulcrum_job.status == "Processing":
        return f"{CLAIMED_ELSEWHERE_TEXT}: stop that installation, and then retry the job"
    text = f"its status in the database is {row.status}"
    # The job has ended in the database, but is open in FulcrumCore. If it is pending there, the agent notices this at
    # its next poll. For processing jobs, the agent compares the database with FulcrumCore every COMPARISON_INTERVAL_S.
    interval_text = f"{COMPARISON_INTERVAL_S:.0f} s"
    return f"{text}; within {interval_text}, a running agent either reports the result or executes the job again"


def _read_rows(settings: Settings, fulcrum_ids: Sequence[str]) -> dict[str, Job]:
    """Return the rows of these jobs. Raises DatabaseError."""
    if not fulcrum_ids:
        return {}
    return read_database(
        settings, lambda session: queries.jobs_by_fulcrum_id(session, fulcrum_ids), if_no_database_file={}
    )
