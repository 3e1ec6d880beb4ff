"""Stores audit entries. Each entry says who changed which subject (for example a job or a mapping), and why.

There is one entry for each change that an operator makes, and for each automatic correction. The change and its entry
are written in the same transaction, so that the database stores either both or neither. Entries are never deleted. Only
`smith forget`, which erases an ended service's data, sets an entry's `before`, `after` and `reason` to NULL.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from executor.database.tables.audit import AuditEntry
from executor.database.times import utc_now
from executor.redaction import redactor

#: The value of the column `who` for a change that the agent made without an operator's command.
AGENT = "agent"
#: The length of the column `who`.
MAX_WHO_LENGTH = 100
#: The length of the column `subject_id`.
MAX_SUBJECT_ID_LENGTH = 100
#: A longer reason is cut to this length.
MAX_REASON_LENGTH = 2000
#: The columns of a job that `before` and `after` of an audit entry contain. `params` and `service` are not among them,
#: because their values may be large.
JOB_COLUMNS = (
    "action",
    "service_id",
    "status",
    "attempt",
    "available_at",
    "cancel_requested",
    "error_code",
    "report_state",
    "report_after",  # the time at which the backoff of the report ends
)
#: The columns of a mapping that `before` and `after` of an audit entry contain. `node` is the VM's Proxmox node.
MAPPING_COLUMNS = ("service_id", "cluster", "vmid", "node", "name", "state", "note")


def add_entry(  # noqa: PLR0913 (one parameter for each column)
    session: Session,
    *,
    who: str,
    verb: str,
    subject_kind: str,
    subject_id: object,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str = "",
) -> None:
    """Add an entry: `who` made the change `verb` (for example "cancel") to one subject.

    `subject_kind` determines what `subject_id` is:

    - "job": the job's `fulcrum_id`
    - "mapping" (for a change of the mapping): the service id
    - "service" (for a playbook that an operator ran, or the erasure of a service's data): the service id
    - "agents" (for a pause of agents, or a limit of their parallel jobs): `all` for all agents, or `node:<id>` for one
      agent. The table `nodes` has one row for each agent process (not for Proxmox nodes). `<id>` is the row's
      `installation_id`, or the row's `id` if `installation_id` is NULL.
    - "database": the id of a move of all rows to another database (table `moves`)

    `before` and `after` contain JSON values, such as the values that `column_values` returns; None means that there
    are none. Secrets are masked in `before`, `after` and `reason`, because all three may contain texts that an operator
    typed. A secret cannot be masked later: the database allows no change of an entry, only the erasure of its values.
    """
    entry = AuditEntry(
        at=utc_now(),
        who=who[:MAX_WHO_LENGTH],
        verb=verb,
        subject_kind=subject_kind,
        subject_id=str(subject_id)[:MAX_SUBJECT_ID_LENGTH],
        before=None if before is None else redactor.redact_value(dict(before)),
        after=None if after is None else redactor.redact_value(dict(after)),
        reason=redactor.redact(reason)[:MAX_REASON_LENGTH] or None,
    )
    session.add(entry)
    session.flush()


def operator_name() -> str:
    """Return the name of the user that runs this process. Under sudo, also name the user who called sudo."""
    uid = os.getuid()
    user_name = str(uid)
    with contextlib.suppress(KeyError):  # in a container, the user id often has no name
        user_name = pwd.getpwuid(uid).pw_name
    sudo_user = "".join(char for char in os.environ.get("SUDO_USER", "") if char.isprintable())
    if not sudo_user or sudo_user == user_name:
        return user_name
    return f"{user_name} (sudo by {sudo_user})"[:MAX_WHO_LENGTH]


def column_values(row: Any, columns: Sequence[str]) -> dict[str, Any] | None:
    """Return the values of these columns as JSON values, for `before` or `after` of an entry.

    Returns None when `row` is None.
    """
    return None if row is None else {name: _json_value(getattr(row, name)) for name in columns}


def _json_value(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
