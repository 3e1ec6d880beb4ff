"""The history checker: consistent facts have no violation, and each violation names its promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from faults.history import Allowed, violations

Json = dict[str, Any]
SERVICE = "0f7e2c1a-1111-4222-8333-944455556666"
OTHER_SERVICE = "1a7e2c1a-1111-4222-8333-944455556666"
JOB = "5a3f0f8d-4119-4a9e-aae3-9357768e56fb"
COMPLETE_CALL = {"method": "POST", "path": f"/api/v1/jobs/{JOB}/complete", "status": 204, "fault": None}


def consistent_facts() -> Json:
    """Return one started service, about which FulcrumCore, rows and Proxmox agree, and a VM of another owner."""
    vm = {"vmid": 500, "name": "web-0f7e2c1a", "status": "running", "config": {"description": f"smith-uid={SERVICE}"}}
    foreign = {"vmid": 700, "name": "other", "status": "running", "config": {}}
    service = {"id": SERVICE, "name": "web", "status": "Started", "agentInstanceId": "agent/500"}
    job = {"id": JOB, "serviceId": SERVICE, "action": "start", "status": "Completed"}
    row = {"id": 1, "fulcrum_id": JOB, "status": "completed", "report_state": "reported"}
    row |= {"report_note": None, "error_message": None}
    return {
        "core": {"services": [service], "jobs": [job]},
        "calls": [dict(COMPLETE_CALL)],
        "rows": {"jobs": [row], "mappings": [{"service_id": SERVICE, "vmid": 500, "state": "active"}]},
        "guests": [vm, foreign],
        "requests": [{"method": "POST", "path": "/nodes/pve1/qemu/500/status/start", "params": {}}],
        "foreign_vmids": {700},
    }


def test_consistent_facts_violate_no_promise() -> None:
    assert violations(consistent_facts()) == []


def _guest(vmid: int, service_id: str = "", status: str = "stopped") -> Json:
    config = {"description": f"smith-uid={service_id}"} if service_id else {}
    return {"vmid": vmid, "name": f"vm-{vmid}", "status": status, "config": config}


VIOLATIONS: dict[str, tuple[str, Callable[[Json], Any]]] = {
    "a job is open at FulcrumCore": ("R1", lambda facts: facts["core"]["jobs"][0].update(status="Processing")),
    "a row is pending": ("R1", lambda facts: facts["rows"]["jobs"][0].update(status="pending")),
    "a report is due": ("R1", lambda facts: facts["rows"]["jobs"][0].update(report_state="due")),
    "abandoned without a reason": ("R1", lambda facts: facts["rows"]["jobs"][0].update(report_state="abandoned")),
    "two VMs of one service": ("R2", lambda facts: facts["guests"].append(_guest(501, SERVICE))),
    "a VM in no mapping": ("R2", lambda facts: facts["guests"].append(_guest(501))),
    "a mapping without its VM": ("R2", lambda facts: facts["guests"].pop(0)),
    "a VMID mapped twice": (
        "R2",
        lambda facts: facts["rows"]["mappings"].append({"service_id": OTHER_SERVICE, "vmid": 500, "state": "reserved"}),
    ),
    "a service mapped twice": (
        "R2",
        lambda facts: facts["rows"]["mappings"].append({"service_id": SERVICE, "vmid": 502, "state": "reserved"}),
    ),
    "completed and failed": (
        "R3",
        lambda facts: facts["calls"].append(COMPLETE_CALL | {"path": f"/api/v1/jobs/{JOB}/fail"}),
    ),
    "failed, the response lost": (
        "R3",
        lambda facts: facts["calls"].append(
            COMPLETE_CALL | {"path": f"/api/v1/jobs/{JOB}/fail", "status": None, "fault": "drop_after"}
        ),
    ),
    "our outcome differs": ("R3", lambda facts: facts["rows"]["jobs"][0].update(status="failed")),
    "the VM is stopped": ("R3", lambda facts: facts["guests"][0].update(status="stopped")),
    "deleted, but the VM exists": ("R3", lambda facts: facts["core"]["services"][0].update(status="Deleted")),
    "another instance": ("R3", lambda facts: facts["core"]["services"][0].update(agentInstanceId="agent/501")),
    "a request to change a foreign VM": (
        "R4",
        lambda facts: facts["requests"].append({"method": "DELETE", "path": "/nodes/pve1/qemu/700", "params": {}}),
    ),
    "a template was changed": (
        "R4",
        lambda facts: facts["requests"].append({"method": "PUT", "path": "/nodes/pve1/qemu/9000/config", "params": {}}),
    ),
    "a foreign VM is missing": ("R4", lambda facts: facts["guests"].pop(1)),
    "a foreign VM was stopped": ("R4", lambda facts: facts["guests"][1].update(status="stopped")),
}


@pytest.mark.parametrize("what", VIOLATIONS)
def test_each_violation_names_its_promise(what: str) -> None:
    name, violate = VIOLATIONS[what]
    facts = copy.deepcopy(consistent_facts())
    violate(facts)
    assert {text.split()[0] for text in violations(facts)} >= {name}


def test_a_report_without_effect_contradicts_nothing() -> None:
    facts = consistent_facts()
    for fault in ("drop_before", "status", "html"):
        facts["calls"].append(COMPLETE_CALL | {"path": f"/api/v1/jobs/{JOB}/fail", "status": None, "fault": fault})
    facts["calls"].append(COMPLETE_CALL | {"path": f"/api/v1/jobs/{JOB}/fail", "status": 400})
    assert violations(facts) == []


def test_faults_that_a_test_declares_are_no_violations() -> None:
    facts = consistent_facts()
    facts["rows"]["jobs"][0] |= {"status": "failed", "report_state": "overtaken", "report_note": "timed out there"}
    facts["guests"].pop(0)
    assert violations(facts)
    allowed = Allowed(lost_services=frozenset({SERVICE}), timed_out_jobs=frozenset({JOB}))
    assert violations(facts, allowed) == []
