"""The page of one job: the job's timeline and fields, and the output of its runs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from executor.database.tables.jobs import Job
from executor.model import JobStatus, ReportState
from executor.views.job_rows import detail_fields
from executor.views.text import json_text
from executor.web.pages.job_story import read_story
from executor.web.pages.parts import PageParts

#: The fields whose values the page shows as JSON.
DOCUMENTS = ("params", "service", "result")
#: The fields that the page leaves out of its list of fields, because the timeline shows them.
TIMELINE_FIELDS = ("received_at", "claim_sent_at", "claimed_at", "started_at", "finished_at", "reported_at")


def show(parts: PageParts, request: Request) -> Response:
    """Return the page of a job."""
    story = read_story(parts.agent().engine, request.path_params["job_id"])
    if story is None:
        return parts.message(request, 404, "Not found", "There is no such job. It may have been pruned.")
    fields = story.names | detail_fields(story.job)
    return parts.renderer.page(
        request,
        "job.html",
        story=story,
        job=story.job,
        fields={name: value for name, value in fields.items() if name not in (*TIMELINE_FIELDS, *DOCUMENTS)},
        documents={name: json_text(fields[name]) for name in DOCUMENTS if fields[name]},
        can_retry=_can_retry(story.job),
        is_open=story.job.status in (JobStatus.PENDING, JobStatus.PROCESSING),
    )


def _can_retry(job: Job) -> bool:
    """Return whether the page offers a retry.

    When the operator requests the retry, `executor/database/reopening.retry_now` decides whether it changes something.
    """
    has_report = job.report_state in (ReportState.DUE, ReportState.REPORTED, ReportState.OVERTAKEN)
    return has_report or job.status == JobStatus.PENDING or job.report_state == ReportState.CLAIMED_ELSEWHERE
