"""Reads a value from Proxmox once for all threads that need the value at the same time.

These threads share the value, or the error of the read.

A request to Proxmox cannot be interrupted. Each read runs in a thread of a pool, so that its caller can stop waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from executor.errors import JobError
from executor.shared.error_codes import ErrorCode

#: Time between two calls of `may_wait`, a parameter of `SharedReads.get`.
CHECK_INTERVAL_S = 0.5
#: Time after a failed read in which a new call gets the same error without a new read.
MAX_FAILURE_AGE_S = 1.0
#: The number of reads that run at the same time.
READER_THREADS = 4
T = TypeVar("T")


@dataclass
class _Read:
    """One read, which may still run. The times are those of `SharedReads.clock`."""

    started_at: float
    ended_at: float = float("inf")
    future: Future[Any] = field(default_factory=Future)

    def is_usable(self, *, earliest_read_start: float, called_at: float) -> bool:
        """Return whether a call can use the value or the error of this read, which has ended.

        The call began at `called_at`, and needs a value that was read at `earliest_read_start` or later.
        """
        if self.future.exception() is not None:
            return self.ended_at >= called_at - MAX_FAILURE_AGE_S
        return self.started_at >= earliest_read_start


@dataclass(kw_only=True)
class SharedReads:
    """Holds the latest read of each value. A key identifies the value. All threads use the same object."""

    clock: Callable[[], float] = time.monotonic
    _reads: dict[Hashable, _Read] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  #: guards `_reads`; not held during a read
    #: Threads are reused, because each thread keeps its connection to Proxmox open.
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READER_THREADS, "placement"))

    def get(
        self, key: Hashable, read: Callable[[], T], *, earliest_read_start: float, may_wait: Callable[[], bool]
    ) -> T:
        """Return the result of a `read` that started at `earliest_read_start` or later. If the read fails, raise its
        error. `earliest_read_start` is a time of `clock`.

        The result of the latest read is used if the read started at `earliest_read_start` or later. The error of a
        failed read is used for MAX_FAILURE_AGE_S. Otherwise a new read starts. During the wait, `may_wait` is called
        repeatedly. When `may_wait` returns False, raises JobError CANCELLED. An error in `may_wait` ends the wait, and
        is raised to the caller.
        """
        called_at = self.clock()
        while True:
            with self._lock:
                current_read = self._reads.get(key)
                if current_read is None or (
                    current_read.future.done()
                    and not current_read.is_usable(earliest_read_start=earliest_read_start, called_at=called_at)
                ):
                    current_read = self._reads[key] = self._start_read(read)
            _wait_for_read(current_read.future, may_wait)
            if current_read.is_usable(earliest_read_start=earliest_read_start, called_at=called_at):
                value: T = current_read.future.result()
                return value

    def _start_read(self, read: Callable[[], T]) -> _Read:
        current_read = _Read(started_at=self.clock())

        def run() -> T:
            try:
                return read()
            finally:
                current_read.ended_at = self.clock()

        current_read.future = self._pool.submit(run)
        return current_read


def _wait_for_read(future: Future[Any], may_wait: Callable[[], bool]) -> None:
    while not wait([future], CHECK_INTERVAL_S).done:
        if not may_wait():
            raise JobError(ErrorCode.CANCELLED, "cancelled while the job waited for data from Proxmox")
