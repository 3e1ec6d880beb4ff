"""`smith audit`: lists the changes that operators made, and the agent's automatic corrections of mappings."""

from __future__ import annotations

from typing import Annotated

import typer

from executor.cli.arguments import AsJson, Since, since_time
from executor.cli.completion import complete_service
from executor.cli.help_text import examples
from executor.cli.output import show_json
from executor.cli.store import read_only_transaction
from executor.cli.tables import show_rows
from executor.database import audit_queries
from executor.views.audit_rows import change_text, json_fields

COLUMNS = {
    "at": "AT",
    "who": "WHO",
    "verb": "VERB",
    "subject_kind": "KIND",
    "subject_id": "ID",
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
        typer.Option(
            "--subject",
            metavar="ID",
            help="Only entries about the job or service whose id begins with this text.",
            autocompletion=complete_service,
        ),
    ] = "",
    verb: Annotated[
        str,
        typer.Option(
            "--verb",
            help="Only entries with this verb, such as cancel, retry, adopt, forget (a mapping was marked as deleted, "
            "for example by `smith mappings forget`) or erase (`smith forget` erased a service's data).",
        ),
    ] = "",
    since: Since = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000, help="At most this many entries, the newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List operators' changes and the agent's corrections of mappings, the newest first.

    Entries are never deleted. `smith forget` erases the old values, the new values and the reasons of entries
    about ended services (no VM, no unfinished job).
    """
    with read_only_transaction() as transaction:
        entries = audit_queries.list_entries(
            transaction.connection,
            subject_id_prefix=subject.strip(),
            verb=verb.strip(),
            since=since_time(since),
            limit=limit,
        )
    if as_json:
        show_json([json_fields(entry) for entry in entries])
        return
    rows = [json_fields(entry) | {"change": change_text(entry)} for entry in entries]
    show_rows(rows, COLUMNS, if_empty="no changes match")
