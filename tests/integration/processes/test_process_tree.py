"""The guard of a run, with real processes: it ends those that its command leaves; only to find them, it lists /proc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

#: Runs a command under `guard`. At its end, it writes to a file how many times the guard listed /proc.
GUARD = """
import sys
from executor.processes import process_tree

listings = []
sys.addaudithook(lambda name, values: listings.append(values) if (name, values) == ("os.listdir", ("/proc",)) else None)
code = process_tree.guard(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(len(listings)))
sys.exit(code)
"""
#: Leaves a grandchild: a process in a session of its own, whose parent has ended.
LEAVE_GRANDCHILD = """setsid sh -c 'echo $$ > "$0.new"; mv "$0.new" "$0"; exec sleep 600' "$0" > /dev/null &
while [ ! -e "$0" ]; do sleep 0.02; done; exit 7
"""
#: Waits until its orphaned grandchild has ended, then ends.
LEAVE_ZOMBIE = """(setsid sh -c 'exit 0' & echo $! > "$0")
read pid < "$0"
while [ -e /proc/$pid ] && ! grep -q ') Z' /proc/$pid/stat 2> /dev/null; do sleep 0.02; done; exit 0
"""


def run_guard(folder: Path, *command: str) -> tuple[int, int]:
    """Run a command under a guard. Return the guard's exit code, and how many times it listed /proc."""
    count_file = folder / "count"
    arguments = [sys.executable, "-c", GUARD, str(count_file), *command]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as guard:
        code = guard.wait()
    return code, int(count_file.read_text())


@pytest.mark.parametrize(("script", "expected_code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 128 + 9)])
def test_a_guard_whose_command_leaves_no_process_does_not_list_proc(
    tmp_path: Path, script: str, expected_code: int
) -> None:
    assert run_guard(tmp_path, "sh", "-c", script) == (expected_code, 0)


def test_a_guard_ends_a_daemonised_grandchild(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code, listing_count = run_guard(tmp_path, "sh", "-c", LEAVE_GRANDCHILD, str(pid_file))
    assert code == 7
    assert listing_count > 0
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_a_guard_does_not_list_proc_for_a_grandchild_that_has_ended(tmp_path: Path) -> None:
    """The ended grandchild is a zombie, and a child of the guard, until the guard reaps it."""
    assert run_guard(tmp_path, "sh", "-c", LEAVE_ZOMBIE, str(tmp_path / "pid")) == (0, 0)
