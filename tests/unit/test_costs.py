"""The record of the CPU time and the duration of each test, and the table that is made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import costs
from support.costs import BEGIN, END, Cost

COSTS = [Cost("tests/e2e/test_a.py::test_one", 3.2, 9.0), Cost("tests/e2e/test_a.py::test_two[x]", 60.0, 9.6)]


def test_the_record_has_one_line_per_test(tmp_path: Path) -> None:
    file = tmp_path / "costs.jsonl"
    file.write_text("".join(json.dumps(cost[:3]) + "\n" for cost in COSTS))
    assert costs.read(file) == COSTS


def test_costs_are_summed_by_file_and_the_most_expensive_file_is_first() -> None:
    other = Cost("tests/unit/test_b.py::test_three", 70.0, 1.0)
    summed = costs.sums_by_file([*COSTS, other])
    assert summed == [Cost("tests/unit/test_b.py", 70.0, 1.0), Cost("tests/e2e/test_a.py", 63.2, 18.6, 2)]


def test_the_table_replaces_the_previous_table_and_nothing_else() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    written = costs.replace_between(document, costs.slowest_table(COSTS))
    assert written.startswith(f"before\n{BEGIN}\n| CPU s |")
    assert written.endswith(f"All 2 tests: 1 CPU minutes.\n{END}\nafter\n")
    assert written.index("test_two[x]") < written.index("test_one")
    assert costs.replace_between(written, costs.slowest_table(COSTS)) == written


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="slowest tests"):
        costs.replace_between("nothing", "table")


def test_every_file_in_the_order_of_the_suite_exists() -> None:
    root = Path(__file__).parents[1]
    names = [file.relative_to(root).as_posix() for file in root.rglob("test_*.py")]
    assert [start for start in costs.LONGEST_FIRST if not any(name.startswith(start) for name in names)] == []


def test_contributing_md_has_the_markers() -> None:
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert costs.replace_between(guide, "table") != guide
