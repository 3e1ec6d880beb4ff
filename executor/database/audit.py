"""Stores audit entries: who changed which job or mapping, and why.

Each change by an operator's command and each automatic correction has one entry, written in the same transaction, so
that both are stored or neither is. Entries are never deleted: neither PruneCompletedJobs nor `smith db` removes one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from executor.database.tables import AuditEntry, utc_now
from executor.redaction import redactor

#: The `who` of an entry for a change that the agent made without a command.
AGENT = "agent"
#: Lengths of the columns `who` and `subject_id`, and of a stored reason.
MAX_NAME_LENGTH, MAX_REASON_LENGTH = 100, 2000
#: The columns that `before` and `after` of an entry hold: those that may change, without the payload of the job.
JOB_COLUMNS = (
    "action",
    "service_id",
    "status",
    "attempt",
    "available_at",
    "cancel_requested",
    "error_code",
    "report_state",
    "report_after",
)
MAPPING_COLUMNS = ("service_id", "cluster", "vmid", "node", "name", "state", "note")


def record(  # noqa: PLR0913 (one column each)
    session: Session,
    *,
    who: str,
    verb: str,
    kind: str,
    subject: object,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str = "",
) -> None:
    """Add an entry: `who` applied `verb` to the row of this kind (job or mapping) and id (`subject`).

    `before` and `after` are the row's columns as JSON values, None while the row did not exist. Secrets are masked,
    because a reason is text from outside, and an entry cannot be changed later.
    """
    entry = AuditEntry(
        at=utc_now(),
        who=who[:MAX_NAME_LENGTH],
        verb=verb,
        subject_kind=kind,
        subject_id=str(subject)[:MAX_NAME_LENGTH],
        before=None if before is None else redactor.redact_value(dict(before)),
        after=None if after is None else redactor.redact_value(dict(after)),
        reason=redactor.redact(reason)[:MAX_REASON_LENGTH] or None,
    )
    session.add(entry)
    session.flush()


def operator_name() -> str:
    """Return the name of the user that runs this process; under sudo, add the user who called sudo."""
    uid = os.getuid()
    name = str(uid)
    with contextlib.suppress(KeyError):  # in a container, the uid often has no name
        name = pwd.getpwuid(uid).pw_name
    sudo_user = "".join(char for char in os.environ.get("SUDO_USER", "") if char.isprintable())
    return f"{name} (sudo by {sudo_user})"[:MAX_NAME_LENGTH] if sudo_user and sudo_user != name else name


def list_entries(session: Session, *, subject: str = "", verb: str = "", limit: int = 50) -> Sequence[AuditEntry]:
    """Return the newest entries of a subject (an id or its prefix) and a verb; an empty filter matches all."""
    stmt = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if subject:
        stmt = stmt.where(AuditEntry.subject_id.startswith(subject, autoescape=True))
    if verb:
        stmt = stmt.where(AuditEntry.verb == verb)
    return session.scalars(stmt).all()


def facts_of(row: Any, columns: Sequence[str]) -> dict[str, Any] | None:
    """Return the named columns of a row as JSON values; None when `row` is None."""
    if row is None:
        return None
    values = {name: getattr(row, name) for name in columns}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
