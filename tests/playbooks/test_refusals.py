"""What Proxmox would refuse, or would ignore, is refused before the first change: no changing request is sent."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from play_bench import ACTIONS, Bench, Outcome

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"
CLOUD_INIT = {"ide2": "local-lvm:vm-1-cloudinit,media=cdrom"}
GIB = 1024**3


def refused(bench: Bench, action: str, vm: dict[str, Any]) -> Outcome:
    """Run an action that must be refused without a changing request to the stand-in; return its outcome."""
    outcome, changes = bench.changing_requests(lambda: bench.play(action, vm))
    assert (outcome.rc != 0, changes) == (True, []), outcome.output
    return outcome


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "a key that is cut off": {"cloud_init": {"ssh_public_keys": [KEY[:-4]]}},
    "a key whose data is of another type": {"cloud_init": {"ssh_public_keys": [KEY.replace("ed25519", "rsa", 1)]}},
    "a balloon above the memory": {"memory_mib": 1024, "balloon_mib": 2048},
    "two sizes of one disk": {"disk_gib": 20, "disks": [{"disk": "scsi0", "size_gib": 30}]},
    "a disk that would shrink": {"disk_gib": 4},
    "an address without the mode static": {"network": {"mode": "dhcp", "ipv4_cidr": "192.0.2.9/24"}},
    "a gateway outside the network": {
        "network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "198.51.100.1"}
    },
    "a gateway that is the address": {
        "network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "192.0.2.9"}
    },
    "an address without its prefix length": {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9"}},
    "a name server that is a name": {"network": {"dns_servers": ["dns.example.net"]}},
    "an unknown boot device": {"boot_order": ["scsi9"]},
    "keys that would be removed": {"cloud_init": {"ssh_public_keys": []}},
}


@pytest.mark.parametrize("action", ["create", "update"])
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_contradiction_in_a_request_is_refused_before_any_change(
    bench: Bench, pve_version: str, action: str, what: str
) -> None:
    vm = bench.vm() if action == "create" else bench.add_vm(config=CLOUD_INIT)
    assert refused(bench, action, {**vm, **CONTRADICTIONS[what]}).code == "INVALID_REQUEST", pve_version


@pytest.mark.parametrize("what", ["a key that is cut off", "an address without the mode static"])
def test_a_contradiction_in_a_request_for_a_container_is_refused_before_any_change(
    bench: Bench, pve_version: str, what: str
) -> None:
    vm = bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template)
    assert refused(bench, "create", {**vm, **CONTRADICTIONS[what]}).code == "INVALID_REQUEST", pve_version


#: Impossible requests: the action, the guest's kind and status, the request, and the code of the refusal.
REFUSED: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("resize", "qemu", "stopped", {"disk_gib": 4}, "INVALID_REQUEST"),
    ("resize", "qemu", "running", {"disk_gib": None}, "INVALID_REQUEST"),
    ("resize", "qemu", "running", {"disks": [{"disk": "scsi9", "size_gib": 9}]}, "INVALID_REQUEST"),
    ("resize", "lxc", "running", {"disk_gib": 9}, "INVALID_REQUEST"),
    ("update", "lxc", "stopped", {"tags": ["db"]}, "INVALID_REQUEST"),
    ("update", "lxc", "stopped", {"cloud_init": {"password": "x"}}, "INVALID_REQUEST"),
    ("update", "lxc", "stopped", {"disk_gib": 9}, "INVALID_REQUEST"),
    ("update", "qemu", "running", {"disks": [{"disk": "scsi1"}]}, "INVALID_REQUEST"),
    ("update", "qemu", "running", {"networks": [{"mac": "01:00:5E:00:00:01"}]}, "INVALID_REQUEST"),
    ("migrate", "qemu", "running", {}, "INVALID_REQUEST"),
    ("migrate", "qemu", "running", {"target_node": "pve9"}, "NOT_FOUND"),
    ("migrate", "qemu", "running", {"target_node": "pve2", "online": False}, "VM_STATE"),
    ("migrate", "lxc", "stopped", {"target_node": "pve2"}, "INVALID_REQUEST"),
    ("snapshot", "qemu", "running", {"snapshot": "1-x"}, "INVALID_REQUEST"),
    ("rollback", "qemu", "running", {"snapshot": "none"}, "NOT_FOUND"),
    ("rollback", "lxc", "stopped", {}, "NOT_FOUND"),
    ("backup", "qemu", "running", {}, "INVALID_REQUEST"),
    ("backup", "qemu", "running", {"backup_storage": "backups", "backup_mode": "none"}, "INVALID_REQUEST"),
    ("restart", "qemu", "stopped", {}, "VM_NOT_RUNNING"),
    ("restart", "lxc", "stopped", {}, "VM_NOT_RUNNING"),
]


def test_an_action_refuses_an_impossible_request_before_any_change(bench: Bench, pve_version: str) -> None:
    for action, kind, status, request, code in REFUSED:
        guest = bench.add_container(status=status) if kind == "lxc" else bench.add_vm(status=status)
        done = refused(bench, action, {**guest, **request})
        assert done.code == code, (pve_version, action, request, done.message)


def test_every_action_refuses_a_protected_vm_and_another_services_vm_before_any_change(
    bench: Bench, pve_version: str
) -> None:
    requests: dict[str, dict[str, Any]] = {
        "start": {},
        "stop": {},
        "restart": {},
        "update": {"cores": 4},
        "resize": {"disk_gib": 9},
        "migrate": {"target_node": "pve2"},
        "snapshot": {"snapshot": "before"},
        "rollback": {"snapshot": "before"},
        "backup": {"backup_storage": "backups"},
        "delete": {"final_backup": "backups"},
    }
    assert {*requests} == {*ACTIONS} - {"create"}
    vm = bench.add_vm(status="running")
    protected = bench.add_vm(status="running", config={"protection": 1})
    for action, request in requests.items():
        request_of_another_service = {**vm, "service_id": str(uuid.uuid4()), **request}
        assert refused(bench, action, request_of_another_service).code == "VM_IDENTITY_MISMATCH", (pve_version, action)
        assert refused(bench, action, {**protected, **request}).code == "VM_PROTECTED", (pve_version, action)
    assert refused(bench, "create", {**bench.vm(), "vmid": vm["vmid"]}).code == "VM_ID_TAKEN", pve_version


@pytest.mark.proxmox(
    behaviour="a clone keeps the balloon of its template, and a memory below it is refused after the clone",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, update_vm_api",
    reaction="compares both before the clone (`INVALID_REQUEST`)",
)
def test_a_templates_balloon_above_the_requested_memory_is_refused_before_the_clone(
    bench: Bench, pve_version: str
) -> None:
    bench.pve.control("add_template", vmid=9050, name="balloon", node="pve1")
    bench.pve.control("configure", vmid=9050, values={"balloon": 4096})
    vm = bench.vm(template_vmid=9050)
    assert "balloon_mib 4096 (the current value of the template)" in refused(bench, "create", vm).message, pve_version
    assert bench.play("create", {**vm, "balloon_mib": 1024}).rc == 0
    assert refused(bench, "update", {**vm, "memory_mib": 512}).code == "INVALID_REQUEST"


@pytest.mark.proxmox(
    behaviour="name servers of a VM without a cloud-init drive are stored, and no guest gets them",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer/Cloudinit.pm, get_dns_conf",
    reaction="refuses them before the first change (`INVALID_REQUEST`)",
)
@pytest.mark.parametrize("network", [{"dns_servers": ["192.0.2.53"]}, {"search_domains": ["example.net"]}], ids=str)
def test_name_servers_without_a_cloud_init_drive_are_refused(
    bench: Bench, pve_version: str, network: dict[str, Any]
) -> None:
    """Proxmox would store them, and the guest would never get them."""
    bench.pve.control("add_template", vmid=9051, name="bare", node="pve1")
    bench.pve.control("configure", vmid=9051, values={"ide2": None})
    assert refused(bench, "create", bench.vm(template_vmid=9051, network=network)).code == "INVALID_REQUEST", (
        pve_version
    )
    assert refused(bench, "update", {**bench.add_vm(), "network": network}).code == "INVALID_REQUEST"


@pytest.mark.parametrize("status", ["stopped", "running"])
def test_an_empty_list_removes_name_servers_and_the_vlan_0_removes_the_vlan(
    bench: Bench, pve_version: str, status: str
) -> None:
    config = {**CLOUD_INIT, "nameserver": "192.0.2.53", "searchdomain": "example.net"}
    nic = {"net0": "virtio=BC:24:11:00:11:22,bridge=vmbr0,tag=7"}
    vm = {**bench.add_vm(config={**config, **nic}, status=status)}
    vm["network"] = {"dns_servers": [], "search_domains": [], "vlan": 0}
    done = bench.play("update", vm)
    assert (done.rc, done.result["reboot_required"]) == (0, status == "running"), (pve_version, done.output)
    config_after = bench.guest(vm)["config"]
    assert not {"nameserver", "searchdomain"} & set(config_after)
    assert "tag=" not in config_after["net0"]
    again, changes = bench.changing_requests(lambda: bench.play("update", vm))
    assert (again.rc, changes) == (0, []), again.output


def test_a_create_removes_the_name_servers_and_the_vlan_of_its_template(bench: Bench, pve_version: str) -> None:
    bench.pve.control("add_template", vmid=9052, name="named", node="pve1")
    named = {"nameserver": "192.0.2.53", "searchdomain": "example.net"}
    nic = {"net0": "virtio=BC:24:11:00:11:24,bridge=vmbr0,tag=7"}
    bench.pve.control("configure", vmid=9052, values={**named, **nic})
    vm = bench.vm(template_vmid=9052, network={"dns_servers": [], "search_domains": [], "vlan": 0})
    done = bench.play("create", vm)
    assert done.rc == 0, (pve_version, done.output)
    config_after = bench.guest(vm)["config"]
    assert not {*named} & {*config_after}
    assert "tag=" not in config_after["net0"]
    again, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (again.rc, changes) == (0, []), again.output


def test_an_empty_list_removes_the_name_servers_of_a_container(bench: Bench, pve_version: str) -> None:
    vm = bench.add_container(config={"nameserver": "192.0.2.53"})
    assert bench.play("update", {**vm, "network": {"dns_servers": []}}).rc == 0, pve_version
    assert "nameserver" not in bench.guest(vm)["config"]


RARE_BUT_POSSIBLE: dict[str, dict[str, Any]] = {
    "a host route": {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/32", "ipv4_gateway": "198.51.100.1"}},
    "a network of two addresses": {"network": {"mode": "static", "ipv4_cidr": "192.0.2.8/31"}},
    "several NICs": {"networks": [{}, {"bridge": "vmbr1"}, {"bridge": "vmbr1", "vlan": 7}, {"bridge": "vmbr0"}]},
    "a key with options": {"cloud_init": {"ssh_public_keys": [f'restrict,command="a b" {KEY} me@host']}},
    "no ballooning": {"balloon_mib": 0},
    "both sizes of one disk are equal": {"disk_gib": 9, "disks": [{"disk": "scsi0", "size_gib": 9}]},
}


@pytest.mark.parametrize("action", ["create", "update"])
@pytest.mark.parametrize("what", RARE_BUT_POSSIBLE)
def test_a_rare_but_possible_request_is_fulfilled(bench: Bench, pve_version: str, action: str, what: str) -> None:
    vm = bench.vm() if action == "create" else bench.add_vm(config=CLOUD_INIT)
    done = bench.play(action, {**vm, **RARE_BUT_POSSIBLE[what]})
    assert done.rc == 0, (pve_version, done.output)


@pytest.mark.parametrize("action", ["create", "update"])
@pytest.mark.parametrize("what", ["a host route", "a network of two addresses", "several NICs"])
def test_a_rare_but_possible_request_for_a_container_is_fulfilled(
    bench: Bench, pve_version: str, action: str, what: str
) -> None:
    new = bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template)
    vm = new if action == "create" else bench.add_container()
    done = bench.play(action, {**vm, **RARE_BUT_POSSIBLE[what]})
    assert done.rc == 0, (pve_version, done.output)
