"""F15 to F22: Proxmox fails, is busy, shows incomplete data, or was changed by others."""

from __future__ import annotations

import json

import pytest
from faults.system import SystemUnderTest
from smith_lab.system import outcome_of

#: The requests of a create, each of which fails in one test.
REQUESTS = {
    "the list of guests": ("GET", "/cluster/resources"),
    "the free VMID": ("GET", "/cluster/nextid"),
    "the clone": ("POST", "/nodes/*/qemu/9000/clone"),
    "the configuration": ("PUT", "/nodes/*/qemu/*/config"),
    "the resize of the disk": ("PUT", "/nodes/*/qemu/*/resize"),
    "the status of the task": ("GET", "/nodes/*/tasks/*/status"),
}
FAILURES = {
    "595": {"status": 595, "text": "Errors during connection establishment, proxy handshake: No route to host"},
    "dropped": {"status": 0},
    "dropped after the change": {"status": 0, "after": True},
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_f15_each_request_to_proxmox_fails(system: SystemUnderTest, request_name: str) -> None:
    """A request of a create gets 595, a dropped connection or no response
    → the agent retries within the deadline; one VM.
    """
    method, path = REQUESTS[request_name]
    for failure in FAILURES.values():
        system.lab.proxmox.fail(method, path, times=1, **failure)
    services = [system.order_service(f"f15-{list(REQUESTS).index(request_name)}-{number}") for number in range(2)]
    assert [system.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 2
    system.lab.proxmox.control("clear_faults")
    system.assert_consistent()


def test_f15_proxmox_responds_after_the_modules_timeout(system: SystemUnderTest) -> None:
    """Proxmox responds to a clone request after 7 s, later than the module's timeout → the clone is found; one VM."""
    system.lab.proxmox.fail("POST", "/nodes/*/qemu/9000/clone", status=500, text="late", times=1, after=True, delay_s=7)
    service_id = system.order_service("f15-late")
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(system.clone_requests_of(service_id)) == 1
    system.assert_consistent()


@pytest.mark.parametrize("lock", ["backup", "migrate", "snapshot"])
def test_f16_a_vm_is_locked(system: SystemUnderTest, lock: str) -> None:
    """A backup, migration or snapshot locks the VM → the job is retried and succeeds when the lock ends."""
    service_id = system.create_vm(f"f16-{lock}")
    vmid = system.vm_of(service_id)["vmid"]
    system.lab.proxmox.control("lock", vmid=vmid, lock=lock)
    requeued = len(system.lab.log_events("job_requeued"))
    system.lab.admin.request_action(service_id, "start")
    system.wait_for_log("job_requeued", requeued + 1)
    assert "VM_LOCKED" in system.lab.log_events("job_requeued")[-1]["reason"]
    system.lab.proxmox.control("lock", vmid=vmid, lock=None)
    assert system.wait_for_jobs(service_id)["status"] == "Started"
    system.assert_consistent()


def test_f16_the_template_is_locked(system: SystemUnderTest) -> None:
    """Proxmox cannot lock the template for a clone in time → the job is retried with a growing backoff; one VM."""
    text = "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout"
    system.lab.proxmox.fail("POST", "/nodes/*/qemu/9000/clone", status=500, text=text, times=2)
    service_id = system.order_service("f16-template")
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(system.lab.guests_of(service_id)) == 1
    system.assert_consistent()


def test_f16_a_lock_beyond_the_deadline_fails_the_job_with_vm_locked(system: SystemUnderTest) -> None:
    """A VM is still locked at FulcrumCore's job timeout → the job fails with VM_LOCKED; the VM is unchanged."""
    service_id = system.create_vm("f16-forever")
    vmid = system.vm_of(service_id)["vmid"]
    system.lab.proxmox.control("lock", vmid=vmid, lock="backup")
    system.request_near_the_deadline(service_id, "start")
    system.wait_for_jobs(service_id)
    assert system.job_of(service_id, "start")["errorMessage"].startswith("VM_LOCKED: ")
    assert system.vm_of(service_id)["status"] == "stopped"
    system.lab.proxmox.control("lock", vmid=vmid, lock=None)
    system.assert_consistent()


TASKS = {
    "unable to write to storage 'local-lvm': No space left on device": "CAPACITY",
    "clone failed: volume 'local-lvm:base-9000-disk-0' does not exist": "TASK_FAILED",
}


@pytest.mark.parametrize("text", TASKS, ids=["storage full", "template's disk missing"])
def test_f17_a_proxmox_task_fails(system: SystemUnderTest, text: str) -> None:
    """The Proxmox task of the clone fails each time → the job fails with the task's error message; no VM is left."""
    system.lab.proxmox.fail_task("qmclone", text, times=-1)
    service_id = system.order_service(f"f17-{len(text)}")
    assert system.wait_for_jobs(service_id)["status"] == "CreateFailed"
    system.lab.proxmox.control("clear_faults")
    job = system.last_job(service_id)
    assert job["errorMessage"].startswith(f"{TASKS[text]}: ")
    shown = system.lab.run_smith_json("jobs", "show", job["id"])
    assert text.partition(": ")[2] in json.dumps(shown), "the operator reads Proxmox's text"
    assert not [vm for vm in system.lab.guests() if vm["name"].endswith(service_id[:8])]
    assert outcome_of(system.lab.run_action(service_id, "create")) == "Completed"
    system.assert_consistent()


def test_f18_the_vmid_is_taken_between_reservation_and_clone(system: SystemUnderTest) -> None:
    """Another client creates a VM with the reserved VMID → another VMID is reserved; the foreign VM is unchanged."""
    with system.crashing("vmid_reserved"):
        service_id = system.order_service("f18")
        reserved = system.wait_until(
            lambda: system.rows("SELECT vmid FROM mappings WHERE service_id = ?", service_id), "the reservation"
        )
        taken_vmid = reserved[0]["vmid"]
        system.lab.proxmox.control("add", vmid=taken_vmid, name="foreign", status="running", config={"cores": 1})
        system.reused_vmids.add(taken_vmid)
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert system.vm_of(service_id)["vmid"] != taken_vmid
    system.assert_consistent()


@pytest.mark.parametrize("action", ["start", "delete"])
def test_f19_the_vm_was_deleted_by_hand(system: SystemUnderTest, action: str) -> None:
    """The VM was deleted in Proxmox
    → a delete succeeds, other actions fail with VM_NOT_FOUND after absence is verified.
    """
    service_id = system.create_vm(f"f19-{action}")
    system.remove_vm(service_id)
    job = system.lab.run_action(service_id, action)
    state = system.lab.admin.get_service(service_id)["status"]
    if action == "delete":
        assert (job["status"], state) == ("Completed", "Deleted")
    else:
        assert job["errorMessage"].startswith("VM_NOT_FOUND: ")
        assert state == "Lost"
        assert outcome_of(system.lab.run_action(service_id, "delete")) == "Completed"
    system.assert_consistent()


@pytest.mark.parametrize("action", ["delete", "start"])
def test_f20_the_vmid_was_reused_for_another_vm(system: SystemUnderTest, action: str) -> None:
    """Another owner's VM has the VMID
    → the job fails with VM_IDENTITY_MISMATCH, Proxmox gets no changing request, and drift is reported.
    """
    service_id = system.create_vm(f"f20-{action}")
    vmid = system.remove_vm(service_id, recycle=True)
    job = system.lab.run_action(service_id, action)
    assert job["errorMessage"].startswith("VM_IDENTITY_MISMATCH: ")
    assert system.lab.proxmox.changing_requests() == []
    found = {finding["kind"] for finding in system.drift()["findings"] if finding["vmid"] == vmid}
    assert found == {"vm_recycled"}
    system.assert_consistent()


def test_f21_the_vm_was_migrated_to_another_node(system: SystemUnderTest) -> None:
    """The VM was migrated between two actions → it is found on its new node, and the action succeeds."""
    service_id = system.create_vm("f21")
    vmid = system.vm_of(service_id)["vmid"]
    system.lab.proxmox.control("move", vmid=vmid, node="pve2")
    assert outcome_of(system.lab.run_action(service_id, "start")) == "Completed"
    assert system.rows("SELECT node FROM mappings WHERE service_id = ?", service_id) == [{"node": "pve2"}]
    system.assert_consistent()


INCOMPLETE_VIEWS = {
    "the node is offline": ("node", {"node": "pve1", "online": False}, "NODE_DOWN"),
    "no quorum": ("quorum", {"quorate": False}, "PVE_NO_QUORUM"),
    "an empty list": ("revoke", {"path": "/vms", "privilege": "VM.Audit"}, "PVE_PERMISSION"),
}


@pytest.mark.parametrize("view", INCOMPLETE_VIEWS)
def test_f22_a_vm_that_proxmox_does_not_show_is_not_treated_as_deleted(system: SystemUnderTest, view: str) -> None:
    """A node is offline, quorum is lost, or the token sees no VM
    → the VM is not treated as deleted: no VM_NOT_FOUND, no drift finding.
    """
    control_command, values, code = INCOMPLETE_VIEWS[view]
    service_id = system.create_vm(f"f22-{code.lower().replace('_', '-')}")
    before = system.rows("SELECT state FROM mappings WHERE service_id = ?", service_id)
    system.lab.proxmox.control(control_command, **values)
    try:
        system.request_near_the_deadline(service_id, "start")
        system.wait_for_jobs(service_id)
        frozen = system.drift()["frozen"]
    finally:
        system.lab.proxmox.control("clear_faults")
        system.lab.proxmox.control("grant", path="/vms", privilege="VM.Audit")
    assert system.job_of(service_id, "start")["errorMessage"].startswith(f"{code}: ")
    assert frozen
    assert system.lab.admin.get_service(service_id)["status"] == "Stopped"
    assert system.rows("SELECT state FROM mappings WHERE service_id = ?", service_id) == before
    system.assert_consistent()
