"""F1 to F10: the agent dies at each step of the walk, and the next one goes on where the rows say."""

from __future__ import annotations

import time

import pytest
from faults.rig import Rig
from smith_lab.system import outcome_of, wait_for


def claims(rig: Rig, job_id: str) -> list[int | None]:
    """Return how FulcrumCore answered each claim of a job."""
    calls = rig.lab.core.history(method="POST", path=f"/{job_id}/claim")
    return [call["status"] for call in calls]


def reports(rig: Rig, job_id: str) -> list[int | None]:
    """Return how FulcrumCore answered each report of a job."""
    return [call["status"] for call in rig.lab.reports(job_id)]


def made_once(rig: Rig, service_id: str) -> None:
    """The service has its VM, by one clone, and one report was taken."""
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(rig.clones_of(service_id)) == 1
    job = rig.last_job(service_id)
    assert outcome_of(job) == "Completed"
    rig.prove()
    assert reports(rig, job["id"]).count(204) <= 1


def test_f01_killed_after_the_row_and_before_the_claim(rig: Rig) -> None:
    """The agent dies when a job is a row and nobody has claimed it → the next agent claims it; one row."""
    with rig.crashing("rows_written"):
        service_id = rig.order("f01")
    made_once(rig, service_id)
    job = rig.last_job(service_id)
    assert claims(rig, job["id"]) == [204]
    assert len(rig.rows("SELECT id FROM jobs WHERE fulcrum_id = ?", job["id"])) == 1


def test_f02_killed_after_the_claim_was_accepted(rig: Rig) -> None:
    """The agent dies when FulcrumCore has the job as ours and no row says so → it is ours; no second claim."""
    with rig.crashing("claim_accepted"):
        service_id = rig.order("f02")
    made_once(rig, service_id)
    assert claims(rig, rig.last_job(service_id)["id"]) == [204]


def test_f02_after_a_lost_database_the_agent_finishes_its_processing_jobs(rig: Rig) -> None:
    """The database is lost while jobs run → own Processing jobs are taken in and settled by a look at Proxmox."""
    made = rig.made("f02-made")
    with rig.crashing("claim_accepted"):
        claimed = rig.order("f02-claimed")
    rig.wait_for_jobs(claimed)
    cloning = rig.order("f02-cloning")
    rig.until(lambda: rig.clones_of(cloning), "the clone to begin")
    rig.lab.executor.kill()
    rig.lab.executor.wait()
    for file in rig.lab.data_dir.glob("smith.db*"):
        file.unlink()
    rig.start()
    made_once_without_history(rig, cloning)
    assert outcome_of(rig.lab.run_action(made, "start")) == "Completed"
    rig.lab.smith("drift", "fix", "--yes")  # the mappings of those that nothing is asked of
    rig.prove()


def made_once_without_history(rig: Rig, service_id: str) -> None:
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(rig.clones_of(service_id)) == 1, "a half-made clone was not recognised"
    assert len(rig.lab.vms_of(service_id)) == 1


@pytest.mark.parametrize("kind", ["drop_after", "html"])
def test_f03_the_response_to_a_claim_is_lost(rig: Rig, kind: str) -> None:
    """A claim is heard and its answer is lost, or a proxy's page → `GET /jobs/{id}` decides; no second row."""
    rig.lab.core.fault(kind, method="POST", path=r"/claim$", times=1, effect=True)
    service_id = rig.order(f"f03-{kind.partition('_')[0]}")
    made_once(rig, service_id)
    assert 204 not in claims(rig, rig.last_job(service_id)["id"])[1:]


def test_f04_killed_after_the_reservation(rig: Rig) -> None:
    """The agent dies when a VMID is reserved and Proxmox has not heard of it → the same reservation is used."""
    with rig.crashing("vmid_reserved"):
        service_id = rig.order("f04")
        rig.until(lambda: rig.rows("SELECT 1 FROM mappings WHERE service_id = ?", service_id), "the reservation")
        (reserved,) = rig.rows("SELECT vmid FROM mappings WHERE service_id = ?", service_id)
    made_once(rig, service_id)
    assert rig.vm_of(service_id)["vmid"] == reserved["vmid"]


def test_f05_killed_just_after_the_clone_request(rig: Rig) -> None:
    """The agent dies when Proxmox has begun to clone and nobody knows the task → the VM is found; there is one."""
    service_id = rig.order("f05")
    rig.until(lambda: rig.clones_of(service_id), "the clone call")
    rig.kill_agent()
    made_once(rig, service_id)


def test_f06_killed_while_the_clone_runs(rig: Rig) -> None:
    """The agent dies half-way through a clone → its run's processes are gone, the clone is waited for, not repeated."""
    rig.lab.proxmox.control("task_seconds", type="qmclone", seconds=60)  # 12 s at the rig's time scale
    try:
        service_id = rig.order("f06")
        rig.until(lambda: rig.clones_of(service_id), "the clone call")
        time.sleep(2)  # somewhere in the middle of it
        before = rig.run_processes()
        rig.kill_agent()
        assert before
        assert not [process for process in before if process.is_running() and process.status() != "zombie"]
        made_once(rig, service_id)
    finally:
        rig.lab.proxmox.control("task_seconds", type="qmclone", seconds=10)


def test_f07_killed_between_clone_and_marker(rig: Rig) -> None:
    """The agent dies when the clone is there without its marker → adopted by reservation and name, then marked."""
    rig.lab.proxmox.fail("PUT", "/nodes/*/qemu/*/config", status=503, text="held up", delay_s=20)
    service_id = rig.order("f07")
    rig.until(lambda: unmarked(rig, service_id), "the clone without a marker")
    rig.kill_agent()
    rig.lab.proxmox.control("clear_faults")
    made_once(rig, service_id)


def unmarked(rig: Rig, service_id: str) -> bool:
    named = [vm for vm in rig.lab.vms() if vm["name"].endswith(service_id[:8])]
    calls = [call for call in rig.lab.proxmox.changing_requests() if call["method"] == "PUT"]
    waiting = any(call["path"].endswith(f"/{vm['vmid']}/config") for vm in named for call in calls)
    return waiting and not rig.lab.vms_of(service_id)


def test_f07_a_service_whose_clone_has_no_marker_yet_can_be_deleted(rig: Rig) -> None:
    """A create fails between clone and marker, and the user deletes → the clone is gone, by its reserved name."""
    rig.lab.proxmox.fail("PUT", "/nodes/*/qemu/*/config", status=500, text="not today", times=-1)
    service_id = rig.order("f07-gone")
    assert rig.wait_for_jobs(service_id)["status"] == "CreateFailed"
    rig.lab.proxmox.control("clear_faults")
    assert [vm for vm in rig.lab.vms() if vm["name"].endswith(service_id[:8])]
    assert outcome_of(rig.lab.run_action(service_id, "delete")) == "Completed"
    assert not [vm for vm in rig.lab.vms() if vm["name"].endswith(service_id[:8])]
    rig.prove()


def test_f08_killed_after_the_vm_is_ready_and_before_its_result_is_stored(rig: Rig) -> None:
    """The agent dies when the VM is as asked for and no row says so → the same instance is reported."""
    with rig.crashing("run_ended"):
        service_id = rig.order("f08")
    made_once(rig, service_id)
    instance = rig.lab.admin.get_service(service_id)["agentInstanceId"]
    assert instance.endswith(f"/{rig.vm_of(service_id)['vmid']}")


def test_f09_killed_after_the_result_is_stored_and_before_the_report(rig: Rig) -> None:
    """The agent dies when the outcome is in the outbox → the next one sends it, once."""
    with rig.crashing("job_finished"):
        service_id = rig.order("f09")
    made_once(rig, service_id)
    assert reports(rig, rig.last_job(service_id)["id"]) == [204]


def test_f10_killed_after_the_report_was_accepted(rig: Rig) -> None:
    """The agent dies when FulcrumCore has taken the report and no row says so → 400; a look at the job settles it."""
    with rig.crashing("report_accepted"):
        service_id = rig.order("f10")
    job_id = wait_for(lambda: rig.last_job(service_id), 10, "the job")["id"]
    made_once(rig, service_id)
    rig.until(lambda: len(reports(rig, job_id)) == 2, "the repeated report")
    assert sorted(reports(rig, job_id)) == [204, 400]
    (row,) = rig.rows("SELECT report_state FROM jobs WHERE fulcrum_id = ?", job_id)
    assert row["report_state"] == "reported"


def test_f10_the_response_to_a_report_is_lost(rig: Rig) -> None:
    """FulcrumCore takes a report and its answer is lost → the repeated one is refused; a look at the job settles it."""
    rig.lab.core.fault("drop_after", method="POST", path="/complete$", times=1)
    service_id = rig.order("f10-lost")
    made_once(rig, service_id)
    assert reports(rig, rig.last_job(service_id)["id"]) == [None, 400]
