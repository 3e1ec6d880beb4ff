"""Reads a run's artifacts (the files with its output and its events) for commands and web pages.

A run folder (SMITH_RUN_DIR) contains one private folder for each current run of the agent. An agent may have used
several run folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.errors import SmithError
from executor.runs.run_folder_record import current_and_earlier_values_of_run_dir
from executor.settings.settings import Settings

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.tables.jobs import Run

#: The name of the subfolder with the artifacts in a run's private folder. After the run, the agent keeps only this
#: subfolder.
#: The value equals `executor.runs.runner.ARTIFACTS_SUBFOLDER`. This module does not import that constant, because the
#: import of `runner` takes too long for a command that only reads files.
ARTIFACTS_SUBFOLDER = "kept"
#: The outcome of an Ansible task, by the name of ansible-runner's event at the end of this task.
OUTCOME_BY_EVENT = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_skipped": "skipped",
    "runner_on_unreachable": "unreachable",
}
#: The name of ansible-runner's event for the start of an Ansible task.
TASK_START_EVENT = "playbook_on_task_start"


class ArtifactsMissing(SmithError):
    """This machine has no artifacts of the run.

    They are not written yet, were deleted with old jobs, or are on another machine.
    """


def artifacts_folder(run: Run, settings: Settings) -> Path:
    """Return the folder with the artifacts of a run. Raises ArtifactsMissing.

    During the run, the artifacts are below SMITH_RUN_DIR. After the run, the agent moves them to
    SMITH_DATA_DIR/artifacts, and then stores the folder's path in the database.
    """
    possible_folders = _possible_artifacts_folders(run, settings)
    for folder in possible_folders:
        if folder.is_dir():
            return folder
    reason = (
        "they were deleted with old jobs, or are on another machine"
        if run.ended_at
        else "the run has not written any yet"
    )
    raise ArtifactsMissing(f"run {run.ident} has no artifacts in {possible_folders[0]}: {reason}")


def existing_artifacts_folders(run: Run, settings: Settings) -> list[Path]:
    """Return every folder on this machine that contains artifacts of the run."""
    return [folder for folder in dict.fromkeys(_possible_artifacts_folders(run, settings)) if folder.is_dir()]


def _possible_artifacts_folders(run: Run, settings: Settings) -> list[Path]:
    """Return all folders that may contain the artifacts of the run.

    A run folder (SMITH_RUN_DIR) contains one private folder for each run, named `run.ident`. The agent may have used
    several run folders, because the setting was changed. `current_and_earlier_values_of_run_dir` reads their paths from
    a file in the data folder. The database column `run.folder` is the folder of the run's artifacts.
    """
    folders_in_database = [Path(run.folder)] if run.folder else []
    run_folders = [*current_and_earlier_values_of_run_dir(settings.smith_data_dir), settings.smith_run_dir]
    return [
        *folders_in_database,
        settings.smith_data_dir / "artifacts" / run.ident,
        *(run_folder / run.ident / ARTIFACTS_SUBFOLDER for run_folder in run_folders),
    ]


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Return the names and sizes of the folder's files."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return [{"name": file.name, "bytes": file.stat().st_size} for file in files]


def read_stdout(folder: Path) -> str:
    """Return the run's output."""
    return _read_text(folder / "stdout")


def read_ansible_task_rows(folder: Path) -> list[dict[str, Any]]:
    """Return one row for each Ansible task, with its time, outcome, role, host, duration and message.

    An Ansible task that has not ended has the outcome `running`, or `interrupted` if the run has ended.
    """
    rows: list[dict[str, Any]] = []
    start_event: dict[str, Any] | None = None
    for event in _read_all_events(folder):
        if event.get("event") in OUTCOME_BY_EVENT:
            rows.append(_event_row(event, OUTCOME_BY_EVENT[event["event"]]))
            start_event = None
        elif event.get("event") == TASK_START_EVENT:
            start_event = event
    if start_event is not None:
        # The file `rc` (the exit code) is written at the end of the run.
        rows.append(_event_row(start_event, "interrupted" if (folder / "rc").exists() else "running"))
    return rows


def _read_all_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of the run. Each line of `events.jsonl` is one event of ansible-runner."""
    for line in _read_text(folder / "events.jsonl").split("\n"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the run may be writing the last line
        if isinstance(event, dict):
            yield event


def _event_row(event: dict[str, Any], outcome: str) -> dict[str, Any]:
    """Return the event about the start or the end of an Ansible task as a row of a command's output."""
    data = _dict_or_empty(event.get("event_data"))
    result = _dict_or_empty(data.get("res"))
    if outcome == "ok" and result.get("changed"):
        outcome = "changed"
    elif outcome == "failed" and data.get("ignore_errors"):
        outcome = "ignored"
    duration_s = data.get("duration")
    return {
        "time": _parse_event_time(event.get("created")),
        "outcome": outcome,
        "task": str(data.get("task") or data.get("task_action") or ""),
        "role": str(data.get("role") or ""),
        "host": str(data.get("host") or ""),
        "duration_s": round(duration_s, 2) if isinstance(duration_s, (int, float)) else None,
        "message": str(result.get("msg") or ""),
    }


def _parse_event_time(text: Any) -> datetime | None:
    """Return the time of an event, or None for an unreadable time. ansible-runner writes UTC, maybe without a zone."""
    try:
        moment = datetime.fromisoformat(str(text))
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _dict_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise ArtifactsMissing(f"{file} cannot be read: {error.strerror}") from error
