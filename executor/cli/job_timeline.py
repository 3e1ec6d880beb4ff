"""`smith jobs show`: shows one job, with its timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.cli.arguments import AsJson, JobReference
from executor.cli.help_text import examples
from executor.cli.lookup import find_job
from executor.cli.output import show_json, show_text
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_fields, show_heading, show_indented_json, show_rows
from executor.database import audit_queries, mapping_queries, run_queries
from executor.database.times import utc_now
from executor.views import timeline
from executor.views.job_rows import detail_fields, event_fields, run_fields, service_and_vm_fields

if TYPE_CHECKING:  # The class needs SQLAlchemy's ORM, whose import takes long.
    from executor.database.tables.jobs import Job

#: The columns of a job's timeline. Each key is a key of the rows, and its value is the heading of the column.
#: AFTER is the time since the agent received the job.
TIMELINE_COLUMNS = {"time": "TIME", "after": "AFTER", "text": "WHAT"}
#: The fields of a job that contain a dictionary. `smith jobs show` prints each as JSON under a heading of its own.
DICTIONARY_FIELDS = ("params", "service", "result")
#: The times of a job that `smith jobs show` prints only with --json. Without --json, it prints the timeline instead.
#: `claim_sent_at` is when the agent sent the claim to FulcrumCore, and `claimed_at` is when FulcrumCore accepted it.
TIMES_ONLY_IN_JSON = ("received_at", "claim_sent_at", "claimed_at", "started_at", "finished_at", "reported_at")


@examples(
    "smith jobs show 17",
    "smith jobs show 4f1c2b --json",
)
def show_job(reference: JobReference, as_json: AsJson = False) -> None:
    """Show one job as a timeline, with its properties and result.

    The timeline has the job's attempts and reports, and the Ansible tasks and Proxmox tasks of each run.
    """
    with read_only_transaction() as transaction:
        job = find_job(transaction.connection, reference)
        # The story of a run is a summary: its Ansible tasks, its Proxmox tasks, and the steps that the Ansible action
        # plugins reported, such as "cloning the template 9000".
        runs = run_queries.runs_with_stories(transaction.connection, [job.id])
        # An event is something unusual: for example, the job was requeued, or FulcrumCore has not accepted its report.
        events = run_queries.events_of_job(transaction.connection, job.id)
        # The subject id of an audit entry about a job is FulcrumCore's id of the job. `list_entries` also accepts the
        # beginning of a subject id; here, it gets the whole id.
        audit_entries = audit_queries.list_entries(transaction.connection, subject_id_prefix=job.fulcrum_id)
        mapping_by_service = mapping_queries.current_mappings_by_service(
            transaction.connection, [job.service_id] if job.service_id else []
        )
    fields = service_and_vm_fields(job, mapping_by_service) | detail_fields(job)
    if as_json:
        rows = [run_fields(run) | {"story": run.story} for run in runs]
        show_json(fields | {"runs": rows, "events": [event_fields(event) for event in events]})
        return
    show_fields(
        {name: value for name, value in fields.items() if name not in (*TIMES_ONLY_IN_JSON, *DICTIONARY_FIELDS)}
    )
    show_heading("Timeline")
    _show_timeline(job, timeline.entries(job, runs, events, audit_entries))
    if not timeline.has_job_ended(job):
        show_text(timeline.current_state_text(job, runs, utc_now()))
    for name in DICTIONARY_FIELDS:
        if fields[name]:
            show_heading(name.capitalize())
            show_indented_json(fields[name])


def _show_timeline(job: Job, entries: list[timeline.TimelineEntry]) -> None:
    """Print one line for each entry: the time, the time since the job was received, and the text."""
    rows = [
        {
            "time": entry.at,
            "after": f"{(entry.at - job.received_at).total_seconds():+.1f}s",
            "text": f"  {entry.text}" if entry.is_detail else entry.text,
        }
        for entry in entries
    ]
    show_rows(rows, TIMELINE_COLUMNS, if_empty="")
