"""The audit: who changed what, and why. One entry for each operator's command and for each automatic correction.

An entry is written in the same transaction as its change, so both are stored or neither is. Entries are never deleted:
neither the retention of jobs nor `smith db` removes one.
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

#: `who` of a change that the agent makes by itself.
AGENT = "agent"
MAX_NAME_LENGTH, MAX_REASON_LENGTH = 100, 2000
#: The columns of a row that an entry keeps: those that may change, and no payload.
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
    """Add the entry that `who` did `verb` to a subject. `before` and `after` are JSON values, None without a row.

    Secrets are masked: a reason is text from outside, and an entry cannot be changed later.
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


def operator() -> str:
    """Return the operating system's user of this process; under sudo also the user who called sudo."""
    uid = os.getuid()
    name = str(uid)
    with contextlib.suppress(KeyError):  # a container's uid often has no name
        name = pwd.getpwuid(uid).pw_name
    sudo_user = "".join(char for char in os.environ.get("SUDO_USER", "") if char.isprintable())
    return f"{name} (sudo by {sudo_user})"[:MAX_NAME_LENGTH] if sudo_user and sudo_user != name else name


def listing(session: Session, *, subject: str = "", verb: str = "", limit: int = 50) -> Sequence[AuditEntry]:
    """Return the newest entries; `subject` is an id or its prefix, and without subject or verb all match."""
    stmt = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if subject:
        stmt = stmt.where(AuditEntry.subject_id.startswith(subject, autoescape=True))
    if verb:
        stmt = stmt.where(AuditEntry.verb == verb)
    return session.scalars(stmt).all()


def facts_of(row: Any, columns: Sequence[str]) -> dict[str, Any] | None:
    """Return these columns of a row as JSON values, None without a row."""
    if row is None:
        return None
    values = {name: getattr(row, name) for name in columns}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
