"""Completes job references, run idents, VMs, services and actions in a shell.

Each function returns the values that begin with what the operator has typed, each with a help text that some shells
show. A completion never fails: without settings or without a database, no value is returned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import TYPE_CHECKING

from executor.errors import SmithError
from executor.views.text import sanitized

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session

#: A value that every shell reads as one word.
_PLAIN_WORD = re.compile(r"[A-Za-z0-9._@:+-]+")
#: The maximum number of rows that are read from the database, the newest first.
MAX_ROWS = 200
#: A value, and the help text that some shells show beside it.
Value = tuple[str, str]
Complete = Callable[[str], list[Value]]


def _matching(values_of: Callable[[str], Iterable[Value]]) -> Complete:
    """Return a function that returns those results of `values_of` that begin with the typed text.

    After an error, the returned function returns no values. A value that does not match _PLAIN_WORD, such as a VM's
    name with spaces, is omitted, because a shell may read it as several words or as a command.
    """

    @wraps(values_of)
    def complete(incomplete: str) -> list[Value]:
        try:
            values = dict(values_of(incomplete))
            return [
                (value, sanitized(help_text))
                for value, help_text in values.items()
                if value.startswith(incomplete) and _PLAIN_WORD.fullmatch(value)
            ]
        except (SmithError, OSError):
            return []

    return complete


@_matching
def complete_job(incomplete: str) -> Iterator[Value]:
    """Complete our job numbers and, if something is typed, FulcrumCore's ids of the jobs."""
    from executor.cli.store import reading_store  # noqa: PLC0415 (only completion needs this import)
    from executor.database import queries  # noqa: PLC0415 (only completion needs this import)

    with reading_store() as store:
        for job in queries.list_jobs(store.session, limit=MAX_ROWS):
            text = f"{job.action} {job.status}"
            yield str(job.id), text
            if incomplete:
                yield job.fulcrum_id, text


@_matching
def complete_run(incomplete: str) -> Iterator[Value]:
    """Complete the idents of runs."""
    from executor.cli.store import reading_store  # noqa: PLC0415 (only completion needs this import)
    from executor.database import queries  # noqa: PLC0415 (only completion needs this import)

    with reading_store() as store:
        for run, job in queries.recent_runs(store.session, MAX_ROWS):
            yield run.ident, f"job {job.id} {run.status or 'running'}"


@_matching
def complete_mapping(incomplete: str) -> Iterator[Value]:
    """Complete VMIDs and names of mapped VMs and, if something is typed, the ids of their services."""
    from executor.cli.store import reading_store  # noqa: PLC0415 (only completion needs this import)

    with reading_store() as store:
        for vmid, name, service_id in _mapped_vms(store.session):
            yield vmid, name
            if name:
                yield name, f"VM {vmid}"
            if incomplete:
                yield service_id, f"VM {vmid} {name}"


@_matching
def complete_vmid(incomplete: str) -> Iterator[Value]:
    """Complete the VMIDs of mapped VMs."""
    from executor.cli.store import reading_store  # noqa: PLC0415 (only completion needs this import)

    with reading_store() as store:
        for vmid, name, _service_id in _mapped_vms(store.session):
            yield vmid, name


@_matching
def complete_service(incomplete: str) -> Iterator[Value]:
    """Complete the ids of mapped services."""
    from executor.cli.store import reading_store  # noqa: PLC0415 (only completion needs this import)

    with reading_store() as store:
        for vmid, name, service_id in _mapped_vms(store.session):
            yield service_id, f"VM {vmid} {name}"


@_matching
def complete_action(incomplete: str) -> Iterator[Value]:
    """Complete the names of the built-in actions and of the operator's own actions."""
    from executor.cli.actions import action_folders  # noqa: PLC0415 (only completion needs this import)
    from executor.runs import actions  # noqa: PLC0415 (only completion needs this import)

    for action in actions.list_all(action_folders()):
        yield action.name, action.problem


def _mapped_vms(session: Session) -> list[tuple[str, str, str]]:
    """Return VMID, name and service id of the newest mappings that are not deleted."""
    from executor.database import mapping_queries  # noqa: PLC0415 (only completion needs this import)

    rows = mapping_queries.list_mappings(session, limit=MAX_ROWS)
    return [(str(row.vmid), row.name or "", row.service_id) for row in rows]
