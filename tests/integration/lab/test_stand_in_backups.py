"""The Proxmox stand-in backs up guests and generates cloud-init drives as Proxmox does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import proxmoxer
import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

VMID = 700
#: How many archives of a guest the storage keeps in these tests.
ARCHIVE_LIMIT = 2


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def node(stand_in: ProxmoxStandIn) -> Any:
    """Return the API of the node pve1, which has a running VM with a cloud-init drive."""
    api = proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )
    if stand_in.guest(VMID):
        stand_in.control("remove", vmid=VMID)
    config = {"ide2": f"local-lvm:vm-{VMID}-cloudinit,media=cdrom", "ciuser": "admin", "ipconfig0": "ip=dhcp"}
    stand_in.control("add", vmid=VMID, name="web", status="running", config=config)
    stand_in.control("storage", storage="backups", **{"prune-backups": ""}, volumes={})
    return api.nodes("pve1")


def list_archives(node: Any) -> list[dict[str, Any]]:
    return list(node.storage("backups").content.get(content="backup", vmid=VMID))


def back_up(node: Any, **more: Any) -> tuple[str, list[str]]:
    """Back the VM up; return how the Proxmox task ended, and its log."""
    upid = node.vzdump.post(**{"vmid": VMID, "storage": "backups", **more})
    task = node.tasks(upid)
    return str(task.status.get()["exitstatus"]), [str(line["t"]) for line in task.log.get()]


# ---------------------------------------------------------------------- vzdump


@pytest.mark.proxmox(
    behaviour="vzdump's `remove` is 1 by default: it removes archives by VMID, as the storage's retention says",
    versions="8, 9",
    source="pve-manager: PVE/VZDump.pm, exec_backup_task",
    reaction="sends `remove=0`, and writes the service's marker into the archive's notes",
)
def test_by_default_a_backup_removes_the_oldest_archive_that_exceeds_the_retention(
    stand_in: ProxmoxStandIn, node: Any
) -> None:
    """`remove` is 1 if the request does not give it. The archives of a VMID are counted. Source: PVE/VZDump.pm."""
    stand_in.control("storage", storage="backups", **{"prune-backups": f"keep-last={ARCHIVE_LIMIT}"})
    for _ in range(ARCHIVE_LIMIT):
        back_up(node)
    oldest = min(archive["volid"] for archive in list_archives(node))
    assert back_up(node)[0] == "OK"
    remaining = [archive["volid"] for archive in list_archives(node)]
    assert (len(remaining), oldest in remaining) == (ARCHIVE_LIMIT, False)


@pytest.mark.proxmox(
    behaviour="a backup starts a VM that is stopped, so it fails if the VM has more vCPUs than its node has CPUs",
    versions="8, 9",
    source="qemu-server: PVE/VZDump/QemuServer.pm, enforce_vm_running_for_backup",
    reaction="compares the two numbers before a backup and before a deletion with a final backup (`CAPACITY`)",
)
@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_a_backup_starts_a_stopped_vm_and_fails_if_the_start_fails(
    stand_in: ProxmoxStandIn, node: Any, version: str
) -> None:
    stand_in.control("version", version=version)
    stand_in.control("configure", vmid=VMID, values={"cores": 100})
    assert back_up(node)[0] == "OK", "a running VM is not started"
    stand_in.control("power", vmid=VMID, status="stopped")
    status, log = back_up(node)
    cause = f"ERROR: Backup of VM {VMID} failed - MAX 64 vcpus allowed per VM on this node"
    assert (status, cause in log) == ("job errors", True)


@pytest.mark.proxmox(
    behaviour="a linked clone is refused if a disk of the template allows none; `GET …/feature` says whether it does",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, vm_feature and clone_vm",
    reaction="requests `feature` before the clone (`INVALID_REQUEST`)",
)
def test_a_linked_clone_needs_a_template_all_of_whose_disks_allow_it(stand_in: ProxmoxStandIn, node: Any) -> None:
    stand_in.control("add_template", vmid=9055, name="linked", node="pve1")
    assert node.qemu(9055).feature.get(feature="clone")["hasFeature"] == 1
    stand_in.control("configure", vmid=9055, values={"scsi1": "local:9055/vm-9055-disk-1.raw"})
    assert node.qemu(9055).feature.get(feature="clone")["hasFeature"] == 0
    with pytest.raises(proxmoxer.ResourceException, match="Linked clone feature is not supported"):
        node.qemu(9055).clone.post(newid=701, full=0)


def test_with_remove_0_a_backup_fails_if_the_storage_has_its_maximum_of_archives(
    stand_in: ProxmoxStandIn, node: Any
) -> None:
    """Only the log of the Proxmox task names the cause. Source: PVE/VZDump.pm, exec_backup_task."""
    stand_in.control("storage", storage="backups", **{"prune-backups": f"keep-last={ARCHIVE_LIMIT}"})
    for _ in range(ARCHIVE_LIMIT):
        assert back_up(node, remove=0)[0] == "OK"
    status, log = back_up(node, remove=0)
    assert status == "job errors"
    assert any(line.startswith(f"ERROR: Backup of VM {VMID} failed - There is a max backup limit") for line in log)
    assert len(list_archives(node)) == ARCHIVE_LIMIT


def test_an_archive_has_the_notes_of_the_notes_template(node: Any) -> None:
    back_up(node, **{"notes-template": r"{{guestname}} {{vmid}}\nsmith-uid=x"})
    assert [archive["notes"] for archive in list_archives(node)] == [f"web {VMID}\nsmith-uid=x"]


@pytest.mark.proxmox(
    behaviour="a backup of a guest that is on another node is answered with OK, without a Proxmox task",
    versions="8, 9",
    source="pve-manager: PVE/API2/VZDump.pm",
    reaction="`PVE_CONFLICT`: repeats the job, which looks the guest up",
)
def test_a_backup_of_a_vm_on_another_node_is_answered_with_ok_and_makes_no_archive(
    stand_in: ProxmoxStandIn, node: Any
) -> None:
    """No Proxmox task is started. Source: PVE/API2/VZDump.pm."""
    stand_in.control("move", vmid=VMID, node="pve2")
    assert node.vzdump.post(vmid=VMID, storage="backups") == "OK"
    assert list_archives(node) == []


@pytest.mark.proxmox(
    behaviour="a backup of a missing or locked guest, or to a storage without backups, is a Proxmox task that fails",
    versions="8, 9",
    source="pve-manager: PVE/VZDump.pm, exec_backup_task",
    reaction="reads the cause from the end of its log",
)
def test_an_impossible_backup_is_a_failed_proxmox_task(stand_in: ProxmoxStandIn, node: Any) -> None:
    wrong_content = "could not get storage information for 'local-lvm': can't use storage 'local-lvm' for backups"
    assert back_up(node, storage="local-lvm")[0].startswith(wrong_content)
    assert back_up(node, vmid=799) == (
        "job errors",
        ["ERROR: Backup of VM 799 failed - unable to find VM '799'", "job errors", "TASK ERROR: job errors"],
    )
    stand_in.control("lock", vmid=VMID, lock="migrate")
    assert back_up(node)[1][0] == f"ERROR: Backup of VM {VMID} failed - VM is locked (migrate)"
    stand_in.control("revoke", path="/vms", privilege="VM.Backup")
    try:
        assert "Permission check failed" in back_up(node)[0]
    finally:
        stand_in.control("grant", path="/vms", privilege="VM.Backup")


# ---------------------------------------------------------------------- cloud-init


def list_values_missing_on_the_drive(node: Any) -> dict[str, dict[str, Any]]:
    """Return the values that the cloud-init drive does not contain yet, by their key."""
    rows = node.qemu(VMID).cloudinit.get()
    return {row.pop("key"): row for row in rows if "pending" in row or row.get("delete")}


@pytest.mark.proxmox(
    behaviour="cloud-init values of a running VM are applied to its configuration at once and never pending",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, vmconfig_hotplug_pending",
    reaction="reads which values the cloud-init drive lacks, and reports `reboot_required`",
)
def test_cloud_init_values_of_a_running_vm_are_never_pending(stand_in: ProxmoxStandIn, node: Any) -> None:
    node.qemu(VMID).config.set(ciuser="ops", ipconfig0="ip=192.0.2.9/24")
    guest = stand_in.guest(VMID)
    assert guest
    assert (guest["config"]["ciuser"], guest["config"]["ipconfig0"], guest["pending"]) == ("ops", "ip=192.0.2.9/24", {})


def test_the_cloud_init_drive_lacks_the_values_that_were_changed_since_the_start(node: Any) -> None:
    node.qemu(VMID).config.set(ciuser="ops", nameserver="192.0.2.53", cipassword="swordfish")
    assert list_values_missing_on_the_drive(node) == {
        "ciuser": {"value": "admin", "pending": "ops"},
        "nameserver": {"pending": "192.0.2.53"},
        "cipassword": {"pending": "**********"},
    }
    node.qemu(VMID).config.set(ciuser="admin", delete="nameserver,cipassword")
    assert list_values_missing_on_the_drive(node) == {}


@pytest.mark.proxmox(
    behaviour="`GET …/cloudinit` lists what the cloud-init drive lacks, but not a changed `ipconfigN`",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, cloudinit_pending",
    reaction="remembers what the action has changed",
)
def test_a_changed_address_is_not_listed_as_missing_on_the_drive_but_an_added_one_is(node: Any) -> None:
    """Proxmox compares only the options of a fixed list. Source: PVE/API2/Qemu.pm, cloudinit_pending."""
    node.qemu(VMID).config.set(ipconfig0="ip=192.0.2.9/24", ipconfig1="ip=dhcp")
    assert list_values_missing_on_the_drive(node) == {"ipconfig1": {"pending": "ip=dhcp"}}


@pytest.mark.proxmox(
    behaviour="the cloud-init drive is written at the next start, or by `PUT …/cloudinit`",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, cloudinit_update",
    reaction="generates the drive again after a change on a running VM",
)
def test_a_drive_that_was_generated_again_contains_every_value(node: Any) -> None:
    node.qemu(VMID).config.set(ciuser="ops")
    node.qemu(VMID).cloudinit.put()
    assert list_values_missing_on_the_drive(node) == {}
    assert node.qemu(VMID).config.get()["ciuser"] == "ops"


def test_a_start_generates_the_drive_again(node: Any) -> None:
    node.qemu(VMID).config.set(ciuser="ops")
    node.qemu(VMID).status.shutdown.post(forceStop=1)
    node.qemu(VMID).status.start.post()
    assert list_values_missing_on_the_drive(node) == {}


def test_the_drive_of_a_locked_vm_cannot_be_generated(stand_in: ProxmoxStandIn, node: Any) -> None:
    stand_in.control("lock", vmid=VMID, lock="backup")
    with pytest.raises(proxmoxer.ResourceException, match=r"VM is locked \(backup\)"):
        node.qemu(VMID).cloudinit.put()
