"""What the machine can carry, in a real control group of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import structlog

from executor.agent import admission as admission_module
from executor.agent import machine as capacity

SAY = """
import json
from executor.agent import machine as capacity
print(json.dumps([capacity.cores(), capacity.memory_mib(), capacity.default_concurrency(is_warm=True)]))
"""


def own_group(controller: str) -> Path:
    """Return the control group that we are in, the nearest one of the controller."""
    return next(iter(capacity._groups(controller)))


Inside = Callable[[dict[str, str]], list[float]]


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Run a process in control groups with these limits, and return what it says of the machine."""
    made: list[Path] = []

    def run(limits: dict[str, str]) -> list[float]:
        for file, value in limits.items():
            controller = file.partition(".")[0]
            group = own_group(controller) / f"smith-test-{os.getpid()}"
            try:
                if group not in made:
                    group.mkdir()
                    made.append(group)
                (group / file).write_text(value)
            except OSError as error:
                pytest.skip(f"NOT TESTED IN A CONTROL GROUP: {error}")
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in made)
        shell = ["/bin/sh", "-c", f'{enter} exec "$0" -c "$1"', sys.executable, SAY]
        done = subprocess.run(shell, capture_output=True, check=True, text=True)
        return list(json.loads(done.stdout))

    yield run
    for group in made:
        group.rmdir()


def is_version_two() -> bool:
    return (capacity.CGROUPS / "cgroup.controllers").exists()


def test_without_a_limit_it_is_the_machines_own() -> None:
    assert capacity.memory_mib() <= psutil.virtual_memory().total / capacity.BYTES_PER_MIB
    assert 0.5 <= capacity.cores() <= len(os.sched_getaffinity(0))
    assert 0 < capacity.available_mib() <= capacity.memory_mib()


def test_the_memory_of_a_control_group_decides_how_many_jobs_there_are(inside: Inside) -> None:
    _cores, memory_mib, concurrency = inside(
        {"memory.max" if is_version_two() else "memory.limit_in_bytes": str(512 * 1024 * 1024)}
    )
    assert memory_mib == 512
    room = (512 * 0.8 - capacity.BASE_MIB[True]) / capacity.SLOT_MIB[True]
    assert concurrency == max(int(room), capacity.MIN_CONCURRENCY)


def test_the_share_of_a_core_that_a_control_group_has_decides_too(inside: Inside) -> None:
    share = {"cpu.max": "50000 100000"} if is_version_two() else {"cpu.cfs_quota_us": "50000"}
    cores, _memory, concurrency = inside(share)
    assert cores == 0.5
    assert concurrency == 10


def test_a_few_runs_are_always_let_in_and_a_full_machine_holds_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admission = admission_module.Admission(is_warm=True)
    monkeypatch.setitem(capacity.SLOT_MIB, True, 10**9)  # no machine has that much left
    assert admission.is_open(0)
    assert not admission.is_open(1000)
    monkeypatch.setitem(capacity.SLOT_MIB, True, 0)
    monkeypatch.setattr(admission_module, "MAX_RUNNABLE_PER_CORE", 10**9)
    assert admission.is_open(1000)
    monkeypatch.setattr(admission_module, "MAX_RUNNABLE_PER_CORE", -1)
    assert not admission.is_open(1000)
    assert admission.is_open(int(capacity.cores() * (admission_module.ALWAYS_PER_CORE - 1)))


def test_only_what_holds_for_long_is_told_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = admission_module.Admission(is_warm=True)

    def told(*running: int) -> list[str]:
        with structlog.testing.capture_logs() as logs:
            for number in running:
                admission.is_open(number)
        return [entry["event"] for entry in logs]

    monkeypatch.setitem(capacity.SLOT_MIB, True, 10**9)
    assert told(1000, 1000, 0) == []
    monkeypatch.setattr(admission_module, "LOG_AFTER_S", 0.0)
    assert told(1000, 1000, 0, 0) == ["admission_held", "admission_resumed"]


def test_where_the_kernel_does_not_tell_who_computes_nobody_is_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(capacity, "LOADAVG", tmp_path / "hidden")
    monkeypatch.setitem(capacity.SLOT_MIB, True, 0)
    assert capacity.runnable() == 0
    assert admission_module.Admission(is_warm=True).is_open(1000)


def test_a_process_that_computes_is_counted_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            counts = [capacity.runnable() for _ in range(200) if not time.sleep(0.002)]
        finally:
            process.kill()
    assert sorted(counts)[100] >= 2  # itself, and the one that asks
