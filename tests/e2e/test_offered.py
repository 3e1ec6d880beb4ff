"""Requests of tenants that are refused, end to end.

They name a bridge, VLAN, storage, tag or template that the provider does not offer, or a size that no node has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from smith_lab.fulcrum_setup import VM_SERVICE_TYPE_FILE, read_type_file
from smith_lab.system import LabSystem, outcome_of, run_lab_system

#: A VM template and an OS template that exist at Proxmox, but are not in PROXMOX_TEMPLATES and PROXMOX_OS_TEMPLATES.
OTHER_TEMPLATE, OTHER_OS_TEMPLATE = "internal-tools", "local:vztmpl/internal.tar.zst"
GIB = 1024**3
#: The names of nodes and templates, and a text about free memory, that no message to a tenant may contain.
HIDDEN_NAMES = ("pve1", "pve2", "ubuntu-24.04", "debian-12-standard", "MiB of memory free")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """A system whose service type lets tenants write every property, while the provider offers few values."""
    settings = {
        "PROXMOX_BRIDGES": "vmbr1",
        "PROXMOX_VLANS": "20,100-199",
        "PROXMOX_STORAGES": "ceph",
        "PROXMOX_TAGS": "web",
    }
    with run_lab_system(tmp_path_factory.mktemp("lab"), settings=settings) as system:
        system.proxmox.control("add_template", vmid=9200, name=OTHER_TEMPLATE, node="pve1")
        system.proxmox.control("grant", path="/nodes", privilege="Sys.Audit")  # shows the nodes' memory
        for node in ("pve1", "pve2"):
            system.proxmox.control("node", node=node, maxmem=64 * GIB, mem=0, maxcpu=16)
        system.ids = _create_unrestricted_service_type(system)
        system.start_executor()
        yield system


def _create_unrestricted_service_type(lab: LabSystem) -> Any:
    """Create a service type that accepts any names of bridges, storages, ISO images and so on. Return the lab's ids."""
    unrestricted_type = read_type_file(VM_SERVICE_TYPE_FILE) | {"name": "vm-with-all-properties"}
    properties = unrestricted_type["propertySchema"]["properties"]
    properties["image"]["required"] = False
    properties["network"]["properties"]["vlan"]["validators"] = []
    for name in ("networks", "disks"):
        members = {
            "networks": {"bridge": {"type": "string"}, "vlan": {"type": "integer"}},
            "disks": {"disk": {"type": "string"}, "sizeGb": {"type": "integer"}, "storage": {"type": "string"}},
        }[name]
        properties[name] = {"type": "array", "items": {"type": "object", "properties": members}}
    for name in ("iso", "vendorSnippet", "osTemplate"):
        properties[name] = {"type": "string"}
    service_type = lab.admin.create("service-types", **unrestricted_type)
    offered_type_ids = [lab.ids.service_type_id, lab.ids.container_type_id, service_type["id"]]
    lab.admin.call("PATCH", f"/agent-types/{lab.ids.agent_type_id}", {"serviceTypeIds": offered_type_ids})
    return replace(lab.ids, service_type_id=service_type["id"])


#: By the name of the case: properties with a value that is not offered, and the text of the refusal.
NOT_OFFERED: dict[str, tuple[dict[str, Any], str]] = {
    "bridge": ({"network": {"bridge": "vmbr9"}}, "the bridge vmbr9 is not offered"),
    "bridge-of-another-nic": ({"networks": [{}, {"bridge": "vmbr9"}]}, "the bridge vmbr9 is not offered"),
    "vlan": ({"network": {"vlan": 99}}, "the VLAN 99 is not offered"),
    "vlan-of-another-nic": ({"networks": [{}, {"vlan": 200}]}, "the VLAN 200 is not offered"),
    "storage": (
        {"disks": [{"disk": "scsi1", "sizeGb": 1, "storage": "backups"}]},
        "the storage backups is not offered",
    ),
    "moved-disk": ({"disks": [{"disk": "scsi0", "storage": "local"}]}, "the storage local is not offered"),
    "tag": ({"tags": ["web", "backup-gold"]}, "the tag backup-gold is not offered"),
    "snippet": ({"vendorSnippet": "local:snippets/operator.yml"}, "the storage local is not offered"),
}
OFFERED: dict[str, Any] = {
    "tags": ["web"],
    "network": {"bridge": "vmbr1", "vlan": 150},
    "networks": [{}, {"bridge": "vmbr0", "vlan": 20}],
    "disks": [{"disk": "scsi1", "sizeGb": 1, "storage": "ceph"}],
}


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_a_create_that_names_what_is_not_offered_creates_no_vm(lab: LabSystem, name: str) -> None:
    properties, text = NOT_OFFERED[name]
    service_id = lab.order_service(f"not-offered-{name}", **properties)
    lab.wait_for_jobs(service_id)
    job = lab.last_job(service_id)
    assert f"INVALID_REQUEST: {text}" in outcome_of(job)
    _assert_message_has_no_hidden_name(job)
    assert lab.guests_of(service_id) == []


def test_an_iso_image_on_a_storage_that_is_not_offered_creates_no_vm(lab: LabSystem) -> None:
    service_id = lab.order_service("iso", image=None, iso="local:iso/debian-12.iso")
    lab.wait_for_jobs(service_id)
    assert "INVALID_REQUEST: the storage local is not offered" in outcome_of(lab.last_job(service_id))
    assert lab.guests_of(service_id) == []


def test_an_update_that_names_what_is_not_offered_changes_nothing(lab: LabSystem) -> None:
    service_id = lab.order_service("offered", **OFFERED)
    assert lab.wait_for_jobs(service_id)["status"] == "Stopped", outcome_of(lab.last_job(service_id))
    before = lab.guests_of(service_id)[0]["config"]
    assert "bridge=vmbr1,tag=150" in before["net0"]
    assert "bridge=vmbr0,tag=20" in before["net1"]
    assert before["scsi1"].startswith("ceph:")
    for name, (properties, text) in NOT_OFFERED.items():
        job = lab.update_service(service_id, memoryMb=4096, **properties)
        assert f"INVALID_REQUEST: {text}" in outcome_of(job), name
        assert lab.guests_of(service_id)[0]["config"] == before, name
    changed = lab.update_service(service_id, memoryMb=4096)
    assert outcome_of(changed) == "Completed"


@pytest.mark.parametrize("image", [OTHER_TEMPLATE, "no-such-template"])
def test_a_template_that_is_not_offered_is_refused_with_the_message_for_a_missing_template(
    lab: LabSystem, image: str
) -> None:
    service_id = lab.order_service(f"unlisted-{image}", image=image)
    lab.wait_for_jobs(service_id)
    job = lab.last_job(service_id)
    assert outcome_of(job) == f"Failed: NOT_FOUND: no template is called {image}"
    assert lab.guests_of(service_id) == []
    shown = lab.run_smith_json("jobs", "show", job["id"])
    assert "PROXMOX_TEMPLATES" in shown["operator_detail"]
    assert shown["error_message"] == job["errorMessage"]


def test_a_container_template_that_is_not_offered_is_refused(lab: LabSystem) -> None:
    service_id = lab.order_service("unlisted", image=None, osTemplate=OTHER_OS_TEMPLATE)
    lab.wait_for_jobs(service_id)
    assert "NOT_FOUND: no template is called local:vztmpl/internal.tar.zst" in outcome_of(lab.last_job(service_id))
    assert lab.guests_of(service_id) == []


def test_the_refusal_of_a_vm_that_fits_on_no_node_names_neither_nodes_nor_free_memory(lab: LabSystem) -> None:
    service_id = lab.order_service("too-large", memoryMb=900_000)
    lab.wait_for_jobs(service_id)
    job = lab.last_job(service_id)
    assert outcome_of(job) == "Failed: CAPACITY: no node fits a VM with 900000 MiB and 2 cores"
    _assert_message_has_no_hidden_name(job)
    shown = lab.run_smith_json("jobs", "show", job["id"])
    assert "pve1 has" in shown["operator_detail"]
    (finished,) = [entry for entry in lab.log_events("job_finished") if entry["job_id"] == job["id"]]
    assert "pve1 has" in finished["operator_detail"]


def test_updates_cannot_take_more_memory_than_the_node_has(lab: LabSystem) -> None:
    services = [lab.order_service(f"small-{number}", memoryMb=1024) for number in range(3)]
    for service_id in services:
        assert lab.wait_for_jobs(service_id)["status"] == "Stopped", outcome_of(lab.last_job(service_id))
    jobs = [lab.update_service(service_id, memoryMb=40 * 1024) for service_id in services]
    assert [job["status"] for job in jobs] == ["Completed", "Failed", "Failed"]
    assert [lab.guests_of(service_id)[0]["config"]["memory"] for service_id in services] == ["40960", "1024", "1024"]
    for job in jobs[1:]:
        message = "CAPACITY: the VM's node lacks the memory or cores for the VM's new size"
        assert outcome_of(job) == f"Failed: {message}"
        assert "pve1 has" in lab.run_smith_json("jobs", "show", job["id"])["operator_detail"]
    for service_id in services:  # an update to less memory is not refused
        assert outcome_of(lab.update_service(service_id, memoryMb=512)) == "Completed"
        lab.run_action(service_id, "delete")


def test_updates_cannot_take_more_cores_than_the_node_has(lab: LabSystem) -> None:
    service_id = lab.order_service("one-core", cores=1)
    lab.wait_for_jobs(service_id)
    before = lab.guests_of(service_id)[0]["config"]
    job = lab.update_service(service_id, cores=128, diskGb=20)
    assert outcome_of(job).startswith("Failed: CAPACITY: ")
    assert lab.guests_of(service_id)[0]["config"] == before


def test_an_update_that_fails_on_a_full_storage_does_not_change_the_vm(lab: LabSystem) -> None:
    service_id = lab.order_service("full-storage", cores=1, memoryMb=1024)
    lab.wait_for_jobs(service_id)
    before = lab.guests_of(service_id)[0]["config"]
    vmid = lab.guests_of(service_id)[0]["vmid"]
    full = "not enough free space in thin pool 'pve/data'"
    lab.proxmox.fail("PUT", f"/nodes/pve1/qemu/{vmid}/resize", status=500, text=full, times=-1)
    job = lab.update_service(service_id, cores=4, memoryMb=8192, diskGb=20)
    lab.proxmox.control("clear_faults")
    assert outcome_of(job).startswith("Failed: CAPACITY: there is not enough free capacity for this request")
    assert lab.guests_of(service_id)[0]["config"] == before


def _assert_message_has_no_hidden_name(job: dict[str, Any]) -> None:
    assert not [name for name in HIDDEN_NAMES if name in job["errorMessage"]]
