"""What the agent does besides cloning VMs, end to end: containers, VMs from an ISO image, backups and migrations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.fulcrum_setup import VM_SERVICE_TYPE_FILE, read_type_file
from smith_lab.system import LabSystem, outcome_of, run_lab_system, wait_for

CHANGES = {"cores": 2, "memoryMb": 1024, "swapMb": 256}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """A system that sends metrics every second and whose VMs can run on either node."""
    settings = {
        "SMITH_METRICS_INTERVAL_S": "1",
        "PROXMOX_STORAGE": "ceph",
        "PROXMOX_TEMPLATES": "debian-12=9102",
        "PROXMOX_STORAGES": "local",  # the ISO image is on it
        "PROXMOX_BACKUP_STORAGE": "backups",
        "SMITH_FINAL_BACKUP": "true",
    }
    with run_lab_system(tmp_path_factory.mktemp("lab"), settings=settings) as system:
        system.proxmox.control("add_template", vmid=9102, name="shared", node="pve1", storage="ceph")
        system.proxmox.control("grant", path="/nodes", privilege="Sys.Audit")
        system.proxmox.control("grant", path="/", privilege="Sys.Audit")  # shows which nodes are in maintenance
        system.start_executor()
        yield system


def container_of(lab: LabSystem, service_id: str) -> dict[str, Any]:
    (guest,) = lab.guests_of(service_id)
    assert guest["config"]["rootfs"], "not a container"
    return guest


def test_a_container_goes_through_every_action(lab: LabSystem) -> None:
    network = {"mode": "static", "ipv4Cidr": "192.0.2.40/24", "ipv4Gateway": "192.0.2.1"}
    service_id = lab.order_container("db", ciPassword="swordfish-1", hostname="db", network=network)
    created = lab.wait_for_jobs(service_id)
    assert created["status"] == "Stopped", lab.last_job(service_id).get("errorMessage")
    guest = container_of(lab, service_id)
    assert guest["config"]["tags"] == "smith"
    assert "ip=192.0.2.40/24" in guest["config"]["net0"]
    assert created["properties"]["vmid"] == guest["vmid"]
    (mapping,) = [row for row in lab.run_smith_json("mappings", "list") if row["service_id"] == service_id]
    assert (mapping["kind"], mapping["vmid"]) == ("lxc", guest["vmid"])

    for action, status in (("start", "running"), ("restart", "running"), ("snapshot", "running"), ("stop", "stopped")):
        job = lab.run_action(service_id, action)
        assert (job["status"], container_of(lab, service_id)["status"]) == ("Completed", status), job
    changed = lab.update_service(service_id, **CHANGES)
    assert outcome_of(changed) == "Completed"
    config = container_of(lab, service_id)["config"]
    assert (int(config["cores"]), int(config["memory"]), int(config["swap"])) == (2, 1024, 256)
    assert outcome_of(lab.run_action(service_id, "rollback")) == "Completed"
    assert int(container_of(lab, service_id)["config"]["cores"]) == 1

    assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"
    assert lab.admin.get_service(service_id)["status"] == "Deleted"
    assert lab.guests_of(service_id) == []
    assert "swordfish-1" not in lab.log_file.read_text()


def test_a_container_without_a_mapping_is_found_by_its_marker(lab: LabSystem) -> None:
    service_id = lab.order_container("found")
    lab.wait_for_jobs(service_id)
    vmid = container_of(lab, service_id)["vmid"]
    lab.run_smith_text("mappings", "forget", str(vmid), "--yes")

    job = lab.run_action(service_id, "start")

    assert outcome_of(job) == "Completed"
    (mapping,) = [row for row in lab.run_smith_json("mappings", "list") if row["service_id"] == service_id]
    assert (mapping["kind"], mapping["vmid"], mapping["state"]) == ("lxc", vmid, "active")


def test_a_containers_metrics_are_sent_and_it_is_not_reported_as_drift(lab: LabSystem) -> None:
    service_id = lab.order_container("measured")
    lab.wait_for_jobs(service_id)
    lab.run_action(service_id, "start")

    def cpu_and_memory_are_sent() -> bool:
        calls = lab.core.history(method="POST", path_end="/metric-entries")
        vmid = container_of(lab, service_id)["vmid"]
        sent = {call["body"]["typeName"] for call in calls if call["body"]["agentInstanceId"].endswith(f"/{vmid}")}
        return {"vm.cpu.usage", "vm.memory.usage"} <= sent

    wait_for(cpu_and_memory_are_sent, 60, "the container's metrics")
    assert [found for found in lab.run_smith_json("drift")["findings"] if found["service_id"] == service_id] == []


def test_a_container_with_an_unknown_os_template_is_refused_and_can_be_deleted(lab: LabSystem) -> None:
    service_id = lab.order_container("odd", osTemplate="alpine")
    lab.wait_for_jobs(service_id)
    assert lab.last_job(service_id)["errorMessage"].startswith("NOT_FOUND: no template is called alpine")
    assert lab.guests_of(service_id) == []
    assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"


# ---------------------------------------------------------------------- VMs that are not cloned


@pytest.fixture(scope="module")
def bare_type(lab: LabSystem) -> str:
    """Create a service type for bare VMs: with an ISO image or an empty disk in place of a template. Return its id."""
    service_type = copy.deepcopy(read_type_file(VM_SERVICE_TYPE_FILE)) | {"name": "proxmox-bare-vm"}
    properties = service_type["propertySchema"]["properties"]
    del properties["image"]
    properties |= {"iso": {"type": "string", "label": "ISO"}, "blank": {"type": "boolean", "label": "Empty disk"}}
    type_id = str(lab.admin.create("service-types", **service_type)["id"])
    offered_type_ids = [lab.ids.service_type_id, lab.ids.container_type_id, type_id]
    lab.admin.call("PATCH", f"/agent-types/{lab.ids.agent_type_id}", {"serviceTypeIds": offered_type_ids})
    return type_id


def order_bare_vm(lab: LabSystem, type_id: str, name: str, **source: Any) -> str:
    service_id = lab.order_service(name, service_type_id=type_id, image=None, **source)
    lab.wait_for_jobs(service_id)
    return service_id


def test_a_vm_is_created_from_an_iso_image_or_with_an_empty_disk(lab: LabSystem, bare_type: str) -> None:
    services = {
        "iso": order_bare_vm(lab, bare_type, "from-iso", iso="local:iso/debian-12.iso"),
        "blank": order_bare_vm(lab, bare_type, "blank", blank=True),
    }
    for name, service_id in services.items():
        assert outcome_of(lab.last_job(service_id)) == "Completed"
        (vm,) = lab.guests_of(service_id)
        assert (vm["config"]["scsi0"].partition(":")[0], vm["config"]["scsi0"].endswith("size=10G")) == ("ceph", True)
        assert ("ide2" in vm["config"]) is (name == "iso")
        assert outcome_of(lab.run_action(service_id, "start")) == "Completed"


def test_a_missing_iso_image_and_a_wrong_number_of_sources_are_refused(lab: LabSystem, bare_type: str) -> None:
    missing = order_bare_vm(lab, bare_type, "missing", iso="local:iso/none.iso")
    assert lab.last_job(missing)["errorMessage"].startswith("NOT_FOUND: no node fits")
    both = order_bare_vm(lab, bare_type, "both", iso="local:iso/debian-12.iso", blank=True)
    assert lab.last_job(both)["errorMessage"].startswith("INVALID_REQUEST: set only one of iso and blank")
    neither = order_bare_vm(lab, bare_type, "neither")
    assert lab.last_job(neither)["errorMessage"].startswith("INVALID_REQUEST: image is missing")


# ---------------------------------------------------------------------- actions without parameters


def list_archives(lab: LabSystem, vmid: int) -> list[str]:
    return [name for name in lab.proxmox.storages()["backups"]["volumes"] if f"-{vmid}-" in name]


def test_backups_and_the_final_backup_go_to_the_configured_storage(lab: LabSystem) -> None:
    service_id = lab.order_service("kept", diskGb=8)
    lab.wait_for_jobs(service_id)
    vmid = lab.guests_of(service_id)[0]["vmid"]

    job = lab.run_action(service_id, "backup")

    assert outcome_of(job) == "Completed"
    (archive,) = list_archives(lab, vmid)
    data = lab.admin.get_service(service_id)["agentInstanceData"]
    assert (data["backup"], data["vmid"]) == (f"backups:{archive}", vmid)
    assert outcome_of(lab.run_action(service_id, "delete")) == "Completed"
    assert len(list_archives(lab, vmid)) == 2
    assert lab.guests_of(service_id) == []


def test_migrate_moves_a_vm_off_a_node_in_maintenance_and_otherwise_changes_nothing(lab: LabSystem) -> None:
    service_id = lab.order_service("moving", diskGb=8)
    lab.wait_for_jobs(service_id)
    lab.run_action(service_id, "start")
    (before,) = lab.guests_of(service_id)
    job_without_a_reason = lab.run_action(service_id, "migrate")
    assert (job_without_a_reason["status"], lab.guests_of(service_id)[0]["node"]) == ("Completed", before["node"])
    result = lab.run_smith_json("jobs", "show", job_without_a_reason["id"])["result"]
    assert (result["changed"], "no other node has a much higher score" in result["placement"]["reason"]) == (
        False,
        True,
    )

    other = "pve2" if before["node"] == "pve1" else "pve1"
    lab.proxmox.control("node", node=before["node"], maintenance=True)
    try:
        moved = lab.run_action(service_id, "migrate")
    finally:
        lab.proxmox.control("node", node=before["node"])

    assert outcome_of(moved) == "Completed"
    (after,) = lab.guests_of(service_id)
    assert (after["node"], after["status"]) == (other, "running")
    assert lab.admin.get_service(service_id)["properties"]["node"] == other


def test_an_address_that_appears_late_is_sent_to_fulcrumcore_with_the_next_report(lab: LabSystem) -> None:
    service_id = lab.order_service("late", diskGb=8)
    lab.wait_for_jobs(service_id)
    vmid = lab.guests_of(service_id)[0]["vmid"]
    lab.proxmox.control("behave", vmid=vmid, agent=False)
    lab.run_action(service_id, "start")
    assert "ipAddresses" not in lab.admin.get_service(service_id)["properties"]
    lab.proxmox.control("behave", vmid=vmid, agent=True)

    assert outcome_of(lab.update_service(service_id, diskGb=9)) == "Completed"

    service = lab.admin.get_service(service_id)
    (address,) = service["agentInstanceData"]["ip_addresses"]
    lab.run_action(service_id, "stop")
    assert lab.admin.get_service(service_id)["properties"]["ipAddresses"] == [address]
