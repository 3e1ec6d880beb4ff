"""How many clones are let in at once, and how the limit follows the storage."""

from __future__ import annotations

import threading
import time

import pytest

from executor.errors import ErrorCode, JobError
from executor.model import JobResult
from executor.placement.clone_limit import GOOD_ONES, CloneGate

MADE = JobResult(succeeded=True)
LOCKED = JobResult(
    succeeded=False,
    code=ErrorCode.VM_LOCKED,
    detail="can't lock file '/var/lock/pve-manager/pve-storage-local-lvm' - got timeout",
)
BACKUP = JobResult(succeeded=False, code=ErrorCode.VM_LOCKED, detail="VM is locked (backup)")


def passed(gate: CloneGate, result: JobResult, place: str = "local-lvm@pve1") -> None:
    with gate.passing(place, may_wait=lambda: True) as passage:
        passage.result = result


def most_inside(gate: CloneGate, places: list[str], threads: int = 24) -> dict[str, int]:
    """Let many in at once; return the most that were inside each place at a time."""
    lock, inside, most = threading.Lock(), dict.fromkeys(places, 0), dict.fromkeys(places, 0)

    def enter(place: str) -> None:
        with gate.passing(place, may_wait=lambda: True) as passage:
            with lock:
                inside[place] += 1
                most[place] = max(most[place], inside[place])
            time.sleep(0.02)  # so that they meet
            with lock:
                inside[place] -= 1
            passage.result = MADE

    started = [threading.Thread(target=enter, args=(places[n % len(places)],)) for n in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return most


def test_no_more_than_the_limit_are_on_a_place_and_places_do_not_count_together() -> None:
    assert most_inside(CloneGate(limit=3), ["local-lvm@pve1", "local-lvm@pve2"]) == {
        "local-lvm@pve1": 3,
        "local-lvm@pve2": 3,
    }


def test_a_lock_that_was_not_had_halves_the_limit_down_to_one() -> None:
    gate = CloneGate(limit=8)
    limits = []
    for _ in range(5):
        passed(gate, LOCKED)
        limits.append(gate.capacity)
    assert limits == [4, 2, 1, 1, 1]


def test_what_goes_well_raises_it_again_step_by_step_and_no_higher_than_set() -> None:
    gate = CloneGate(limit=4)
    passed(gate, LOCKED)
    for _ in range(GOOD_ONES - 1):
        passed(gate, MADE)
    assert gate.capacity == 2
    passed(gate, MADE)
    assert gate.capacity == 3
    for _ in range(GOOD_ONES * 5):
        passed(gate, MADE)
    assert gate.capacity == 4


@pytest.mark.parametrize("result", [BACKUP, JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="full")])
def test_other_failures_say_nothing_about_the_storage(result: JobResult) -> None:
    gate = CloneGate(limit=8)
    passed(gate, result)
    assert gate.capacity == 8


def test_the_capacity_is_that_of_the_places_that_are_known() -> None:
    gate = CloneGate(limit=8)
    assert gate.capacity == 8
    passed(gate, MADE, "local-lvm@pve1")
    passed(gate, LOCKED, "local-lvm@pve2")
    assert gate.capacity == 12


def test_a_create_that_must_not_wait_any_longer_is_told_and_holds_nothing() -> None:
    gate = CloneGate(limit=1)
    asked: list[int] = []

    def twice() -> bool:
        asked.append(1)
        return len(asked) < 2

    with gate.passing("ceph", may_wait=lambda: True):
        with pytest.raises(JobError) as caught, gate.passing("ceph", may_wait=twice):
            pass
        assert caught.value.code is ErrorCode.CANCELLED
    passed(gate, MADE, "ceph")


def test_a_block_that_breaks_gives_its_place_back() -> None:
    gate = CloneGate(limit=1)
    with pytest.raises(ZeroDivisionError), gate.passing("ceph", may_wait=lambda: True):
        _ = 1 / 0
    passed(gate, MADE, "ceph")
