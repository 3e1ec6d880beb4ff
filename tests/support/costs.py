"""What each test costs: CPU seconds of its whole process tree, and wall time.

`pytest --costs FILE` adds a line for each test to FILE (JSON: name, CPU seconds, wall seconds). If a process
outlives a test, as the lab of a module does, each test gets the CPU seconds that the process used during this test.

`python tests/support/costs.py FILE` prints the sums by file; with `--write DOCUMENT` it also puts the table of the
slowest tests between the markers of that document.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

#: Prefixes of the paths of test files, relative to tests/: those with the longest groups of tests come first, because
#: they are started first. `make slowest` measures the tests.
LONGEST_FIRST = (
    *("security/test_canary", "integration/runs/test_warm", "faults/test_f23", "faults/test_f15", "faults/test_f01"),
    *("integration/cli/test_cli_drift", "faults/", "e2e/", "playbooks/", "security/", "integration/cli/test_play"),
    *("integration/cli/", "integration/fulcrum/test_bootstrap", "integration/"),
)
MAX_SHOWN_TESTS = 20
BEGIN, END = "<!-- slowest tests: begin (make slowest) -->", "<!-- slowest tests: end -->"


class Cost(NamedTuple):
    """One test, or the sum of several."""

    name: str
    cpu_s: float
    wall_s: float
    tests: int = 1


class Recorder:
    """The plugin of pytest that measures each test, and adds a line for it to the file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        cpu_s, wall_s = tree_cpu_s(), time.monotonic()
        try:
            return (yield)
        finally:
            line = [item.nodeid.partition("@")[0], tree_cpu_s() - cpu_s, time.monotonic() - wall_s]
            with self._file.open("a") as out:
                out.write(json.dumps(line) + "\n")  # one write, because several workers append to the file


def tree_cpu_s() -> float:
    """Return the CPU seconds of this process and of all its descendants, including those that have ended."""
    this_process = os.times()
    total = this_process.user + this_process.system + this_process.children_user + this_process.children_system
    for process in psutil.Process().children(recursive=True):
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total


def read(file: Path) -> list[Cost]:
    """Return the recorded costs, one for each test."""
    return [Cost(*json.loads(line)) for line in file.read_text().splitlines()]


def sums_by_file(costs: list[Cost]) -> list[Cost]:
    """Return the sums of each test file, the most expensive first."""
    groups: dict[str, list[Cost]] = defaultdict(list)
    for cost in costs:
        groups[cost.name.partition("::")[0]].append(cost)
    sums = [
        Cost(name, sum(cost.cpu_s for cost in group), sum(cost.wall_s for cost in group), len(group))
        for name, group in groups.items()
    ]
    return sorted(sums, key=lambda cost: -cost.cpu_s)


def slowest_table(costs: list[Cost]) -> str:
    """Return the table of the most expensive tests, in Markdown."""
    rows = ["| CPU s | wall s | test |", "|---:|---:|---|"]
    for cost in sorted(costs, key=lambda cost: -cost.cpu_s)[:MAX_SHOWN_TESTS]:
        file, _, test = cost.name.removeprefix("tests/").partition("::")
        rows.append(f"| {cost.cpu_s:.0f} | {cost.wall_s:.0f} | `{test}` ({file}) |")
    cpu_min = sum(cost.cpu_s for cost in costs) / 60
    return "\n".join([*rows, "", f"All {len(costs)} tests: {cpu_min:.0f} CPU minutes."])


def replace_between(document: str, table: str) -> str:
    """Return the document with the table between its markers. Raises ValueError without them."""
    before, begin, rest = document.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no {BEGIN} … {END}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What each test costs.")
    parser.add_argument("record", type=Path)
    parser.add_argument("--write", type=Path, metavar="DOCUMENT")
    arguments = parser.parse_args()
    costs = read(arguments.record)
    print(f"{'CPU s':>8} {'wall s':>8} {'tests':>6}")
    for cost in sums_by_file(costs):
        print(f"{cost.cpu_s:8.1f} {cost.wall_s:8.1f} {cost.tests:6} {cost.name}")
    print(f"{sum(cost.cpu_s for cost in costs) / 60:8.1f} CPU minutes")
    if arguments.write:
        arguments.write.write_text(replace_between(arguments.write.read_text(), slowest_table(costs)))


if __name__ == "__main__":
    main()
