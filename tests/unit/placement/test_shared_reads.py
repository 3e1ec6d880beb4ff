"""Reads that several threads share: values, failures, and the end of a wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from executor.errors import JobError
from executor.placement import shared_reads
from executor.placement.shared_reads import MAX_FAILURE_AGE_S, SharedReads
from executor.shared.error_codes import ErrorCode

THREADS = 16


class Source:
    """A value that is read only when the test allows it."""

    def __init__(self) -> None:
        self.may_answer, self.is_read = threading.Event(), threading.Event()
        self.failure: JobError | None = None
        self.count = 0

    def read(self) -> int:
        self.count += 1
        count, failure = self.count, self.failure
        self.is_read.set()
        assert self.may_answer.wait(20)
        if failure is not None:
            raise failure
        return count


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reads(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> SharedReads:
    monkeypatch.setattr(shared_reads, "CHECK_INTERVAL_S", 0.01)
    return SharedReads(clock=clock)


def get(
    reads: SharedReads, source: Source, max_age_s: float = 5, may_wait: Callable[[], bool] = lambda: True
) -> int | ErrorCode:
    """Return the value that a caller gets, or the code of its error."""
    try:
        return reads.get("key", source.read, earliest_read_start=reads.clock() - max_age_s, may_wait=may_wait)
    except JobError as error:
        return error.code


def get_in_all_threads(reads: SharedReads, source: Source) -> list[int | ErrorCode]:
    """Call `get` in all threads while one read runs, then let this read end."""
    waiting = threading.Barrier(THREADS + 1)
    has_waited = threading.local()

    def may_wait() -> bool:
        if not hasattr(has_waited, "done"):
            has_waited.done = True
            waiting.wait(20)
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        calls = [pool.submit(get, reads, source, may_wait=may_wait) for _ in range(THREADS)]
        waiting.wait(20)
        source.may_answer.set()
        return [call.result(20) for call in calls]


def test_threads_that_need_a_value_at_the_same_time_share_one_read(reads: SharedReads, source: Source) -> None:
    assert get_in_all_threads(reads, source) == [1] * THREADS
    assert source.count == 1


def test_threads_that_need_a_value_at_the_same_time_share_its_failure(reads: SharedReads, source: Source) -> None:
    """If each thread read by itself, they would wait for a timeout of Proxmox one after the other."""
    source.failure = JobError(ErrorCode.PVE_TIMEOUT, "no answer")
    assert get_in_all_threads(reads, source) == [ErrorCode.PVE_TIMEOUT] * THREADS
    assert source.count == 1


def test_a_failure_is_shared_for_a_short_time_only(reads: SharedReads, source: Source, clock: Clock) -> None:
    source.may_answer.set()
    source.failure = JobError(ErrorCode.PVE_TIMEOUT, "no answer")
    assert get(reads, source) is ErrorCode.PVE_TIMEOUT
    source.failure = None
    clock.now += MAX_FAILURE_AGE_S
    assert get(reads, source) is ErrorCode.PVE_TIMEOUT
    clock.now += 0.1
    assert get(reads, source) == 2


def test_a_value_is_used_until_it_is_too_old(reads: SharedReads, source: Source, clock: Clock) -> None:
    source.may_answer.set()
    assert get(reads, source) == 1
    clock.now += 5
    assert get(reads, source) == 1
    clock.now += 0.1
    assert get(reads, source) == 2


def test_a_caller_that_may_no_longer_wait_is_cancelled_and_others_get_the_value_of_the_read(
    reads: SharedReads, source: Source
) -> None:
    assert get(reads, source, may_wait=lambda: False) is ErrorCode.CANCELLED
    source.may_answer.set()
    assert get(reads, source) == 1


def test_a_caller_whose_deadline_passes_ends_its_wait(reads: SharedReads, source: Source) -> None:
    def raise_deadline() -> bool:
        raise JobError(ErrorCode.DEADLINE, "too little time is left")

    assert get(reads, source, may_wait=raise_deadline) is ErrorCode.DEADLINE
    source.may_answer.set()


def test_a_running_read_that_began_too_early_is_followed_by_another(
    reads: SharedReads, source: Source, clock: Clock
) -> None:
    assert get(reads, source, may_wait=lambda: False) is ErrorCode.CANCELLED
    assert source.is_read.wait(20)
    clock.now += 1

    def may_wait() -> bool:
        source.may_answer.set()
        return True

    assert get(reads, source, max_age_s=0, may_wait=may_wait) == 2
