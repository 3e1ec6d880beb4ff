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
from executor.database.engine import read_only_session
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
    page: str = ""  #: the path of the page, such as `executors` (the agent processes); '' if no page shows more


def show(context: PageContext, request: Request) -> Response:
    """Return the page with the overview."""
    view, now = context.agent_view(), utc_now()  # the view has the agent's database, settings and drift findings
    with read_only_session(view.engine) as session:
        # The page does not show how many jobs have ended in all, which would be slow to count.
        status = read_status(session, view.settings.smith_lease_s, should_count_ended_jobs=False)
        # The running jobs, the oldest waiting jobs and the last failures.
        activity = read_activity(session, view.settings, now)
        hour_counts = ended_jobs.ended_job_counts_by_hour(session, now, hours=CHART_HOURS)
        job_durations = ended_jobs.last_job_durations(
            session, since=now - timedelta(hours=CHART_HOURS), limit=MAX_MEASURED_JOB_COUNT
        )
    return context.renderer.render_page(
        request,
        "overview.html",
        problems=list(_find_problems(context, view, status)),
        status=status,
        document=status.document,  # the values that `smith status --json` shows
        activity=activity,
        counts=hour_counts,
        chart=hours_chart(hour_counts),
        # A job waits from its receipt to the start of its last run. It runs from then to its end.
        times={"wait": _percentiles(job_durations, "wait_s"), "run": _percentiles(job_durations, "run_s")},
        percentiles=PERCENTILES,
        measured_job_count=len(job_durations),
    )


def _percentiles(job_durations: Sequence[JobDurations], attribute: str) -> list[float | None]:
    values = [getattr(durations, attribute) for durations in job_durations]
    return [percentile(values, percent) for percent in PERCENTILES]


def _find_problems(context: PageContext, view: AgentView, status: Status) -> Iterator[Problem]:
    """Yield the current problems, the most urgent first."""
    document = status.document
    # `readiness_report` makes the checks of the page /readyz. `agent_handle` gives it access to the agent's state.
    for check in readiness_report(context.server.agent_handle).checks:
        if not check.ok:
            detail = f" ({check.detail})" if check.detail else ""
            remedy = "The page Doctor shows the cause and the remedy."
            yield Problem(text=f"{check.name}: {check.reason}{detail}", remedy=remedy, page="doctor")
    if document["paused"]:
        # `pause_text` has the start of the pause, the operator who paused the agents, and the reason.
        text, remedy = f"The agents are paused {status.pause_text}", "Resume the agents when the maintenance is over."
        yield Problem(text=text, remedy=remedy, page="executors")
    yield from _problems_of_critical_jobs(document)
    yield from _problems_of_jobs(document)
    if missing_vm_count := document["mappings"].get(MappingState.VM_LOST, 0):
        yield Problem(
            text=f"{missing_vm_count} VMs do not exist any more in Proxmox, and no job deleted them",
            remedy=f"The list of VMs shows these VMs (state {MappingState.VM_LOST}).",
            page="vms",
        )
    # A finding is one difference between mappings, Proxmox and FulcrumCore. `needs_operator` is False for a harmless
    # difference that the agent itself repairs. The list is None if there is no recent drift check.
    if any(finding.needs_operator for finding in view.list_drift_findings() or ()):
        yield Problem(
            text="Mappings, Proxmox and FulcrumCore differ", remedy="The list of VMs shows the differences.", page="vms"
        )


def _problems_of_critical_jobs(document: dict[str, Any]) -> Iterator[Problem]:
    for name in document["critical_overdue"]:
        remedy = (
            "The agent restarts this critical job. If it is overdue again, report the defect with the archive that "
            "`smith support` writes."
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
        # Jobs whose results FulcrumCore has not accepted. The agent sends the results again later.
        "reports_postponed": "FulcrumCore does not accept the results of jobs",
        "claimed_elsewhere": "Another installation with this agent's token has claimed the jobs",
    }
    for key, text in texts.items():
        if document[key]:
            numbers = ", ".join(str(job["id"]) for job in document[key])
            yield Problem(text=f"{text} {numbers}", remedy="The page of each job shows the reason.", page="jobs")
