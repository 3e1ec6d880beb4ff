"""Step 5 of 7, before a create's run: how many clones may be under way on one storage, and on each node of a local one.

Parallel clones fight for the storage's lock and its disks. How many it takes depends on the storage, so the limit
follows it: halved when Proxmox says that a lock could not be had in time, raised again by one for each few that went
well.
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

#: How often a create that waits looks whether it may still wait.
STEP_S = 0.5
#: A throttled place gets one more clone for so many that went well.
GOOD_ONES = 8
#: Proxmox's words when a lock of a storage or a template was held for too long.
LOCK_NOT_HAD = re.compile(r"can't lock file|got lock timeout|got timeout")


@dataclass
class _Place:
    limit: int
    inside: int = 0
    good: int = 0


@dataclass
class Passage:
    """One create inside; told how it ended."""

    result: JobResult | None = None


@dataclass(kw_only=True)
class CloneGate:
    """One for each agent; any number of threads."""

    limit: int
    _places: dict[str, _Place] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def capacity(self) -> int:
        """How many creates are worth claiming: those that the places known so far let in."""
        with self._changed:
            return sum(place.limit for place in self._places.values()) or self.limit

    @contextmanager
    def passing(self, name: str, *, may_wait: Callable[[], bool]) -> Iterator[Passage]:
        """Hold a place for the length of the block, once there is one.

        `may_wait` is asked again and again, and may raise; when it says no: JobError CANCELLED.
        """
        passage = Passage()
        self._enter(name, may_wait)
        try:
            yield passage
        finally:
            with self._changed:
                self._leave(name, passage.result)
                self._changed.notify_all()

    def _enter(self, name: str, may_wait: Callable[[], bool]) -> None:
        began = time.monotonic()
        with self._changed:
            place = self._places.setdefault(name, _Place(self.limit))
            while place.inside >= place.limit:
                self._changed.wait(STEP_S)
                if not may_wait():
                    raise JobError(ErrorCode.CANCELLED, "stopped while it waited for other clones")
            place.inside += 1
        if (waited_s := time.monotonic() - began) > STEP_S:
            log.info("clone_let_in", place=name, waited_s=round(waited_s, 1))

    def _leave(self, name: str, result: JobResult | None) -> None:
        place = self._places[name]
        place.inside -= 1
        if result is None:
            return
        if result.code is ErrorCode.VM_LOCKED and LOCK_NOT_HAD.search(result.detail):
            place.limit, place.good = max(place.limit // 2, 1), 0
            log.warning("clones_throttled", place=name, limit=place.limit, reason=result.detail)
        elif result.succeeded and place.limit < self.limit:
            place.good += 1
            if place.good >= GOOD_ONES:
                place.limit, place.good = place.limit + 1, 0
