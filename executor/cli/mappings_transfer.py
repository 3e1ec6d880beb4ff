"""`smith mappings export` and `import`: copy the current mappings to the database of another host."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli.arguments import AsJson, CommandFailed, confirm
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.mapping_changes import record_change
from executor.cli.output import show_json, show_outcome, show_text
from executor.cli.store import open_database
from executor.cli.tables import show_rows
from executor.database import mapping_transfer
from executor.database.engine import read_only_session, transaction
from executor.errors import EXIT_FAILURE, EXIT_SOME_FAILED
from executor.views.text import count_with_noun

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

#: The value of the key `format` in a file of `smith mappings export`. Other files are refused.
EXPORT_FORMAT = "agent-smith-mappings-1"
MAX_FILE_BYTES = 256 * 1024 * 1024
#: The columns of the printed table: maps each key of a row to the heading of its column.
COLUMNS = {
    "service_id": "SERVICE",
    "cluster": "CLUSTER",
    "vmid": "VMID",
    "name": "NAME",
    "outcome": "OUTCOME",
    "why": "WHY",
}
#: What happens to a mapping of the file: the values of the column `outcome`. UNCHANGED: the database already has
#: this mapping. The text is "imported before" even if a job, and not an import, has made the mapping.
REFUSED, TO_IMPORT, IMPORTED, UNCHANGED = "refused", "would be imported", "imported", "imported before"


class _RollBack(Exception):
    """Raised at the end of a dry run, so that its transaction is rolled back."""


@examples(
    "smith mappings export mappings.json",
    "smith mappings export mappings.json --json",
)
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The new file; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Write the current mappings into a file for `smith mappings import`.

    Only you can read the file. Deleted mappings are not written.
    """
    with open_database(open_settings()) as engine, read_only_session(engine) as session:
        rows = mapping_transfer.export_mappings(session)
    try:
        with os.fdopen(
            os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as opened_file:
            json.dump({"format": EXPORT_FORMAT, "mappings": rows}, opened_file, indent=1)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None
    text = f"{count_with_noun(len(rows), 'mapping')} written to {file}"
    show_outcome(text, as_json=as_json, file=str(file), mappings=len(rows))


@examples(
    "smith mappings import mappings.json --dry-run",
    "smith mappings import mappings.json --yes --reason 'new host'",
)
def import_mappings(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file of `smith mappings export`.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Insert the mappings that `smith mappings export` has written on another host.

    Proxmox and FulcrumCore are not called; `smith drift` compares the mappings with both. Stop the agent of the
    other host before the export. A mapping is refused if this database has another mapping of its service or its VMID.
    A second import of the same file changes nothing.
    """
    exported_mappings = _read_mappings(file)
    with open_database(open_settings()) as engine:
        rows = _import_all(engine, exported_mappings, reason, is_dry_run=True)
        new_count = sum(row["outcome"] == TO_IMPORT for row in rows)
        if new_count and not dry_run:
            confirm(f"Import {count_with_noun(new_count, 'mapping')}?", yes=yes)
            rows = _import_all(engine, exported_mappings, reason, is_dry_run=False)
    _show_outcomes(rows, as_json=as_json)
    refused_count = sum(row["outcome"] == REFUSED for row in rows)
    if refused_count:
        raise typer.Exit(EXIT_FAILURE if refused_count == len(rows) else EXIT_SOME_FAILED)


def _read_mappings(file: Path) -> list[dict[str, Any]]:
    """Return the mappings in the file. Raises CommandFailed if `smith mappings export` has not written the file."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CommandFailed(
                f"{file} is larger than {MAX_FILE_BYTES // 1024**2} MiB, so it is no file of `smith mappings export`"
            )
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        document = None
    exported_mappings = (
        document.get("mappings") if isinstance(document, dict) and document.get("format") == EXPORT_FORMAT else None
    )
    if not isinstance(exported_mappings, list) or not all(
        isinstance(exported_mapping, dict) for exported_mapping in exported_mappings
    ):
        raise CommandFailed(f"{file} was not written by `smith mappings export`")
    return exported_mappings


def _import_all(
    engine: Engine, exported_mappings: list[dict[str, Any]], reason: str, *, is_dry_run: bool
) -> list[dict[str, Any]]:
    """Insert all mappings in one transaction, and return a row of the printed table for each mapping.

    A dry run inserts the mappings and rolls the transaction back, so that it refuses the same mappings as an import.
    """
    rows: list[dict[str, Any]] = []
    try:
        with transaction(engine) as session:
            rows += [_import_mapping(session, exported_mapping, reason) for exported_mapping in exported_mappings]
            if is_dry_run:
                raise _RollBack
    except _RollBack:
        return [row | {"outcome": TO_IMPORT} if row["outcome"] == IMPORTED else row for row in rows]
    return rows


def _import_mapping(session: Session, exported_mapping: dict[str, Any], reason: str) -> dict[str, Any]:
    """Insert a mapping, if it is new and is not refused. Return the mapping's row of the printed table."""
    row = {name: exported_mapping.get(name) for name in ("service_id", "cluster", "vmid", "name")}
    if problem := mapping_transfer.find_import_problem(exported_mapping):
        return row | {"outcome": REFUSED, "why": problem}
    if mapping_transfer.has_mapping_to_same_vm(session, exported_mapping):
        return row | {"outcome": UNCHANGED, "why": None}
    mapping = mapping_transfer.insert_mapping(session, exported_mapping)
    if mapping is None:
        return row | {"outcome": REFUSED, "why": "this database has another mapping of the service or of the VMID"}
    # Write an entry of the audit log. `columns_before` is None, because the mapping is new.
    record_change(session, "import", mapping, columns_before=None, reason=reason)
    return row | {"outcome": IMPORTED, "why": None}


def _show_outcomes(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        show_json(rows)
        return
    show_rows(rows, COLUMNS, if_empty="the file has no mappings")
    counts = Counter(row["outcome"] for row in rows)
    show_text(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no mappings")
