"""The page with the overview: problems with their remedies, the running jobs, and the jobs of the last day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from executor.database import ended_jobs
from executor.database.ended_jobs import JobDurations
from executor.database.engine import reading
from executor.database.times import utc_now
from executor.model import JobStatus, MappingState
from executor.views.activity import read_activity
from executor.views.status_document import Status, read_status
from executor.web.agent_view import AgentView
from executor.web.health import readiness_report
from executor.web.pages.charts import hours_chart, percentile
from executor.web.pages.parts import PageContext

#: The number of hours in the chart, and the maximum number of jobs whose durations are summarised.
CHART_HOURS, MAX_MEASURED_JOB_COUNT = 24, 500
#: The shown percentiles of the durations.
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem, its remedy, and the page that shows more about the problem."""

    text: str
    remedy: str
    page: str = ""  #: the path of the page; '' if no page shows more


def show(context: PageContext, request: Request) -> Response:
    """Return the page with the overview."""
    view, now = context.agent_view(), utc_now()
    with reading(view.engine) as session:
        status = read_status(session, view.settings.smith_lease_s, should_count_ended_jobs=False)
        activity = read_activity(session, view.settings, now)
        hour_counts = ended_jobs.ended_job_counts_by_hour(session, now, hours=CHART_HOURS)
        job_times = ended_jobs.last_job_durations(
            session, since=now - timedelta(hours=CHART_HOURS), limit=MAX_MEASURED_JOB_COUNT
        )
    return context.renderer.render_page(
        request,
        "overview.html",
        problems=list(_find_problems(context, view, status)),
        status=status,
        document=status.document,
        activity=activity,
        counts=hour_counts,
        chart=hours_chart(hour_counts),
        times={"wait": _percentiles(job_times, "wait_s"), "run": _percentiles(job_times, "run_s")},
        percentiles=PERCENTILES,
        measured_job_count=len(job_times),
    )


def _percentiles(job_times: Sequence[JobDurations], attribute: str) -> list[float | None]:
    values = [getattr(times, attribute) for times in job_times]
    return [percentile(values, percent) for percent in PERCENTILES]


def _find_problems(context: PageContext, view: AgentView, status: Status) -> Iterator[Problem]:
    """Yield the current problems, the most urgent first."""
    document = status.document  # the values that `smith status --json` shows
    for check in readiness_report(context.server.handle).checks:
        if not check.ok:
            detail = f" ({check.detail})" if check.detail else ""
            remedy = "The page Doctor shows the cause and the remedy."
            yield Problem(text=f"{check.name}: {check.reason}{detail}", remedy=remedy, page="doctor")
    if document["paused"]:
        text, remedy = f"The agents are paused {status.pause_text}", "Resume the agents when the maintenance is over."
        yield Problem(text=text, remedy=remedy, page="executors")
    yield from _problems_of_critical_jobs(document)
    yield from _problems_of_jobs(document)
    if lost_vm_count := document["mappings"].get(MappingState.VM_LOST, 0):
        yield Problem(
            text=f"{lost_vm_count} VMs are lost",
            remedy="The list of VMs shows the lost VMs, and what differs.",
            page="vms",
        )
    if any(finding.needs_attention for finding in view.list_drift() or ()):
        yield Problem(
            text="Mappings, Proxmox and FulcrumCore differ", remedy="The list of VMs shows the differences.", page="vms"
        )


def _problems_of_critical_jobs(document: dict[str, Any]) -> Iterator[Problem]:
    for name in document["critical_overdue"]:
        remedy = (
            "The agent restarts this critical job. If it is overdue again, report the defect with an archive of "
            "`smith support`."
        )
        yield Problem(text=f"The critical job {name} is overdue", remedy=remedy)
    for job in document["critical_failing"]:
        yield Problem(
            text=f"The critical job {job['name']} fails: {job['last_error']}",
            remedy="The error message names the cause.",
        )


def _problems_of_jobs(document: dict[str, Any]) -> Iterator[Problem]:
    if document["jobs"][JobStatus.PENDING] and not document["agents_running"]:
        yield Problem(text="Jobs wait, and no agent is running", remedy="Start an agent.", page="executors")
    texts = {
        "reports_postponed": "FulcrumCore does not accept the results of jobs",
        "claimed_elsewhere": "Another installation with this agent's token has claimed the jobs",
    }
    for key, text in texts.items():
        if document[key]:
            numbers = ", ".join(str(job["id"]) for job in document[key])
            yield Problem(text=f"{text} {numbers}", remedy="The page of each job shows the reason.", page="jobs")
