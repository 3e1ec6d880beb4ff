"""Stores how much memory and how many cores agents have allocated to the VMs of runs, and which runs are cloning.

In this module, an agent is one agent process.

The tables `allocations` and `clone_targets` show the allocations of each agent to the other agents that use the same
PostgreSQL database, so that all agents together do not overload a Proxmox node or a storage. On SQLite, no other agent
exists, and both tables stay empty.

If an allocation counts, the agents subtract its memory and cores from what its Proxmox node has free. The allocation of
a run in progress counts only while the agent that wrote the row is running. A clone target, or target for short, is the
storage on which a clone is created: a shared storage, or the local storage of one Proxmox node.

No function of this module commits: the caller commits the transaction. A caller that reads and then writes calls
`lock_tables` first. Otherwise, two agents could allocate the same memory, or together start too many clones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, and_, case, delete, func, or_, select, update
from sqlalchemy.orm import Session

from executor.database.statements import execute_and_count, insert_into
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.allocations import Allocation, CloneTarget
from executor.database.times import db_now

#: The key of the PostgreSQL advisory lock. The value is the ASCII text "SMIA".
LOCK_KEY = 0x534D4941
#: An allocation counts for at most this time after its start. An older row exists only if the end of its run was not
#: stored.
MAX_ALLOCATION_AGE_S = 7200.0
#: After the end of its run, an allocation counts until Proxmox's list of VMs contains the VM's memory and cores, but at
#: most for this time.
MAX_COUNTED_TIME_AFTER_RUN_END_S = 120.0
#: A target for which no clone was requested during this time is ignored and deleted, because the settings may name
#: another storage now.
MAX_TARGET_IDLE_S = 86_400.0
#: The agent's clock and the database's clock may measure the age of a list of VMs differently, by at most this time.
CLOCK_TOLERANCE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class AllocationOwner:
    """The agent that calls a function of this module. It owns the rows that contain its `boot_id`."""

    boot_id: str  #: `AgentProcessRow.id`, a random id that each agent process chooses at its start
    cluster: str  #: the agent's setting SMITH_CLUSTER
    vanished_after_s: float  #: an agent that was last seen (`AgentProcessRow.seen_at`) longer ago counts as ended


def lock_tables(session: Session) -> None:
    """Take the lock of both tables. Other agents that call this function wait until this transaction has ended."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(LOCK_KEY)))


# --- memory and cores -------------------------------------------------------------------------------------------------


def allocations_of_other_agents(
    session: Session, owner: AllocationOwner, *, vm_list_age_s: float, vmids_of_unknown_size: Collection[int]
) -> Sequence[Allocation]:
    """Return the other agents' allocations that this agent must count in addition to its list of Proxmox's VMs.

    `vm_list_age_s` is the time since this agent read the list. `vmids_of_unknown_size` are the VMs whose memory and
    cores the list lacks, because their Proxmox nodes have sent no statistics of them.
    """
    is_in_progress = and_(Allocation.ended_at.is_(None), _is_recently_started_and_agent_running(owner))
    has_ended_since_list_was_read = Allocation.ended_at > db_now(-vm_list_age_s - CLOCK_TOLERANCE_S)
    is_of_unknown_size = Allocation.vmid.in_(vmids_of_unknown_size) & (
        Allocation.ended_at > db_now(-MAX_COUNTED_TIME_AFTER_RUN_END_S)
    )
    is_of_other_agent = (Allocation.cluster == owner.cluster) & (Allocation.boot_id != owner.boot_id)
    stmt = select(Allocation).where(
        is_of_other_agent, or_(is_in_progress, has_ended_since_list_was_read, is_of_unknown_size)
    )
    return session.scalars(stmt).all()


def store_allocation(  # noqa: PLR0913 (one parameter for each column)
    session: Session, owner: AllocationOwner, *, vmid: int, node: str, memory_bytes: int, cores: int
) -> None:
    """Store an allocation for a VM. Replace an earlier allocation of the VM, also if another agent has stored it."""
    values: dict[str, Any] = {
        "cluster": owner.cluster,
        "vmid": vmid,
        "boot_id": owner.boot_id,
        "node": node,
        "memory_bytes": memory_bytes,
        "cores": cores,
        "started_at": db_now(),
        "ended_at": None,
        "clone_target": None,
        "is_cloning": False,
    }
    stmt = insert_into(session, Allocation).values(values)
    session.execute(stmt.on_conflict_do_update(index_elements=["cluster", "vmid"], set_=values))


def end_allocation(session: Session, owner: AllocationOwner, vmid: int) -> None:
    """Store that the run for this VM has ended, and that Proxmox is not cloning for the run."""
    columns = {"ended_at": db_now(), "is_cloning": False}
    session.execute(_update_own_allocation(owner, vmid).where(Allocation.ended_at.is_(None)).values(**columns))


def delete_obsolete_allocations(session: Session, owner: AllocationOwner, kept_vmids: Collection[int]) -> None:
    """Delete all old rows, and the rows of this agent that are neither in `kept_vmids` nor recently ended.

    A row is old if its run ended more than MAX_COUNTED_TIME_AFTER_RUN_END_S ago or started more than
    MAX_ALLOCATION_AGE_S ago. A row is recently ended if its run ended less than MAX_COUNTED_TIME_AFTER_RUN_END_S ago.
    `kept_vmids` are the VMIDs of the allocations that this agent has in its memory.
    """
    is_own_and_not_kept = (Allocation.boot_id == owner.boot_id) & Allocation.vmid.not_in(kept_vmids)
    is_old = or_(
        Allocation.ended_at < db_now(-MAX_COUNTED_TIME_AFTER_RUN_END_S),
        Allocation.started_at < db_now(-MAX_ALLOCATION_AGE_S),
    )
    # Other agents need a recently ended row, because their lists of VMs may be older than the end of the run.
    is_recently_ended = Allocation.ended_at > db_now(-MAX_COUNTED_TIME_AFTER_RUN_END_S)
    session.execute(
        delete(Allocation).where(or_(and_(is_own_and_not_kept, func.coalesce(~is_recently_ended, True)), is_old))
    )


def _update_own_allocation(owner: AllocationOwner, vmid: int) -> Any:
    is_own = (Allocation.cluster == owner.cluster) & (Allocation.boot_id == owner.boot_id)
    return update(Allocation).where(is_own, Allocation.vmid == vmid)


def _is_recently_started_and_agent_running(owner: AllocationOwner) -> ColumnElement[bool]:
    """Return the SQL condition that a row's run started less than MAX_ALLOCATION_AGE_S ago and its agent is running."""
    is_running = (
        (AgentProcessRow.id == Allocation.boot_id)
        & AgentProcessRow.stopped_at.is_(None)
        & (AgentProcessRow.seen_at > db_now(-owner.vanished_after_s))
    )
    return select(AgentProcessRow.id).where(is_running).exists() & (
        Allocation.started_at > db_now(-MAX_ALLOCATION_AGE_S)
    )


# --- clones -----------------------------------------------------------------------------------------------------------


def store_clone_start_if_below_limit(
    session: Session, owner: AllocationOwner, *, vmid: int, target: str, max_clones: int
) -> bool:
    """Store that a clone starts on a target, and return True. If the target's limit is reached, return False.

    In both cases, first store that the target is used now. The caller has called `lock_tables`, and has stored the VM's
    allocation.
    """
    limit = _store_use_and_return_limit(session, owner, target, max_clones)
    is_on_target = (Allocation.cluster == owner.cluster) & (Allocation.clone_target == target)
    is_counted = or_(Allocation.boot_id == owner.boot_id, _is_recently_started_and_agent_running(owner))
    running_clone_count = select(func.count()).where(is_on_target, Allocation.is_cloning, is_counted)
    if (session.scalar(running_clone_count) or 0) >= min(limit, max_clones):
        return False
    session.execute(_update_own_allocation(owner, vmid).values(clone_target=target, is_cloning=True))
    return True


def _store_use_and_return_limit(session: Session, owner: AllocationOwner, target: str, max_clones: int) -> int:
    """Store that the target is used now; return how many clones may run there.

    The parameter `max_clones` is this agent's setting SMITH_CLONES_PER_STORAGE. The column `max_clones` contains the
    target's limit. The column `highest` contains the highest setting that an agent has stored so far. If this agent's
    setting is higher than `highest`, an operator has raised the setting. Then the setting becomes the
    target's limit, even if `halve_clone_limit` has lowered the limit.
    """
    session.execute(delete(CloneTarget).where(CloneTarget.used_at < db_now(-MAX_TARGET_IDLE_S)))
    columns = {"max_clones": max_clones, "highest": max_clones, "used_at": db_now()}
    new_target: dict[str, Any] = {"cluster": owner.cluster, "name": target, "successes": 0} | columns
    stmt = insert_into(session, CloneTarget).values(new_target)
    session.execute(stmt.on_conflict_do_nothing(index_elements=["cluster", "name"]))
    is_setting_raised = _is_target(owner, target) & (CloneTarget.highest < max_clones)
    if execute_and_count(session, update(CloneTarget).where(is_setting_raised).values(columns)) == 0:
        session.execute(update(CloneTarget).where(_is_target(owner, target)).values(used_at=db_now()))
    return session.scalar(select(CloneTarget.max_clones).where(_is_target(owner, target))) or max_clones


def mark_clone_ended(session: Session, owner: AllocationOwner, vmid: int) -> None:
    """Store that Proxmox has made the clone. The run continues: it configures and starts the VM."""
    session.execute(_update_own_allocation(owner, vmid).values(is_cloning=False))


def halve_clone_limit(session: Session, owner: AllocationOwner, target: str) -> int:
    """Halve the limit of a target and return the new limit.

    A clone on the target has failed, because Proxmox did not get its lock of a storage or a guest in time. The caller
    has called `lock_tables`.
    """
    row = session.get_one(CloneTarget, (owner.cluster, target))
    row.max_clones, row.successes = max(row.max_clones // 2, 1), 0
    return row.max_clones


def count_successful_clone(
    session: Session, owner: AllocationOwner, target: str, *, max_clones: int, successes_per_raise: int
) -> None:
    """Count a successful clone on a target whose limit is lower than this agent's setting `max_clones`.

    After every `successes_per_raise` successful clones, raise the limit by one.
    """
    is_lowered = _is_target(owner, target) & (CloneTarget.max_clones < max_clones)
    row = session.scalar(select(CloneTarget).where(is_lowered).with_for_update())
    if row is None:
        return
    row.successes += 1
    if row.successes >= successes_per_raise:
        row.max_clones, row.successes = row.max_clones + 1, 0


def max_creates(owner: AllocationOwner, max_clones: int) -> ScalarSelect[int]:
    """Return the SQL expression for the number of create jobs that all agents together may run at the same time.

    The number is the sum of the limits of all recently used targets, plus the number of running create jobs whose clone
    has ended. `max_clones` is the setting of this agent. A limit that is higher than `max_clones` is counted as
    `max_clones`. If no target was used recently, `max_clones` replaces the sum.
    """
    is_used = (CloneTarget.cluster == owner.cluster) & (CloneTarget.used_at >= db_now(-MAX_TARGET_IDLE_S))
    limit = case((CloneTarget.max_clones > max_clones, max_clones), else_=CloneTarget.max_clones)
    sum_of_limits = select(func.sum(limit)).where(is_used).scalar_subquery()
    has_cloned = Allocation.clone_target.is_not(None) & ~Allocation.is_cloning & Allocation.ended_at.is_(None)
    create_job_count_after_clone = (
        select(func.count())
        .select_from(Allocation)
        .where(Allocation.cluster == owner.cluster, has_cloned, _is_recently_started_and_agent_running(owner))
        .scalar_subquery()
    )
    return select(func.coalesce(sum_of_limits, max_clones) + create_job_count_after_clone).scalar_subquery()


def _is_target(owner: AllocationOwner, target: str) -> ColumnElement[bool]:
    return (CloneTarget.cluster == owner.cluster) & (CloneTarget.name == target)
