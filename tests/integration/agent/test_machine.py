"""The agent's measurements of its machine (also in a real control group), and its admission of runs.

Admission is the decision whether the machine has the memory and CPU for one more run.
"""

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
from executor.agent import machine
from executor.processes.memory import process_tree_memory_mib

MEASURE_PROGRAM = """
import json
from executor.agent import machine
concurrency = machine.default_concurrency(uses_warm_runs=True)
print(json.dumps([machine.usable_cores(), machine.usable_memory_mib(), concurrency]))
"""


def control_group_of_this_process(controller: str) -> Path:
    """Return this process's control group for a controller, for example `memory`."""
    return next(iter(machine._cgroups(controller)))


MeasureWithLimits = Callable[[dict[str, str]], list[float]]


@pytest.fixture
def measure_with_limits() -> Iterator[MeasureWithLimits]:
    """Return a function that runs a process in control groups with the given limits, and returns what it measures.

    These are the usable cores, the usable memory in MiB, and the default concurrency.
    """
    groups: list[Path] = []

    def run(limits: dict[str, str]) -> list[float]:
        for file, value in limits.items():
            controller = file.partition(".")[0]
            group = control_group_of_this_process(controller) / f"smith-test-{os.getpid()}"
            try:
                if group not in groups:
                    group.mkdir()
                    groups.append(group)
                (group / file).write_text(value)
            except OSError as error:
                pytest.skip(f"NOT TESTED IN A CONTROL GROUP: {error}")
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        shell = ["/bin/sh", "-c", f'{enter} exec "$0" -c "$1"', sys.executable, MEASURE_PROGRAM]
        done = subprocess.run(shell, capture_output=True, check=True, text=True)
        return list(json.loads(done.stdout))

    yield run
    for group in groups:
        group.rmdir()


def is_cgroup_version_2() -> bool:
    return (machine.CGROUP_ROOT / "cgroup.controllers").exists()


def test_without_limits_the_values_of_the_machine_are_used() -> None:
    assert machine.usable_memory_mib() <= psutil.virtual_memory().total / machine.BYTES_PER_MIB
    assert 0.5 <= machine.usable_cores() <= len(os.sched_getaffinity(0))
    assert 0 < machine.available_memory_mib() <= machine.usable_memory_mib()


def test_the_memory_limit_of_a_control_group_bounds_the_concurrency(measure_with_limits: MeasureWithLimits) -> None:
    _cores, memory_mib, concurrency = measure_with_limits(
        {"memory.max" if is_cgroup_version_2() else "memory.limit_in_bytes": str(512 * 1024 * 1024)}
    )
    assert memory_mib == 512
    memory_for_runs_mib = 512 * machine.MAX_MEMORY_SHARE - machine.AGENT_MEMORY_MIB[True]
    max_runs = int(memory_for_runs_mib / machine.RUN_MEMORY_MIB[True])
    assert concurrency == max(max_runs, machine.MIN_CONCURRENCY)


def test_the_cpu_quota_of_a_control_group_bounds_the_concurrency(measure_with_limits: MeasureWithLimits) -> None:
    quota = {"cpu.max": "50000 100000"} if is_cgroup_version_2() else {"cpu.cfs_quota_us": "50000"}
    cores, _memory, concurrency = measure_with_limits(quota)
    assert cores == 0.5
    assert concurrency == 16  # half of MAX_RUNS_PER_CORE for warm runs


def test_a_few_runs_are_always_admitted_and_a_busy_machine_admits_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admission = admission_module.Admission(uses_warm_runs=True)
    monkeypatch.setitem(machine.RUN_MEMORY_MIB, True, 10**9)  # no machine has that much free memory
    assert admission.may_start_run(0)
    assert not admission.may_start_run(1000)
    monkeypatch.setitem(machine.RUN_MEMORY_MIB, True, 0)
    monkeypatch.setattr(admission_module, "MAX_RUNNABLE_PROCESSES_PER_CORE", 10**9)
    assert admission.may_start_run(1000)
    monkeypatch.setattr(admission_module, "MAX_RUNNABLE_PROCESSES_PER_CORE", -1)
    assert not admission.may_start_run(1000)
    assert admission.may_start_run(
        int(machine.usable_cores() * (admission_module.MIN_RUNS_PER_CORE_FOR_LOAD_CHECK - 1))
    )


def test_a_long_time_without_admission_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = admission_module.Admission(uses_warm_runs=True)

    def try_admissions(*run_counts: int) -> list[str]:
        """Ask for admission with each of these numbers of current runs; return the logged events."""
        with structlog.testing.capture_logs() as logs:
            for run_count in run_counts:
                admission.may_start_run(run_count)
        return [entry["event"] for entry in logs]

    monkeypatch.setitem(machine.RUN_MEMORY_MIB, True, 10**9)
    assert try_admissions(1000, 1000, 0) == []
    monkeypatch.setattr(admission_module, "WARNING_DELAY_S", 0.0)
    assert try_admissions(1000, 1000, 0, 0) == ["admission_closed", "admission_resumed"]


def test_load_is_ignored_when_loadavg_is_unreadable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "LOADAVG_FILE", tmp_path / "hidden")
    monkeypatch.setitem(machine.RUN_MEMORY_MIB, True, 0)
    assert machine.runnable_process_count() == 0
    assert admission_module.Admission(uses_warm_runs=True).may_start_run(1000)


def test_a_busy_process_is_counted_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            counts = [machine.runnable_process_count() for _ in range(200) if not time.sleep(0.002)]
        finally:
            process.kill()
    assert sorted(counts)[100] >= 2  # the busy process and the test itself


#: Allocates 64 MiB, and starts four forks, which share this memory.
SHARING_PROGRAM = """
import os, sys, time
memory = bytearray(os.urandom(1)) * (64 * 1024 * 1024)
for _ in range(4):
    if os.fork() == 0:
        time.sleep(600)
print("ready", flush=True)
time.sleep(600)
"""


def test_memory_that_forks_share_with_their_parent_counts_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SHARING_PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
            rss_mib = sum(member.memory_info().rss for member in tree) / machine.BYTES_PER_MIB
            memory_mib = process_tree_memory_mib(process.pid)
            children_mib = process_tree_memory_mib(process.pid, include_root_process=False)
        finally:
            os.killpg(process.pid, 9)
    assert rss_mib > 4 * 64
    assert 64 <= memory_mib < 2 * 64
    assert 0 < children_mib < memory_mib


def test_an_ended_process_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert process_tree_memory_mib(process.pid) == 0
