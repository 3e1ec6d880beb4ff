"""Stores one row in the table `nodes` for each start of an agent process. No function commits.

A row of this table is not a Proxmox node. The id of a row is the `boot_id` of the process: a random id that the process
chooses at its start. The same id is in the column `owner` of each job that the process owns.

An operator can limit how many jobs an agent process runs in parallel, or can pause the process. The limit or the pause
is stored for the installation (the data folder) of the process, so it also applies to later processes of the
installation. Limits and pauses have their own tables, whose column `scope` names the installation.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from executor.database import pause_scopes
from executor.database.statements import execute_and_count, insert_into
from executor.database.tables.agents import AgentProcessRow, NodeLimit, Pause
from executor.database.times import db_now, utc_now

#: The length of the column `nodes.stop_reason`.
MAX_STOP_REASON_LENGTH = 40
#: The stop reason of a process that was killed or has crashed. The next process of the installation stores this reason.
STOP_REASON_KILLED = "killed"


@dataclass(frozen=True, kw_only=True)
class AgentProcess:
    """What an agent process stores about itself at its start."""

    boot_id: str  #: the random id that the process chooses
    host: str
    pid: int
    version: str
    concurrency: int  #: the maximum number of jobs that the process runs in parallel
    #: True if the process fences itself: if it cannot renew its leases, it ends its own runs before the leases expire.
    fences: bool = False
    cluster: str | None = None  #: SMITH_CLUSTER, the operator's name for the Proxmox cluster
    installation_id: str | None = None  #: the id of the process's data folder, which at most one process uses at a time


@dataclass(frozen=True, kw_only=True)
class OperatorLimits:
    """Whether an agent process is paused, and how many jobs it may run in parallel now."""

    is_paused: bool = False  #: True if the process must claim no jobs
    max_jobs: int | None = None  #: None if the table `nodes` has no row of the process


def store_agent_start(session: Session, process: AgentProcess) -> None:
    """Store the start of an agent process. An operator's limit for the process's installation stays in force.

    If the row exists already, because the database's answer to an earlier call was lost, the row is updated.
    """
    node = AgentProcessRow(
        id=process.boot_id, host=process.host, pid=process.pid, version=process.version, started_at=utc_now()
    )
    node.draining = False  # set to True when the process begins to stop; a pause by an operator does not change it
    node.fences = process.fences
    node.installation_id = process.installation_id
    node.cluster = process.cluster
    node.concurrency = process.concurrency
    limit = session.get(NodeLimit, pause_scopes.scope_of_agent_process(node))
    # `concurrency_wanted` is how many jobs the process may run in parallel now: the lower one of its own maximum and
    # the operator's limit.
    node.concurrency_wanted = process.concurrency if limit is None else min(limit.max_jobs, process.concurrency)
    # `utc_now` is the clock of this machine. The UPDATE below replaces the time by the database's time (`db_now`).
    node.seen_at = utc_now()
    session.merge(node)
    session.flush()
    session.execute(update(AgentProcessRow).where(AgentProcessRow.id == process.boot_id).values(seen_at=db_now()))


def store_proxmox_check(session: Session, boot_id: str, *, proxmox_error: str | None) -> None:
    """Store that the agent process is running, and the result of the process's last check of Proxmox.

    `proxmox_error` is the error of this check, or None if Proxmox answered.
    """
    columns = {"seen_at": db_now(), "proxmox_checked_at": utc_now(), "proxmox_error": proxmox_error}
    session.execute(update(AgentProcessRow).where(AgentProcessRow.id == boot_id).values(**columns))


def store_lease_renewal(session: Session, boot_id: str, *, fences: bool) -> None:
    """Store that the agent process is running, and whether it ends its runs before its leases expire (`fences`).

    Call this function only in the transaction that renews the leases. Another agent process reads a job's lease and the
    owner's `fences` in one query, and decides by `fences` whether it may reap the job. It reaps the job only if the
    lease is still the same. An unchanged lease means that `fences` is unchanged, because one transaction changes both.
    """
    session.execute(
        update(AgentProcessRow).where(AgentProcessRow.id == boot_id).values(seen_at=db_now(), fences=fences)
    )


def operator_limits(session: Session, boot_id: str) -> OperatorLimits:
    """Return whether an agent process is paused, and how many jobs it may run in parallel now."""
    scope = pause_scopes.NODE_SCOPE_PREFIX + func.coalesce(AgentProcessRow.installation_id, AgentProcessRow.id)
    is_paused = select(Pause.scope).where(Pause.scope == scope).exists()
    row = session.execute(
        select(AgentProcessRow.concurrency_wanted, is_paused).where(AgentProcessRow.id == boot_id)
    ).one_or_none()
    return OperatorLimits() if row is None else OperatorLimits(max_jobs=row[0], is_paused=bool(row[1]))


def set_job_limit(session: Session, node: AgentProcessRow, max_jobs: int | None) -> int:
    """Set how many jobs an agent process may run in parallel; None: as many as the process's settings allow.

    Return the new limit. The agent process reads the limit at the next renewal of its leases. Later processes of
    the installation read it too.
    """
    scope = pause_scopes.scope_of_agent_process(node)
    session.execute(delete(NodeLimit).where(NodeLimit.scope == scope))
    if max_jobs is not None:
        stmt = insert_into(session, NodeLimit).values(scope=scope, max_jobs=max_jobs)
        session.execute(stmt.on_conflict_do_update(index_elements=["scope"], set_={"max_jobs": max_jobs}))
    new_limit = node.concurrency if max_jobs is None else min(max_jobs, node.concurrency)
    session.execute(update(AgentProcessRow).where(AgentProcessRow.id == node.id).values(concurrency_wanted=new_limit))
    return new_limit


def store_agent_draining(session: Session, boot_id: str) -> None:
    """Store that the agent process has begun to stop: it claims no more jobs, and waits for its running jobs."""
    session.execute(update(AgentProcessRow).where(AgentProcessRow.id == boot_id).values(draining=True))


def store_agent_stop(session: Session, boot_id: str, reason: str) -> None:
    """Store that the agent process has stopped, and the reason. Also set the column `draining` to True."""
    columns = {"stopped_at": utc_now(), "stop_reason": reason[:MAX_STOP_REASON_LENGTH], "draining": True}
    session.execute(update(AgentProcessRow).where(AgentProcessRow.id == boot_id).values(**columns))


def boot_ids_of_earlier_processes(session: Session, process: AgentProcess) -> set[str]:
    """Return the boot ids of the earlier processes of this installation.

    Such processes have the same host and the same installation id. The host is compared because a copy of the data
    folder on another host has the same installation id.
    """
    return set(session.scalars(select(AgentProcessRow.id).where(_is_earlier_process(process))))


def store_ends_of_earlier_processes(session: Session, process: AgentProcess) -> None:
    """Store the end of each earlier process of this installation that could not store its own stop."""
    columns = {"stopped_at": utc_now(), "stop_reason": STOP_REASON_KILLED, "draining": True}
    is_not_stopped = AgentProcessRow.stopped_at.is_(None)
    session.execute(update(AgentProcessRow).where(_is_earlier_process(process), is_not_stopped).values(**columns))


def _is_earlier_process(process: AgentProcess) -> ColumnElement[bool]:
    """Return the SQL condition that a row is of an earlier process of this installation.

    If this process has no installation id, the condition is false for each row.
    """
    is_same_installation = (AgentProcessRow.host == process.host) & (
        AgentProcessRow.installation_id == process.installation_id
    )
    return (AgentProcessRow.id != process.boot_id) & is_same_installation & AgentProcessRow.installation_id.is_not(None)


def has_other_agents(session: Session, boot_id: str, *, within_s: float) -> bool:
    """Return whether another agent process, which has not stopped, was running within the last `within_s` seconds."""
    is_other = (
        (AgentProcessRow.id != boot_id)
        & AgentProcessRow.stopped_at.is_(None)
        & (AgentProcessRow.seen_at >= db_now(-within_s))
    )
    return session.scalar(select(AgentProcessRow.id).where(is_other).limit(1)) is not None


def prune(session: Session, *, seen_before: datetime) -> int:
    """Delete the rows of agent processes that were last running before `seen_before`. Return the number of rows."""
    return execute_and_count(session, delete(AgentProcessRow).where(AgentProcessRow.seen_at < seen_before))
