"""Reads the agent processes, the pauses and the critical jobs.

A row of the table `nodes` is one agent process, not a Proxmox node. Its id is the boot id, which the process chooses at
its start. During a pause, agents claim no jobs. The scope of a pause is ALL_AGENTS, or names the data folder of one
agent process, so that the pause outlasts a restart of the process. A critical job is periodic work of the agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import func, select

# `core_tables` names the tables for queries with SQLAlchemy Core.
from executor.database.core_tables import critical_jobs, jobs, nodes, pauses, read_row, read_rows
from executor.database.literals import PROCESSING_LITERAL  # SQLite uses a partial index only for a literal
from executor.database.pause_scopes import ALL_AGENTS, NODE_SCOPE_PREFIX

if TYPE_CHECKING:  # The import of these classes is slow. A query returns read-only rows with the same attributes.
    # A Reader is a connection or a session.
    from executor.database.core_tables import Reader
    from executor.database.tables.agents import AgentProcessRow, CriticalJob, Pause


def most_recently_seen_processes(reader: Reader, limit: int) -> Sequence[AgentProcessRow]:
    """Return the rows of at most `limit` agent processes. The process that was running most recently is first."""
    return read_rows(reader, select(nodes).order_by(nodes.c.seen_at.desc(), nodes.c.id).limit(limit))


def processes_without_stop_time(reader: Reader) -> Sequence[AgentProcessRow]:
    """Return the rows of the agent processes without a `stopped_at`. A process that was killed may have none."""
    return read_rows(reader, select(nodes).where(nodes.c.stopped_at.is_(None)).order_by(nodes.c.seen_at.desc()))


def find_process_not_stopped(reader: Reader, boot_id: str) -> AgentProcessRow | None:
    """Return the row of this agent process; None if it does not exist, or has a `stopped_at`."""
    stmt = select(nodes).where(nodes.c.id == boot_id, nodes.c.stopped_at.is_(None))
    process: AgentProcessRow | None = read_row(reader, stmt)
    return process


def running_job_counts(reader: Reader) -> dict[str, int]:
    """Return how many jobs each agent process owns. The keys are boot ids."""
    counts = select(jobs.c.owner, func.count()).where(jobs.c.status == PROCESSING_LITERAL).group_by(jobs.c.owner)
    return {owner: count for owner, count in reader.execute(counts) if owner is not None}


def find_pause(reader: Reader, scope: str = ALL_AGENTS) -> Pause | None:
    """Return the pause of this scope, or None if there is none."""
    pause: Pause | None = read_row(reader, select(pauses).where(pauses.c.scope == scope))
    return pause


def process_pauses_by_scope(reader: Reader) -> dict[str, Pause]:
    """Return the pauses of single agent processes. The keys are their scopes."""
    has_prefix = pauses.c.scope.startswith(NODE_SCOPE_PREFIX, autoescape=True)
    return {pause.scope: pause for pause in read_rows(reader, select(pauses).where(has_prefix))}


def list_critical_jobs(reader: Reader) -> Sequence[CriticalJob]:
    """Return the critical jobs, ordered by name."""
    return read_rows(reader, select(critical_jobs).order_by(critical_jobs.c.name))
