"""An action changes nothing more at Proxmox when the leases of the agent were not renewed in time.

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

#: How long a play may need until it sends its first change.
HOLD_TIMEOUT_S = 60.0


@pytest.fixture
def file(tmp_path: Path) -> RunUntilFile:
    return RunUntilFile(tmp_path / "run-until")


def variable(file: RunUntilFile) -> dict[str, str]:
    return {RUN_UNTIL_VARIABLE: str(file.path)}


@pytest.mark.parametrize(
    "expire_or_damage", [lambda file: file.set_deadline(1.0), lambda file: file.path.write_bytes(b"x")]
)
def test_after_the_moment_in_the_file_or_with_an_unreadable_file_an_action_sends_no_change(
    bench: Bench, file: RunUntilFile, expire_or_damage: Callable[[RunUntilFile], Any]
) -> None:
    expire_or_damage(file)
    vm = bench.add_vm()

    done, changes = bench.changing_requests(lambda: bench.play("start", vm, **variable(file)))

    assert (done.code, changes) == ("LEASE_LOST", []), done.output
    assert done.result["vmid"] == vm["vmid"]


@pytest.mark.parametrize("time_left_s", [math.inf, 86_400])
def test_until_the_moment_in_the_file_an_action_sends_its_changes(
    bench: Bench, file: RunUntilFile, time_left_s: float
) -> None:
    file.set_deadline(boottime_s() + time_left_s)

    done = bench.play("start", bench.add_vm(), **variable(file))

    assert (done.rc, done.result["status"]) == (0, "running"), done.output


def test_the_next_run_completes_what_a_run_has_begun_before_the_moment(bench: Bench, file: RunUntilFile) -> None:
    file.set_deadline(math.inf)
    vm = bench.vm()
    bench.pve.reset_request_log()
    bench.pve.control("hold_change", number=1)
    with ThreadPoolExecutor() as pool:
        play = pool.submit(bench.play, "create", vm, **variable(file))
        deadline = time.monotonic() + HOLD_TIMEOUT_S
        while not bench.pve.is_holding():
            assert not play.done(), play.result().output
            assert time.monotonic() < deadline
            time.sleep(0.05)
        file.set_deadline(1.0)
        bench.pve.control("clear_faults")
        done = play.result()

    assert done.code == "LEASE_LOST", done.output
    assert [request["path"].rpartition("/")[2] for request in bench.pve.changing_requests()] == ["clone"]
    file.set_deadline(math.inf)
    done = bench.play("create", {**vm, "half_made": True}, **variable(file))
    assert (done.rc, done.result["vmid"]) == (0, vm["vmid"]), done.output
