"""`smith jobs list`: lists the jobs in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson, Since, since_time
from executor.cli.completion import complete_action, complete_service
from executor.cli.help_text import examples
from executor.cli.lookup import find_service_id
from executor.cli.output import show_json
from executor.cli.store import read_only_transaction
from executor.cli.tables import is_terminal, show_rows
from executor.database import mapping_queries, queries
from executor.database.times import utc_now
from executor.model import JobStatus
from executor.views.job_rows import service_and_vm_fields, summary_fields
from executor.views.text import elapsed_text, short_id

if TYPE_CHECKING:  # Used only in annotations. The import of SQLAlchemy's ORM is slow.
    from executor.database.tables.jobs import Job

#: The columns of the table of jobs: maps each key of a row to the heading of its column.
COLUMNS = {
    "id": "ID",
    "fulcrum": "FULCRUM",  # the beginning of the job's id in FulcrumCore
    "action": "ACTION",
    "status": "STATUS",
    "name": "NAME",  # the name of the service
    "vm": "VM",  # the VMID and the name of the VM
    "service": "SERVICE",  # the beginning of the service's id
    "attempt": "TRY",
    "age": "AGE",
    "report_state": "REPORT",  # the state of the report of the job's result to FulcrumCore
    "error": "ERROR",
}
#: The maximum length of an error message in the list of jobs on a terminal, in characters.
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
    with read_only_transaction() as transaction:
        service_id = find_service_id(transaction.connection, service) if service else None
        jobs = queries.list_jobs(
            transaction.connection,
            statuses=[*(status or ()), *([JobStatus.FAILED] if failed else ())],  # an empty list: every status
            action=action,
            service_ids=[service_id] if service_id else None,
            only_unreported=unreported,
            since=since_time(since),  # only jobs that were received at this time or later
            limit=limit,
        )
        # A current mapping is a mapping that is not deleted.
        mapping_by_service = mapping_queries.current_mappings_by_service(
            transaction.connection, {job.service_id for job in jobs if job.service_id}
        )
    rows = [summary_fields(job) | service_and_vm_fields(job, mapping_by_service) for job in jobs]
    if as_json:
        show_json(rows)
        return
    now = utc_now()
    table_rows = [
        row | _table_fields(job, row) | {"age": elapsed_text(job.received_at, now)}
        for job, row in zip(jobs, rows, strict=True)
    ]
    show_rows(table_rows, COLUMNS, if_empty="no jobs match")


def _table_fields(job: Job, json_fields: dict[str, Any]) -> dict[str, Any]:
    """Return the values that only the table shows. `json_fields` are the job's fields in `--json`.

    On a terminal, a long error message is cut.
    """
    message = job.error_message or ""
    if is_terminal() and len(message) > MAX_SHOWN_ERROR_LENGTH:
        message = f"{message[:MAX_SHOWN_ERROR_LENGTH]}…"
    vm = [str(json_fields[key]) for key in ("vmid", "vm_name") if json_fields[key]]
    return {
        "fulcrum": short_id(job.fulcrum_id),
        "service": short_id(job.service_id),
        "name": json_fields["service_name"],
        "vm": " ".join(vm) or None,
        "error": message,
    }
