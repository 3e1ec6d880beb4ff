"""docs/operating.md tells of every warning and error that the log may bring."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
IN_THE_AGENT = re.compile(r'\blog\.(?:warning|error|critical|exception)\(\s*"([a-z_]+)"')
IN_THE_SUPERVISOR = re.compile(r'_log\(\s*"([a-z_]+)", level="(?:warning|error)"')
EVENT = re.compile(r"`([a-z_]+)`")


def told() -> set[str]:
    """Return the events of the first column of the log's table."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    section = page.partition("\n## The log\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {event for row in rows for event in EVENT.findall(row)}


def raised() -> set[str]:
    """Return every event of the shipped code that is a warning or worse."""
    found: set[str] = set()
    for file in (ROOT / "executor").rglob("*.py"):
        if "lab" not in file.parts:
            code = file.read_text(encoding="utf-8")
            found |= {*IN_THE_AGENT.findall(code), *IN_THE_SUPERVISOR.findall(code)}
    return found


def test_every_warning_is_explained_and_nothing_else() -> None:
    assert {"disk_space_low", "agent_stalled", "job_end_not_stored"} <= raised()
    assert raised() - told() == set()
    assert {event for event in told() if event not in raised()} == set()
