"""Limits how many clones run at the same time on each clone target.

A clone target is a shared storage, or the local storage of one node. Parallel clones compete for the lock and the disks
of the storage, and how many of them can succeed depends on the storage. So the limit of a target adapts: it is halved
when Proxmox reports a lock timeout. It is raised by one, up to its first value, after SUCCESSES_PER_RAISE successful
clones.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from executor.errors import ErrorCode, JobError
from executor.log import get_logger
from executor.model import JobResult

log = get_logger(__name__)

#: Interval at which a create that waits for a slot calls `may_wait`.
CHECK_INTERVAL_S = 0.5
#: After this number of successful clones, a limit that was halved is raised by one.
SUCCESSES_PER_RAISE = 8
#: Matches the error texts of a Proxmox task that did not get the lock of a storage or a template in time.
LOCK_TIMEOUT = re.compile(r"can't lock file|got lock timeout|got timeout")


@dataclass
class _Target:
    """The state of one clone target: how many clones may run, and how many are running."""

    limit: int
    running: int = 0
    successes: int = 0  #: number of successful clones since the last change of `limit`


@dataclass
class Permit:
    """The permission to run one clone, which `CloneLimit.acquire` yields.

    The caller sets `result` to the result of the create before the block ends, because the limit depends on it.
    """

    result: JobResult | None = None


@dataclass(kw_only=True)
class CloneLimit:
    """Counts the running clones of each clone target. An agent has one object of this class, which all threads use.

    `limit` is the first limit of each target, and the highest.
    """

    limit: int
    _targets: dict[str, _Target] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def capacity(self) -> int:
        """How many creates may run at the same time on all targets that have been used so far."""
        with self._changed:
            return sum(target.limit for target in self._targets.values()) or self.limit

    @contextmanager
    def acquire(self, name: str, *, may_wait: Callable[[], bool]) -> Iterator[Permit]:
        """Wait until the target `name` runs fewer clones than its limit, and count one more until the block ends.

        `may_wait` is called repeatedly during the wait. An error that it raises ends the wait. If it returns False,
        JobError CANCELLED is raised.
        """
        permit = Permit()
        self._wait_for_slot(name, may_wait)
        try:
            yield permit
        finally:
            with self._changed:
                self._release(name, permit.result)
                self._changed.notify_all()

    def _wait_for_slot(self, name: str, may_wait: Callable[[], bool]) -> None:
        started = time.monotonic()
        with self._changed:
            target = self._targets.setdefault(name, _Target(self.limit))
            while target.running >= target.limit:
                self._changed.wait(CHECK_INTERVAL_S)
                if not may_wait():
                    raise JobError(ErrorCode.CANCELLED, "cancelled while it waited for other clones to end")
            target.running += 1
        if (waited_s := time.monotonic() - started) > CHECK_INTERVAL_S:
            log.info("clone_slot_acquired", target=name, waited_s=round(waited_s, 1))

    def _release(self, name: str, result: JobResult | None) -> None:
        """Count one running clone less, and adapt the limit to the result. None is a clone without a result."""
        target = self._targets[name]
        target.running -= 1
        if result is None:
            return
        if result.code is ErrorCode.VM_LOCKED and LOCK_TIMEOUT.search(result.detail):
            target.limit, target.successes = max(target.limit // 2, 1), 0
            log.warning("clones_throttled", target=name, limit=target.limit, reason=result.detail)
        elif result.succeeded and target.limit < self.limit:
            target.successes += 1
            if target.successes >= SUCCESSES_PER_RAISE:
                target.limit, target.successes = target.limit + 1, 0
