"""The periodic drift check of a working agent: VMs that change in Proxmox, and answers that allow no conclusion."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from smith_lab.system import LabSystem, outcome_of, run_lab_system, wait_for
from support import fork_server

from executor.drift.facts import DriftKind

Json = dict[str, Any]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """A system whose agent checks for drift every second."""
    settings = {"SMITH_RECONCILE_INTERVAL_S": "1"}
    with run_lab_system(tmp_path_factory.mktemp("lab"), settings=settings) as system:
        system.start_executor()
        yield system


def create_vms(lab: LabSystem, *names: str) -> dict[str, tuple[str, int]]:
    """Order several VMs at once; return service and VMID by name."""
    services = {name: lab.order_service(name) for name in names}
    for service_id in services.values():
        assert lab.wait_for_jobs(service_id, timeout_s=240)["status"] == "Stopped"
    return {name: (service_id, lab.guests_of(service_id)[0]["vmid"]) for name, service_id in services.items()}


def mapping_of(lab: LabSystem, service_id: str) -> Json:
    (found,) = [row for row in lab.run_smith_json("mappings", "list") if row["service_id"] == service_id]
    return dict(found)


def run_drift(lab: LabSystem) -> tuple[int, Json]:
    """Run `smith drift --json`; return exit code and document."""
    done = fork_server.run(["drift", "--json"], env=lab.environment(), cwd=lab.folder, timeout=120)
    return done.returncode, json.loads(done.stdout)


def events_of_service(lab: LabSystem, event: str, service_id: str) -> list[Json]:
    return [entry for entry in lab.log_events(event) if entry.get("service_id") == service_id]


def count_drift_checks(lab: LabSystem) -> int:
    """Return how many drift checks have run."""
    return int(next(row["runs"] for row in lab.run_smith_json("critical", "list") if row["name"] == "Reconcile"))


def drift_metric(lab: LabSystem) -> dict[str, float]:
    """Return the values of `smith_drift_vms` by kind, without the zeros."""
    port = lab.log_events("http_served")[-1]["port"]
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    found = re.findall(r'^smith_drift_vms\{kind="(\w+)"\} (\S+)$', text, re.MULTILINE)
    assert len(found) == len(DriftKind)
    return {kind: float(value) for kind, value in found if float(value)}


def test_drift_is_corrected_or_logged_once_and_its_end_is_logged_too(lab: LabSystem) -> None:
    vms = create_vms(lab, "kept", "gone", "moved", "renamed", "recycled")
    (unchanged, _), (gone, gone_vmid), (moved, moved_vmid) = vms["kept"], vms["gone"], vms["moved"]
    (renamed, renamed_vmid), (recycled, recycled_vmid) = vms["renamed"], vms["recycled"]
    old_name = mapping_of(lab, renamed)["name"]
    target = "pve2" if mapping_of(lab, moved)["node"] == "pve1" else "pve1"
    lab.proxmox.reset_request_log()

    lab.proxmox.control("remove", vmid=gone_vmid)
    lab.proxmox.control("move", vmid=moved_vmid, node=target)
    lab.proxmox.control("rename", vmid=renamed_vmid, name="operators-choice")
    lab.proxmox.control("recycle", vmid=recycled_vmid)  # another VM has the VMID now

    wait_for(lambda: mapping_of(lab, gone)["state"] == "vm_lost", 120, "the mapping of the removed VM to be vm_lost")
    wait_for(lambda: mapping_of(lab, moved)["node"] == target, 120, "the node of the moved VM to be corrected")
    wait_for(lambda: events_of_service(lab, "drift_found", renamed), 120, "the renamed VM to be logged")
    wait_for(lambda: events_of_service(lab, "drift_found", recycled), 120, "the recycled VM to be logged")
    wait_for(lambda: events_of_service(lab, "drift_found", gone), 120, "the service without its VM to be logged")
    code, document = run_drift(lab)
    assert (code, document["frozen"]) == (1, None)  # `frozen` is the reason why a check is inconclusive
    assert {(finding["kind"], finding["vmid"]) for finding in document["findings"]} == {
        ("service_without_vm", gone_vmid),
        ("vm_renamed", renamed_vmid),
        ("vm_recycled", recycled_vmid),
    }
    assert drift_metric(lab) == {"service_without_vm": 1, "vm_renamed": 1, "vm_recycled": 1}

    lab.proxmox.control("rename", vmid=renamed_vmid, name=old_name)
    wait_for(lambda: events_of_service(lab, "drift_resolved", renamed), 120, "the restored name to be logged")
    assert [len(events_of_service(lab, "drift_found", service_id)) for service_id in (renamed, recycled, gone)] == [
        1,
        1,
        1,
    ]
    assert {entry["repair"] for entry in events_of_service(lab, "drift_corrected", gone)} == {"mark_vm_lost"}
    assert (
        events_of_service(lab, "drift_found", unchanged) == events_of_service(lab, "drift_corrected", unchanged) == []
    )
    assert mapping_of(lab, recycled)["state"] == "active"
    assert lab.proxmox.changing_requests() == []
    entries = lab.run_smith_json("audit", "list")
    assert {(entry["who"], entry["verb"], entry["subject_id"]) for entry in entries} == {
        ("agent", "mark_vm_lost", gone),
        ("agent", "correct_node", moved),
    }
    assert outcome_of(lab.run_action(moved, "start")) == "Completed"


def test_without_quorum_nothing_is_concluded_until_quorum_returns(lab: LabSystem) -> None:
    service_id, vmid = create_vms(lab, "quorum")["quorum"]
    lab.proxmox.control("quorum", quorate=False)
    lab.proxmox.control("remove", vmid=vmid)
    wait_for(lambda: lab.log_events("drift_check_inconclusive"), 120, "the check to be inconclusive")
    code, document = run_drift(lab)
    assert (code, document["findings"]) == (5, [])
    assert "quorum" in document["frozen"]
    assert mapping_of(lab, service_id)["state"] == "active"

    lab.proxmox.control("quorum", quorate=True)

    wait_for(lambda: mapping_of(lab, service_id)["state"] == "vm_lost", 120, "the check to reach a conclusion again")
    assert lab.log_events("drift_check_resumed")


def test_jobs_in_progress_are_not_reported_as_drift(lab: LabSystem) -> None:
    """Services are created and deleted while the check runs every second."""
    services = [service_id for service_id, _vmid in create_vms(lab, "brief-1", "brief-2").values()]
    for service_id in services:
        assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"
    seen = count_drift_checks(lab)
    wait_for(lambda: count_drift_checks(lab) > seen + 1, 120, "one more complete check")
    for event in ("drift_found", "drift_corrected"):
        assert [events_of_service(lab, event, service_id) for service_id in services] == [[], []]
    assert lab.log_events("critical_job_crashed") == []
