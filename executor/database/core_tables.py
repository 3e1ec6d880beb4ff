"""Names the tables and columns for queries with SQLAlchemy Core, which read rows without SQLAlchemy's ORM.

A command imports the ORM and the classes in `executor.database.tables` only if it changes rows: these imports would
take a fifth of the CPU time of a command that only reads. A test compares this module with the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Boolean, ColumnClause, Float, Integer, Select, String, column, table
from sqlalchemy.types import TypeEngine

from executor.database.times import UtcDateTime

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    #: What a query uses to read: a connection of SQLAlchemy Core, or a session of the ORM.
    Reader = Connection | Session


class ReadRow(SimpleNamespace):
    """A row that a query has read. It has one attribute for each column that was read.

    A changed attribute would not be stored in the database, so no attribute can be changed.
    """

    def __setattr__(self, name: str, _value: object) -> None:
        raise AttributeError(f"{name} cannot be changed: the row was only read")


def read_rows(reader: Reader, stmt: Select[Any]) -> list[Any]:
    """Return all rows of the result."""
    return [ReadRow(**row) for row in reader.execute(stmt).mappings()]


def read_row(reader: Reader, stmt: Select[Any]) -> Any:
    """Return the first row of the result, or None if the result is empty."""
    row = reader.execute(stmt).mappings().first()
    return None if row is None else ReadRow(**row)


def _columns(column_type: TypeEngine[Any], names: Sequence[str]) -> Iterator[ColumnClause[Any]]:
    return (column(name, column_type) for name in names)


def _texts(*names: str) -> Iterator[ColumnClause[Any]]:
    return _columns(String(), names)


def _integers(*names: str) -> Iterator[ColumnClause[Any]]:
    return _columns(Integer(), names)


def _flags(*names: str) -> Iterator[ColumnClause[Any]]:
    return _columns(Boolean(), names)


def _times(*names: str) -> Iterator[ColumnClause[Any]]:
    return _columns(UtcDateTime(), names)


def _json_values(*names: str) -> Iterator[ColumnClause[Any]]:
    return _columns(JSON(none_as_null=True), names)


# `defect` says why the job cannot run. The columns `reserved_…` contain the amounts that a pending or processing
# job will add to its tenant's usage. `group_id` is the id of the service's group in FulcrumCore.
# At `core_created_at`, FulcrumCore created the job. At `available_at`, the backoff of a pending job ends.
# `crashes` is the number of attempts whose end was not stored, for example because the agent process crashed.
# `is_waiting` is true while the attempt waits before its run: for an answer of Proxmox, or for the end of other clones,
# because the number of parallel clones is limited. A crash during this wait is not counted in `crashes`. At
# `claim_sent_at`, the worker sent the claim of the job to FulcrumCore, which accepted it at `claimed_at`.
# `report_note` says why the report has its state, or why it is retried. At `report_after`, the backoff of the report
# ends. Until `report_claimed_until`, only the agent process that has claimed the report sends it.
jobs = table(
    "jobs",
    *_integers("id", "priority", "attempt", "crashes", "epoch", "report_attempts"),
    *_integers("reserved_vms", "reserved_cores", "reserved_memory_mib", "reserved_disk_gib"),
    *_integers("reserved_snapshots", "reserved_backups"),
    *_texts("fulcrum_id", "service_id", "group_id", "tenant_id", "action", "defect", "status", "owner"),
    *_texts("report_state", "report_note", "error_code", "error_message", "operator_detail", "run_ident"),
    *_flags("cancel_requested", "is_waiting"),
    *_times("available_at", "core_created_at", "deadline_at", "received_at", "lease_until", "claim_sent_at"),
    *_times("claimed_at", "started_at", "finished_at", "reported_at", "report_after", "report_claimed_until"),
    *_json_values("params", "service", "result"),
)
# `story` is a summary of what the run did. `folder` is the path of the artifacts. `node` is the id of the agent process
# that has the artifacts.
runs = table(
    "runs",
    *_integers("id", "job_id", "attempt", "rc"),
    *_texts("ident", "playbook", "status", "reason", "node", "folder"),
    *_times("started_at", "ended_at"),
    *_json_values("upids", "story"),
)
# `count` says how many times the event has happened without another event of the job in between.
job_events = table(
    "job_events",
    *_integers("id", "job_id", "attempt", "count"),
    *_texts("kind", "text"),
    *_times("first_at", "last_at"),
)
# A row is a playbook run that an operator started with a command. The command renews the run's lease, which ends at
# `lease_until`. While the run has not ended and its lease is valid, no agent claims a job of the run's service.
manual_runs = table(
    "manual_runs",
    *_integers("id", "vmid", "pid"),
    *_texts("ident", "service_id", "action", "who", "host", "status", "reason", "output"),
    *_times("started_at", "lease_until", "ended_at"),
    *_json_values("upids"),
)
# `node` is the Proxmox node of the guest. `kind` says whether the guest is a VM or a container. A VM that is pending
# deletion is not deleted before `delete_at`. `note` is the reason for the state, or names the volumes that Proxmox did
# not delete with the VM.
mappings = table(
    "mappings",
    *_integers("id", "vmid", "cores", "memory_mib", "disk_gib", "snapshots", "backups"),
    *_texts("service_id", "cluster", "node", "kind", "name", "marker", "mac_address", "state", "note", "tenant_id"),
    *_times("created_at", "updated_at", "deleted_at", "delete_at"),
)
audit = table(
    "audit",
    *_integers("id"),
    *_texts("who", "verb", "subject_kind", "subject_id", "reason"),
    *_times("at"),
    *_json_values("before", "after"),
)
# A row is an agent process, not a Proxmox node. `concurrency` is the maximum number of jobs that the process can run in
# parallel. `concurrency_wanted` is the number that it may run now: an operator can lower it. The process is `draining`
# if it has begun to stop, and so claims no more jobs. `fences` is true if the process, when it cannot renew its leases,
# ends its own runs before the leases expire. `installation_id` is the id of the process's data folder.
# `agent_id` is the agent's id in FulcrumCore.
nodes = table(
    "nodes",
    *_integers("pid", "concurrency_wanted", "concurrency"),
    *_texts("id", "host", "version", "stop_reason", "installation_id", "proxmox_error", "agent_id", "cluster"),
    *_flags("draining", "fences"),
    *_times("started_at", "seen_at", "stopped_at", "proxmox_checked_at"),
)
# During a pause, agents claim no jobs. `scope` is `all` for all agents. For one agent, `scope` is `node:` and the
# `installation_id` of its process, or the `id` of the process if `installation_id` is NULL.
pauses = table("pauses", *_texts("scope", "who", "reason"), *_times("since"))
# `runs` is the number of executions of the critical job, and `failures` the number of failed executions since the last
# success. `node` is the id of the agent process that executed the critical job last.
critical_jobs = table(
    "critical_jobs",
    *_integers("failures", "runs"),
    *_columns(Float(), ["interval_s"]),
    *_texts("name", "last_error", "node"),
    *_times("due_at", "last_started_at", "last_finished_at", "last_ok_at"),
)
# A move copies all rows to (or from) another database: `direction` is `to` or `from`; `url` is the other database.
moves = table("moves", *_texts("id", "direction", "url", "who"), *_times("started_at", "completed_at"))

#: The columns of runs without `story`, and of manual runs without `output`: the values of `story` and `output` may be
#: long.
RUN_COLUMNS = [run_column for run_column in runs.c if run_column.name != "story"]
MANUAL_RUN_COLUMNS = [run_column for run_column in manual_runs.c if run_column.name != "output"]
