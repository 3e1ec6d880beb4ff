"""`smith jobs list` and `smith jobs show`: the jobs that FulcrumCore sent."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from executor.cli import timeline
from executor.cli.arguments import AsJson, JobReference
from executor.cli.help_text import examples
from executor.cli.job_rows import detail_fields, event_fields, run_fields, summary_fields
from executor.cli.lookup import find_job, find_service_id
from executor.cli.output import elapsed_text, short_id, show_json, show_text
from executor.cli.store import reading_store
from executor.cli.tables import show_document, show_fields, show_heading, show_rows
from executor.database import audit, job_events, queries
from executor.database.tables import Job, utc_now
from executor.model import JobStatus

#: The columns of the table of jobs: the heading of each column, keyed by the key of its values in a row.
COLUMNS = {
    "id": "ID",
    "fulcrum": "FULCRUM",
    "action": "ACTION",
    "status": "STATUS",
    "service": "SERVICE",
    "attempt": "TRY",
    "age": "AGE",
    "report_state": "REPORT",
    "error": "ERROR",
}
#: The columns of the timeline of a job, in the same form.
TIMELINE_COLUMNS = {"time": "TIME", "after": "AFTER", "text": "WHAT"}
#: The fields of a job that contain a dictionary. `smith jobs show` prints each as JSON under a heading of its own.
DICTIONARY_FIELDS = ("params", "service", "result")
#: The fields of a job that the timeline shows.
TIMELINE_FIELDS = ("received_at", "claim_sent_at", "claimed_at", "started_at", "finished_at", "reported_at")
#: The maximum length of an error message in the list of jobs.
MAX_SHOWN_ERROR_LENGTH = 80


@examples(
    "smith jobs list",
    "smith jobs list --status failed --status pending --action create",
    "smith jobs list --unreported --json",
)
def list_jobs(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    status: Annotated[
        list[JobStatus] | None, typer.Option("--status", help="Only jobs with this status; may be repeated.")
    ] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only this action.")] = None,
    service: Annotated[
        str | None, typer.Option("--service", help="Only the service whose id begins with this text.")
    ] = None,
    unreported: Annotated[
        bool, typer.Option("--unreported", help="Only ended jobs that FulcrumCore has not acknowledged.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="At most this many, the newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with reading_store() as store:
        service_id = find_service_id(store.session, service) if service else None
        jobs = queries.list_jobs(
            store.session,
            statuses=status or (),
            action=action,
            service_id=service_id,
            unreported=unreported,
            limit=limit,
        )
    if as_json:
        show_json([summary_fields(job) for job in jobs])
        return
    now = utc_now()
    rows = [summary_fields(job) | _shortened_fields(job) | {"age": elapsed_text(job.received_at, now)} for job in jobs]
    show_rows(rows, COLUMNS, if_empty="no jobs match")


@examples(
    "smith jobs show 17",
    "smith jobs show 4f1c2b --json",
)
def show_job(reference: JobReference, as_json: AsJson = False) -> None:
    """Show one job as a timeline, with its properties and result.

    The timeline has the job's attempts, the Ansible tasks and Proxmox tasks of each run, and its reports.
    """
    with reading_store() as store:
        job = find_job(store.session, reference)
        runs = queries.runs_with_stories(store.session, [job.id])
        events = job_events.of_job(store.session, job.id)
        changes = audit.list_entries(store.session, subject_id_prefix=job.fulcrum_id)
    fields = detail_fields(job)
    if as_json:
        rows = [run_fields(run) | {"story": run.story} for run in runs]
        show_json(fields | {"runs": rows, "events": [event_fields(event) for event in events]})
        return
    show_fields({name: value for name, value in fields.items() if name not in (*TIMELINE_FIELDS, *DICTIONARY_FIELDS)})
    show_heading("Timeline")
    _show_timeline(job, timeline.entries(job, runs, events, changes))
    if not timeline.is_over(job):
        show_text(timeline.present_text(job, runs, utc_now()))
    for name in DICTIONARY_FIELDS:
        if fields[name]:
            show_heading(name.capitalize())
            show_document(fields[name])


def _show_timeline(job: Job, entries: list[timeline.Entry]) -> None:
    """Print one line for each entry, with the time since the job was received."""
    rows = [
        {
            "time": entry.at,
            "after": f"{(entry.at - job.received_at).total_seconds():+.1f}s",
            "text": f"  {entry.text}" if entry.is_detail else entry.text,
        }
        for entry in entries
    ]
    show_rows(rows, TIMELINE_COLUMNS, if_empty="")


def _shortened_fields(job: Job) -> dict[str, Any]:
    """Return the shortened ids and the shortened error message of the job, for the table of jobs."""
    message = job.error_message or ""
    if len(message) > MAX_SHOWN_ERROR_LENGTH:
        message = f"{message[:MAX_SHOWN_ERROR_LENGTH]}…"
    return {"fulcrum": short_id(job.fulcrum_id), "service": short_id(job.service_id), "error": message}
