"""docs/many_machines.md names a test for each failure and each database; the tests exist."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
PAGE = PROJECT / "docs" / "many_machines.md"
TITLE = "### Tests of these failures"


def rows() -> list[list[str]]:
    """Return the cells of each row of the table, without its heading."""
    section = PAGE.read_text(encoding="utf-8").partition(TITLE)[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_each_failure_has_a_test_for_each_database() -> None:
    assert len(rows()) == 10
    for failure, sqlite, postgresql in rows():
        assert "`test_" in sqlite, failure
        assert "`test_" in postgresql or postgresql.startswith("the same"), failure


def test_the_named_tests_exist_and_run_on_the_database_of_their_column() -> None:
    sources = [file.read_text(encoding="utf-8") for file in (PROJECT / "tests").rglob("test_*.py")]
    for _failure, sqlite, postgresql in rows():
        names = {name: "sqlite" for name in re.findall(r"`(test_\w+)`", sqlite)}
        if postgresql.startswith("the same"):
            names = dict.fromkeys(names, "both")
        for name in names:
            (source,) = [text for text in sources if f"def {name}(" in text]
            signature = source.partition(f"def {name}(")[2].partition("-> None")[0]
            takes_both = "engine: Engine" in signature and "postgres_engine" not in signature
            if names[name] == "both":
                assert takes_both or "kind: str" in signature, name
        for name in re.findall(r"`(test_\w+)`", postgresql):
            assert any(f"def {name}(" in text for text in sources), name
