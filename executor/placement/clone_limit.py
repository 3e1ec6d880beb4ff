"""Limits how many clone operations run at the same time on each clone target.

A clone target is a shared storage, or the local storage of one node. Parallel clones compete for the lock and the disks
of the storage, and some storages can run more clones than others. So each target has its own limit, which adapts to the
storage. When Proxmox reports a lock timeout, the limit is halved. After SUCCESSES_PER_RAISE successful clones, the
limit is raised by one, up to its initial value. If several agents share a database, the clones of all agents count
against one limit per target.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from executor.errors import JobError
from executor.log import get_logger
from executor.model import JobResult
from executor.placement.shared_allocations import SharedAllocations
from executor.shared.error_codes import ErrorCode
from executor.shared.error_patterns import LOCK_TIMEOUT_PATTERN

log = get_logger(__name__)

#: While `acquire_slot` waits for other clones to end, it calls its argument `may_wait` at this interval.
#: `may_wait` returns whether to wait longer.
CHECK_INTERVAL_S = 0.5
#: After this number of successful clones, a limit that was halved is raised by one.
SUCCESSES_PER_RAISE = 8


@dataclass
class _CloneTarget:
    """The limit and the counters of one clone target."""

    limit: int  #: the number of clones that may run at the same time
    running_clone_count: int = 0  #: the number of clones that are running
    success_count: int = 0  #: the number of successful clones since the last change of `limit`


@dataclass
class CloneSlot:
    """The permission to run one clone. `CloneLimit.acquire_slot` yields it.

    The caller calls `mark_clone_ended` when Proxmox has made the clone, so that another clone can start while the new
    VM is configured and started. Before the `with` block of `acquire_slot` ends, the caller sets `result` to the result
    of the create job. The new limit of the clone target depends on this result.
    """

    result: JobResult | None = None
    mark_clone_ended: Callable[[], None] = lambda: None


@dataclass(kw_only=True)
class CloneLimit:
    """Counts and limits the running clones of each clone target. All threads of an agent use the same object.

    `max_clones_per_target` is the initial limit of each target, and also the highest limit that a target can have.
    """

    max_clones_per_target: int
    #: Stores the running clones and the limits of all agents in the PostgreSQL database. None on SQLite, where no other
    #: agent uses the database.
    shared_allocations: SharedAllocations | None = None
    _clone_targets: dict[str, _CloneTarget] = field(default_factory=dict)
    #: Guards `_clone_targets`, and is notified when a clone ends.
    _condition: threading.Condition = field(default_factory=threading.Condition)
    #: The SQL expression that the property `max_creates` returns on PostgreSQL; None on SQLite. The expression is made
    #: only once: for a new expression object, the cached SQL statement that claims a job would be built again.
    _shared_max_creates: Any = None
    _create_count_after_clone: int = 0  #: the number of running create jobs whose clone has ended

    def __post_init__(self) -> None:
        if self.shared_allocations is not None:
            self._shared_max_creates = self.shared_allocations.max_creates(self.max_clones_per_target)

    @property
    def max_creates(self) -> Any:
        """The number of create jobs that may run at the same time.

        This is the sum of the limits of all targets that were used so far, plus the number of create jobs whose clone
        has ended, because these jobs no longer count against a limit. Before the first use of a target, the sum is
        `max_clones_per_target`. On PostgreSQL, which several agents can share, the property is an SQL expression for
        the number.
        """
        if self._shared_max_creates is not None:
            return self._shared_max_creates
        with self._condition:
            return (
                sum(target.limit for target in self._clone_targets.values()) or self.max_clones_per_target
            ) + self._create_count_after_clone

    @contextmanager
    def acquire_slot(self, target_name: str, *, may_wait: Callable[[], bool], vmid: int = 0) -> Iterator[CloneSlot]:
        """Wait until fewer clones than the limit run on the target. Then count the caller's clone as running.

        The clone counts until the caller calls `mark_clone_ended` or the `with` block ends. During the wait, `may_wait`
        is called repeatedly. When `may_wait` returns False, raises JobError CANCELLED. An error in `may_wait` ends the
        wait, and is raised to the caller.

        On PostgreSQL, the clones of all agents count. The table `allocations` must have a row for `vmid`, which
        `Placer.allocate_for_new_vm` stores when it chooses the VM's node. On SQLite, `vmid` is not used.
        """
        self._wait_for_slot(target_name, may_wait, vmid)
        is_clone_running = True

        def mark_clone_ended() -> None:
            nonlocal is_clone_running
            with self._condition:
                if not is_clone_running:
                    return
                is_clone_running = False
                self._clone_targets[target_name].running_clone_count -= 1
                self._create_count_after_clone += 1
                self._condition.notify_all()
            if self.shared_allocations is not None:
                self.shared_allocations.mark_clone_ended(vmid)

        clone_slot = CloneSlot(mark_clone_ended=mark_clone_ended)
        try:
            yield clone_slot
        finally:
            mark_clone_ended()
            with self._condition:
                self._create_count_after_clone -= 1
                if clone_slot.result is not None and self.shared_allocations is None:
                    self._adapt_limit(target_name, clone_slot.result)
            if clone_slot.result is not None and self.shared_allocations is not None:
                self._adapt_shared_limit(self.shared_allocations, target_name, clone_slot.result)

    def _wait_for_slot(self, target_name: str, may_wait: Callable[[], bool], vmid: int) -> None:
        started_at = time.monotonic()
        # The clones of this agent are counted first, in memory. On PostgreSQL, the clones of all agents are then
        # counted in the database.
        with self._condition:
            target = self._clone_targets.setdefault(target_name, _CloneTarget(self.max_clones_per_target))
            while target.running_clone_count >= target.limit:
                self._condition.wait(CHECK_INTERVAL_S)
                if not may_wait():
                    raise JobError(ErrorCode.CANCELLED, "cancelled while the job waited for other clones to end")
            target.running_clone_count += 1
        try:
            while self.shared_allocations is not None and not self.shared_allocations.store_clone_start_if_below_limit(
                vmid, target_name, self.max_clones_per_target
            ):
                time.sleep(CHECK_INTERVAL_S)
                if not may_wait():
                    raise JobError(ErrorCode.CANCELLED, "cancelled while the job waited for other clones to end")
        except BaseException:
            with self._condition:
                target.running_clone_count -= 1
                self._condition.notify_all()
            raise
        waited_s = time.monotonic() - started_at
        if waited_s > CHECK_INTERVAL_S:
            log.info("clone_slot_acquired", target=target_name, waited_s=round(waited_s, 1))

    def _adapt_limit(self, target_name: str, result: JobResult) -> None:
        """Halve the limit after a lock timeout. After SUCCESSES_PER_RAISE successful clones, raise the limit by one."""
        target = self._clone_targets[target_name]
        if _is_lock_timeout(result):
            target.limit = max(target.limit // 2, 1)
            target.success_count = 0
            log.warning("clones_throttled", target=target_name, limit=target.limit, reason=result.detail)
        elif result.succeeded and target.limit < self.max_clones_per_target:
            target.success_count += 1
            if target.success_count >= SUCCESSES_PER_RAISE:
                target.limit += 1
                target.success_count = 0

    def _adapt_shared_limit(self, shared_allocations: SharedAllocations, target_name: str, result: JobResult) -> None:
        """Adapt the limit of all agents, which is in the database, by the same rules as `_adapt_limit`."""
        if _is_lock_timeout(result):
            limit = shared_allocations.halve_clone_limit(target_name)
            log.warning("clones_throttled", target=target_name, limit=limit, reason=result.detail)
        elif result.succeeded:
            shared_allocations.count_successful_clone(
                target_name, max_clones_per_target=self.max_clones_per_target, successes_per_raise=SUCCESSES_PER_RAISE
            )


def _is_lock_timeout(result: JobResult) -> bool:
    """Return whether a create failed because Proxmox did not get a lock in time, for example the lock of a storage."""
    return result.code is ErrorCode.VM_LOCKED and re.search(LOCK_TIMEOUT_PATTERN, result.detail) is not None
