"""Defines the tables of jobs, of their runs and events, and of playbook runs that operators start.

This module has no `from __future__ import annotations`: with it, the annotations would be texts, and SQLAlchemy would
compile each of these texts at the start of every command that reads the database.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ForeignKey,
    Integer,
    String,
    Text,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from executor.database.tables.base import Base
from executor.model import JobStatus, ReportState


class Job(Base):
    """A job. Only the modules `job_queue`, `reaping`, `reopening`, `outbox` and `erasure` write this table.

    If FulcrumCore lists an ended job as Pending or Processing, `reopening` makes the job pending again, or its report
    due again. `erasure` deletes the jobs of a service that has no VM and whose jobs have ended.
    """

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    fulcrum_id: Mapped[str] = mapped_column(String(36), unique=True)
    service_id: Mapped[str | None] = mapped_column(String(36))
    group_id: Mapped[str | None] = mapped_column(String(36))  #: the id of the service's group in FulcrumCore
    tenant_id: Mapped[str | None] = mapped_column(String(36))  #: the participant in FulcrumCore that uses the service
    action: Mapped[str] = mapped_column(String(100))
    #: The properties that the job itself contains, as JSON from FulcrumCore's API.
    params: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    #: The service of the job, as JSON from FulcrumCore's API.
    service: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    defect: Mapped[str | None] = mapped_column(Text)  #: what is invalid in the job that FulcrumCore sent
    priority: Mapped[int] = mapped_column(Integer, default=1)  #: jobs with a higher number are claimed first
    status: Mapped[str] = mapped_column(String(20), default=JobStatus.PENDING)
    #: The number of attempts. Each new owner adds one. If an attempt ends for a reason outside the job, for example an
    #: outage of FulcrumCore, one is subtracted.
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    #: How many past attempts stopped without a stored end, possibly because of the job, for example by a crash of the
    #: agent process. An attempt that only waited (`is_waiting`) does not count.
    crashes: Mapped[int] = mapped_column(Integer, default=0)
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    available_at: Mapped[datetime | None]  #: when the backoff of a pending job ends
    core_created_at: Mapped[datetime]  #: when FulcrumCore created the job
    deadline_at: Mapped[datetime]  #: when FulcrumCore fails a job that has not ended (by FulcrumCore's clock)
    received_at: Mapped[datetime]
    #: The random id (`boot_id`) of the agent process that claimed the job.
    owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(Integer, default=0)  #: the fencing token, which is raised when the owner changes
    #: True while the current attempt, before it starts a run, waits until the agent has read the state of the
    #: Proxmox cluster, or until a clone slot (the permission to run one clone) is free.
    is_waiting: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    claim_sent_at: Mapped[datetime | None]  #: when the worker last tried to claim the job at FulcrumCore
    claimed_at: Mapped[datetime | None]  #: when FulcrumCore accepted the claim
    started_at: Mapped[datetime | None]  #: when the latest run of the job started
    finished_at: Mapped[datetime | None]
    reported_at: Mapped[datetime | None]  #: when FulcrumCore accepted the report, or refused it finally
    report_state: Mapped[str] = mapped_column(String(20), default=ReportState.NONE)  #: NONE: the job has not ended
    report_attempts: Mapped[int] = mapped_column(Integer, default=0)
    report_after: Mapped[datetime | None]  #: when the reporter may retry a failed report
    #: An agent process sets this time before it sends the report. Until this time, no other process may send it.
    #: The column is NULL on SQLite, which only one agent process uses.
    report_claimed_until: Mapped[datetime | None]
    #: The reason for `report_state`, or why the last report failed.
    report_note: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(String(40))
    error_message: Mapped[str | None] = mapped_column(Text)  #: the error text for FulcrumCore and tenants
    operator_detail: Mapped[str | None] = mapped_column(Text)  #: a more detailed error text, for operators only
    #: The facts about the VM that the playbook returned (`vm_result`); NULL if there are none.
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    run_ident: Mapped[str | None] = mapped_column(String(64))  #: `Run.ident` of the latest run
    #: This column and the following columns say by how much the job will raise its tenant's usage. While the job is
    #: pending or processing, the amounts count against the tenant's limits.
    reserved_vms: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_cores: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_memory_mib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_disk_gib: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_snapshots: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_backups: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


class Run(Base):
    """One playbook run of a job."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    ident: Mapped[str] = mapped_column(String(64), unique=True)  #: the name of the run and of its artifacts
    attempt: Mapped[int]
    playbook: Mapped[str] = mapped_column(String(100))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    rc: Mapped[int | None]  #: the return code of the run
    status: Mapped[str | None] = mapped_column(String(20))  #: a `RunStatus`
    reason: Mapped[str | None] = mapped_column(Text)  #: the error message of the run; none after a success
    #: Not a Proxmox node: the `boot_id` of the agent process that has the artifacts.
    node: Mapped[str | None] = mapped_column(String(64))
    folder: Mapped[str | None] = mapped_column(Text)  #: the path of the folder of the artifacts
    upids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))  #: ids of the run's Proxmox tasks
    #: A summary of what the run has done so far (`executor.runs.story`). Only queries that name the column load it.
    story: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)


class JobEvent(Base):
    """An unusual event of a job, such as a reaping. Only the module `job_events` writes this table."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(20))  #: a `JobEventKind`
    text: Mapped[str] = mapped_column(Text)  #: the reason, for the operator
    attempt: Mapped[int]  #: `Job.attempt` at the time of the event
    count: Mapped[int]  #: how many times the event has happened without another event in between
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]


class ManualRun(Base):
    """A playbook run that an operator started with a command. Only the module `manual_runs` writes this table.

    While `ended_at` is NULL and the lease has not expired, no job of the service is claimed.
    """

    __tablename__ = "manual_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    ident: Mapped[str] = mapped_column(String(64), unique=True)  #: the name of the run
    service_id: Mapped[str] = mapped_column(String(36))
    vmid: Mapped[int | None]
    action: Mapped[str] = mapped_column(String(100))
    who: Mapped[str] = mapped_column(String(100))  #: the operator's user name in the operating system
    host: Mapped[str] = mapped_column(String(255))  #: the host of the process that runs the command
    pid: Mapped[int]
    started_at: Mapped[datetime]
    lease_until: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    status: Mapped[str | None] = mapped_column(String(20))  #: a `RunStatus`
    reason: Mapped[str | None] = mapped_column(Text)  #: the error message of the run; none after a success
    upids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))  #: ids of the run's Proxmox tasks
    #: The beginning and the end of the playbook's output, without secrets. Only `run_queries.find_manual_run` reads it.
    output: Mapped[str | None] = mapped_column(Text, deferred=True)
