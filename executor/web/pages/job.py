"""The page of one job: the job's timeline and fields, and the output of its runs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from executor.database.tables.jobs import Job
from executor.model import JobStatus, ReportState
from executor.views.job_rows import detail_fields
from executor.views.text import json_text
from executor.web.pages.job_story import read_job_details
from executor.web.pages.parts import PageContext

#: The fields whose values the page shows as JSON.
JSON_FIELDS = ("params", "service", "result")
#: The fields that the list of fields does not contain, because the timeline shows them.
TIMELINE_FIELDS = ("received_at", "claim_sent_at", "claimed_at", "started_at", "finished_at", "reported_at")


def show(context: PageContext, request: Request) -> Response:
    """Return the page of a job. `context.agent_view()` gives access to the agent, here to its database."""
    # `details` contains the job and the entries of its timeline.
    details = read_job_details(context.agent_view().engine, request.path_params["job_id"])
    if details is None:
        return context.message_page(
            request,
            404,
            "Not found",
            "There is no such job. If it has ended, it may have been deleted after SMITH_JOB_RETENTION_S.",
        )
    fields = details.service_and_vm_fields | detail_fields(details.job)
    return context.renderer.render_page(
        request,
        "job.html",
        details=details,
        job=details.job,
        fields={name: value for name, value in fields.items() if name not in (*TIMELINE_FIELDS, *JSON_FIELDS)},
        json_texts={name: json_text(fields[name]) for name in JSON_FIELDS if fields[name]},
        can_retry=_can_retry(details.job),
        is_open=details.job.status in (JobStatus.PENDING, JobStatus.PROCESSING),
    )


def _can_retry(job: Job) -> bool:
    """Return whether the page offers a retry.

    The retry of a pending job ends its backoff. In the report state CLAIMED_ELSEWHERE, an agent process with another
    database has claimed the job. The retry makes the job pending in this database, and a worker runs the job's playbook
    if the job is open at FulcrumCore.

    In the report states DUE, REPORTED and ENDED_BY_FULCRUM, the retry makes the result due for a report now, even if
    the result was reported before. DUE: FulcrumCore has not acknowledged the result. REPORTED: FulcrumCore has
    acknowledged it. ENDED_BY_FULCRUM: FulcrumCore has refused it, because FulcrumCore itself had ended the job.

    When the operator requests the retry, `executor/database/reopening.retry_now` checks again whether the job can be
    retried. If not, `retry_now` changes nothing.
    """
    can_report = job.report_state in (ReportState.DUE, ReportState.REPORTED, ReportState.ENDED_BY_FULCRUM)
    can_attempt = job.status == JobStatus.PENDING or job.report_state == ReportState.CLAIMED_ELSEWHERE
    return can_report or can_attempt
