"""Deletions with a grace period: the service is deleted at once; its VM is stopped, and is deleted after the period.

Until then an operator can restore the VM.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from smith_lab.system import LabSystem, outcome_of, run_lab_system, wait_for
from support import fork_server

#: Longer than any test. A test that needs the period to end calls `end_grace_period`.
GRACE_S = 3600


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """A system that keeps deleted VMs for an hour, and checks every second whose grace period has ended."""
    settings = {
        "SMITH_DELETE_GRACE_S": str(GRACE_S),
        "SMITH_PRUNE_INTERVAL_S": "1",
        "SMITH_FINAL_BACKUP": "true",
        "PROXMOX_BACKUP_STORAGE": "backups",
    }
    with run_lab_system(tmp_path_factory.mktemp("lab"), settings=settings) as system:
        system.start_executor()
        yield system


def order_and_delete(lab: LabSystem, name: str) -> tuple[str, int]:
    """Order a service, start it and delete it; return its id and VMID."""
    service_id = lab.order_service(name)
    lab.wait_for_jobs(service_id)
    lab.run_action(service_id, "start")
    (vm,) = lab.guests_of(service_id)
    job = lab.run_action(service_id, "delete")
    assert outcome_of(job) == "Completed"
    return service_id, vm["vmid"]


def mapping_of(lab: LabSystem, service_id: str) -> dict[str, Any]:
    (found,) = [row for row in lab.run_smith_json("mappings", "list", "--all") if row["service_id"] == service_id]
    return dict(found)


def end_grace_period(lab: LabSystem, vmid: int) -> None:
    """End the grace period: in the VM's tag, which decides, and in the mapping, which says when the tag is read."""
    lab.proxmox.control("configure", vmid=vmid, values={"tags": "smith;smith-delete-1"})
    set_deletion_due(lab, vmid)


def set_deletion_due(lab: LabSystem, vmid: int) -> None:
    with closing(sqlite3.connect(lab.data_dir / "smith.db", timeout=30)) as database, database:
        database.execute("UPDATE mappings SET delete_at = '2001-01-01 00:00:00.000000' WHERE vmid = ?", (vmid,))


def drift_findings(lab: LabSystem) -> list[dict[str, Any]]:
    done = fork_server.run(["drift", "--json"], env=lab.environment(), cwd=lab.folder, timeout=120)
    return list(json.loads(done.stdout)["findings"])


def test_a_deleted_vm_is_backed_up_and_purged_when_its_grace_period_ends(lab: LabSystem) -> None:
    service_id, vmid = order_and_delete(lab, "deleted")

    service = lab.admin.get_service(service_id)
    assert (service["status"], service.get("agentInstanceId")) == ("Deleted", None)
    assert service["agentInstanceData"]["delete_at"] > time.time()
    (vm,) = lab.guests_of(service_id)
    assert (vm["status"], f"smith-delete-{service['agentInstanceData']['delete_at']}" in vm["config"]["tags"]) == (
        "stopped",
        True,
    )
    assert mapping_of(lab, service_id)["state"] == "pending_deletion"
    assert drift_findings(lab) == []
    lab.proxmox.reset_request_log()
    runs_before = count_purge_runs(lab)
    wait_for(lambda: count_purge_runs(lab) > runs_before + 1, 30, "one more run of PurgeDeletedVms")
    assert lab.proxmox.changing_requests() == []

    assert lab.stop_executor() == 0
    end_grace_period(lab, vmid)
    lab.start_executor()

    wait_for(lambda: mapping_of(lab, service_id)["state"] == "deleted", 60, "the VM to be destroyed")
    assert lab.guests_of(service_id) == []
    assert any(f"-{vmid}-" in name for name in lab.proxmox.storages()["backups"]["volumes"])
    (job,) = [
        job for job in lab.run_smith_json("jobs", "list", "--service", service_id) if job["report_state"] == "local"
    ]
    assert (job["action"], job["status"]) == ("delete", "completed")
    assert [call for call in lab.core.history(method="POST") if job["fulcrum_id"] in call["path"]] == []


def count_purge_runs(lab: LabSystem) -> int:
    return int(next(row["runs"] for row in lab.run_smith_json("critical", "list") if row["name"] == "PurgeDeletedVms"))


def test_a_scheduled_deletion_can_be_cancelled(lab: LabSystem) -> None:
    service_id, vmid = order_and_delete(lab, "regretted")
    assert "kept" in lab.run_smith_text("mappings", "recall", str(vmid), "--reason", "by mistake")

    assert mapping_of(lab, service_id)["state"] == "active"
    (vm,) = lab.guests_of(service_id)
    assert (vm["status"], "smith-delete" in vm["config"]["tags"]) == ("stopped", False)
    (entry,) = [entry for entry in lab.run_smith_json("audit", "list") if entry["subject_id"] == service_id]
    assert (entry["verb"], entry["before"]["state"], entry["after"]["state"]) == (
        "recall",
        "pending_deletion",
        "active",
    )
    runs = lab.run_smith_json("runs", "list")
    assert "not marked" in lab.run_smith_text("mappings", "recall", str(vmid))
    assert lab.run_smith_json("runs", "list") == runs
    assert [row["verb"] for row in lab.run_smith_json("audit", "list", "--subject", service_id)] == ["recall"]
    lab.run_smith_text("play", "start", "--service", str(vmid))
    assert lab.guests_of(service_id)[0]["status"] == "running"


def test_removing_the_deletion_tag_in_proxmox_cancels_the_deletion(lab: LabSystem) -> None:
    service_id, vmid = order_and_delete(lab, "untagged")
    lab.proxmox.control("configure", vmid=vmid, values={"tags": "smith"})
    lab.proxmox.control("power", vmid=vmid, status="running")
    set_deletion_due(lab, vmid)

    wait_for(lambda: mapping_of(lab, service_id)["state"] == "active", 60, "the mapping to be active again")

    assert lab.guests_of(service_id)[0]["status"] == "running"


def test_a_marked_vm_whose_service_still_exists_is_not_deleted_until_the_service_is_deleted_again(
    lab: LabSystem,
) -> None:
    """FulcrumCore failed the delete job at its timeout, so the service still exists, and the customer owns the VM."""
    service_id = lab.order_service("timed-out")
    lab.wait_for_jobs(service_id)
    (vm,) = lab.guests_of(service_id)
    lab.core.add_fault("status", method="POST", path=".*/complete$", times=100_000, status=503)
    lab.admin.delete_service(service_id)
    wait_for(lambda: mapping_of(lab, service_id)["state"] == "pending_deletion", 60, "the VM to be marked")
    lab.core.expire_job(lab.last_job(service_id)["id"])
    lab.core.clear_faults()
    lab.wait_for_jobs(service_id)
    wait_for(lambda: lab.run_smith_json("jobs", "list", "--unreported") == [], 60, "no unreported job to be left")
    assert lab.admin.get_service(service_id)["status"] == "Stopped"

    end_grace_period(lab, vm["vmid"])

    wait_for(lambda: lab.log_events("vm_deletion_withheld"), 60, "the VM to be kept")
    assert [vm["vmid"] for vm in lab.guests_of(service_id)] == [vm["vmid"]]
    found = [finding for finding in drift_findings(lab) if finding["service_id"] == service_id]
    assert [finding["kind"] for finding in found] == ["mapping_unreported"]
    assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"
    assert lab.guests_of(service_id) == []
    assert mapping_of(lab, service_id)["state"] == "deleted"
