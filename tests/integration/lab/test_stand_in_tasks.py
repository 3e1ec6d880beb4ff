"""The Proxmox stand-in's tasks: who sees them, what their logs contain, and how they end."""

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


def clone(pve1: Any) -> str:
    return str(pve1.qemu(9000).clone.post(newid=VMID, name="web", full=1))


def end_of(pve1: Any, upid: str) -> str:
    return str(pve1.tasks(upid).status.get()["exitstatus"])


def log_of(pve1: Any, upid: str, **query: int) -> list[str]:
    return [row["t"] for row in pve1.tasks(upid).log.get(**query)]


@pytest.mark.proxmox(
    behaviour="an ISO image in a CD-ROM drive stays in its storage when the drive is removed or the VM is destroyed",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, destroy_vm",
)
@pytest.mark.parametrize("is_removed_before", [True, False])
def test_an_iso_image_is_not_removed_with_its_drive_or_vm(
    stand_in: ProxmoxStandIn, pve1: Any, is_removed_before: bool
) -> None:
    clone(pve1)
    stand_in.control("grant", path="/vms", privilege="VM.Config.CDROM")
    image = {"content": "iso", "format": "iso", "size": 1024**2, "ctime": 0}
    stand_in.control("storage", storage="local", volumes={"iso/debian-13.iso": image})
    pve1.qemu(VMID).config.put(ide3="local:iso/debian-13.iso,media=cdrom")
    if is_removed_before:
        pve1.qemu(VMID).config.put(delete="ide3")
    assert end_of(pve1, pve1.qemu(VMID).delete()) == "OK"
    assert stand_in.storages()["local"]["volumes"] == ["iso/debian-13.iso"]


@pytest.mark.proxmox(
    behaviour="a task's log has its first 50 lines unless `limit` is given, and the cause of a failure is at its end",
    versions="8, 9",
    source="pve-manager: PVE/API2/Tasks.pm, read_task_log",
    reaction="reads the end of the log of each failed task whose status does not name the cause",
)
def test_a_log_ends_after_50_lines_unless_more_are_requested(stand_in: ProxmoxStandIn, pve1: Any) -> None:
    log = [*(f"line {n}" for n in range(200)), "kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory"]
    clone(pve1)
    stand_in.fail_task("qmstart", "start failed: QEMU exited with code 1", log=log)
    upid = pve1.qemu(VMID).status.start.post()
    assert len(log_of(pve1, upid)) == 50
    assert log_of(pve1, upid, limit=5000)[-3:-1] == [log[-1], "start failed: QEMU exited with code 1"]


@pytest.mark.proxmox(
    behaviour="a destroy that cannot remove a disk removes the VM; it ends with OK in 8 and with `WARNINGS: n` in 9",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, destroy_vm",
    reaction="completes the delete with the warning `VOLUMES_LEFT`",
)
@pytest.mark.parametrize(("version", "outcome", "status"), [("8.4.1", "OK", "running"), ("9.0.10", "403", "stopped")])
def test_a_rollback_that_starts_the_vm_needs_a_privilege_in_version_9(
    stand_in: ProxmoxStandIn, pve1: Any, version: str, outcome: str, status: str
) -> None:
    clone(pve1)
    pve1.qemu(VMID).snapshot.post(snapname="s1")
    stand_in.control("version", version=version)
    stand_in.control("revoke", path="/vms", privilege="VM.PowerMgmt")
    try:
        found = end_of(pve1, pve1.qemu(VMID).snapshot("s1").rollback.post(start=1))
    except proxmoxer.ResourceException as exc:
        found = str(exc.status_code)
    finally:
        stand_in.control("grant", path="/vms", privilege="VM.PowerMgmt")
    assert (found, pve1.qemu(VMID).status.current.get()["status"]) == (outcome, status)
