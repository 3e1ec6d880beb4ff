"""How many clones run at once on a target, and how the limit adapts to the storage.

A target is a shared storage, or a local storage of one node.
"""

from __future__ import annotations

import threading
import time

import pytest

from executor.errors import JobError
from executor.model import JobResult
from executor.placement.clone_limit import SUCCESSES_PER_RAISE, CloneLimit
from executor.shared.error_codes import ErrorCode
from executor.shared.error_rules import classify_failure

CLONED = JobResult(succeeded=True)
LOCK_TIMED_OUT = JobResult(
    succeeded=False,
    code=ErrorCode.VM_LOCKED,
    detail="can't lock file '/var/lock/pve-manager/pve-storage-local-lvm' - got timeout",
)
#: Proxmox's texts for a timeout of a storage's lock.
LOCK_TIMEOUT_TEXTS = (
    "can't lock file '/var/lock/pve-manager/pve-storage-local-lvm' - got timeout",
    "clone failed: cfs-lock 'storage-ceph' error: got lock request timeout",
    "clone failed: 'storage-ceph'-locked command timed out - aborting",
    "can't acquire lock '/var/lock/pve-manager/pve-storage-local-lvm' - Interrupted system call",
)
LOCKED_BY_BACKUP = JobResult(succeeded=False, code=ErrorCode.VM_LOCKED, detail="VM is locked (backup)")


def clone(limit: CloneLimit, result: JobResult, target: str = "local-lvm@pve1") -> None:
    """Run one clone that ends with this result."""
    with limit.acquire_slot(target, may_wait=lambda: True) as clone_slot:
        clone_slot.result = result


def max_running_by_target(limit: CloneLimit, targets: list[str], threads: int = 24) -> dict[str, int]:
    """Start many clones at once; return the greatest number that ran on each target at a time."""
    lock, running, most = threading.Lock(), dict.fromkeys(targets, 0), dict.fromkeys(targets, 0)

    def run(target: str) -> None:
        with limit.acquire_slot(target, may_wait=lambda: True) as clone_slot:
            with lock:
                running[target] += 1
                most[target] = max(most[target], running[target])
            time.sleep(0.02)  # long enough to overlap
            with lock:
                running[target] -= 1
            clone_slot.result = CLONED

    started = [threading.Thread(target=run, args=(targets[n % len(targets)],)) for n in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return most


def test_each_target_runs_no_more_clones_than_the_limit() -> None:
    assert max_running_by_target(CloneLimit(max_clones_per_target=3), ["local-lvm@pve1", "local-lvm@pve2"]) == {
        "local-lvm@pve1": 3,
        "local-lvm@pve2": 3,
    }


def test_each_lock_timeout_halves_the_limit_down_to_one() -> None:
    limit = CloneLimit(max_clones_per_target=8)
    limits_seen = []
    for _ in range(5):
        clone(limit, LOCK_TIMED_OUT)
        limits_seen.append(limit.max_creates)
    assert limits_seen == [4, 2, 1, 1, 1]


@pytest.mark.parametrize("text", LOCK_TIMEOUT_TEXTS)
def test_the_timeout_of_a_storage_lock_halves_the_limit(text: str) -> None:
    """The error of a run contains the code that the error rules derive from Proxmox's text."""
    limit, failure = CloneLimit(max_clones_per_target=8), classify_failure(text)
    clone(limit, JobResult(succeeded=False, code=ErrorCode(failure.code), detail=f"{failure.text} (run x)"))
    assert limit.max_creates == 4


def test_successes_raise_a_throttled_limit_step_by_step_up_to_the_setting() -> None:
    limit = CloneLimit(max_clones_per_target=4)
    clone(limit, LOCK_TIMED_OUT)
    for _ in range(SUCCESSES_PER_RAISE - 1):
        clone(limit, CLONED)
    assert limit.max_creates == 2
    clone(limit, CLONED)
    assert limit.max_creates == 3
    for _ in range(SUCCESSES_PER_RAISE * 5):
        clone(limit, CLONED)
    assert limit.max_creates == 4


@pytest.mark.parametrize(
    "result", [LOCKED_BY_BACKUP, JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="full")]
)
def test_failures_other_than_lock_timeouts_do_not_change_the_limit(result: JobResult) -> None:
    limit = CloneLimit(max_clones_per_target=8)
    clone(limit, result)
    assert limit.max_creates == 8


def test_as_many_creates_may_run_as_the_limits_of_the_used_targets_allow() -> None:
    limit = CloneLimit(max_clones_per_target=8)
    assert limit.max_creates == 8
    clone(limit, CLONED, "local-lvm@pve1")
    clone(limit, LOCK_TIMED_OUT, "local-lvm@pve2")
    assert limit.max_creates == 12


def test_a_create_that_may_not_wait_any_longer_is_cancelled_and_holds_no_slot() -> None:
    limit = CloneLimit(max_clones_per_target=1)
    questions: list[int] = []

    def may_wait_once() -> bool:
        questions.append(1)
        return len(questions) < 2

    with limit.acquire_slot("ceph", may_wait=lambda: True):
        with pytest.raises(JobError) as caught, limit.acquire_slot("ceph", may_wait=may_wait_once):
            pass
        assert caught.value.code is ErrorCode.CANCELLED
    clone(limit, CLONED, "ceph")


def test_a_clone_that_has_ended_releases_its_slot_before_its_create_job_ends() -> None:
    limit = CloneLimit(max_clones_per_target=1)
    with limit.acquire_slot("ceph", may_wait=lambda: True) as first:
        assert limit.max_creates == 1
        first.mark_clone_ended()
        assert limit.max_creates == 2
        with limit.acquire_slot("ceph", may_wait=lambda: False) as second:
            first.mark_clone_ended()  # has no effect
            with pytest.raises(JobError), limit.acquire_slot("ceph", may_wait=lambda: False):
                pass
            second.result = LOCK_TIMED_OUT
        first.result = CLONED
    assert limit.max_creates == 1


def test_a_with_block_that_raises_releases_its_slot() -> None:
    limit = CloneLimit(max_clones_per_target=1)
    with pytest.raises(ZeroDivisionError), limit.acquire_slot("ceph", may_wait=lambda: True):
        _ = 1 / 0
    clone(limit, CLONED, "ceph")
