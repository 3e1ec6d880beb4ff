"""`smith jobs list` and `smith jobs show`: the jobs that FulcrumCore sent."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson, JobReference, Since, since_time
from executor.cli.completion import complete_action, complete_service
from executor.cli.help_text import examples
from executor.cli.lookup import find_job, find_service_id
from executor.cli.output import show_json, show_text
from executor.cli.store import reading_store
from executor.cli.tables import is_terminal, show_document, show_fields, show_heading, show_rows
from executor.database import audit, job_events, mapping_queries, queries
from executor.database.tables.base import utc_now
from executor.database.tables.jobs import Job
from executor.model import JobStatus
from executor.views import timeline
from executor.views.job_rows import detail_fields, event_fields, name_fields, run_fields, summary_fields
from executor.views.text import elapsed_text, short_id

#: The columns of the table of jobs: the heading of each column, keyed by the key of its values in a row.
COLUMNS = {
    "id": "ID",
    "fulcrum": "FULCRUM",
    "action": "ACTION",
    "status": "STATUS",
    "name": "NAME",
    "vm": "VM",
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
#: The fields of a job that the timeline shows. `smith jobs show` does not print them a second time.
TIMELINE_FIELDS = ("received_at", "claim_sent_at", "claimed_at", "started_at", "finished_at", "reported_at")
#: The maximum length of an error message in the list of jobs on a terminal.
MAX_SHOWN_ERROR_LENGTH = 80


@examples(
    "smith jobs list",
    "smith jobs list --status failed --status pending --action create",
    "smith jobs list --failed --since 2h",
    "smith jobs list --unreported --json",
)
def list_jobs(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    status: Annotated[
        list[JobStatus] | None, typer.Option("--status", help="Only jobs with this status; may be repeated.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only failed jobs.")] = False,
    action: Annotated[
        str | None, typer.Option("--action", help="Only jobs with this action.", autocompletion=complete_action)
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(
            "--service",
            help="Only jobs of the service whose id begins with this text.",
            autocompletion=complete_service,
        ),
    ] = None,
    unreported: Annotated[
        bool, typer.Option("--unreported", help="Only ended jobs that FulcrumCore has not acknowledged.")
    ] = False,
    since: Since = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="At most this many jobs, the newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with reading_store() as store:
        service_id = find_service_id(store.session, service) if service else None
        jobs = queries.list_jobs(
            store.session,
            statuses=[*(status or ()), *([JobStatus.FAILED] if failed else ())],
            action=action,
            service_ids=[service_id] if service_id else None,
            unreported=unreported,
            since=since_time(since),
            limit=limit,
        )
        mapping_by_service = mapping_queries.current_mappings_of_services(
            store.session, {job.service_id for job in jobs if job.service_id}
        )
    fields = [summary_fields(job) | name_fields(job, mapping_by_service) for job in jobs]
    if as_json:
        show_json(fields)
        return
    now = utc_now()
    rows = [
        row | _table_fields(job, row) | {"age": elapsed_text(job.received_at, now)}
        for job, row in zip(jobs, fields, strict=True)
    ]
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
        events = job_events.events_of_job(store.session, job.id)
        changes = audit.list_entries(store.session, subject_id_prefix=job.fulcrum_id)
        mapping_by_service = mapping_queries.current_mappings_of_services(
            store.session, [job.service_id] if job.service_id else []
        )
    fields = name_fields(job, mapping_by_service) | detail_fields(job)
    if as_json:
        rows = [run_fields(run) | {"story": run.story} for run in runs]
        show_json(fields | {"runs": rows, "events": [event_fields(event) for event in events]})
        return
    show_fields({name: value for name, value in fields.items() if name not in (*TIMELINE_FIELDS, *DICTIONARY_FIELDS)})
    show_heading("Timeline")
    _show_timeline(job, timeline.entries(job, runs, events, changes))
    if not timeline.is_over(job):
        show_text(timeline.current_state_text(job, runs, utc_now()))
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


def _table_fields(job: Job, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the names and the shortened ids of the job, for the table of jobs. On a terminal, errors are shortened."""
    message = job.error_message or ""
    if is_terminal() and len(message) > MAX_SHOWN_ERROR_LENGTH:
        message = f"{message[:MAX_SHOWN_ERROR_LENGTH]}…"
    vm = [str(fields[key]) for key in ("vmid", "vm_name") if fields[key]]
    return {
        "fulcrum": short_id(job.fulcrum_id),
        "service": short_id(job.service_id),
        "name": fields["service_name"],
        "vm": " ".join(vm) or None,
        "error": message,
    }
