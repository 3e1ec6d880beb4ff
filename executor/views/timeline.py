"""Builds the timeline of a job: what happened to the job, from its arrival to its report, in order of time.

The column `story` of a run lists what the run has done: Ansible tasks, steps and Proxmox tasks. A step is an operation
that an action plugin reports during an Ansible task, such as "cloning the template 9000".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from executor.model import JobEventKind, JobStatus, ReportState

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.tables.audit import AuditEntry
    from executor.database.tables.jobs import Job, JobEvent, Run

#: The outcome of an Ansible task that is running. The value equals `executor.runs.story.RUNNING`, which is not imported
#: because this import takes long.
RUNNING = "running"
#: The timeline's text about an unusual event of a job, such as a requeue, by the kind of event. The event's reason
#: follows the text.
EVENT_TEXTS = {
    JobEventKind.REQUEUED: "attempt {attempt} ended, the job gets another attempt",
    JobEventKind.REAPED: "taken from its agent, whose lease had expired",
    JobEventKind.RELEASED: "released by its agent",
    # FulcrumCore listed the ended job as open. So the agent reports the stored result, or makes another attempt.
    JobEventKind.REOPENED: "the ended job was reopened for a report or for another attempt",
    JobEventKind.REPORT_POSTPONED: "FulcrumCore did not accept the report",
    JobEventKind.RESULT_REPLACED: "FulcrumCore refused the result, a failure is reported instead",
}
#: The text of the timeline's entry about the report of a job, by the report's state.
REPORT_TEXTS = {
    ReportState.REPORTED: "reported to FulcrumCore",
    ReportState.ENDED_BY_FULCRUM: "FulcrumCore had ended the job itself",
    ReportState.ABANDONED: "not reported, because FulcrumCore does not expect a result from this agent",
    ReportState.CLAIMED_ELSEWHERE: "not reported: another installation with this agent's token has claimed the job",
}


@dataclass(frozen=True, kw_only=True)
class TimelineEntry:
    """One line of the timeline."""

    at: datetime
    #: What the entry is about: `job`, `event` (an unusual event of the job), `operator` (a change by an operator),
    #: `run` (start of a run), `end` (end of a run), `task` (an Ansible task), `step` or `proxmox` (a Proxmox task).
    kind: str
    text: str
    run_ident: str | None = None  #: the run that the entry is about, if any
    is_detail: bool = False  #: True if the entry is about an Ansible task, a step or a Proxmox task of a run


def entries(
    job: Job, runs: Sequence[Run], events: Sequence[JobEvent], audit_entries: Sequence[AuditEntry]
) -> list[TimelineEntry]:
    """Return the timeline of a job from its runs, its unusual events, and its audit entries (changes by operators)."""
    timeline = [*_job_entries(job), *map(_event_entry, events), *map(_audit_entry, audit_entries)]
    for run in runs:
        timeline += run_entries(run)
    return sorted(timeline, key=lambda entry: entry.at)  # entries of the same moment keep their order


def _job_entries(job: Job) -> Iterator[TimelineEntry]:
    yield TimelineEntry(at=job.received_at, kind="job", text="received from FulcrumCore")
    if job.claimed_at is not None:
        yield TimelineEntry(at=job.claimed_at, kind="job", text="claimed at FulcrumCore")
    if job.finished_at is not None:
        # `operator_detail` is a more detailed error text, which only operators may see.
        error = f": {job.operator_detail or job.error_message}" if job.error_message else ""
        yield TimelineEntry(at=job.finished_at, kind="job", text=f"{job.status}{error}")
    if job.reported_at is not None and job.report_state in REPORT_TEXTS:
        note = f": {job.report_note}" if job.report_note else ""
        yield TimelineEntry(at=job.reported_at, kind="job", text=REPORT_TEXTS[ReportState(job.report_state)] + note)


def _event_entry(event: JobEvent) -> TimelineEntry:
    text = EVENT_TEXTS[JobEventKind(event.kind)].format(attempt=event.attempt)
    count = f" ({event.count} times, first {event.first_at:%H:%M:%S}Z)" if event.count > 1 else ""
    reason = f": {event.text}" if event.text else ""
    return TimelineEntry(at=event.last_at, kind="event", text=f"{text}{count}{reason}")


def _audit_entry(entry: AuditEntry) -> TimelineEntry:
    reason = f": {entry.reason}" if entry.reason else ""
    return TimelineEntry(at=entry.at, kind="operator", text=f"{entry.verb} by {entry.who}{reason}")


def run_entries(run: Run) -> Iterator[TimelineEntry]:
    """Yield the entries of a run: its start, its Ansible tasks, steps and Proxmox tasks, and its end."""
    text = f"attempt {run.attempt}: {run.playbook} starts ({run.ident})"
    yield TimelineEntry(at=run.started_at, kind="run", run_ident=run.ident, text=text)
    yield from story_entries(run)
    if run.ended_at is not None:
        seconds = (run.ended_at - run.started_at).total_seconds()
        rc = "" if run.rc is None else f", rc {run.rc}"
        yield TimelineEntry(
            at=run.ended_at,
            kind="end",
            run_ident=run.ident,
            text=f"run {run.status or 'ended'} after {seconds:.1f} s{rc}",
        )


def story_entries(run: Run) -> list[TimelineEntry]:
    """Return the entries about the Ansible tasks, steps and Proxmox tasks of the run so far, in the order of time."""
    story = run.story or {}

    def make_entry(row: dict[str, Any], kind: str, text: str) -> TimelineEntry:
        return TimelineEntry(at=time_of_story_row(run, row), kind=kind, text=text, run_ident=run.ident, is_detail=True)

    ansible_tasks = [make_entry(row, "task", ansible_task_text(row)) for row in story.get("tasks", ())]
    steps = [make_entry(row, "step", row["text"]) for row in story.get("steps", ())]
    proxmox_tasks = [make_entry(row, "proxmox", proxmox_task_text(row)) for row in story.get("proxmox_tasks", ())]
    return sorted([*ansible_tasks, *steps, *proxmox_tasks], key=lambda entry: entry.at)


def time_of_story_row(run: Run, row: dict[str, Any]) -> datetime:
    """Return the time of a row of `Run.story`. The row's `at` is in seconds after the start of the run."""
    return run.started_at + timedelta(seconds=row["at"])


def ansible_task_text(row: dict[str, Any]) -> str:
    """Return one line about an Ansible task."""
    seconds = "" if row["seconds"] is None else f" in {row['seconds']:.1f} s"
    message = f": {row['message']}" if row["message"] else ""
    return f"{row['task']}: {row['outcome']}{seconds}{message}"


def proxmox_task_text(row: dict[str, Any]) -> str:
    """Return one line about a Proxmox task."""
    percent = "" if row["percent"] is None else f" {row['percent']:.0f} %"
    log = f": {row['log'][-1]}" if row["log"] else ""
    return f"{row['upid']}{percent}{log}"


def current_state_text(job: Job, runs: Sequence[Run], now: datetime) -> str:
    """Return what a job that has not ended is doing or waiting for, in one line."""
    if job.status == JobStatus.PENDING:
        wait = f", its next attempt is due at {job.available_at:%H:%M:%S}Z" if job.available_at else ""
        return f"now: pending{wait}"
    run = runs[-1] if runs and runs[-1].ended_at is None else None
    if run is None:
        return "now: processing, no run in progress"
    story = run.story or {}
    running_task = next((row for row in reversed(story.get("tasks", ())) if row["outcome"] == RUNNING), None)
    if running_task is None:
        return f"now: run {run.ident}, for {(now - run.started_at).total_seconds():.0f} s"
    step = f": {story['steps'][-1]['text']}" if story.get("steps") else ""
    running_s = (now - time_of_story_row(run, running_task)).total_seconds()
    return f"now: {running_task['task']}, for {running_s:.0f} s{step}"


def has_job_ended(job: Job) -> bool:
    """Return whether the job has ended."""
    return job.status in (JobStatus.COMPLETED, JobStatus.FAILED)
