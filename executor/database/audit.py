"""Stores audit entries: each says who changed which job or mapping, and why.

Each change by an operator's command and each automatic correction has one entry. The entry is written in the
transaction of the change, so that the database stores either both or neither. The agent never deletes an entry: neither
its critical job PruneCompletedJobs nor the command `smith db` does.
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

#: The value of the column `who` for a change that the agent made by itself, without an operator's command.
AGENT = "agent"
#: MAX_NAME_LENGTH is the length of the columns `who` and `subject_id`. A longer reason is cut to MAX_REASON_LENGTH.
MAX_NAME_LENGTH, MAX_REASON_LENGTH = 100, 2000
#: The columns of a job that `before` and `after` of its audit entry hold. They do not include `params` and `service`,
#: which may be large.
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
#: The columns of a mapping that `before` and `after` of its audit entry hold.
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
    """Add an entry: `who` applied the change `verb` (for example "cancel") to one row.

    `kind` is "job" or "mapping", and `subject` is the id that operators use: the job's `fulcrum_id`, or the service id
    of the mapping. `before` and `after` are the row's columns as JSON values; None means that the row did not exist.
    Secrets are masked in all texts, because an operator may type one as part of the reason, and an entry cannot be
    changed later.
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
    with contextlib.suppress(KeyError):  # in a container, the user id often has no name
        name = pwd.getpwuid(uid).pw_name
    sudo_user = "".join(char for char in os.environ.get("SUDO_USER", "") if char.isprintable())
    return f"{name} (sudo by {sudo_user})"[:MAX_NAME_LENGTH] if sudo_user and sudo_user != name else name


def list_entries(session: Session, *, subject: str = "", verb: str = "", limit: int = 50) -> Sequence[AuditEntry]:
    """Return the newest entries, newest first.

    `subject` limits them to one subject id or to the ids with this prefix, `verb` to one kind of change. An empty text
    is no limit.
    """
    stmt = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if subject:
        stmt = stmt.where(AuditEntry.subject_id.startswith(subject, autoescape=True))
    if verb:
        stmt = stmt.where(AuditEntry.verb == verb)
    return session.scalars(stmt).all()


def facts_of(row: Any, columns: Sequence[str]) -> dict[str, Any] | None:
    """Return the named columns of a row as JSON values, for `before` or `after`; None when `row` is None."""
    if row is None:
        return None
    values = {name: getattr(row, name) for name in columns}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
