"""`smith audit`: lists the changes that operators made to jobs and mappings, and the repairs that the agent made."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson, Since, since_time
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
        str,
        typer.Option("--subject", metavar="ID", help="Only the job or service whose id begins with this text."),
    ] = "",
    verb: Annotated[str, typer.Option("--verb", help="Only this verb: cancel, retry, adopt, forget, ….")] = "",
    since: Since = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="At most this many, the newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List the changes that operators and the agent made, the newest first.

    Entries are never pruned. `smith forget` erases the values of some entries.
    """
    with reading_store() as store:
        entries = audit.list_entries(
            store.session,
            subject_id_prefix=subject.strip(),
            verb=verb.strip(),
            since=since_time(since),
            limit=limit,
        )
    if as_json:
        show_json([_json_fields(entry) for entry in entries])
        return
    rows = [_json_fields(entry) | {"change": _describe_change(entry)} for entry in entries]
    show_rows(rows, COLUMNS, if_empty="no changes match")


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


def _describe_change(entry: AuditEntry) -> str:
    """Return the old and the new values of the changed columns as text, for example `state: active -> deleted`."""
    before, after = entry.before or {}, entry.after or {}
    changes = [
        f"{column}: {_text_or_dash(before.get(column))} -> {_text_or_dash(after.get(column))}"
        for column in {**before, **after}
        if before.get(column) != after.get(column)
    ]
    return sanitized("; ".join(changes))


def _text_or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
