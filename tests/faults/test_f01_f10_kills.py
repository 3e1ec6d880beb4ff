"""F1 to F10: the agent crashes at each step of a job, and the next agent continues from the rows of the database."""

from __future__ import annotations

import time

import pytest
from faults.system import SystemUnderTest
from smith_lab.system import outcome_of, wait_for


def claim_statuses(system: SystemUnderTest, job_id: str) -> list[int | None]:
    """Return the HTTP status of each claim request for a job."""
    calls = system.lab.core.history(method="POST", path_end=f"/{job_id}/claim")
    return [call["status"] for call in calls]


def report_statuses(system: SystemUnderTest, job_id: str) -> list[int | None]:
    """Return the HTTP status of each report request for a job."""
    return [call["status"] for call in system.lab.reports(job_id)]


def assert_created_once(system: SystemUnderTest, service_id: str) -> None:
    """Check that the service has its VM by exactly one clone, and that at most one report was accepted."""
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(system.clone_requests_of(service_id)) == 1
    job = system.last_job(service_id)
    assert outcome_of(job) == "Completed"
    system.assert_consistent()
    assert report_statuses(system, job["id"]).count(204) <= 1


def test_f01_killed_after_the_row_and_before_the_claim(system: SystemUnderTest) -> None:
    """The agent crashes after it wrote the job's row and before it claimed the job
    → the next agent claims it; one row.
    """
    with system.crashing("rows_written"):
        service_id = system.order_service("f01")
    assert_created_once(system, service_id)
    job = system.last_job(service_id)
    assert claim_statuses(system, job["id"]) == [204]
    assert len(system.rows("SELECT id FROM jobs WHERE fulcrum_id = ?", job["id"])) == 1


def test_f02_killed_after_the_claim_was_accepted(system: SystemUnderTest) -> None:
    """The agent crashes after FulcrumCore accepted the claim and before the row says so
    → the job counts as claimed; no second claim.
    """
    with system.crashing("claim_accepted"):
        service_id = system.order_service("f02")
    assert_created_once(system, service_id)
    assert claim_statuses(system, system.last_job(service_id)["id"]) == [204]


def test_f02_after_a_lost_database_the_agent_finishes_its_processing_jobs(system: SystemUnderTest) -> None:
    """The database is lost while jobs run → the agent finishes its own Processing jobs from the state in Proxmox."""
    created = system.create_vm("f02-created")
    with system.crashing("claim_accepted"):
        claimed = system.order_service("f02-claimed")
    system.wait_for_jobs(claimed)
    cloning = system.order_service("f02-cloning")
    system.wait_until(lambda: system.clone_requests_of(cloning), "the clone to begin")
    system.lab.executor.kill()
    system.lab.executor.wait()
    for file in system.lab.data_dir.glob("smith.db*"):
        file.unlink()
    system.start()
    assert_not_cloned_twice(system, cloning)
    assert outcome_of(system.lab.run_action(created, "start")) == "Completed"
    system.lab.run_smith_json("drift", "fix", "--yes")  # restores the mappings of services without a new job
    system.assert_consistent()


def assert_not_cloned_twice(system: SystemUnderTest, service_id: str) -> None:
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(system.clone_requests_of(service_id)) == 1, "a partial clone was not recognised"
    assert len(system.lab.guests_of(service_id)) == 1


@pytest.mark.parametrize("kind", ["drop_after", "html"])
def test_f03_the_response_to_a_claim_is_lost(system: SystemUnderTest, kind: str) -> None:
    """FulcrumCore accepts a claim, and its response is lost or a proxy's HTML page
    → `GET /jobs/{id}` decides; no second claim.
    """
    system.lab.core.add_fault(kind, method="POST", path=r"/claim$", times=1, effect=True)
    service_id = system.order_service(f"f03-{kind.partition('_')[0]}")
    assert_created_once(system, service_id)
    assert 204 not in claim_statuses(system, system.last_job(service_id)["id"])[1:]


def test_f04_killed_after_the_reservation(system: SystemUnderTest) -> None:
    """The agent crashes after it reserved a VMID and before any request to Proxmox
    → the next attempt uses the same reservation.
    """
    with system.crashing("vmid_reserved"):
        service_id = system.order_service("f04")
        system.wait_until(
            lambda: system.rows("SELECT 1 FROM mappings WHERE service_id = ?", service_id), "the reservation"
        )
        (reserved,) = system.rows("SELECT vmid FROM mappings WHERE service_id = ?", service_id)
    assert_created_once(system, service_id)
    assert system.vm_of(service_id)["vmid"] == reserved["vmid"]


def test_f05_killed_just_after_the_clone_request(system: SystemUnderTest) -> None:
    """The agent crashes after the clone request and before it recorded the Proxmox task
    → the clone is found; one VM.
    """
    service_id = system.order_service("f05")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone request")
    system.kill_agent()
    assert_created_once(system, service_id)


def test_f06_killed_while_the_clone_runs(system: SystemUnderTest) -> None:
    """The agent crashes during a clone
    → the processes of its run end; the next run waits for the clone and starts no second one.
    """
    system.lab.proxmox.control("task_seconds", type="qmclone", seconds=60)  # 12 s at the system's time scale
    try:
        service_id = system.order_service("f06")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone request")
        time.sleep(2)  # the clone is in progress
        before = system.run_processes()
        system.kill_agent()
        assert before
        assert not [process for process in before if process.is_running() and process.status() != "zombie"]
        assert_created_once(system, service_id)
    finally:
        system.lab.proxmox.control("task_seconds", type="qmclone", seconds=10)


def test_f07_killed_between_clone_and_marker(system: SystemUnderTest) -> None:
    """The agent crashes after the clone and before the marker
    → the clone is adopted by reservation and name, then marked.
    """
    system.lab.proxmox.fail("PUT", "/nodes/*/qemu/*/config", status=503, text="held up", delay_s=20)
    service_id = system.order_service("f07")
    system.wait_until(lambda: has_unmarked_clone(system, service_id), "the clone without a marker")
    system.kill_agent()
    system.lab.proxmox.control("clear_faults")
    assert_created_once(system, service_id)


def has_unmarked_clone(system: SystemUnderTest, service_id: str) -> bool:
    named = [vm for vm in system.lab.guests() if vm["name"].endswith(service_id[:8])]
    calls = [call for call in system.lab.proxmox.changing_requests() if call["method"] == "PUT"]
    is_configuration_requested = any(call["path"].endswith(f"/{vm['vmid']}/config") for vm in named for call in calls)
    return is_configuration_requested and not system.lab.guests_of(service_id)


def test_f07_a_service_whose_clone_has_no_marker_yet_can_be_deleted(system: SystemUnderTest) -> None:
    """A create fails between clone and marker, and the user deletes the service
    → the clone is deleted by its reserved name.
    """
    system.lab.proxmox.fail("PUT", "/nodes/*/qemu/*/config", status=500, text="not today", times=-1)
    service_id = system.order_service("f07-gone")
    assert system.wait_for_jobs(service_id)["status"] == "CreateFailed"
    system.lab.proxmox.control("clear_faults")
    assert [vm for vm in system.lab.guests() if vm["name"].endswith(service_id[:8])]
    assert outcome_of(system.lab.run_action(service_id, "delete")) == "Completed"
    assert not [vm for vm in system.lab.guests() if vm["name"].endswith(service_id[:8])]
    system.assert_consistent()


def test_f08_killed_after_the_vm_is_ready_and_before_its_result_is_stored(system: SystemUnderTest) -> None:
    """The agent crashes after the run ended and before the result is stored → the same instance is reported."""
    with system.crashing("run_ended"):
        service_id = system.order_service("f08")
    assert_created_once(system, service_id)
    instance = system.lab.admin.get_service(service_id)["agentInstanceId"]
    assert instance.endswith(f"/{system.vm_of(service_id)['vmid']}")


def test_f09_killed_after_the_result_is_stored_and_before_the_report(system: SystemUnderTest) -> None:
    """The agent crashes after it stored the result and before it sent the report
    → the next agent sends the report once.
    """
    with system.crashing("job_finished"):
        service_id = system.order_service("f09")
    assert_created_once(system, service_id)
    assert report_statuses(system, system.last_job(service_id)["id"]) == [204]


def test_f10_killed_after_the_report_was_accepted(system: SystemUnderTest) -> None:
    """The agent crashes after FulcrumCore accepted the report and before the row says so
    → the second report gets 400; `GET /jobs/{id}` settles it.
    """
    with system.crashing("report_accepted"):
        service_id = system.order_service("f10")
    job_id = wait_for(lambda: system.last_job(service_id), 10, "the job")["id"]
    assert_created_once(system, service_id)
    system.wait_until(lambda: len(report_statuses(system, job_id)) == 2, "the repeated report")
    assert sorted(report_statuses(system, job_id)) == [204, 400]
    (row,) = system.rows("SELECT report_state FROM jobs WHERE fulcrum_id = ?", job_id)
    assert row["report_state"] == "reported"


def test_f10_the_response_to_a_report_is_lost(system: SystemUnderTest) -> None:
    """FulcrumCore accepts a report and its response is lost
    → the second report is refused; `GET /jobs/{id}` settles it.
    """
    system.lab.core.add_fault("drop_after", method="POST", path="/complete$", times=1)
    service_id = system.order_service("f10-lost")
    assert_created_once(system, service_id)
    assert report_statuses(system, system.last_job(service_id)["id"]) == [None, 400]
