"""An action sends no further change to Proxmox when the leases of the agent were not renewed in time.

The agent writes to a file the moment until which its runs may change something (`RunUntilFile`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from play_bench import Bench

from executor.runs.run_until_file import RunUntilFile
from executor.shared.run_until import RUN_UNTIL_VARIABLE, boottime_s

#: The longest time that a play may need until it sends its first change.
HOLD_TIMEOUT_S = 60.0


@pytest.fixture
def run_until_file(tmp_path: Path) -> RunUntilFile:
    return RunUntilFile(tmp_path / "run-until")


def environment_of(run_until_file: RunUntilFile) -> dict[str, str]:
    return {RUN_UNTIL_VARIABLE: str(run_until_file.path)}


@pytest.mark.parametrize(
    "expire_or_damage", [lambda file: file.set_deadline(1.0), lambda file: file.path.write_bytes(b"x")]
)
def test_after_the_moment_in_the_file_or_with_an_unreadable_file_an_action_sends_no_change(
    bench: Bench, run_until_file: RunUntilFile, expire_or_damage: Callable[[RunUntilFile], Any]
) -> None:
    expire_or_damage(run_until_file)
    vm = bench.add_vm()

    done, changes = bench.changing_requests(lambda: bench.play("start", vm, **environment_of(run_until_file)))

    assert (done.code, changes) == ("LEASE_LOST", []), done.output
    assert done.result["vmid"] == vm["vmid"]


@pytest.mark.parametrize("time_left_s", [math.inf, 86_400])
def test_until_the_moment_in_the_file_an_action_sends_its_changes(
    bench: Bench, run_until_file: RunUntilFile, time_left_s: float
) -> None:
    run_until_file.set_deadline(boottime_s() + time_left_s)

    done = bench.play("start", bench.add_vm(), **environment_of(run_until_file))

    assert (done.rc, done.result["status"]) == (0, "running"), done.output


def test_the_next_run_completes_a_create_that_lost_its_lease_during_the_clone(
    bench: Bench, run_until_file: RunUntilFile
) -> None:
    run_until_file.set_deadline(math.inf)
    vm = bench.vm()
    bench.pve.reset_request_log()
    bench.pve.control("hold_change", number=1)
    with ThreadPoolExecutor() as pool:
        play = pool.submit(bench.play, "create", vm, **environment_of(run_until_file))
        deadline = time.monotonic() + HOLD_TIMEOUT_S
        while not bench.pve.is_holding():
            assert not play.done(), play.result().output
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run_until_file.set_deadline(1.0)
        bench.pve.control("clear_faults")
        done = play.result()

    assert done.code == "LEASE_LOST", done.output
    assert [request["path"].rpartition("/")[2] for request in bench.pve.changing_requests()] == ["clone"]
    run_until_file.set_deadline(math.inf)
    done = bench.play("create", {**vm, "half_made": True}, **environment_of(run_until_file))
    assert (done.rc, done.result["vmid"]) == (0, vm["vmid"]), done.output
