"""The periodic check beside a working agent: what happens to VMs behind our back, and a world that is not believed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from smith_lab.system import LabSystem, ending, running_lab, wait_for

from executor.drift.facts import DriftKind

Json = dict[str, Any]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """A system that compares all the time."""
    settings = {"SMITH_RECONCILE_INTERVAL_S": "1"}
    with running_lab(tmp_path_factory.mktemp("lab"), settings=settings) as system:
        system.start_executor()
        yield system


def made(lab: LabSystem, *names: str) -> dict[str, tuple[str, int]]:
    """Order VMs at once; return service and VMID by name."""
    services = {name: lab.order(name) for name in names}
    for service_id in services.values():
        assert lab.settled(service_id, within_s=240)["status"] == "Stopped"
    return {name: (service_id, lab.vms_of(service_id)[0]["vmid"]) for name, service_id in services.items()}


def mapping_of(lab: LabSystem, service_id: str) -> Json:
    (found,) = [row for row in lab.smith("mappings", "list") if row["service_id"] == service_id]
    return dict(found)


def drift(lab: LabSystem) -> tuple[int, Json]:
    """Ask as an operator does; return exit code and document."""
    command = [sys.executable, "-m", "executor", "drift", "--json"]
    done = subprocess.run(command, env=lab.environment(), cwd=lab.folder, capture_output=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout)


def said(lab: LabSystem, event: str, service_id: str) -> list[Json]:
    return [entry for entry in lab.log_events(event) if entry.get("service_id") == service_id]


def runs(lab: LabSystem) -> int:
    """How many checks there have been."""
    return int(next(row["runs"] for row in lab.smith("critical", "list") if row["name"] == "Reconcile"))


def counted(lab: LabSystem) -> dict[str, float]:
    """What Prometheus would see of it, by kind, without the zeros."""
    port = lab.log_events("http_served")[-1]["port"]
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    found = re.findall(r'^smith_drift_vms\{kind="(\w+)"\} (\S+)$', text, re.MULTILINE)
    assert len(found) == len(DriftKind)
    return {kind: float(value) for kind, value in found if float(value)}


def test_what_happens_behind_our_back_is_followed_told_once_and_told_when_it_is_over(lab: LabSystem) -> None:
    vms = made(lab, "kept", "gone", "moved", "renamed", "recycled")
    (kept, _), (gone, gone_vm), (moved, moved_vm) = vms["kept"], vms["gone"], vms["moved"]
    (renamed, renamed_vm), (recycled, recycled_vm) = vms["renamed"], vms["recycled"]
    old_name = mapping_of(lab, renamed)["name"]
    target = "pve2" if mapping_of(lab, moved)["node"] == "pve1" else "pve1"
    lab.proxmox.reset_request_log()

    lab.proxmox.control("remove", vmid=gone_vm)
    lab.proxmox.control("move", vmid=moved_vm, node=target)
    lab.proxmox.control("rename", vmid=renamed_vm, name="operators-choice")
    lab.proxmox.control("recycle", vmid=recycled_vm)

    wait_for(lambda: mapping_of(lab, gone)["state"] == "orphaned", 120, "the vanished VM to be written down")
    wait_for(lambda: mapping_of(lab, moved)["node"] == target, 120, "the moved VM to be followed")
    wait_for(lambda: said(lab, "drift_found", renamed), 120, "the renamed VM to be told")
    wait_for(lambda: said(lab, "drift_found", recycled), 120, "the recycled VM to be told")
    wait_for(lambda: said(lab, "drift_found", gone), 120, "the service without its VM to be told")
    code, found = drift(lab)
    assert (code, found["frozen"]) == (1, None)
    assert {(each["kind"], each["vmid"]) for each in found["findings"]} == {
        ("service_without_vm", gone_vm),
        ("vm_renamed", renamed_vm),
        ("vm_recycled", recycled_vm),
    }
    assert counted(lab) == {"service_without_vm": 1, "vm_renamed": 1, "vm_recycled": 1}

    lab.proxmox.control("rename", vmid=renamed_vm, name=old_name)
    wait_for(lambda: said(lab, "drift_resolved", renamed), 120, "the right name to be told")
    assert [len(said(lab, "drift_found", each)) for each in (renamed, recycled, gone)] == [1, 1, 1]
    assert {entry["repair"] for entry in said(lab, "drift_corrected", gone)} == {"mark_orphaned"}
    assert said(lab, "drift_found", kept) == said(lab, "drift_corrected", kept) == []
    assert mapping_of(lab, recycled)["state"] == "active"
    assert lab.proxmox.changing_requests() == []
    entries = lab.smith("audit", "list")
    assert {(each["who"], each["verb"], each["subject_id"]) for each in entries} == {
        ("agent", "mark_orphaned", gone),
        ("agent", "correct_node", moved),
    }
    assert ending(lab.act(moved, "start")) == "Completed"


def test_nothing_is_concluded_without_quorum_and_all_of_it_afterwards(lab: LabSystem) -> None:
    service_id, vmid = made(lab, "quorum")["quorum"]
    lab.proxmox.control("quorum", quorate=False)
    lab.proxmox.control("remove", vmid=vmid)
    wait_for(lambda: lab.log_events("drift_check_inconclusive"), 120, "the check to freeze")
    code, found = drift(lab)
    assert (code, found["findings"]) == (5, [])
    assert "quorum" in found["frozen"]
    assert mapping_of(lab, service_id)["state"] == "active"

    lab.proxmox.control("quorum", quorate=True)

    wait_for(lambda: mapping_of(lab, service_id)["state"] == "orphaned", 120, "the check to go on")
    assert lab.log_events("drift_check_resumed")


def test_work_under_way_is_no_drift(lab: LabSystem) -> None:
    """Services come and go while the check runs all the time."""
    services = [service_id for service_id, _vmid in made(lab, "brief-1", "brief-2").values()]
    for service_id in services:
        assert ending(lab.act(service_id, "delete")) == "Completed"
    seen = runs(lab)
    wait_for(lambda: runs(lab) > seen + 1, 120, "one more whole check")
    for event in ("drift_found", "drift_corrected"):
        assert [said(lab, event, service_id) for service_id in services] == [[], []]
    assert lab.log_events("critical_job_crashed") == []
