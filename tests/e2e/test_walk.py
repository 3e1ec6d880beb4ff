"""Jobs end to end: the state of Proxmox, of the mappings and of FulcrumCore after each action."""

from __future__ import annotations

import pytest
from smith_lab.system import LabSystem, outcome_of

#: All tests share one running system.
pytestmark = pytest.mark.xdist_group("walk")


def mapping_of(lab: LabSystem, service_id: str) -> dict:
    found = [mapping for mapping in lab.run_smith_json("mappings", "list") if mapping["service_id"] == service_id]
    assert len(found) == 1
    return found[0]


def test_a_create_produces_the_requested_vm_mapping_and_service(lab: LabSystem) -> None:
    service_id = lab.order_service("shop", cores=3, memoryMb=3072, diskGb=17, tags=["gold", "eu"])

    service = lab.wait_for_jobs(service_id)

    assert service["status"] == "Stopped"
    (vm,) = lab.guests_of(service_id)
    config = vm["config"]
    assert (vm["status"], vm["template"]) == ("stopped", False)
    assert (str(config["cores"]), str(config["memory"])) == ("3", "3072")
    assert "size=17G" in config["scsi0"]
    assert config["name"] == f"shop-{service_id[:8]}"
    assert {"gold", "eu", "smith"} <= set(config["tags"].replace(",", ";").split(";"))
    assert f"smith-uid={service_id}" in config["description"].splitlines()
    assert f"smith-agent={lab.ids.agent_id}" in config["description"].splitlines()
    mapping = mapping_of(lab, service_id)
    assert (mapping["state"], mapping["vmid"], mapping["node"]) == ("active", vm["vmid"], vm["node"])
    assert 100000 <= vm["vmid"] <= 199999
    assert service["agentInstanceId"] == f"{lab.ids.agent_id}/{vm['vmid']}"
    assert service["properties"]["vmid"] == vm["vmid"]
    assert service["properties"]["node"] == vm["node"]
    assert service["properties"]["macAddress"].lower() in config["net0"].lower()
    job = lab.last_job(service_id)
    assert outcome_of(job) == "Completed"
    assert len(lab.reports(job["id"])) == 1


def test_start_stop_update_and_delete_change_the_vm_and_its_service(lab: LabSystem) -> None:
    service_id = lab.order_service("life")
    lab.wait_for_jobs(service_id)

    assert outcome_of(lab.run_action(service_id, "start")) == "Completed"
    assert lab.guests_of(service_id)[0]["status"] == "running"
    assert outcome_of(lab.run_action(service_id, "stop")) == "Completed"
    assert lab.guests_of(service_id)[0]["status"] == "stopped"
    assert outcome_of(lab.update_service(service_id, cores=4, memoryMb=4096, diskGb=33)) == "Completed"
    config = lab.guests_of(service_id)[0]["config"]
    assert (str(config["cores"]), str(config["memory"])) == ("4", "4096")
    assert "size=33G" in config["scsi0"]
    assert lab.admin.get_service(service_id)["properties"]["cores"] == 4
    assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"
    assert lab.guests_of(service_id) == []
    service = lab.admin.get_service(service_id)
    assert service["status"] == "Deleted"
    assert service.get("agentInstanceId") is None
    assert all(mapping["service_id"] != service_id for mapping in lab.run_smith_json("mappings", "list"))
    assert [len(lab.reports(job["id"])) for job in lab.admin.list_jobs(service_id)] == [1] * 5


def test_snapshot_restart_and_rollback_work_through_the_agent(lab: LabSystem) -> None:
    service_id = lab.order_service("snap")
    lab.wait_for_jobs(service_id)

    assert outcome_of(lab.run_action(service_id, "snapshot")) == "Completed"
    name = lab.admin.get_service(service_id)["properties"]["lastSnapshot"]
    assert any(
        snapshot == name or snapshot.get("name") == name for snapshot in lab.guests_of(service_id)[0]["snapshots"]
    )
    assert outcome_of(lab.run_action(service_id, "rollback")) == "Completed"
    lab.run_action(service_id, "start")
    assert outcome_of(lab.run_action(service_id, "restart")) == "Completed"
    assert lab.admin.get_service(service_id)["status"] == "Started"


def test_starting_a_running_vm_and_stopping_a_stopped_vm_succeed(lab: LabSystem) -> None:
    service_id = lab.order_service("idem")
    lab.wait_for_jobs(service_id)
    vmid = lab.guests_of(service_id)[0]["vmid"]

    lab.proxmox.control("power", vmid=vmid, status="running")
    assert outcome_of(lab.run_action(service_id, "start")) == "Completed"
    lab.proxmox.control("power", vmid=vmid, status="stopped")
    assert outcome_of(lab.run_action(service_id, "stop")) == "Completed"
    assert lab.admin.get_service(service_id)["status"] == "Stopped"


def test_deleting_a_vm_that_no_longer_exists_succeeds(lab: LabSystem) -> None:
    service_id = lab.order_service("gone")
    lab.wait_for_jobs(service_id)
    lab.proxmox.control("remove", vmid=lab.guests_of(service_id)[0]["vmid"])

    assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"
    assert lab.admin.get_service(service_id)["status"] == "Deleted"


def test_starting_a_vm_that_no_longer_exists_sets_the_service_to_lost(lab: LabSystem) -> None:
    service_id = lab.order_service("lost")
    lab.wait_for_jobs(service_id)
    lab.proxmox.control("remove", vmid=lab.guests_of(service_id)[0]["vmid"])

    job = lab.run_action(service_id, "start")

    assert job["errorMessage"].startswith("VM_NOT_FOUND: ")
    assert lab.admin.get_service(service_id)["status"] == "Lost"
    assert mapping_of(lab, service_id)["state"] == "vm_lost"
    assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"


def test_another_vm_with_the_services_vmid_is_never_changed(lab: LabSystem) -> None:
    service_id = lab.order_service("recycled")
    lab.wait_for_jobs(service_id)
    vmid = lab.guests_of(service_id)[0]["vmid"]
    lab.proxmox.control("recycle", vmid=vmid, name="foreign")

    job = lab.run_action(service_id, "delete")

    assert job["errorMessage"].startswith("VM_IDENTITY_MISMATCH: ")
    assert lab.proxmox.guest(vmid)["config"]["name"] == "foreign"


def test_an_update_without_properties_fails_and_keeps_the_services_properties(lab: LabSystem) -> None:
    service_id = lab.order_service("bare")
    before = lab.wait_for_jobs(service_id)["properties"]

    job = lab.run_action(service_id, "update")

    assert job["status"] == "Failed"
    assert job["errorMessage"].startswith("INVALID_REQUEST: ")
    assert lab.admin.get_service(service_id)["properties"] == before


def test_shrinking_a_disk_is_refused_before_any_change(lab: LabSystem) -> None:
    service_id = lab.order_service("shrink", diskGb=20)
    lab.wait_for_jobs(service_id)

    job = lab.update_service(service_id, diskGb=12, cores=4)

    assert job["errorMessage"].startswith("INVALID_REQUEST: ")
    config = lab.guests_of(service_id)[0]["config"]
    assert "size=20G" in config["scsi0"]
    assert str(config["cores"]) == "2"


def test_a_create_with_an_unknown_template_fails_with_not_found_and_creates_no_vm(lab: LabSystem) -> None:
    service_id = lab.order_service("no-template", image="windows-3.11")

    service = lab.wait_for_jobs(service_id)

    assert service["status"] == "CreateFailed"
    assert lab.last_job(service_id)["errorMessage"].startswith("NOT_FOUND: ")
    assert lab.guests_of(service_id) == []


def test_a_template_on_another_node_is_cloned(lab: LabSystem) -> None:
    service_id = lab.order_service("other-node", image="ubuntu-24.04", diskGb=12)

    assert lab.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(lab.guests_of(service_id)) == 1


def test_the_password_is_stored_in_the_vm_only(lab: LabSystem) -> None:
    password = "correct-horse-{{ 7 * 7 }}-\"battery'"
    service_id = lab.order_service("secret", ciUser="ops", ciPassword=password)

    assert lab.wait_for_jobs(service_id)["status"] == "Stopped"

    config = lab.guests_of(service_id)[0]["config"]
    assert config["ciuser"] == "ops"
    assert config.get("cipassword")
    written = [path for path in lab.folder.rglob("*") if path.is_file() and "proxmox" not in path.parts]
    assert written
    leaks = [path.name for path in written if password.encode() in path.read_bytes()]
    assert leaks == []
    assert not any((lab.folder / "run").glob("*/*vars*"))


def test_the_instance_data_lists_a_password_that_a_repeated_create_could_not_set(lab: LabSystem) -> None:
    """FulcrumCore deletes an ephemeral secret after the first attempt, so the second create has no password."""
    lab.proxmox.fail_task("qmclone", "no space left on device")
    service_id = lab.order_service("forgetful", ciUser="ops", ciPassword="correct-horse-battery")
    lab.wait_for_jobs(service_id)
    assert lab.last_job(service_id)["status"] == "Failed"

    job = lab.run_action(service_id, "create")

    assert job["status"] == "Completed"
    assert lab.admin.get_service(service_id)["agentInstanceData"]["left_out_properties"] == ["ciPassword"]
    assert "cipassword" not in lab.guests_of(service_id)[0]["config"]


def test_a_service_name_is_never_evaluated_as_a_template(lab: LabSystem) -> None:
    marker_file = lab.folder / "evaluated"
    name = "{{ lookup('pipe', 'touch " + str(marker_file) + "') }}"
    service_id = lab.order_service(name)

    assert lab.wait_for_jobs(service_id)["status"] == "Stopped"

    (vm,) = lab.guests_of(service_id)
    assert name in vm["config"]["description"]
    assert not marker_file.exists()


def test_a_disk_that_proxmox_could_not_remove_is_logged(lab: LabSystem) -> None:
    service_id = lab.order_service("remains")
    lab.wait_for_jobs(service_id)
    (vm,) = lab.guests_of(service_id)
    volume = vm["config"]["scsi0"].partition(",")[0]
    lab.proxmox.control("unremovable", volume=volume)
    job = lab.run_action(service_id, "delete")
    assert (outcome_of(job), lab.guests_of(service_id)) == ("Completed", [])
    (entry,) = lab.log_events("volumes_left")
    assert (entry["level"], entry["vmid"], entry["volumes"]) == ("warning", vm["vmid"], [volume])
