"""Converts audit entries to dictionaries for `--json`, and describes their changes as text.

An audit entry records one change that an operator or the agent has made to a row of the database, such as a job.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from executor.views.text import sanitized

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.tables.audit import AuditEntry

#: Matches a time in the values of an audit entry.
_TIME_IN_AUDIT_ENTRY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]{6})?\+[0-9]{2}:[0-9]{2}")


def json_fields(entry: AuditEntry) -> dict[str, Any]:
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


def change_text(entry: AuditEntry) -> str:
    """Return the old and the new values of the changed columns as text, for example `state: active -> deleted`."""
    before, after = entry.before or {}, entry.after or {}
    changes = [
        f"{column}: {_text_or_dash(before.get(column))} -> {_text_or_dash(after.get(column))}"
        for column in {**before, **after}
        if before.get(column) != after.get(column)
    ]
    return sanitized("; ".join(changes))  # without secrets, and with control characters escaped


def _text_or_dash(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) and _TIME_IN_AUDIT_ENTRY.fullmatch(value):
        return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return str(value)
