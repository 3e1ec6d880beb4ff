"""`smith runs`: lists the runs (executions of playbooks), and shows one run with its artifacts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from executor.cli import artifacts
from executor.cli.arguments import AsJson, UnusableReference
from executor.cli.help_text import examples
from executor.cli.job_rows import run_fields
from executor.cli.lookup import find_job
from executor.cli.output import short_id, show_json, show_text
from executor.cli.store import reading_store
from executor.cli.tables import show_fields, show_heading, show_rows
from executor.database import queries

#: The columns of the table of runs: the heading of each column, keyed by the key of its values in a row.
COLUMNS = {
    "ident": "RUN",
    "job_id": "JOB",
    "fulcrum": "FULCRUM",
    "attempt": "TRY",
    "playbook": "PLAYBOOK",
    "status": "STATUS",
    "rc": "RC",
    "started_at": "STARTED",
    "ended_at": "ENDED",
    "reason": "REASON",
}


@examples(
    "smith runs list",
    "smith runs list --job 4f1c --json",
)
def list_runs(
    job_reference: Annotated[str | None, typer.Option("--job", metavar="REF", help="Only this job's runs.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="At most this many, the newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    with reading_store() as store:
        if job_reference is None:
            runs_with_jobs = queries.recent_runs(store.session, limit)
        else:
            chosen_job = find_job(store.session, job_reference)
            newest_first = reversed(queries.runs_of_job(store.session, chosen_job.id))
            runs_with_jobs = [(run, chosen_job) for run in newest_first][:limit]
    rows: list[dict[str, Any]] = [
        run_fields(run) | {"fulcrum_id": run_job.fulcrum_id} for run, run_job in runs_with_jobs
    ]
    if as_json:
        show_json(rows)
    else:
        show_rows([row | {"fulcrum": short_id(row["fulcrum_id"])} for row in rows], COLUMNS, if_empty="no runs yet")


@examples(
    "smith runs show create-0c5d0f3a9b21",
    "smith runs show create-0c5d0f3a9b21 --lines 100",
)
def show_run(
    ident: Annotated[str, typer.Argument(metavar="IDENT", help="The run's ident (smith runs list).")],
    lines: Annotated[int, typer.Option("--lines", min=0, help="Number of lines of its output to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show one run with its artifacts and the end of its output."""
    with reading_store() as store:
        run = queries.find_run(store.session, ident)
        if run is None:
            raise UnusableReference(f"there is no run {ident}: `smith runs list` shows the runs")
        fields = run_fields(run)
        try:
            folder = artifacts.artifacts_folder(run, store.settings)
            fields |= {
                "artifacts": artifacts.list_files(folder),
                "stdout_tail": _last_lines(artifacts.read_stdout(folder), lines),
            }
        except artifacts.ArtifactsMissing as missing:
            fields |= {"artifacts": [], "stdout_tail": [], "artifacts_missing": str(missing)}
    if as_json:
        show_json(fields)
    else:
        _show(fields)


def _show(fields: dict[str, Any]) -> None:
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
