"""`smith runs`: lists the runs (executions of playbooks), and shows one run with its artifacts."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson, Since, since_time
from executor.cli.completion import complete_job, complete_run
from executor.cli.help_text import examples
from executor.cli.lookup import find_job
from executor.cli.output import show_json, show_text
from executor.cli.run_log import NO_OUTPUT_TEXT, find_manual_run
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.database import mapping_queries, run_queries
from executor.model import RunStatus
from executor.settings.settings import Settings
from executor.views import artifacts
from executor.views.job_rows import manual_run_fields, run_fields, service_and_vm_fields
from executor.views.text import short_id

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from executor.database.core_tables import Reader
    from executor.database.tables.jobs import Run

#: The columns of the table of runs: maps each key of a row to the heading of its column.
COLUMNS = {
    "ident": "RUN",
    "job_id": "JOB",
    "fulcrum": "FULCRUM",  # the beginning of the job's id in FulcrumCore
    "attempt": "TRY",
    "playbook": "PLAYBOOK",
    "name": "NAME",  # the service's name
    "vm": "VM",
    "status": "STATUS",
    "rc": "RC",
    "started_at": "STARTED",
    "ended_at": "ENDED",
    "reason": "REASON",  # the error message that results from the run
}


@examples(
    "smith runs list",
    "smith runs list --failed --since 2h",
    "smith runs list --job 4f1c --json",
)
def list_runs(
    job_reference: Annotated[
        str | None,
        typer.Option(
            "--job",
            metavar="REF",
            help="List only the runs of this job: its number, FulcrumCore's id, or the beginning of this id.",
            autocompletion=complete_job,
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="List only runs that ended without success.")] = False,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="The maximum number of listed runs.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first.

    A run without a job was started by an operator.
    """
    with read_only_transaction() as transaction:
        job_id = None if job_reference is None else find_job(transaction.connection, job_reference).id
        rows = _read_newest_runs(
            transaction.connection, limit, job_id=job_id, since=since_time(since), only_failed=failed
        )
    if as_json:
        show_json(rows)
    else:
        if_empty = "no runs match" if failed or since else "no runs yet"
        show_rows([row | _table_fields(row) for row in rows], COLUMNS, if_empty=if_empty)


def _read_newest_runs(
    reader: Reader, limit: int, *, job_id: int | None, since: datetime | None, only_failed: bool
) -> list[dict[str, Any]]:
    """Return the rows for `--json`: the `limit` newest runs, both of jobs and of operators.

    `reader` is a connection or session of SQLAlchemy.
    """
    runs = run_queries.newest_job_runs(reader, limit, job_id=job_id, since=since, only_failed=only_failed)
    mappings_by_service = mapping_queries.current_mappings_by_service(
        reader, {job.service_id for _run, job in runs if job.service_id}
    )
    rows = [
        run_fields(run) | {"fulcrum_id": job.fulcrum_id} | service_and_vm_fields(job, mappings_by_service)
        for run, job in runs
    ]
    if job_id is None:
        manual_run_rows = run_queries.newest_manual_runs(reader, limit)
        rows += [
            manual_run_fields(run) | {"fulcrum_id": None, "service_name": None, "vm_name": None}
            for run in manual_run_rows
            if (since is None or run.started_at >= since)
            # A run whose end is not stored has the status None. It is not listed as failed.
            and (not only_failed or run.status not in (None, RunStatus.SUCCESSFUL))
        ]
    return sorted(rows, key=lambda row: row["started_at"], reverse=True)[:limit]


@examples(
    "smith runs show create-0c5d0f3a9b21",
    "smith runs show create-0c5d0f3a9b21 --lines 100",
)
def show_run(
    ident: Annotated[
        str, typer.Argument(metavar="IDENT", help="The run's ident (smith runs list).", autocompletion=complete_run)
    ],
    lines: Annotated[
        int, typer.Option("--lines", min=0, help="The number of lines to show from the end of the output.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Show one run with its artifacts and the end of its output."""
    with read_only_transaction() as transaction:
        run = run_queries.find_run(transaction.connection, ident)
        fields = (
            _fields_of_manual_run(transaction.connection, ident, lines)
            if run is None
            else _fields_of_job_run(run, transaction.settings, lines)
        )
    if as_json:
        show_json(fields)
    else:
        _show_run(fields)


def _fields_of_manual_run(reader: Reader, ident: str, line_count: int) -> dict[str, Any]:
    """Return the fields of a run that an operator started, with the last lines of its output."""
    run = find_manual_run(reader, ident)
    fields = manual_run_fields(run) | {"artifacts": [], "stdout_tail": _last_lines(run.output or "", line_count)}
    return fields if run.output else fields | {"artifacts_missing": NO_OUTPUT_TEXT}


def _fields_of_job_run(run: Run, settings: Settings, line_count: int) -> dict[str, Any]:
    """Return the fields of a job's run, with its artifacts and the last lines of its output."""
    try:
        folder = artifacts.artifacts_folder(run, settings)
        last_output_lines = _last_lines(artifacts.read_stdout(folder), line_count)
        return run_fields(run) | {"artifacts": artifacts.list_files(folder), "stdout_tail": last_output_lines}
    except artifacts.ArtifactsMissing as missing:
        return run_fields(run) | {"artifacts": [], "stdout_tail": [], "artifacts_missing": str(missing)}


def _table_fields(row: dict[str, Any]) -> dict[str, Any]:
    vm = [str(row[key]) for key in ("vmid", "vm_name") if row.get(key)]
    return {"fulcrum": short_id(row["fulcrum_id"]), "name": row.get("service_name"), "vm": " ".join(vm) or None}


def _show_run(fields: dict[str, Any]) -> None:
    show_fields({name: value for name, value in fields.items() if name not in ("artifacts", "stdout_tail")})
    if fields["artifacts"]:
        show_heading("Artifacts")
        show_rows(fields["artifacts"], {"name": "FILE", "bytes": "BYTES"}, if_empty="")
    if fields["stdout_tail"]:
        show_heading("End of the output")
        show_text("\n".join(fields["stdout_tail"]))


def _last_lines(text: str, max_count: int) -> list[str]:
    """Return the last lines of the text, at most `max_count`."""
    if max_count == 0 or not text.strip():
        return []
    return text.rstrip("\n").split("\n")[-max_count:]
