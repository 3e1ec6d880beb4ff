"""The generated pages match the code and the tests, and ARCHITECTURE.md names only files that exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from executor.cli.commands import COMMANDS
from executor.shared.error_codes import ErrorCode

DOCS = Path(__file__).parents[3] / "docs"


def test_the_errors_page_is_up_to_date() -> None:
    """If this fails: python docs/generate.py."""
    pages = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    assert (DOCS / "errors.md").read_text(encoding="utf-8") == pages["errors.md"]()


def test_every_error_code_has_a_row_with_a_meaning_and_a_reaction() -> None:
    rows = [
        line.split("|")
        for line in (DOCS / "errors.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert [row[1].strip() for row in rows] == [f"`{code}`" for code in ErrorCode]
    assert [row for row in rows if not (row[2].strip() and row[3].strip())] == []


def test_the_page_of_faults_is_up_to_date_and_no_fault_point_is_without_a_test() -> None:
    """If this fails: python docs/generate.py."""
    pages = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    assert page == pages["faults.md"]()
    assert {line[2:5] for line in page.splitlines() if line.startswith("| F")} == {f"F{n:02d}" for n in range(1, 36)}


def test_the_page_of_proxmox_behaviour_is_up_to_date_and_names_a_source_for_each_row() -> None:
    """If this fails: python docs/generate.py."""
    pages = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    page = (DOCS / "proxmox_behaviour.md").read_text(encoding="utf-8")
    assert page == pages["proxmox_behaviour.md"]()
    behaviours = page.partition("\n## ")[0]
    rows = [line.split(" | ") for line in behaviours.splitlines() if line.startswith("| ")][1:]
    assert [row for row in rows if not re.match(r"(qemu-server|p[vm][ve]-[a-z-]+): PVE/", row[2])] == []


def test_the_manual_page_is_up_to_date_and_describes_every_command() -> None:
    """If this fails: make man."""
    page = (DOCS.parent / "executor" / "man" / "smith.1").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(DOCS / "generate.py"))["PAGES"]["../executor/man/smith.1"]()
    headings = {line.removeprefix('.SS "').partition(" [")[0].rstrip('"') for line in page.splitlines()}
    shown = {f"smith {row.group} {row.name}".replace("  ", " ") for row in COMMANDS if not row.is_hidden}
    assert {name.replace("-", "\\-") for name in shown} - headings == set()


def test_the_module_index_is_up_to_date() -> None:
    """If this fails: python docs/generate.py."""
    pages = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    page = (DOCS.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert page == pages["../ARCHITECTURE.md"]()
    index = page.partition("## All modules")[2]
    database_folder = index.partition("| **`executor/database/`** | |\n")[2].partition("| **")[0]
    assert "| `job_queue.py` | " in database_folder
    assert "| **`tests/support/`** | |" in index


def test_every_path_of_the_architecture_page_exists() -> None:
    page = (DOCS.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.partition("## Where things are")[2].partition("<!--")[0]
    paths = re.findall(r"`((?:executor|playbooks|roles|inventory|lab|tests|bench|deploy|\.ci)/[\w./-]*)`", section)
    assert len(paths) > 40
    assert [path for path in paths if not (DOCS.parent / path).exists()] == []
