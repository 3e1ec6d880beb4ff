"""docs/operating.md explains every warning and error event of the log."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
IN_THE_AGENT = re.compile(r'\blog\.(?:warning|error|critical|exception)\(\s*"([a-z_]+)"')
IN_THE_SUPERVISOR = re.compile(r'_log\(\s*"([a-z_]+)", level="(?:warning|error)"')
EVENT = re.compile(r"`([a-z_]+)`")


def documented() -> set[str]:
    """Return the events of the first column of the log's table."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    section = page.partition("\n## Log\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {event for row in rows for event in EVENT.findall(row)}


def logged() -> set[str]:
    """Return every event that the code logs as a warning or an error."""
    found: set[str] = set()
    for file in (ROOT / "executor").rglob("*.py"):
        code = file.read_text(encoding="utf-8")
        found |= {*IN_THE_AGENT.findall(code), *IN_THE_SUPERVISOR.findall(code)}
    return found


def test_every_warning_is_explained_and_nothing_else() -> None:
    assert {"disk_space_low", "agent_stalled", "job_end_not_stored"} <= logged()
    assert logged() - documented() == set()
    assert {event for event in documented() if event not in logged()} == set()
