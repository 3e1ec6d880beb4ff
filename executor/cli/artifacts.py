"""Reads the artifacts of a run for the commands: the output and the events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from executor.database.tables import Run
from executor.errors import SmithError
from executor.settings.settings import Settings

#: The outcome of an Ansible task, by the name of ansible-runner's event.
OUTCOMES = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_skipped": "skipped",
    "runner_on_unreachable": "unreachable",
}
#: The maximum length of an Ansible task's message in the table.
SHOWN_MESSAGE_LENGTH = 200


class ArtifactsMissing(SmithError):
    """The artifacts of the run do not exist here: not written yet, pruned, or on another machine."""


def folder_of(run: Run, settings: Settings) -> Path:
    """Return the folder with the artifacts of a run. Raises ArtifactsMissing.

    The database has the folder's path only after the run. During the run, the artifacts are in SMITH_RUN_DIR.
    """
    stored = [Path(run.folder)] if run.folder else []
    candidates = [
        *stored,
        settings.smith_data_dir / "artifacts" / run.ident,
        settings.smith_run_dir / run.ident / "kept",
    ]
    for folder in candidates:
        if folder.is_dir():
            return folder
    reason = "they were pruned, or are on another machine" if run.ended_at else "the run has printed nothing yet"
    raise ArtifactsMissing(f"run {run.ident} has no artifacts in {candidates[0]}: {reason}")


def listing(folder: Path) -> list[dict[str, Any]]:
    """Return names and sizes of the folder's files."""
    return [{"name": file.name, "bytes": file.stat().st_size} for file in sorted(folder.iterdir()) if file.is_file()]


def read_stdout(folder: Path) -> str:
    """Return the run's output."""
    return _read(folder / "stdout")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return one row for each Ansible task that has ended: time, outcome, task, role, host, duration and message."""
    return [_event_row(event) for event in _events(folder) if event.get("event") in OUTCOMES]


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the run's events, which ansible-runner writes one per line."""
    for line in _read(folder / "events.jsonl").split("\n"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # The last line may be incomplete while the run is writing it.
        if isinstance(event, dict):
            yield event


def _event_row(event: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the table and of `--json` for the event that ends an Ansible task."""
    data = _dict(event.get("event_data"))
    result = _dict(data.get("res"))
    outcome = OUTCOMES[event["event"]]
    if outcome == "ok" and result.get("changed"):
        outcome = "changed"
    duration_s = data.get("duration")
    return {
        "time": str(event.get("created", ""))[:19],
        "outcome": "ignored" if outcome == "failed" and data.get("ignore_errors") else outcome,
        "task": str(data.get("task") or data.get("task_action") or ""),
        "role": str(data.get("role") or ""),
        "host": str(data.get("host") or ""),
        "duration_s": round(duration_s, 2) if isinstance(duration_s, (int, float)) else None,
        "message": str(result.get("msg") or "")[:SHOWN_MESSAGE_LENGTH],
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise ArtifactsMissing(f"{file} cannot be read: {error.strerror}") from error
