"""The stand-in's Proxmox tasks: which users see them, what their logs contain, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import proxmoxer
import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

VMID = 700
UNKNOWN_UPID = "UPID:pve1:00000001:00000002:65000000:qmstart:700:smith@pve!job:"


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def api(stand_in: ProxmoxStandIn) -> Iterator[Any]:
    yield proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )
    stand_in.control("clear_faults")
    stand_in.control("version", version="9.0.10")
    stand_in.control("time_scale", scale=0)
    if stand_in.guest(VMID):
        stand_in.control("remove", vmid=VMID)


@pytest.fixture
def pve1(api: Any) -> Any:
    return api.nodes("pve1")


def clone_template(pve1: Any) -> str:
    """Clone the template 9000 to VMID; return the id (UPID) of the Proxmox task."""
    return str(pve1.qemu(9000).clone.post(newid=VMID, name="web", full=1))


def exit_status_of(pve1: Any, upid: str) -> str:
    """Return how the Proxmox task ended: "OK", its warnings or its error."""
    return str(pve1.tasks(upid).status.get()["exitstatus"])


def log_of(pve1: Any, upid: str, **query: int) -> list[str]:
    return [row["t"] for row in pve1.tasks(upid).log.get(**query)]


@pytest.mark.proxmox(
    behaviour="an ISO image in a CD-ROM drive stays in its storage when the drive is removed or the VM is destroyed",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, destroy_vm",
)
@pytest.mark.parametrize("is_drive_removed_first", [True, False])
def test_an_iso_image_is_not_removed_with_its_drive_or_vm(
    stand_in: ProxmoxStandIn, pve1: Any, is_drive_removed_first: bool
) -> None:
    clone_template(pve1)
    stand_in.control("grant", path="/vms", privilege="VM.Config.CDROM")
    image = {"content": "iso", "format": "iso", "size": 1024**2, "ctime": 0}
    stand_in.control("storage", storage="local", volumes={"iso/debian-13.iso": image})
    pve1.qemu(VMID).config.put(ide3="local:iso/debian-13.iso,media=cdrom")
    if is_drive_removed_first:
        pve1.qemu(VMID).config.put(delete="ide3")
    assert exit_status_of(pve1, pve1.qemu(VMID).delete()) == "OK"
    assert stand_in.storages()["local"]["volumes"] == ["iso/debian-13.iso"]


@pytest.mark.proxmox(
    behaviour="without `limit`, only the first 50 lines of a log are returned; the cause of a failure is at its end",
    versions="8, 9",
    source="pve-manager: PVE/API2/Tasks.pm, read_task_log",
    reaction="reads the end of the log of each failed task whose status does not name the cause",
)
def test_a_log_ends_after_50_lines_unless_more_are_requested(stand_in: ProxmoxStandIn, pve1: Any) -> None:
    log = [*(f"line {n}" for n in range(200)), "kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory"]
    clone_template(pve1)
    stand_in.fail_task("qmstart", "start failed: QEMU exited with code 1", log=log)
    upid = pve1.qemu(VMID).status.start.post()
    assert len(log_of(pve1, upid)) == 50
    assert log_of(pve1, upid, limit=5000)[-3:-1] == [log[-1], "start failed: QEMU exited with code 1"]


@pytest.mark.proxmox(
    behaviour="a destroy removes the VM even if a disk cannot be removed; it ends with OK in 8, `WARNINGS: n` in 9",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, destroy_vm",
    reaction="completes the delete with the warning `VOLUMES_LEFT`",
)
@pytest.mark.parametrize(("version", "status"), [("8.4.1", "OK"), ("9.0.10", "WARNINGS: 1")])
def test_a_destroy_removes_the_vm_although_a_disk_cannot_be_removed(
    stand_in: ProxmoxStandIn, pve1: Any, version: str, status: str
) -> None:
    stand_in.control("version", version=version)
    clone_template(pve1)
    volume = pve1.qemu(VMID).config.get()["scsi0"].partition(",")[0]
    stand_in.control("unremovable", volume=volume)
    upid = pve1.qemu(VMID).delete()
    assert exit_status_of(pve1, upid) == status
    assert stand_in.guest(VMID) is None
    assert f"Could not remove disk '{volume}', check manually" in " ".join(log_of(pve1, upid))


@pytest.mark.proxmox(
    behaviour="only version 9 names the template and the new VMID in the log of a clone",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, clone_vm",
    reaction="with 8, finds the Proxmox task of its clone by the volumes in the log, or because there is only one",
)
@pytest.mark.parametrize(("version", "is_named"), [("8.4.1", False), ("9.0.10", True)])
def test_the_log_of_a_clone_names_the_new_vmid_in_version_9_only(
    stand_in: ProxmoxStandIn, pve1: Any, version: str, is_named: bool
) -> None:
    stand_in.control("version", version=version)
    assert (f"creating a clone of VM 9000 with ID {VMID}" in log_of(pve1, clone_template(pve1))) is is_named


@pytest.mark.proxmox(
    behaviour="the error of a storage's lock that is not free in time has several wordings; the clone is removed again",
    versions="8, 9",
    source="pve-storage: PVE/Storage/Plugin.pm, cluster_lock_storage",
    reaction="`VM_LOCKED`: repeats the job, and runs fewer clones on this storage",
)
def test_the_error_of_a_storage_lock_timeout_has_several_wordings(stand_in: ProxmoxStandIn, pve1: Any) -> None:
    stand_in.control("storage_locks", every=1)
    texts = [exit_status_of(pve1, clone_template(pve1)) for _ in range(4)]
    assert len({text.partition(":")[2] or text for text in texts}) == 4
    assert stand_in.guest(VMID) is None


@pytest.mark.proxmox(
    behaviour="a clone that fails is removed again with its volumes; one that ends with warnings stays",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, clone_vm",
    reaction="repeats the create after a failure; continues after warnings",
)
@pytest.mark.parametrize(("text", "is_kept"), [("clone failed: timeout", False), ("WARNINGS: 1", True)])
def test_a_clone_with_warnings_stays_and_one_that_fails_does_not(
    stand_in: ProxmoxStandIn, pve1: Any, text: str, is_kept: bool
) -> None:
    def volumes() -> set[tuple[str, str]]:
        return {(name, volume) for name, storage in stand_in.storages().items() for volume in storage["volumes"]}

    stand_in.fail_task("qmclone", text, after=True)
    before = volumes()
    assert exit_status_of(pve1, clone_template(pve1)) == text
    assert bool(volumes() - before) is is_kept
    assert (stand_in.guest(VMID) is not None) is is_kept


@pytest.mark.proxmox(
    behaviour="a destroy that fails after it has removed the disks leaves a guest with nothing but `lock: destroyed`",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, destroy_vm",
    reaction="`VM_HALF_DESTROYED`, and the drift kind `vm_half_destroyed`",
)
def test_an_interrupted_destroy_leaves_only_a_lock(stand_in: ProxmoxStandIn, pve1: Any) -> None:
    clone_template(pve1)
    text = "cfs-lock 'file-user_cfg' error: got lock request timeout"
    stand_in.fail_task("qmdestroy", text, leaves_lock="destroyed")
    assert exit_status_of(pve1, pve1.qemu(VMID).delete()) == text
    config = pve1.qemu(VMID).config.get()
    assert {key: value for key, value in config.items() if key != "digest"} == {"lock": "destroyed"}


@pytest.mark.proxmox(
    behaviour="if the quorum is lost, a Proxmox task cannot write its temporary file, and leaves its lock on the guest",
    versions="8, 9",
    source="pve-common: PVE/Tools.pm, file_set_contents",
    reaction="`PVE_NO_QUORUM`: repeats the job, which first looks the VM up",
)
def test_a_proxmox_task_that_ends_for_lack_of_quorum_leaves_its_lock(stand_in: ProxmoxStandIn, pve1: Any) -> None:
    text = f"unable to open file '/etc/pve/nodes/pve1/qemu-server/{VMID}.conf.tmp.1' - Permission denied"
    stand_in.fail_task("qmclone", text, leaves_lock="clone")
    assert exit_status_of(pve1, clone_template(pve1)) == text
    assert pve1.qemu(VMID).config.get()["lock"] == "clone"


@pytest.mark.proxmox(
    behaviour="if a Proxmox task's log was removed, its status is 400 `no such task`, its log one line with status 200",
    versions="8, 9",
    source="pve-manager: PVE/API2/Tasks.pm, read_task_status",
    reaction="`PVE_TIMEOUT`: the outcome is unknown, so the job looks the VM up",
)
@pytest.mark.parametrize(("upid", "text"), [(UNKNOWN_UPID, "no such task"), ("nosuch", "unable to parse worker upid")])
def test_a_request_for_the_status_of_an_unknown_or_invalid_upid_is_answered_with_400(
    pve1: Any, upid: str, text: str
) -> None:
    with pytest.raises(proxmoxer.ResourceException, match=text) as refusal:
        pve1.tasks(upid).status.get()
    assert refusal.value.status_code == 400


def test_the_log_of_a_proxmox_task_whose_log_was_removed_has_one_line(stand_in: ProxmoxStandIn, pve1: Any) -> None:
    clone_template(pve1)
    upid = pve1.qemu(VMID).status.start.post()
    stand_in.control("forget_tasks", vmid=VMID)
    assert log_of(pve1, upid) == ["unable to open file - No such file or directory"]
    assert pve1.tasks.get(vmid=VMID) == []


@pytest.mark.proxmox(
    behaviour="a login with Sys.Audit on /nodes sees the Proxmox tasks of every user; only an ended one has `tokenid`",
    versions="8, 9",
    source="pve-manager: PVE/API2/Tasks.pm, node_tasks",
    reaction="takes only Proxmox tasks of the same token for its own",
)
def test_only_a_token_with_sys_audit_sees_the_proxmox_tasks_of_other_users(stand_in: ProxmoxStandIn, pve1: Any) -> None:
    stand_in.control("time_scale", scale=0.1)
    clone_template(pve1)
    running = next(task for task in pve1.tasks.get(vmid=9000, source="all") if task["status"] == "RUNNING")
    assert (running["user"], "tokenid" in running) == ("smith@pve!job", False)
    stand_in.control("add_task", vmid=9000, type="qmclone", user="root@pam")
    assert "root@pam" not in {task["user"] for task in pve1.tasks.get(vmid=9000, source="all")}
    stand_in.control("grant", path="/nodes", privilege="Sys.Audit")
    assert "root@pam" in {task["user"] for task in pve1.tasks.get(vmid=9000, source="all")}
    stand_in.control("revoke", path="/nodes", privilege="Sys.Audit")


@pytest.mark.proxmox(
    behaviour="a rollback with `start` also starts the VM; that needs VM.PowerMgmt in 9 only",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, rollback",
)
@pytest.mark.parametrize(("version", "outcome", "status"), [("8.4.1", "OK", "running"), ("9.0.10", "403", "stopped")])
def test_a_rollback_that_starts_the_vm_needs_vm_powermgmt_in_version_9_only(
    stand_in: ProxmoxStandIn, pve1: Any, version: str, outcome: str, status: str
) -> None:
    clone_template(pve1)
    pve1.qemu(VMID).snapshot.post(snapname="s1")
    stand_in.control("version", version=version)
    stand_in.control("revoke", path="/vms", privilege="VM.PowerMgmt")
    try:
        actual = exit_status_of(pve1, pve1.qemu(VMID).snapshot("s1").rollback.post(start=1))
    except proxmoxer.ResourceException as exc:
        actual = str(exc.status_code)
    finally:
        stand_in.control("grant", path="/vms", privilege="VM.PowerMgmt")
    assert (actual, pve1.qemu(VMID).status.current.get()["status"]) == (outcome, status)
