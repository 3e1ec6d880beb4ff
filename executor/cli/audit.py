"""`smith audit`: lists the changes that operators made to jobs and mappings, and the repairs that the agent made."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples
from executor.cli.output import sanitized, show_json
from executor.cli.store import reading_store
from executor.cli.tables import show_rows
from executor.database import audit
from executor.database.tables import AuditEntry

COLUMNS = {
    "at": "AT",
    "who": "WHO",
    "verb": "VERB",
    "subject_kind": "WHAT",
    "subject_id": "WHICH",
    "change": "CHANGE",
    "reason": "REASON",
}


@examples(
    "smith audit list",
    "smith audit list --verb forget --limit 500 --json",
)
def list_audit(
    subject: Annotated[
        str, typer.Option("--subject", metavar="ID", help="Only this job or service: its id, or its beginning.")
    ] = "",
    verb: Annotated[str, typer.Option("--verb", help="Only this verb: cancel, retry, adopt, forget, ….")] = "",
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="At most this many, the newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List the changes by operators and by the agent, the newest first.

    Entries are never changed and never pruned.
    """
    with reading_store() as store:
        entries = audit.list_entries(store.session, subject=subject.strip(), verb=verb.strip(), limit=limit)
    if as_json:
        show_json([_json_fields(entry) for entry in entries])
        return
    show_rows(
        [_json_fields(entry) | {"change": _change(entry)} for entry in entries], COLUMNS, if_empty="no changes match"
    )


def _json_fields(entry: AuditEntry) -> dict[str, Any]:
    """Return an audit entry as a dictionary with the keys of `--json`."""
    return {
        "id": entry.id,
        "at": entry.at,
        "who": entry.who,
        "verb": entry.verb,
        "subject_kind": entry.subject_kind,
        "subject_id": entry.subject_id,
        "before": entry.before,
        "after": entry.after,
        "reason": entry.reason,
    }


def _change(entry: AuditEntry) -> str:
    """Return the columns that the change has altered as text, for example `state: active -> deleted`."""
    before, after = entry.before or {}, entry.after or {}
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return sanitized("; ".join(f"{name}: {_text(before.get(name))} -> {_text(after.get(name))}" for name in names))


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
