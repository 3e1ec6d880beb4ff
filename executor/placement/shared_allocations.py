"""Stores the allocations of this agent in the database, and reads the allocations of the other agents.

An allocation is the memory and cores that a new, migrating or growing VM needs on its node. They count as used until
Proxmox's list of VMs shows them. A clone target is a storage, and has a limit of clones that run at the same time.

`Placer` and `CloneLimit` use a SharedAllocations object on PostgreSQL. On SQLite, no other agent exists, so they use no
such object.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from executor.database import allocations
from executor.database.allocations import AllocationOwner
from executor.database.engine import transaction
from executor.database.tables.allocations import Allocation
from executor.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session


@dataclass(frozen=True, kw_only=True)
class LockedChoice:
    """One choice of a node. No other agent chooses a node until the transaction of `session` has ended."""

    session: Session
    owner: AllocationOwner
    allocations_of_other_agents: Collection[Allocation]
    #: Called with the VMID before an allocation is stored. If the end of an earlier allocation of the VM could not be
    #: stored yet, this function discards that end, so that it does not end the new allocation.
    discard_unstored_end: Callable[[int], None]

    def store_allocation(self, vmid: int, node: str, memory_bytes: int, cores: int) -> None:
        """Store the chosen node and what the VM needs there."""
        self.discard_unstored_end(vmid)
        allocations.store_allocation(
            self.session, self.owner, vmid=vmid, node=node, memory_bytes=memory_bytes, cores=cores
        )


@dataclass(frozen=True, kw_only=True)
class SharedAllocations:
    """The allocations of all agents that use one database."""

    engine: Engine
    owner: AllocationOwner
    #: The ends of allocations and clones that could not be stored, in order. The keys are VMIDs. A value is True if
    #: only the VM's clone has ended.
    _unstored_ends: dict[int, bool] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  #: guards `_unstored_ends`

    @contextlib.contextmanager
    def lock_choice(
        self, *, vmids_of_this_agent: Collection[int], vm_lists_age_s: float, vmids_of_unknown_size: Collection[int]
    ) -> Iterator[LockedChoice]:
        """Let no other agent choose a node while the block runs. Raises DatabaseError.

        `vmids_of_this_agent` are the VMIDs of this agent's allocations. `vm_lists_age_s` is the age of Proxmox's lists.
        An ended allocation of another agent still counts if it ended after these lists were read, or if they do not
        show the size of its VM (`vmids_of_unknown_size`).
        """
        self.store_unstored_allocation_ends()
        with transaction(self.engine) as session:
            allocations.lock_tables(session)
            allocations.delete_obsolete_allocations(session, self.owner, vmids_of_this_agent)
            other_allocations = allocations.allocations_of_other_agents(
                session, self.owner, vm_lists_age_s=vm_lists_age_s, vmids_of_unknown_size=vmids_of_unknown_size
            )
            yield LockedChoice(
                session=session,
                owner=self.owner,
                allocations_of_other_agents=other_allocations,
                discard_unstored_end=self._discard_end,
            )

    def end_allocation(self, vmid: int) -> None:
        """Store that an allocation has ended. After a database error, store this later.

        `store_unstored_allocation_ends` tries again.
        """
        self._store_end_now_or_later(vmid, is_only_clone=False)

    def store_unstored_allocation_ends(self) -> None:
        """Try again to store ends of allocations and clones. Until they are stored, ended clones count as running."""
        with self._lock:
            unstored_ends = list(self._unstored_ends.items())
        with contextlib.suppress(DatabaseError):
            for vmid, is_only_clone in unstored_ends:
                self._store_end(vmid, is_only_clone=is_only_clone)
                self._discard_end(vmid)

    def _discard_end(self, vmid: int) -> None:
        with self._lock:
            self._unstored_ends.pop(vmid, None)

    def _store_end_now_or_later(self, vmid: int, *, is_only_clone: bool) -> None:
        try:
            self._store_end(vmid, is_only_clone=is_only_clone)
        except DatabaseError:
            with self._lock:
                self._unstored_ends[vmid] = is_only_clone

    def _store_end(self, vmid: int, *, is_only_clone: bool) -> None:
        with transaction(self.engine) as session:
            (allocations.end_clone if is_only_clone else allocations.end_allocation)(session, self.owner, vmid)

    def try_store_clone_start(self, vmid: int, target: str, max_clones: int) -> bool:
        """Store that a clone starts. Return False if the target's limit of clones is reached. Raises DatabaseError.

        `max_clones` is the initial and the highest limit of the target.
        """
        with transaction(self.engine) as session:
            allocations.lock_tables(session)
            return allocations.try_store_clone_start(
                session, self.owner, vmid=vmid, target=target, max_clones=max_clones
            )

    def end_clone(self, vmid: int) -> None:
        """Store that a clone has ended. After a database error, `store_unstored_allocation_ends` stores it later."""
        self._store_end_now_or_later(vmid, is_only_clone=True)

    def halve_clone_limit(self, target: str) -> int | None:
        """Halve the limit of a clone target; return the new limit, or None if the database cannot be written."""
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            allocations.lock_tables(session)
            return allocations.halve_clone_limit(session, self.owner, target)
        return None

    def count_successful_clone(self, target: str, *, max_clones: int, successes_per_raise: int) -> None:
        """Count a successful clone. After `successes_per_raise` such clones, raise the limit of the target by one."""
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            allocations.count_successful_clone(
                session, self.owner, target, max_clones=max_clones, successes_per_raise=successes_per_raise
            )

    def max_creates(self, max_clones: int) -> Any:
        """Return the SQL expression for the number of creates that all agents together may run at the same time."""
        return allocations.max_creates(self.owner, max_clones)
