"""Exports the mappings of one database, and imports them into another (`smith mappings export` and `import`).

Only current mappings are exported: deleted mappings are only history.

No function of this module commits: the caller commits the transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping as Dictionary
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from executor.database import mappings
from executor.database.literals import DELETED_LITERAL  # SQLite uses a partial index only for a literal
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.model import GuestKind, MappingState
from executor.shared import marker

#: The columns that are exported and imported. The marker is not among them, because it is computed from the service id.
#: `node` is the VM's Proxmox node. `note` is the reason for the state. `snapshots` and `backups` are the numbers of the
#: VM's snapshots and backups.
COLUMNS = (
    *("service_id", "cluster", "vmid", "node", "kind", "name", "mac_address", "state", "note", "delete_at"),
    *("tenant_id", "cores", "memory_mib", "disk_gib", "snapshots", "backups"),
)
#: The columns by which `has_mapping_to_same_vm` recognizes a mapping that was imported before.
IDENTITY_COLUMNS = ("service_id", "cluster", "vmid")
#: The maximum lengths of the columns with texts.
MAX_TEXT_LENGTHS = {"service_id": 36, "cluster": 100, "node": 100, "name": 100, "mac_address": 20, "tenant_id": 36}
MAX_NOTE_LENGTH = 4000
#: Matches a character that no database can store: PostgreSQL refuses NUL, and UTF-8 cannot encode surrogates.
_UNSTORABLE_CHARACTER = re.compile("[\0\ud800-\udfff]")
#: Matches the name of a Proxmox node. The name becomes a part of paths in Proxmox's API, so other characters are
#: refused. The name is empty while the VMID is only reserved.
_NODE_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,62})?")
NUMBER_COLUMNS = ("cores", "memory_mib", "disk_gib", "snapshots", "backups")
MIN_VMID, MAX_VMID = 100, 999_999_999
#: The values of NUMBER_COLUMNS must be less than this. No VM needs more, and the sum for all VMs of a tenant still fits
#: into the database's integers.
NUMBER_LIMIT = 2**40
CURRENT_STATES = [state for state in MappingState if state is not MappingState.DELETED]


def export_mappings(session: Session) -> list[dict[str, Any]]:
    """Return the columns of the current mappings as values for JSON, ordered by cluster and VMID."""
    order = (Mapping.cluster, Mapping.vmid)
    rows = session.scalars(select(Mapping).where(Mapping.state != DELETED_LITERAL).order_by(*order))
    return [{name: _json_value(getattr(row, name)) for name in COLUMNS} for row in rows]


def find_import_problem(values: Dictionary[str, Any]) -> str:
    """Return why these values cannot be the columns of a current mapping; '' if they can. Pure function."""
    return next(_import_problems(values), "")


def _import_problems(values: Dictionary[str, Any]) -> Iterator[str]:
    required_columns = (*IDENTITY_COLUMNS, "name", "state", "kind")
    yield from (f"{name} is missing" for name in required_columns if not values.get(name))
    for name, max_length in MAX_TEXT_LENGTHS.items():
        if (value := values.get(name)) is not None and not _is_text(value, max_length):
            yield f"{name} is not a printable text of at most {max_length} characters"
    if not _NODE_NAME.fullmatch(values.get("node") or ""):
        yield "node is not the name of a Proxmox node"
    if not marker.is_service_id(values["service_id"]):
        yield "service_id is not the id of a service"
    if type(values["vmid"]) is not int or not MIN_VMID <= values["vmid"] <= MAX_VMID:
        yield f"vmid is not a number from {MIN_VMID} to {MAX_VMID}"
    if values["state"] not in CURRENT_STATES or values["kind"] not in list(GuestKind):
        yield "state or kind has an unknown value"
    if (note := values.get("note")) is not None and not _is_note(note):
        yield f"note is not a text of at most {MAX_NOTE_LENGTH} characters that a database can store"
    yield from (
        f"{name} is not a whole number from 0 to {NUMBER_LIMIT - 1}"
        for name in NUMBER_COLUMNS
        if not _is_storable_number(values.get(name, 0))
    )
    if problem := _delete_at_problem(values.get("delete_at"), values["state"]):
        yield problem


def _is_text(value: Any, max_length: int) -> bool:
    return isinstance(value, str) and len(value) <= max_length and value.isprintable()


def _is_note(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NOTE_LENGTH and not _UNSTORABLE_CHARACTER.search(value)


def _is_storable_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < NUMBER_LIMIT


def _delete_at_problem(delete_at: Any, state: str) -> str:
    if (delete_at is not None) != (state == MappingState.PENDING_DELETION):
        return "delete_at must be set in the state pending_deletion, and in no other state"
    try:
        has_zone = delete_at is None or _parse_iso_time(delete_at).tzinfo is not None
    except (TypeError, ValueError, OverflowError):
        return "delete_at is not a time"
    return "" if has_zone else "delete_at has no time zone"


def has_mapping_to_same_vm(session: Session, values: Dictionary[str, Any]) -> bool:
    """Return whether the service already has a current mapping to this VM."""
    row = mappings.find_current_mapping(session, values["service_id"])
    return row is not None and all(getattr(row, name) == values[name] for name in IDENTITY_COLUMNS)


def insert_mapping(session: Session, values: Dictionary[str, Any]) -> Mapping | None:
    """Insert a mapping with values that `find_import_problem` accepts.

    Returns None when the VMID or the service already has a current mapping.
    """
    columns = {name: values[name] for name in COLUMNS if values.get(name) is not None and name != "delete_at"}
    delete_at = _parse_iso_time(values["delete_at"]) if values.get("delete_at") else None
    now = utc_now()
    row = Mapping(
        **columns,
        delete_at=delete_at,
        marker=marker.marker_for(values["service_id"]),
        created_at=now,
        updated_at=now,
    )
    try:
        with session.begin_nested():
            session.add(row)
            session.flush()
    except IntegrityError:
        return None
    return row


def _parse_iso_time(text: str) -> datetime:
    """Return the time in UTC, or without a time zone if the text has none.

    Raises ValueError or OverflowError if the text is no time or has an impossible year.
    """
    time = datetime.fromisoformat(text)
    return time.astimezone(UTC) if time.tzinfo else time


def _json_value(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
