"""A short chaos run: many faults at once, in an order chosen by the seed. `make chaos` is the long run."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import chaos
from faults.chaos.recorder import overlapping_runs
from faults.chaos.report import Report
from faults.processes import run_idents
from smith_lab.system import wait_for

SEED = 4711
TESTS = Path(chaos.__file__).parents[2]


@pytest.mark.timeout(600)
def test_a_short_chaos_run_violates_no_promise(tmp_path: Path, figure: Callable[[str], None]) -> None:
    # A process of its own, because it mounts file systems in a mount namespace of its own.
    record = tmp_path / "record.json"
    options = ["--jobs", "16", "--kills", "3", "--seed", str(SEED), "--record", str(record)]
    ended = subprocess.run(
        [sys.executable, "-m", "faults.chaos", *options], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads(record.read_text())
    assert report["violations"] == []
    assert sum(report["jobs"].values()) >= 12
    assert sum(report["kills"].values()) >= 3
    assert report["runs_seen"] >= 1
    figure(
        f"chaos: {sum(report['jobs'].values())} jobs, {report['kills']}, {report['troubles']}: "
        f"{', '.join(f'{kind} {count}' for kind, count in report['violation_counts'].items())}"
    )


def make_report(completed: int, failed: int, *violations: str) -> Report:
    return Report(
        seed=1,
        database="sqlite",
        took_s=1,
        jobs={"Completed": completed, "Failed": failed},
        codes={},
        kills={},
        troubles={},
        not_tested=[],
        violations=list(violations),
        recovery_p50_s=0,
        recovery_max_s=0,
        heartbeat_gap_p99_s=0,
        runs_seen=0,
    )


def test_a_chaos_run_passes_only_without_violations_and_with_enough_completed_jobs() -> None:
    assert make_report(80, 20).is_passed
    assert not make_report(79, 21).is_passed
    assert not make_report(100, 0, "R3 contradictory: job 1 is Completed and failed").is_passed


def test_each_violation_counts_as_one_kind() -> None:
    texts = ("R1 lost: a", "R2 doubled: b", "R2 overlapping runs on one VM: c", "R7 orphan process: d")
    counts = make_report(1, 0, *texts).violation_counts
    assert {kind for kind, count in counts.items() if count == 1} == {
        "lost",
        "doubled",
        "overlapping runs on one VM",
        "orphan processes",
    }
    assert sum(counts.values()) == len(texts)


def test_a_run_is_listed_while_it_has_a_process_in_any_process_tree(tmp_path: Path) -> None:
    values = {"SMITH_RUN_IDENT": "create-1", "SMITH_CREDENTIALS_FILE": f"{tmp_path}/run/credentials"}
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, env=values, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        assert run_idents(tmp_path) == {"create-1"}
        assert run_idents(tmp_path / "other") == set()
        process.kill()
        process.poll()
        wait_for(lambda: run_idents(tmp_path) == set(), 20, "the run to end")


def test_two_runs_of_one_service_at_the_same_time_overlap() -> None:
    service_of = {"create-1": "a", "create-2": "a", "start-3": "b"}
    (text,) = overlapping_runs({("create-1", "create-2"): 2, ("create-1", "start-3"): 1}, service_of)
    assert text.startswith("R2 overlapping runs on one VM: create-1 and create-2 of service a")


FILL_SCRIPT = """
import os, sys
from pathlib import Path
from support.small_disks import enter_mount_namespace, mount_small_disk
if reason := enter_mount_namespace():
    print(f"NOT TESTED: {reason}")
    sys.exit()
disk = mount_small_disk(Path(sys.argv[1]), 4)
disk.fill()
try:
    Path(disk.mount, "file").write_bytes(bytes(8192))
    print("not full")
except OSError as error:
    print(f"full: {error.errno}")
disk.free()
Path(disk.mount, "file").write_bytes(bytes(8192))
print("free")
"""


def test_a_small_disk_is_full_until_it_is_freed_and_no_other_process_sees_it(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    ended = subprocess.run(
        [sys.executable, "-c", FILL_SCRIPT, str(folder)], cwd=TESTS, capture_output=True, text=True, check=True
    )
    if ended.stdout.startswith("NOT TESTED"):
        pytest.skip(ended.stdout)
    assert ended.stdout.split("\n") == [f"full: {errno.ENOSPC}", "free", ""]
    assert list(folder.iterdir()) == []
