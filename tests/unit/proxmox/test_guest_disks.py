"""Which drives of a configuration are disks, CD-ROMs and cloud-init drives, whatever their storages are called."""

from __future__ import annotations

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.guest_facts import facts_from_configuration

from executor.shared import guest_disks


@pytest.mark.parametrize(
    ("drive", "is_disk", "is_cloud_init"),
    [
        ("local-lvm:vm-301-disk-0,size=8G", True, False),
        ("cloudinit:vm-301-disk-0,size=8G", True, False),
        ("nfs-cloudinit:301/vm-301-disk-0.qcow2,size=8G", True, False),
        ("cdrom-store:vm-301-disk-0,size=8G", True, False),
        ("none-raid:vm-301-disk-0,size=8G", True, False),
        ("local-lvm:vm-301-disk-0,serial=media=cdrom1,size=8G", True, False),
        ("local-lvm:vm-301-cloudinit,media=cdrom", False, True),
        ("nfs:301/vm-301-cloudinit.qcow2,media=cdrom", False, True),
        ("cloudinit:vm-301-cloudinit,media=cdrom,size=4M", False, True),
        ("local-lvm:cloudinit", False, True),
        ("local:iso/cloudinit-seed.iso,media=cdrom", False, False),
        ("none,media=cdrom", False, False),
        ("cdrom,media=cdrom", False, False),
        ("none", False, False),
    ],
)
def test_a_drive_is_recognised_by_its_volume_not_by_its_storage(drive: str, is_disk: bool, is_cloud_init: bool) -> None:
    facts = facts_from_configuration([{"key": "scsi0", "value": drive}], {"status": "stopped"})
    assert (list(facts["disks"]), facts["has_cloud_init"]) == (["scsi0"] if is_disk else [], is_cloud_init)
    assert guest_disks.boot_disk({"scsi0": drive}) == ("scsi0" if is_disk else "")
