"""Repairs of drift: a repair changes a mapping and writes an audit entry, or does nothing if the facts are outdated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, update
from support.databases import LONG_AGO, submit

from executor.database import audit_queries, busy_services, job_queue, mappings
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.drift import rows
from executor.drift.facts import DriftKind, Finding, MappingFacts, Repair
from executor.drift.repair import apply_repair
from executor.model import MappingState, ReportState

SERVICE_A = "aaaaaaaa-0000-4000-8000-000000000001"
SERVICE_B = "bbbbbbbb-0000-4000-8000-000000000002"
ACTIVE, VM_LOST = MappingState.ACTIVE, MappingState.VM_LOST


def insert(engine: Engine, state: MappingState = ACTIVE, **changes: Any) -> MappingFacts:
    """Insert a mapping, and return it as the comparison reads it."""
    values = {"service_id": SERVICE_A, "cluster": "c", "vmid": 100, "name": "web"} | changes
    with transaction(engine) as session:
        row = mappings.reserve(session, **values)
        assert row is not None
        session.execute(update(Mapping).where(Mapping.id == row.id).values(state=state, node="pve1"))
    return mappings_in(engine)[values["service_id"]]


def mappings_in(engine: Engine) -> dict[str, MappingFacts]:
    with read_only_session(engine) as session:
        return {row.service_id: row for row in rows.read_database_facts(session, "c").mappings}


def audit_entries(engine: Engine) -> list[tuple[str, str, Any, Any]]:
    with read_only_session(engine) as session:
        return [(entry.who, entry.verb, entry.before, entry.after) for entry in audit_queries.list_entries(session)]


def finding(mapping: MappingFacts | None, repair_kind: Repair, **changes: Any) -> Finding:
    """Return a finding of the comparison about this mapping, with a repair."""
    values: dict[str, Any] = {
        "kind": DriftKind.VM_GONE,
        "service_id": SERVICE_A,
        "vmid": 100,
        "text": "t",
        "node": "pve2",
        "name": "db",
    }
    return Finding(**(values | {"repair": repair_kind, "mapping": mapping} | changes))  # fmt: skip


@pytest.mark.parametrize(
    ("repair_kind", "before", "after"),
    [
        (Repair.CORRECT_NODE, ACTIVE, (ACTIVE, "pve2", "web")),
        (Repair.MARK_VM_LOST, ACTIVE, (VM_LOST, "pve1", "web")),
        (Repair.FORGET, VM_LOST, None),
        (Repair.ADOPT, VM_LOST, (ACTIVE, "pve2", "db")),
    ],
)
def test_a_repair_changes_the_mapping_and_writes_an_audit_entry(
    engine: Engine, repair_kind: Repair, before: MappingState, after: tuple[str, str, str] | None
) -> None:
    row = insert(engine, before)
    assert apply_repair(engine, "c", finding(row, repair_kind), who="alice")
    found = mappings_in(engine).get(SERVICE_A)
    assert (found and (found.state, found.node, found.name)) == after
    ((who, verb, values_before, values_after),) = audit_entries(engine)
    assert (who, verb, values_before["state"]) == ("alice", repair_kind, before)
    assert values_after["state"] == (after[0] if after else MappingState.DELETED)


def test_an_unmapped_vm_is_adopted(engine: Engine) -> None:
    assert apply_repair(engine, "c", finding(None, Repair.ADOPT), who="alice")
    found = mappings_in(engine)[SERVICE_A]
    assert (found.vmid, found.state, found.node, found.name) == (100, ACTIVE, "pve2", "db")
    assert audit_entries(engine)[0][2] is None


def test_a_vm_that_exists_again_on_another_vmid_gets_a_new_mapping(engine: Engine) -> None:
    row = insert(engine, VM_LOST)
    assert apply_repair(engine, "c", finding(row, Repair.ADOPT, vmid=200), who="alice")
    assert (mappings_in(engine)[SERVICE_A].vmid, mappings_in(engine)[SERVICE_A].state) == (200, ACTIVE)


def test_a_refused_adoption_leaves_the_old_mapping_unchanged(engine: Engine) -> None:
    """Another service got the VMID after the comparison."""
    row = insert(engine, VM_LOST)
    insert(engine, service_id=SERVICE_B, vmid=200)
    assert not apply_repair(engine, "c", finding(row, Repair.ADOPT, vmid=200), who="alice")
    assert mappings_in(engine)[SERVICE_A] == row
    assert audit_entries(engine) == []


@pytest.mark.parametrize("repair_kind", list(Repair))
def test_a_repair_does_nothing_when_the_mapping_has_changed_since_the_comparison(
    engine: Engine, repair_kind: Repair
) -> None:
    row = replace(insert(engine), updated_at=LONG_AGO)
    before = mappings_in(engine)
    assert not apply_repair(engine, "c", finding(row, repair_kind), who="alice")
    assert not apply_repair(engine, "c", finding(replace(row, id=4711), repair_kind), who="alice")
    assert (mappings_in(engine), audit_entries(engine)) == (before, [])


@pytest.mark.parametrize("open_as", ["pending", "processing", "due"])
def test_a_repair_does_nothing_while_the_service_is_busy(engine: Engine, open_as: str) -> None:
    row = insert(engine)
    job_id = submit(engine, service_id=SERVICE_A)
    with transaction(engine) as session:
        if open_as == "processing":
            assert job_queue.claim(session, "me", lease_s=30)
        if open_as == "due":
            ended = {"status": "completed", "report_state": ReportState.DUE}
            session.execute(update(Job).where(Job.id == job_id).values(**ended))
    assert not apply_repair(engine, "c", finding(row, Repair.MARK_VM_LOST), who="alice")
    with transaction(engine) as session:
        assert (
            busy_services.find_busy_service_ids(session)
            == busy_services.find_busy_service_ids(session, SERVICE_A)
            == {SERVICE_A}
        )
        assert busy_services.find_busy_service_ids(session, SERVICE_B) == frozenset()
        settled = {"status": "completed", "report_state": ReportState.REPORTED}
        session.execute(update(Job).where(Job.id == job_id).values(**settled))
    assert apply_repair(engine, "c", finding(row, Repair.MARK_VM_LOST), who="alice")


def test_services_mapped_on_another_cluster_are_read_as_foreign_services(engine: Engine) -> None:
    insert(engine)
    with transaction(engine) as session:
        mappings.reserve(session, service_id=SERVICE_B, cluster="elsewhere", vmid=100, name="db")
    with read_only_session(engine) as session:
        found = rows.read_database_facts(session, "c")
    assert ([row.service_id for row in found.mappings], found.services_on_other_clusters) == ([SERVICE_A], {SERVICE_B})
