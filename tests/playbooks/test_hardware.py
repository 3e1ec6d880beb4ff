"""Requested hardware: a run applies it, Proxmox shows it, and a second run changes nothing."""

from __future__ import annotations

import urllib.parse
from typing import Any

from play_bench import Bench

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"
HARDWARE: dict[str, Any] = {
    **{"cores": 2, "sockets": 2, "cpu_type": "host", "memory_mib": 4096, "balloon_mib": 1024, "onboot": True},
    **{"guest_agent": False, "boot_order": ["scsi0", "net0"]},
    "disks": [
        {"disk": "scsi0", "storage": "ceph", "size_gib": 10},
        {"disk": "scsi1", "size_gib": 5},
        {"disk": "virtio3", "size_gib": 6, "storage": "ceph"},
    ],
    "networks": [
        {"vlan": 7, "firewall": True, "rate_mbps": 100},
        {"bridge": "vmbr1", "mac": "BC:24:11:0A:0B:0C"},
    ],
}


def test_update_applies_all_requested_hardware(bench: Bench) -> None:
    vm = {**bench.add_vm(), **HARDWARE, "disk_gib": 10}
    done = bench.play("update", vm)
    assert done.rc == 0, done.output
    config = bench.guest(vm)["config"]
    assert (str(config["cores"]), str(config["sockets"]), config["cpu"]) == ("2", "2", "host")
    assert (config["memory"], str(config["balloon"]), str(config["onboot"])) == ("4096", "1024", "1")
    assert (config["agent"], config["boot"]) == ("enabled=0", "order=scsi0;net0")
    assert (config["scsi0"].partition(":")[0], config["scsi0"].endswith("size=10G")) == ("ceph", True)
    assert (config["scsi1"].partition(":")[0], config["scsi1"].endswith("size=5G")) == ("local-lvm", True)
    assert (config["virtio3"].partition(":")[0], config["virtio3"].endswith("size=6G")) == ("ceph", True)
    assert set(config["net0"].split(",")) == {
        *("virtio=BC:24:11:00:11:22", "bridge=vmbr0", "tag=7", "firewall=1", "rate=12.5")
    }
    assert config["net1"] == "virtio=BC:24:11:0A:0B:0C,bridge=vmbr1"
    assert (done.result["cores"], done.result["disk_gib"], len(done.result["upids"])) == (4, 10, 4)
    again, changes = bench.changing_requests(lambda: bench.play("update", vm))
    assert (again.rc, again.module_runs, changes) == (0, 0, []), again.output


def test_an_allowed_reboot_happens_when_changes_are_pending(bench: Bench) -> None:
    vm = {**bench.add_vm(status="running"), "cores": 4, "allow_reboot": True}
    done, changes = bench.changing_requests(lambda: bench.play("update", vm))
    assert (done.rc, done.result["reboot_required"], done.result["status"]) == (0, False, "running"), done.output
    assert changes[1:] == [f"POST /nodes/pve1/qemu/{vm['vmid']}/status/reboot"]
    assert str(bench.guest(vm)["config"]["cores"]) == "4"
    again, changes = bench.changing_requests(lambda: bench.play("update", vm))
    assert (again.rc, again.result["changed"], changes) == (0, False, [])


def test_a_disk_that_cannot_be_created_ends_in_capacity_and_the_next_run_creates_it(bench: Bench) -> None:
    disks = [{"disk": "scsi1", "size_gib": 1}, {"disk": "scsi0", "size_gib": 9}]
    vm = {**bench.add_vm(), "disk_gib": 9, "disks": disks}
    bench.pve.fail_task("qmconfig", "unable to write to storage 'local-lvm': No space left on device")
    assert bench.play("update", vm).code == "CAPACITY"
    assert bench.play("update", vm).rc == 0
    assert bench.guest(vm)["config"]["scsi1"].endswith("size=1G")


def test_create_applies_both_address_families_search_domains_a_snippet_and_protection(bench: Bench) -> None:
    keys = [f"{KEY} Zoë's %20 #{number}" for number in range(20)]
    vm = bench.vm(
        network={
            **{"mode": "static", "ipv4_cidr": "192.0.2.10/24", "ipv4_gateway": "192.0.2.1", "ipv6_mode": "static"},
            **{"ipv6_cidr": "2001:db8::10/64", "ipv6_gateway": "fe80::1", "search_domains": ["a.example", "b.example"]},
        },
        networks=[{}, {"bridge": "vmbr1", "ipv6_mode": "slaac"}],
        cloud_init={"vendor_snippet": "local:snippets/vendor.yml", "ssh_public_keys": [f"{key}\r\n" for key in keys]},
        protection=True,
    )
    done = bench.play("create", vm)
    assert done.rc == 0, done.output
    config = bench.guest(vm)["config"]
    assert config["ipconfig0"] == "ip=192.0.2.10/24,gw=192.0.2.1,ip6=2001:db8::10/64,gw6=fe80::1"
    assert (config["ipconfig1"], config["searchdomain"]) == ("ip6=auto", "a.example b.example")
    assert config["cicustom"] == "vendor=local:snippets/vendor.yml"
    assert urllib.parse.unquote(config["sshkeys"]).splitlines() == keys
    again, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (again.rc, changes) == (0, []), again.output
    assert bench.play("delete", vm).code == "VM_PROTECTED"
    assert bench.play("update", {**vm, "protection": False}).rc == 0
    assert bench.play("delete", vm).rc == 0


def test_a_vm_from_an_iso_image_is_created_once_with_one_request(bench: Bench) -> None:
    vm = bench.vm(
        **{"node": "pve2", "storage": "ceph", "disk_gib": 4, "iso": "local:iso/debian-12.iso", "bridge": "vmbr1"},
        disks=[{"disk": "virtio1", "size_gib": 2}],
        guest_agent=True,
    )
    del vm["template_vmid"]
    done, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (done.rc, changes) == (0, ["POST /nodes/pve2/qemu"]), done.output
    config = bench.guest(vm)["config"]
    assert (config["ide2"].partition(",")[0], config["boot"]) == ("local:iso/debian-12.iso", "order=scsi0;ide2")
    assert (done.result["node"], done.result["disk_gib"], done.result["adopted"]) == ("pve2", 4, False)
    again, changes = bench.changing_requests(lambda: bench.play("create", vm))
    assert (again.rc, again.result["adopted"], changes) == (0, True, []), again.output
    assert bench.play("create", {**vm, "vmid": next(bench.vmids), "iso": "local:iso/none.iso"}).rc != 0
