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

    #: What a query uses to read: a connection of the Core, or a session of the ORM. A session first stores the changes
    #: of its objects.
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
runs = table(
    "runs",
    *_integers("id", "job_id", "attempt", "rc"),
    *_texts("ident", "playbook", "status", "reason", "node", "folder"),
    *_times("started_at", "ended_at"),
    *_json_values("upids", "story"),
)
job_events = table(
    "job_events",
    *_integers("id", "job_id", "attempt", "count"),
    *_texts("kind", "text"),
    *_times("first_at", "last_at"),
)
manual_runs = table(
    "manual_runs",
    *_integers("id", "vmid", "pid"),
    *_texts("ident", "service_id", "action", "who", "host", "status", "reason", "output"),
    *_times("started_at", "lease_until", "ended_at"),
    *_json_values("upids"),
)
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
nodes = table(
    "nodes",
    *_integers("pid", "concurrency_wanted", "concurrency"),
    *_texts("id", "host", "version", "stop_reason", "installation_id", "proxmox_error", "agent_id", "cluster"),
    *_flags("draining", "fences"),
    *_times("started_at", "seen_at", "stopped_at", "proxmox_checked_at"),
)
pauses = table("pauses", *_texts("scope", "who", "reason"), *_times("since"))
critical_jobs = table(
    "critical_jobs",
    *_integers("failures", "runs"),
    *_columns(Float(), ["interval_s"]),
    *_texts("name", "last_error", "node"),
    *_times("due_at", "last_started_at", "last_finished_at", "last_ok_at"),
)
moves = table("moves", *_texts("id", "direction", "url", "who"), *_times("started_at", "completed_at"))

#: The columns of runs without `story`, and of manual runs without `output`. The values of these two may be long.
RUN_COLUMNS = [run_column for run_column in runs.c if run_column.name != "story"]
MANUAL_RUN_COLUMNS = [run_column for run_column in manual_runs.c if run_column.name != "output"]
