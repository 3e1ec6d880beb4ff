"""Stores the allocations of this agent in the database, and reads the allocations of the other agents.

In this module, "agent" means an agent process, and "clone" means the clone operation.

An allocation is the memory and cores that a new, migrating or growing VM needs on its node. An allocation counts as
used until Proxmox's list of VMs shows this memory and these cores. A clone target is a storage on which the number of
simultaneous clone operations is limited. The database contains the running clone operations of each clone target.

On PostgreSQL, a SharedAllocations object is used by `Placer`, which chooses the nodes of VMs, and by `CloneLimit`,
which delays a clone while the limit of its clone target is reached. On SQLite, no other agent exists, and the object
is not needed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.database import allocations
from executor.database.allocations import AllocationOwner
from executor.database.engine import transaction
from executor.database.tables.allocations import Allocation
from executor.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy import Engine, ScalarSelect
    from sqlalchemy.orm import Session


@dataclass(frozen=True, kw_only=True)
class ExclusiveChoice:
    """One choice of a node. No other agent chooses a node until the transaction of `session` has ended."""

    session: Session
    owner: AllocationOwner  #: this agent process
    allocations_of_other_agents: Collection[Allocation]
    #: An unstored end is the end of an allocation or clone that a database error kept from being stored; storing it is
    #: retried. This function is called with a VMID before a new allocation of this VM is stored, and cancels its retry.
    #: Otherwise the end of an earlier allocation would later be stored for the new allocation.
    forget_unstored_end: Callable[[int], None]

    def store_allocation(self, vmid: int, node: str, memory_bytes: int, cores: int) -> None:
        """Store the chosen node and what the VM needs there."""
        self.forget_unstored_end(vmid)
        allocations.store_allocation(
            self.session, self.owner, vmid=vmid, node=node, memory_bytes=memory_bytes, cores=cores
        )


@dataclass(frozen=True, kw_only=True)
class SharedAllocations:
    """The allocations of all agents that use one database."""

    engine: Engine
    owner: AllocationOwner  #: this agent process
    #: The allocations and clones that have ended, but whose end is not stored because of a database error. The keys are
    #: VMIDs. The value is True for the end of a clone, and False for the end of an allocation.
    _unstored_ends: dict[int, bool] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  #: guards `_unstored_ends`

    @contextlib.contextmanager
    def begin_exclusive_choice(
        self, *, vmids_of_this_agent: Collection[int], vm_list_age_s: float, vmids_of_unknown_size: Collection[int]
    ) -> Iterator[ExclusiveChoice]:
        """Let no other agent choose a node while the block runs. Raises DatabaseError.

        `vmids_of_this_agent` are the VMIDs of the allocations that this agent has in memory. `vm_list_age_s` is the
        time since Proxmox's lists of nodes and guests were read. `vmids_of_unknown_size` are the VMs whose memory and
        cores these lists do not show. An ended allocation of another agent counts as used if it ended after these lists
        were read, or if its VM is one of `vmids_of_unknown_size`.
        """
        self.retry_storing_allocation_ends()
        with transaction(self.engine) as session:
            allocations.lock_tables(session)
            # Deletes each allocation of any agent that started more than `allocations.MAX_ALLOCATION_AGE_S` ago, or
            # that ended (with its playbook run) more than `allocations.MAX_COUNTED_TIME_AFTER_RUN_END_S` ago.
            # Deletes this agent's allocations that have no stored end and are not in its memory.
            allocations.delete_obsolete_allocations(session, self.owner, vmids_of_this_agent)
            other_allocations = allocations.allocations_of_other_agents(
                session, self.owner, vm_list_age_s=vm_list_age_s, vmids_of_unknown_size=vmids_of_unknown_size
            )
            yield ExclusiveChoice(
                session=session,
                owner=self.owner,
                allocations_of_other_agents=other_allocations,
                forget_unstored_end=self._forget_unstored_end,
            )

    def end_allocation(self, vmid: int) -> None:
        """Store that an allocation has ended.

        After a database error, `retry_storing_allocation_ends` stores it later.
        """
        self._store_end_now_or_later(vmid, is_end_of_clone=False)

    def retry_storing_allocation_ends(self) -> None:
        """Try again to store the ends of allocations and clones whose storing failed with a database error."""
        with self._lock:
            unstored_ends = list(self._unstored_ends.items())
        with contextlib.suppress(DatabaseError):
            for vmid, is_end_of_clone in unstored_ends:
                self._store_end(vmid, is_end_of_clone=is_end_of_clone)
                self._forget_unstored_end(vmid)

    def _forget_unstored_end(self, vmid: int) -> None:
        with self._lock:
            self._unstored_ends.pop(vmid, None)

    def _store_end_now_or_later(self, vmid: int, *, is_end_of_clone: bool) -> None:
        try:
            self._store_end(vmid, is_end_of_clone=is_end_of_clone)
        except DatabaseError:
            with self._lock:
                self._unstored_ends[vmid] = is_end_of_clone

    def _store_end(self, vmid: int, *, is_end_of_clone: bool) -> None:
        store_end = allocations.mark_clone_ended if is_end_of_clone else allocations.end_allocation
        with transaction(self.engine) as session:
            store_end(session, self.owner, vmid)

    def store_clone_start_if_below_limit(self, vmid: int, target: str, max_clones_per_target: int) -> bool:
        """Store that a clone starts. Return False if the target's limit of clones is reached. Raises DatabaseError.

        A target that is not stored yet is stored with the limit `max_clones_per_target`. `halve_clone_limit` and
        `count_successful_clone` change the limit. An agent with a higher SMITH_CLONES_PER_STORAGE may have stored a
        limit that is higher than `max_clones_per_target`. Then `max_clones_per_target` is used.
        """
        with transaction(self.engine) as session:
            allocations.lock_tables(session)
            return allocations.store_clone_start_if_below_limit(
                session, self.owner, vmid=vmid, target=target, max_clones=max_clones_per_target
            )

    def mark_clone_ended(self, vmid: int) -> None:
        """Store that a clone has ended. After a database error, `retry_storing_allocation_ends` stores it later."""
        self._store_end_now_or_later(vmid, is_end_of_clone=True)

    def halve_clone_limit(self, target: str) -> int | None:
        """Halve the limit of a clone target; return the new limit, or None if the database cannot be written."""
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            allocations.lock_tables(session)
            return allocations.halve_clone_limit(session, self.owner, target)
        return None

    def count_successful_clone(self, target: str, *, max_clones_per_target: int, successes_per_raise: int) -> None:
        """Count a successful clone on a target whose limit is lower than `max_clones_per_target`.

        After every `successes_per_raise` successful clones, the limit of the target is raised by one.
        """
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            allocations.count_successful_clone(
                session, self.owner, target, max_clones=max_clones_per_target, successes_per_raise=successes_per_raise
            )

    def max_creates(self, max_clones_per_target: int) -> ScalarSelect[int]:
        """Return the SQL expression for the number of create jobs that all agents may run together at the same time.

        The number is the sum of the limits of the clone targets, plus the number of running create jobs whose clone has
        ended: such a job does not count against the limit of a clone target.
        """
        return allocations.max_creates(self.owner, max_clones_per_target)
