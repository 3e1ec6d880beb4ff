"""The functions that read facts from a guest's configuration, and from answers of the guest agent and of Proxmox."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import (
    configuration,
    guest_facts,
    preconditions,
    volumes,
)
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.shared import guest_disks


def test_pending_values_count_as_configured() -> None:
    rows = [{"key": "cores", "value": 2, "pending": 4}, {"key": "balloon", "value": 512, "delete": 1}]
    facts = guest_facts.facts_from_configuration([*rows, {"key": "name", "value": "x"}], {"status": "running"})
    assert (facts["cores"], facts["pending"], "balloon" in facts["config"]) == (4, ["balloon", "cores"], False)
    assert configuration.is_restart_needed(facts)


#: A configuration, and the boot disk in it.
BOOT_DISKS = [
    ({"boot": "order=virtio0;scsi0", "scsi0": "a:1,size=1G", "virtio0": "a:2,size=2G"}, "virtio0"),
    ({"boot": "order=ide2;net0", "ide2": "a:iso,media=cdrom", "scsi1": "a:1,size=1G"}, "scsi1"),
    ({"bootdisk": "sata0", "scsi0": "a:1", "sata0": "a:2"}, "sata0"),
    ({"ide0": "a:vm-1-cloudinit,media=cdrom"}, ""),
    ({}, ""),
]


@pytest.mark.parametrize(("config", "disk"), BOOT_DISKS)
def test_the_boot_disk_is_found_in_a_configuration(config: dict[str, str], disk: str) -> None:
    assert guest_disks.boot_disk(config) == disk


def test_loopback_and_link_local_addresses_are_not_reported() -> None:
    addresses = ["127.0.0.1", "169.254.1.1", "fe80::1", "2001:db8::5", "192.0.2.7", "::1"]
    nic = {"name": "eth0", "ip-addresses": [{"ip-address": ip} for ip in addresses]}
    loopback = {"name": "lo", "ip-addresses": [{"ip-address": "192.0.2.99"}]}
    assert guest_facts.reachable_addresses([loopback, nic, {"name": "eth1"}], []) == ["192.0.2.7", "2001:db8::5"]


def test_only_addresses_of_the_vms_nics_are_reported_in_nic_order() -> None:
    """A guest may have further bridges and tunnels; a VLAN or a bridge on a NIC has the NIC's MAC address."""
    config = {"net10": "virtio=BC:24:11:00:00:10,bridge=b", "net2": "virtio=BC:24:11:00:00:02,bridge=b", "netx": "no"}
    macs = guest_facts.macs_of(config)
    assert macs == ["BC:24:11:00:00:02", "BC:24:11:00:00:10"]

    def nic(name: str, mac: str, *addresses: str) -> dict[str, Any]:
        return {"name": name, "hardware-address": mac, "ip-addresses": [{"ip-address": ip} for ip in addresses]}

    guest = [
        nic("docker0", "02:42:00:00:00:01", "172.17.0.1"),
        nic("eth1", "bc:24:11:00:00:10", "198.51.100.7", "2001:db8::7"),
        nic("tun0", "", "203.0.113.9"),
        nic("br0", "bc:24:11:00:00:02", "192.0.2.7", "2001:db8::2"),
    ]
    assert guest_facts.reachable_addresses(guest, macs) == ["192.0.2.7", "198.51.100.7", "2001:db8::2", "2001:db8::7"]


def test_a_limited_number_of_valid_addresses_is_used_of_what_a_guest_reports() -> None:
    """The guest agent's answer comes from inside the guest."""
    reported = ["<script>", "192.0.2.7", "999.1.1.1", "2001:db8::7", *(f"198.51.100.{n}" for n in range(200))]
    nic = {
        "name": "eth0",
        "hardware-address": "bc:24:11:00:00:10",
        "ip-addresses": [{"ip-address": ip} for ip in reported],
    }
    found = guest_facts.reachable_addresses([nic], ["BC:24:11:00:00:10"])
    assert found[:2] == ["192.0.2.7", "198.51.100.0"]
    assert len(found) == guest_facts.MAX_ADDRESSES


def test_an_answer_without_a_proxmox_task_is_no_backup() -> None:
    """Proxmox answers OK if the guest has moved to another node."""
    problem = preconditions.backup_start_problem({"vmid": 500, "node": "pve1"}, {"data": "OK"})
    assert problem == "PVE_CONFLICT: VM 500 is not on node pve1 any more, so no backup was started"
    for answer in ({"data": "UPID:pve1:1:2:3:vzdump:500:smith@pve!job:"}, {"failed": True, "msg": "Read timed out"}):
        assert preconditions.backup_start_problem({"vmid": 500, "node": "pve1"}, answer) == ""


#: A configuration, and the number of volumes of VMID 500 in it.
VOLUMES = [
    ({"scsi0": "local-lvm:vm-500-disk-0,size=8G", "ide2": "local-lvm:vm-500-cloudinit,media=cdrom"}, 2),
    ({"unused0": "files:500/vm-500-disk-1.qcow2", "efidisk0": "ceph:vm-500-disk-2,size=1M"}, 2),
    ({"rootfs": "volume=ceph:subvol-500-disk-0,size=4G", "mp0": "ceph:vm-500-disk-1,mp=/data"}, 2),
    ({"scsi0": "files:9000/base-9000-disk-0.qcow2/500/vm-500-disk-0.qcow2"}, 1),
    (
        {"scsi1": "ceph:vm-501-disk-0", "ide2": "local:iso/vm-500-x.iso,media=cdrom", "description": "a:vm-500-disk-9"},
        0,
    ),
    ({"scsi0": "/dev/sdb", "scsi1": "none,media=cdrom", "vmstate": "local-lvm:vm-500-state-s1"}, 1),
]


@pytest.mark.parametrize(("config", "count"), VOLUMES)
def test_the_volumes_of_a_vmid_are_found_in_a_configuration(config: dict[str, str], count: int) -> None:
    found = volumes.volumes_in(config.items(), 500)
    assert len(found) == count
    assert all(":" in volume and "," not in volume for volume in found)
