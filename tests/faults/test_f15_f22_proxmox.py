"""F15 to F22: Proxmox fails, is busy, lies, or has changed behind our back."""

from __future__ import annotations

import pytest
from faults.rig import Rig
from smith_lab.system import outcome_of

#: The calls of a create, each of which may be met.
CALLS = {
    "the look at the cluster": ("GET", "/cluster/resources"),
    "the free VMID": ("GET", "/cluster/nextid"),
    "the clone": ("POST", "/nodes/*/qemu/9000/clone"),
    "the configuration": ("PUT", "/nodes/*/qemu/*/config"),
    "the growth of the disk": ("PUT", "/nodes/*/qemu/*/resize"),
    "the task": ("GET", "/nodes/*/tasks/*/status"),
}
ANSWERS = {
    "595": {"status": 595, "text": "Errors during connection establishment, proxy handshake: No route to host"},
    "dropped": {"status": 0},
    "dropped after the effect": {"status": 0, "after": True},
}


@pytest.mark.parametrize("call", CALLS)
def test_f15_each_request_to_proxmox_fails(rig: Rig, call: str) -> None:
    """595, a dropped connection or a lost answer in each call of a create → tried again inside the deadline; one VM."""
    method, path = CALLS[call]
    for answer in ANSWERS.values():
        rig.lab.proxmox.fail(method, path, times=1, **answer)
    services = [rig.order(f"f15-{list(CALLS).index(call)}-{number}") for number in range(2)]
    assert [rig.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 2
    rig.lab.proxmox.control("clear_faults")
    rig.prove()


def test_f15_proxmox_responds_after_the_modules_timeout(rig: Rig) -> None:
    """Proxmox takes 7 s to answer a clone, longer than the module waits → the clone is found; there is one."""
    rig.lab.proxmox.fail("POST", "/nodes/*/qemu/9000/clone", status=500, text="late", times=1, after=True, delay_s=7)
    service_id = rig.order("f15-late")
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(rig.clones_of(service_id)) == 1
    rig.prove()


@pytest.mark.parametrize("lock", ["backup", "migrate", "snapshot"])
def test_f16_a_vm_is_locked(rig: Rig, lock: str) -> None:
    """A VM is locked by a backup, a migration, a snapshot → waited for and tried again; it starts when that ends."""
    service_id = rig.made(f"f16-{lock}")
    vmid = rig.vm_of(service_id)["vmid"]
    rig.lab.proxmox.control("lock", vmid=vmid, lock=lock)
    back = len(rig.lab.log_events("job_requeued"))
    rig.lab.admin.action(service_id, "start")
    rig.logged("job_requeued", back + 1)
    assert "VM_LOCKED" in rig.lab.log_events("job_requeued")[-1]["reason"]
    rig.lab.proxmox.control("lock", vmid=vmid, lock=None)
    assert rig.wait_for_jobs(service_id)["status"] == "Started"
    rig.prove()


def test_f16_the_template_is_locked(rig: Rig) -> None:
    """Proxmox cannot lock the template for a clone in time → tried again with a growing pause; one VM."""
    text = "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout"
    rig.lab.proxmox.fail("POST", "/nodes/*/qemu/9000/clone", status=500, text=text, times=2)
    service_id = rig.order("f16-template")
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(rig.lab.vms_of(service_id)) == 1
    rig.prove()


def test_f16_a_lock_beyond_the_deadline_fails_the_job_with_vm_locked(rig: Rig) -> None:
    """A lock is still there when FulcrumCore's time is up → the job fails with VM_LOCKED, and the VM is as it was."""
    service_id = rig.made("f16-forever")
    vmid = rig.vm_of(service_id)["vmid"]
    rig.lab.proxmox.control("lock", vmid=vmid, lock="backup")
    rig.act_late(service_id, "start")
    rig.wait_for_jobs(service_id)
    assert rig.job_of(service_id, "start")["errorMessage"].startswith("VM_LOCKED: ")
    assert rig.vm_of(service_id)["status"] == "stopped"
    rig.lab.proxmox.control("lock", vmid=vmid, lock=None)
    rig.prove()


TASKS = {
    "unable to write to storage 'local-lvm': No space left on device": "CAPACITY",
    "clone failed: volume 'local-lvm:base-9000-disk-0' does not exist": "TASK_FAILED",
}


@pytest.mark.parametrize("text", TASKS, ids=["storage full", "template's disk missing"])
def test_f17_a_proxmox_task_fails(rig: Rig, text: str) -> None:
    """The clone's task ends with an error → the job fails at once with the task's own words; nothing is left."""
    rig.lab.proxmox.fail_task("qmclone", text, times=-1)
    service_id = rig.order(f"f17-{len(text)}")
    assert rig.wait_for_jobs(service_id)["status"] == "CreateFailed"
    rig.lab.proxmox.control("clear_faults")
    message = rig.last_job(service_id)["errorMessage"]
    assert message.startswith(f"{TASKS[text]}: ")
    assert text.partition(": ")[2] in message
    assert not [vm for vm in rig.lab.vms() if vm["name"].endswith(service_id[:8])]
    assert outcome_of(rig.lab.run_action(service_id, "create")) == "Completed"
    rig.prove()


def test_f18_the_vmid_is_taken_between_reservation_and_clone(rig: Rig) -> None:
    """Somebody else makes a VM on the reserved VMID → another VMID is taken, and the foreign VM is untouched."""
    with rig.crashing("vmid_reserved"):
        service_id = rig.order("f18")
        reserved = rig.until(lambda: rig.rows("SELECT vmid FROM mappings WHERE service_id = ?", service_id), "it")
        taken = reserved[0]["vmid"]
        rig.lab.proxmox.control("add", vmid=taken, name="somebody-elses", status="running", config={"cores": 1})
        rig.recycled.add(taken)
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert rig.vm_of(service_id)["vmid"] != taken
    rig.prove()


@pytest.mark.parametrize("action", ["start", "delete"])
def test_f19_the_vm_was_deleted_by_hand(rig: Rig, action: str) -> None:
    """The VM is gone → a delete succeeds, the others fail with VM_NOT_FOUND, after a second look."""
    service_id = rig.made(f"f19-{action}")
    rig.take_away(service_id)
    job = rig.lab.run_action(service_id, action)
    state = rig.lab.admin.get_service(service_id)["status"]
    if action == "delete":
        assert (job["status"], state) == ("Completed", "Deleted")
    else:
        assert job["errorMessage"].startswith("VM_NOT_FOUND: ")
        assert state == "Lost"
        assert outcome_of(rig.lab.run_action(service_id, "delete")) == "Completed"
    rig.prove()


@pytest.mark.parametrize("action", ["delete", "start"])
def test_f20_the_vmid_was_reused_for_another_vm(rig: Rig, action: str) -> None:
    """The VMID holds somebody else's VM → refused with VM_IDENTITY_MISMATCH, no changing call, an alert."""
    service_id = rig.made(f"f20-{action}")
    vmid = rig.take_away(service_id, recycle=True)
    job = rig.lab.run_action(service_id, action)
    assert job["errorMessage"].startswith("VM_IDENTITY_MISMATCH: ")
    assert rig.lab.proxmox.changing_requests() == []
    found = {finding["kind"] for finding in rig.drift()["findings"] if finding["vmid"] == vmid}
    assert found == {"vm_recycled"}
    rig.prove()


def test_f21_the_vm_was_migrated_to_another_node(rig: Rig) -> None:
    """The VM was migrated between two actions → it is found where it is, and the action succeeds."""
    service_id = rig.made("f21")
    vmid = rig.vm_of(service_id)["vmid"]
    rig.lab.proxmox.control("move", vmid=vmid, node="pve2")
    assert outcome_of(rig.lab.run_action(service_id, "start")) == "Completed"
    assert rig.rows("SELECT node FROM mappings WHERE service_id = ?", service_id) == [{"node": "pve2"}]
    rig.prove()


LIES = {
    "the node is offline": ("node", {"node": "pve1", "online": False}, "NODE_DOWN"),
    "no quorum": ("quorum", {"quorate": False}, "PVE_NO_QUORUM"),
    "an empty list": ("revoke", {"path": "/vms", "privilege": "VM.Audit"}, "PVE_PERMISSION"),
}


@pytest.mark.parametrize("lie", LIES)
def test_f22_a_vm_that_proxmox_does_not_show_is_not_treated_as_deleted(rig: Rig, lie: str) -> None:
    """A node is offline, quorum lost, or the list empty → nothing is concluded: no deletion, no VM_NOT_FOUND."""
    verb, values, code = LIES[lie]
    service_id = rig.made(f"f22-{code.lower().replace('_', '-')}")
    before = rig.rows("SELECT state FROM mappings WHERE service_id = ?", service_id)
    rig.lab.proxmox.control(verb, **values)
    try:
        rig.act_late(service_id, "start")
        rig.wait_for_jobs(service_id)
        frozen = rig.drift()["frozen"]
    finally:
        rig.lab.proxmox.control("clear_faults")
        rig.lab.proxmox.control("grant", path="/vms", privilege="VM.Audit")
    assert rig.job_of(service_id, "start")["errorMessage"].startswith(f"{code}: ")
    assert frozen
    assert rig.lab.admin.get_service(service_id)["status"] == "Stopped"
    assert rig.rows("SELECT state FROM mappings WHERE service_id = ?", service_id) == before
    rig.prove()
