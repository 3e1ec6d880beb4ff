"""Rows of mappings for the tests of mappings."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine

from executor.database import free_vmids, mappings
from executor.database.engine import read_only_session, transaction
from executor.database.tables.mappings import Mapping

SERVICE = "0a1b2c3d-1111-4000-8000-000000000001"
OTHER = "ffffffff-2222-4000-8000-000000000002"


def reserve(engine: Engine, service_id: str = SERVICE, vmid: int = 101, cluster: str = "c") -> int | None:
    """Reserve the VMID for the service; return the mapping's id, None if the VMID is not free."""
    with transaction(engine) as session:
        wanted = {"service_id": service_id, "cluster": cluster, "vmid": vmid, "name": "vm"}
        mapping = mappings.reserve(session, **wanted)
        return None if mapping is None else mapping.id


def store_reservation(engine: Engine, *args: Any, **wanted: Any) -> int:
    mapping_id = reserve(engine, *args, **wanted)
    assert mapping_id is not None
    return mapping_id


def row(engine: Engine, mapping_id: int) -> Mapping:
    with read_only_session(engine) as session:
        mapping = session.get(Mapping, mapping_id)
    assert mapping is not None
    return mapping


def apply_result(engine: Engine, mapping_id: int, **vm: Any) -> None:
    """Apply the facts of a VM, from a job's result, to the mapping."""
    with transaction(engine) as session:
        mappings.apply_result(session, mapping_id, vm)


def pick_free_vmid(
    engine: Engine, low: int, high: int, *, quarantine_s: float = 3600, taken: set[int] | None = None
) -> int:
    with transaction(engine) as session:
        return free_vmids.pick_vmid(session, ("c", low, high), quarantine_s=quarantine_s, used_vmids=taken or set())
