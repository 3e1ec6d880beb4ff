"""docs/operating.md explains every warning and error event of the log."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
LOG_CALL_IN_AGENT = re.compile(r'\blog\.(?:warning|error|critical|exception)\(\s*"([a-z_]+)"')
LOG_CALL_IN_SUPERVISOR = re.compile(r'_log\(\s*"([a-z_]+)", level="(?:warning|error)"')
EVENT = re.compile(r"`([a-z_]+)`")


def documented_events() -> set[str]:
    """Return the events of the first column of the log's table."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    section = page.partition("\n## Log\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {event for row in rows for event in EVENT.findall(row)}


def logged_events() -> set[str]:
    """Return every event that the code logs as a warning or an error."""
    found: set[str] = set()
    for file in (ROOT / "executor").rglob("*.py"):
        code = file.read_text(encoding="utf-8")
        found |= {*LOG_CALL_IN_AGENT.findall(code), *LOG_CALL_IN_SUPERVISOR.findall(code)}
    return found


def test_the_page_explains_exactly_the_warning_and_error_events_of_the_code() -> None:
    assert {"disk_space_low", "agent_stalled", "job_end_not_stored"} <= logged_events()
    assert logged_events() - documented_events() == set()
    assert {event for event in documented_events() if event not in logged_events()} == set()
