"""Who changed what, and why: a row for every operator's verb and for what the agent corrects by itself.

An entry is written in the transaction of the change itself, so there is never one without the other. It lives longer
than what it tells of: neither jobs' retention nor `smith db` removes one.
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

#: Who it was when no person was.
AGENT = "agent"
LONGEST_NAME, LONGEST_REASON = 100, 2000
#: What an entry keeps of a row: what may change about it, and never a payload.
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
    """Write down that `who` did `verb` to a subject; `before` and `after` hold plain values, None for "was not there".

    Secrets are masked: a reason is text from outside, and an entry can never be taken back.
    """
    entry = AuditEntry(
        at=utc_now(),
        who=who[:LONGEST_NAME],
        verb=verb,
        subject_kind=kind,
        subject_id=str(subject)[:LONGEST_NAME],
        before=None if before is None else redactor.redact_value(dict(before)),
        after=None if after is None else redactor.redact_value(dict(after)),
        reason=redactor.redact(reason)[:LONGEST_REASON] or None,
    )
    session.add(entry)
    session.flush()


def operator() -> str:
    """Return who runs this process, as the operating system knows it; behind sudo also who asked for it."""
    uid = os.getuid()
    name = str(uid)
    with contextlib.suppress(KeyError):  # a container's uid often has no name
        name = pwd.getpwuid(uid).pw_name
    asked = "".join(char for char in os.environ.get("SUDO_USER", "") if char.isprintable())
    return f"{name} (sudo by {asked})"[:LONGEST_NAME] if asked and asked != name else name


def listing(session: Session, *, subject: str = "", verb: str = "", limit: int = 50) -> Sequence[AuditEntry]:
    """Return the newest entries, of one subject (its id, or the beginning) and one verb if these are told."""
    stmt = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if subject:
        stmt = stmt.where(AuditEntry.subject_id.startswith(subject, autoescape=True))
    if verb:
        stmt = stmt.where(AuditEntry.verb == verb)
    return session.scalars(stmt).all()


def facts_of(row: Any, columns: Sequence[str]) -> dict[str, Any] | None:
    """Return these columns of a row as an entry keeps them, None for no row."""
    if row is None:
        return None
    values = {name: getattr(row, name) for name in columns}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
