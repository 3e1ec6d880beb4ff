"""Limits how many clones run at once on each clone target: a shared storage, or one node's local storage.

Parallel clones compete for the storage's lock and its disks, and how many succeed depends on the storage. So the limit
of a target adapts: it is halved when Proxmox reports a lock timeout, and raised by one after SUCCESSES_PER_RAISE
successes.
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

#: Interval at which a waiting create checks whether it may still wait.
CHECK_INTERVAL_S = 0.5
#: A limit that was halved is raised by one after this number of successful clones.
SUCCESSES_PER_RAISE = 8
#: Proxmox's error texts when a Proxmox task did not get the lock of a storage or a template in time.
LOCK_TIMEOUT = re.compile(r"can't lock file|got lock timeout|got timeout")


@dataclass
class _Target:
    limit: int
    running: int = 0
    successes: int = 0  #: since the last change of the limit


@dataclass
class Permit:
    """Allows one clone. The caller sets `result` before the block ends, because the limit depends on the result."""

    result: JobResult | None = None


@dataclass(kw_only=True)
class CloneLimit:
    """Counts the running clones of each target, for any number of threads. There is one for each agent."""

    limit: int
    _targets: dict[str, _Target] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def capacity(self) -> int:
        """How many creates may run at once on all targets that have been used so far."""
        with self._changed:
            return sum(target.limit for target in self._targets.values()) or self.limit

    @contextmanager
    def acquire(self, name: str, *, may_wait: Callable[[], bool]) -> Iterator[Permit]:
        """Wait for a slot of the target `name`, and occupy the slot until the block ends.

        `may_wait` is called repeatedly during the wait and may raise. Raises JobError CANCELLED when it returns False.
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
