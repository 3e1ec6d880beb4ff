"""The rows and the schema of a database, as the database describes them, to compare two versions of a schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, inspect, text

from executor.database import schema

#: The tables, each with the column that orders its rows. The oldest versions lack some of them.
TABLES = {"jobs": "id", "runs": "id", "mappings": "id", "nodes": "id", "critical_jobs": "name", "audit": "id"} | {
    "secret_references": "sha256",
    "job_events": "id",
    "manual_runs": "id",
    "pauses": "scope",
    "node_limits": "scope",
    "database_use": "id",
    "drift_checks": "cluster",
    "allocations": "vmid",
    "clone_targets": "name",
    "web_sessions": "digest",
    "moves": "id",
}
#: Stored values that a migration has renamed, by its revision, table and column: the new value to the earlier one.
EARLIER_VALUES: dict[tuple[str, str, str], dict[Any, Any]] = {
    ("0005", "jobs", "report_state"): {"overtaken": "orphaned"},
    ("0005", "mappings", "state"): {"pending_deletion": "doomed", "vm_lost": "orphaned"},
    ("0009", "jobs", "report_state"): {"claimed_elsewhere": "abandoned"},
    ("0005", "critical_jobs", "name"): {"PurgeDeletedVms": "DestroyDoomed"},
}

Rows = dict[str, list[dict[str, Any]]]
Columns = Mapping[str, Sequence[str]]


def columns(engine: Engine) -> dict[str, list[str]]:
    """Return the columns that this version of the schema has."""
    inspector = inspect(engine)
    return {
        name: [column["name"] for column in inspector.get_columns(name)] for name in TABLES if inspector.has_table(name)
    }


def rows(engine: Engine, known: Columns | None = None) -> Rows:
    """Return every row of every table, or of the `known` tables with their known columns only.

    Renamed values are returned by their earliest name, so that the rows of two versions can be compared. Only a
    database that has the migration may hold the new name: a downgrade must restore the earlier one.
    """
    known = known or columns(engine)
    revision = schema.current_revision(engine) or ""
    with engine.connect() as connection:
        queries = {name: text(f"SELECT {', '.join(known[name])} FROM {name}") for name in known}  # noqa: S608
        results = {name: connection.execute(query).mappings().all() for name, query in queries.items()}
    return {
        name: sorted((_with_earlier_values(revision, name, row) for row in table), key=lambda row: row[TABLES[name]])
        for name, table in results.items()
    }


def _with_earlier_values(revision: str, table: str, row: Mapping[Any, Any]) -> dict[str, Any]:
    renamed = dict(row)
    for (since, of_table, column), values in sorted(EARLIER_VALUES.items(), reverse=True):
        if since <= revision and of_table == table and column in renamed:
            renamed[column] = values.get(renamed[column], renamed[column])
    return renamed


def shared(first: Columns, second: Columns) -> dict[str, list[str]]:
    """Return the columns that two versions of the schema have in common."""
    return {name: [column for column in first[name] if column in second[name]] for name in first if name in second}


def only(table_rows: Rows, known: Columns) -> Rows:
    """Return the rows with the known columns only."""
    return {name: [{column: row[column] for column in known[name]} for row in table_rows[name]] for name in known}


def shape(engine: Engine) -> dict[str, Any]:
    """Return the tables with columns, indexes and keys, as the database describes them."""
    inspector = inspect(engine)
    return {
        name: (
            {column["name"]: (str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)},
            {index["name"]: (index["column_names"], index["unique"]) for index in inspector.get_indexes(name)},
            inspector.get_pk_constraint(name)["constrained_columns"],
            sorted(key["referred_table"] for key in inspector.get_foreign_keys(name)),
        )
        for name in inspector.get_table_names()
    }
