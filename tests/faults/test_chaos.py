"""A short chaos run: many faults at once, in an order chosen by the seed. `make chaos` is the long run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults import chaos

SEED = 4711


@pytest.mark.timeout(600)
def test_a_short_chaos_run_violates_no_promise(tmp_path: Path, figure: Callable[[str], None]) -> None:
    report = chaos.run(tmp_path, jobs=16, kills=3, seed=SEED)
    assert report.promises_kept, report.text()
    assert sum(report.jobs.values()) >= 12
    figure(f"chaos: {sum(report.jobs.values())} jobs, {report.done}: 0 lost, doubled, contradictory, orphan processes")
