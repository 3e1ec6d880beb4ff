"""Collects the files of a support archive. Secrets are masked, and the customers' values in jobs are left out.

If the content for a file of the archive cannot be read, this file contains the error instead.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.cli.store import ReadOnlyTransaction, open_database
from executor.cli.version import collect_versions
from executor.database import agent_queries, audit_queries, database_check, queries, run_queries, schema, statistics
from executor.database.engine import read_only_connection, read_only_session
from executor.database.times import utc_now
from executor.errors import SmithError
from executor.model import JobStatus
from executor.settings.display import setting_rows
from executor.settings.settings import Settings
from executor.views import artifacts, critical_jobs, timeline
from executor.views.job_rows import detail_fields, event_fields, mask_secrets, run_fields
from executor.views.status_document import read_status
from executor.views.text import json_text, sanitized

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

    from executor.database.tables.jobs import Job

#: The maximum number of failed jobs that are collected, the newest first.
MAX_FAILED_JOB_COUNT = 20
#: The maximum length of a run's output in characters, and of a log file in bytes. Only the end of a longer text is
#: collected.
MAX_OUTPUT_LENGTH = 64 * 1024
MAX_LOG_BYTES = 2 * 1024 * 1024
#: The fields of a job that may contain values of a customer. The archive does not contain them.
CUSTOMER_FIELDS = ("params", "service", "result")


def collect_files(settings: Settings, log_files: list[Path], *, with_doctor: bool) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file.

    The caller must have read the settings with `open_settings`, which registers their secrets for masking.
    """
    yield "versions.json", _read_as_json(lambda: collect_versions() | {"platform": platform.platform()})
    yield "settings.json", _read_as_json(lambda: [asdict(row) for row in setting_rows(settings)])
    yield "machine.json", _read_as_json(lambda: _read_machine_facts(settings))
    try:
        with open_database(settings) as engine:
            yield "database.json", _read_as_json(lambda: _read_database_facts(engine))
            yield "status.json", _read_as_json(lambda: _in_transaction(engine, settings, _read_status_document))
            yield "critical.json", _read_as_json(lambda: _in_transaction(engine, settings, _read_critical_jobs))
            yield "failed-jobs.json", _read_as_json(lambda: _in_transaction(engine, settings, _read_failed_jobs))
            yield from _read_outputs_of_failed_jobs(engine, settings)
    except SmithError as error:  # there is no database, or it cannot be opened
        yield "database.json", json_text({"not_collected": str(error)})
    for number, file in enumerate(log_files, 1):
        yield f"log-{number}-{file.name}", _read_end_of_log(file)
    if with_doctor:
        yield "doctor.json", _read_as_json(_run_doctor)


def _read_as_json(read_content: Callable[[], Any]) -> str:
    """Call `read_content`, and return its result or its error as JSON text without secrets.

    `mask_secrets` masks the values of keys such as `password`, and `json_text` masks the secrets of the settings.
    """
    try:
        return json_text(mask_secrets(read_content()))
    except (SmithError, OSError) as error:
        return json_text({"not_collected": str(error)})


def _read_machine_facts(settings: Settings) -> dict[str, Any]:
    load_averages = os.getloadavg()
    # The folder `run` contains the files of running playbooks.
    folders = {"data": settings.smith_data_dir, "run": settings.smith_run_dir}
    free_bytes = {}
    for name, folder in folders.items():
        space = os.statvfs(folder) if folder.exists() else None
        free_bytes[name] = None if space is None else space.f_bavail * space.f_frsize
    return {
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": [round(value, 2) for value in load_averages],
        "free_bytes": free_bytes,
        "uid": os.getuid(),
        "now": utc_now(),
    }


def _read_database_facts(engine: Engine) -> dict[str, Any]:
    problems = database_check.find_problems(engine)
    with read_only_session(engine) as session:
        return {
            "schema": schema.current_revision(engine),
            "problems": problems,
            "rows": statistics.row_counts(session),
            **statistics.describe_database(session),
        }


def _in_transaction(engine: Engine, settings: Settings, read_content: Callable[[ReadOnlyTransaction], Any]) -> Any:
    """Call `read_content` with the connection of a read-only transaction and with the settings. Return its result."""
    with read_only_connection(engine) as connection:
        return read_content(ReadOnlyTransaction(settings=settings, connection=connection))


def _read_status_document(transaction: ReadOnlyTransaction) -> Any:
    return read_status(transaction.connection, transaction.settings.smith_lease_s).document


def _read_critical_jobs(transaction: ReadOnlyTransaction) -> list[dict[str, Any]]:
    jobs = agent_queries.list_critical_jobs(transaction.connection)
    return [critical_jobs.json_fields(job, utc_now()) for job in jobs]


def _read_failed_jobs(transaction: ReadOnlyTransaction) -> list[dict[str, Any]]:
    """Return the newest failed jobs with their runs and events, without CUSTOMER_FIELDS.

    The `story` of a run is a stored summary of what the run has done.
    """
    connection = transaction.connection
    failed_jobs = []
    for job in queries.list_jobs(connection, statuses=[JobStatus.FAILED], limit=MAX_FAILED_JOB_COUNT):
        runs, events = (
            run_queries.runs_with_stories(connection, [job.id]),
            run_queries.events_of_job(connection, job.id),
        )
        # In an audit entry about a job, `subject_id` is the job's `fulcrum_id`.
        audit_entries = audit_queries.list_entries(connection, subject_id_prefix=job.fulcrum_id)
        failed_jobs.append(
            {name: value for name, value in detail_fields(job).items() if name not in CUSTOMER_FIELDS}
            | {
                "runs": [run_fields(run) | {"story": run.story} for run in runs],
                "events": [event_fields(event) for event in events],
                "timeline": [asdict(entry) for entry in timeline.entries(job, runs, events, audit_entries)],
            }
        )
    return failed_jobs


def _read_outputs_of_failed_jobs(engine: Engine, settings: Settings) -> Iterator[tuple[str, str]]:
    """For each failed job whose artifacts are on this machine, yield the name and the text of a file.

    The text is the end of the output of the job's newest run. `sanitized` masks secrets, and escapes control
    characters.
    """
    try:
        with read_only_session(engine) as session:
            jobs = queries.list_jobs(session, statuses=[JobStatus.FAILED], limit=MAX_FAILED_JOB_COUNT)
            newest_runs = [runs[-1] for job in jobs if (runs := _runs_of_job(session, job))]
    except SmithError:
        return  # the file failed-jobs.json contains the same error
    for run in newest_runs:
        try:
            text = artifacts.read_stdout(artifacts.artifacts_folder(run, settings))
        except artifacts.ArtifactsMissing:
            continue
        yield f"output-{run.ident}.txt", sanitized(text[-MAX_OUTPUT_LENGTH:], keep_whitespace=True)


def _runs_of_job(session: Any, job: Job) -> Any:
    return run_queries.runs_of_job(session, job.id)


def _read_end_of_log(file: Path) -> str:
    """Return the end of a log file without secrets."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - MAX_LOG_BYTES, 0))
            text = stream.read(MAX_LOG_BYTES).decode("utf-8", "replace")
    except OSError as error:
        return f"not collected: {error.strerror}\n"
    return sanitized(text, keep_whitespace=True)


def _run_doctor() -> list[dict[str, Any]]:
    from executor.doctor.run import run_checks  # noqa: PLC0415 (it imports the clients of FulcrumCore and Proxmox)

    return [asdict(check) for check in run_checks()]
