"""Every action completes although the VM moves, is locked or hidden, and answers are lost, at random moments.

`make strangers` does more such runs. The record of a run names its seed. STRANGER_SEED is the seed of the first run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed_runs import DisturbedRun, execute, prepare
from executor_bench import ExecutorBench
from play_bench import Bench

RUNS = int(os.environ.get("STRANGER_RUNS", "40"))
SEED = int(os.environ.get("STRANGER_SEED", "0"))
#: The limit of the whole test allows each run twice the time that the slowest is expected to take.
TIMEOUT_S = 1800 + 40 * RUNS


@pytest.fixture
def record(tmp_path: Path) -> Iterator[list[str]]:
    """Write the records of the runs to a file, whose path STRANGER_RECORD may name."""
    lines: list[str] = []
    yield lines
    path = Path(os.environ.get("STRANGER_RECORD", tmp_path / "disturbed_runs.jsonl"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.mark.timeout(TIMEOUT_S)
def test_every_action_completes_and_affects_only_its_vm_while_the_cluster_changes(
    bench: Bench, shared_executor: ExecutorBench, record: list[str]
) -> None:
    failed: list[DisturbedRun] = []
    for seed in range(SEED, SEED + RUNS):
        run = prepare(bench, seed)
        execute(run, bench, shared_executor)
        record.append(run.as_text())
        failed += [run] if run.problems else []
    assert [run.as_text() for run in failed] == []
