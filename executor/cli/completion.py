"""Completes job references, run idents, VMs, services and actions in a shell.

Each function returns the values that begin with the typed text, each with a help text that some shells show. A
completion never fails: without settings or without a database, no value is returned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import TYPE_CHECKING

from executor.errors import SmithError
from executor.views.text import sanitized

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Connection

#: Matches a value that every shell reads as one word.
_PLAIN_WORD = re.compile(r"[A-Za-z0-9._@:+-]+")
#: The maximum number of rows that are read from the database, the newest first.
MAX_ROWS = 200
#: A value, and the help text that some shells show beside it.
Suggestion = tuple[str, str]
CompletionFunction = Callable[[str], list[Suggestion]]


def _filtering_suggestions(list_suggestions: Callable[[str], Iterable[Suggestion]]) -> CompletionFunction:
    """Return a function that returns the results of `list_suggestions` that begin with the typed text.

    After an error, the returned function returns no values. A value that does not match _PLAIN_WORD, such as a VM's
    name with spaces, is omitted, because a shell may read it as several words or as a command.
    """

    @wraps(list_suggestions)
    def complete(incomplete: str) -> list[Suggestion]:
        try:
            help_by_value = dict(list_suggestions(incomplete))
            return [
                (value, sanitized(help_text))
                for value, help_text in help_by_value.items()
                if value.startswith(incomplete) and _PLAIN_WORD.fullmatch(value)
            ]
        except (SmithError, OSError):
            return []

    return complete


@_filtering_suggestions
def complete_job(incomplete: str) -> Iterator[Suggestion]:
    """Yield the numbers of the jobs in our database and, if a text is typed, FulcrumCore's ids of these jobs."""
    from executor.cli.store import read_only_transaction  # noqa: PLC0415 (imported only for a completion)
    from executor.database import queries  # noqa: PLC0415 (imported only for a completion)

    with read_only_transaction() as transaction:
        for job in queries.list_jobs(transaction.connection, limit=MAX_ROWS):
            help_text = f"{job.action} {job.status}"
            yield str(job.id), help_text
            if incomplete:
                yield job.fulcrum_id, help_text


@_filtering_suggestions
def complete_run(incomplete: str) -> Iterator[Suggestion]:
    """Yield the idents of runs."""
    from executor.cli.store import read_only_transaction  # noqa: PLC0415 (imported only for a completion)
    from executor.database import run_queries  # noqa: PLC0415 (imported only for a completion)

    with read_only_transaction() as transaction:
        for run, job in run_queries.newest_job_runs(transaction.connection, MAX_ROWS):
            yield run.ident, f"job {job.id} {run.status or 'running'}"


@_filtering_suggestions
def complete_mapping(incomplete: str) -> Iterator[Suggestion]:
    """Yield the VMIDs and names of mapped VMs and, if a text is typed, the ids of the VMs' services."""
    from executor.cli.store import read_only_transaction  # noqa: PLC0415 (imported only for a completion)

    with read_only_transaction() as transaction:
        for vmid, name, service_id in _list_mapped_vms(transaction.connection):
            yield vmid, name
            if name:
                yield name, f"VM {vmid}"
            if incomplete:
                yield service_id, f"VM {vmid} {name}"


@_filtering_suggestions
def complete_vmid(incomplete: str) -> Iterator[Suggestion]:
    """Yield the VMIDs of mapped VMs."""
    from executor.cli.store import read_only_transaction  # noqa: PLC0415 (imported only for a completion)

    with read_only_transaction() as transaction:
        for vmid, name, _service_id in _list_mapped_vms(transaction.connection):
            yield vmid, name


@_filtering_suggestions
def complete_service(incomplete: str) -> Iterator[Suggestion]:
    """Yield the ids of mapped services."""
    from executor.cli.store import read_only_transaction  # noqa: PLC0415 (imported only for a completion)

    with read_only_transaction() as transaction:
        for vmid, name, service_id in _list_mapped_vms(transaction.connection):
            yield service_id, f"VM {vmid} {name}"


@_filtering_suggestions
def complete_action(incomplete: str) -> Iterator[Suggestion]:
    """Yield the names of all actions: the built-in actions, and the actions in SMITH_ACTIONS_PATH."""
    from executor.cli.actions import action_folders  # noqa: PLC0415 (imported only for a completion)
    from executor.runs import actions  # noqa: PLC0415 (imported only for a completion)

    for action in actions.list_all_actions(action_folders()):
        yield action.name, action.problem  # The problem is why the agent refuses the action, or ''.


def _list_mapped_vms(connection: Connection) -> list[tuple[str, str, str]]:
    """Return the VMID, the VM's name and the service id of the newest mappings that are not deleted."""
    from executor.database import mapping_queries  # noqa: PLC0415 (imported only for a completion)

    rows = mapping_queries.list_mappings(connection, limit=MAX_ROWS)
    return [(str(row.vmid), row.name or "", row.service_id) for row in rows]
