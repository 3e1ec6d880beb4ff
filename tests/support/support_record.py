"""Records with which versions the tests have run: `pytest --support-record tests/data/support.json`.

Each row of the file is a version of Proxmox VE, with ansible-core, community.proxmox and Python, and the number of
changing requests that this Proxmox accepted. The Proxmox stand-in counts them, and says which version it imitates.
Tests with the mark `lab` run on a real Proxmox; their row has the number of tests instead. A run replaces the earlier
rows that have the same versions of ansible-core, community.proxmox and Python. docs/generate.py writes docs/support.md
from the file.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from executor.version import community_proxmox_version, package_version

#: The variable that names the file to which each stand-in adds a line when it stops: the accepted changes by version.
CHANGES_FILE = "LAB_CHANGES_FILE"
STAND_IN, REAL = "stand-in", "real"
#: The members of a row that identify the environment of a run.
ENVIRONMENT = ("ansible_core", "community_proxmox", "python")


class SupportRecorder:
    """The plugin of pytest that writes the rows at the end of the session."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._changes_file = Path(tempfile.gettempdir()) / f"lab-changes-{os.getpid()}"
        self._lab_tests = 0
        os.environ[CHANGES_FILE] = str(self._changes_file)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        is_passed = report.when == "call" and report.passed
        self._lab_tests += is_passed and "lab" in report.keywords and bool(os.environ.get("LAB_PROXMOX_HOST"))

    def pytest_unconfigure(self) -> None:
        """Write the rows. Every stand-in has stopped by now."""
        rows = [
            _row(version, STAND_IN, changes=number)
            for version, number in read_changes(self._changes_file).items()
            if number
        ]
        if self._lab_tests:
            rows.append(_row(_version_of_real_proxmox(), REAL, tests=self._lab_tests))
        write_rows(self._file, rows)
        self._changes_file.unlink(missing_ok=True)


def read_changes(file: Path) -> Counter[str]:
    """Return the accepted changes by version, of all stand-ins."""
    changes: Counter[str] = Counter()
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        changes.update(json.loads(line))
    return changes


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of the same environment and kind of Proxmox by these."""
    replaced = {_key(row) for row in rows}
    kept = [row for row in read_rows(file) if _key(row) not in replaced]
    lines = ",\n".join(json.dumps(row) for row in sorted([*kept, *rows], key=_order))
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_rows(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in (*ENVIRONMENT, "kind"))


def _order(row: dict[str, Any]) -> tuple[str, ...]:
    return (str(row["kind"]), str(row["proxmox"]), *_key(row))


def _row(version: str, kind: str, **numbers: int) -> dict[str, Any]:
    return {
        "proxmox": version,
        "kind": kind,
        "ansible_core": package_version("ansible-core") or "none",
        "community_proxmox": community_proxmox_version() or "none",
        "python": platform.python_version(),
        **numbers,
    }


def _version_of_real_proxmox() -> str:
    from lab_bench import LabProxmox  # noqa: PLC0415 (exists only where the tests of playbooks run)

    return str(LabProxmox(Path()).api.version.get()["version"])
