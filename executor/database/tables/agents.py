"""Defines the tables of agent processes, limits, pauses, critical jobs, and the only agent that may use the database.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime

from sqlalchemy import Boolean, Integer, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base


class AgentProcessRow(Base):
    """A row for one start of an agent process.

    Only the modules `nodes` and `database_use` of `executor.database` write this table.
    """

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)  #: `boot_id`, a random id that the process chooses
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    version: Mapped[str] = mapped_column(String(40))
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]  #: when the process was last known to be running
    stopped_at: Mapped[datetime | None]
    stop_reason: Mapped[str | None] = mapped_column(String(40))
    #: How many jobs the process may run in parallel now: the lower of `concurrency` and the operator's limit.
    concurrency_wanted: Mapped[int]
    concurrency: Mapped[int]  #: the maximum number of jobs that the process can run in parallel
    #: True if the process has begun to stop, and so claims no more jobs. The value stays True after it has stopped. A
    #: pause by an operator does not change the value.
    draining: Mapped[bool] = mapped_column(Boolean, default=False)
    #: True if the process fences itself: if it cannot renew its leases, it ends its own runs before the leases expire.
    #: False: if the current attempt of a job has started a run, other processes reap the job only after the job's
    #: deadline.
    fences: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    installation_id: Mapped[str | None] = mapped_column(String(32))  #: the id of the process's data folder
    proxmox_checked_at: Mapped[datetime | None]  #: when the process last checked whether Proxmox answers
    proxmox_error: Mapped[str | None] = mapped_column(Text)  #: the error of this check; None if Proxmox answered
    #: FulcrumCore's id of the agent. None before the first heartbeat, and always None on SQLite.
    agent_id: Mapped[str | None] = mapped_column(String(36))
    cluster: Mapped[str | None] = mapped_column(String(100))  #: the name of the Proxmox cluster (SMITH_CLUSTER)


class NodeLimit(Base):
    """How many jobs an agent process may run in parallel, if an operator has set a limit.

    Only the module `nodes` writes this table.
    """

    __tablename__ = "node_limits"

    #: `node:` and the process's `installation_id`: the limit also applies to later processes with the same data folder.
    #: If `installation_id` is NULL, `node:` and the process's `boot_id`: the limit applies only to this process.
    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    max_jobs: Mapped[int]


class Pause(Base):
    """A pause by an operator. During the pause, the agent processes in `scope` claim no jobs.

    Only the module `pauses` writes this table.
    """

    __tablename__ = "pauses"

    #: `all`: all agent processes that use the database. Or a text as in `NodeLimit.scope`.
    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    since: Mapped[datetime]
    who: Mapped[str] = mapped_column(String(100))  #: the operator's user name in the operating system
    reason: Mapped[str] = mapped_column(Text)


class DatabaseUse(Base):
    """The only agent of FulcrumCore whose processes may use this database now.

    The table has one row, and on SQLite no row. Only the module `database_use` writes this table.
    """

    __tablename__ = "database_use"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    agent_id: Mapped[str] = mapped_column(String(36))
    cluster: Mapped[str] = mapped_column(String(100))
    confirmed_at: Mapped[datetime]  #: when a process of the agent last found that FulcrumCore accepts its token


class CriticalJob(Base):
    """A critical job: a periodic task of the agent, such as Heartbeat. Only the module `periods` writes this table."""

    __tablename__ = "critical_jobs"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    interval_s: Mapped[float]
    due_at: Mapped[datetime | None]  #: when the next execution is due
    last_started_at: Mapped[datetime | None]
    last_finished_at: Mapped[datetime | None]
    last_ok_at: Mapped[datetime | None]  #: when an execution last succeeded
    last_error: Mapped[str | None] = mapped_column(Text)
    failures: Mapped[int] = mapped_column(Integer, default=0)  #: the number of failed executions since the last success
    runs: Mapped[int] = mapped_column(Integer, default=0)  #: the number of executions
    node: Mapped[str | None] = mapped_column(String(64))  #: `boot_id` of the agent process that last executed it
