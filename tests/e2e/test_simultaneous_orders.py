"""FulcrumCore may accept two simultaneous requests for one service. The agent processes their jobs one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from smith_lab.fulcrum_setup import AdminClient
from smith_lab.system import LabSystem, run_lab_system, wait_for


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with run_lab_system(tmp_path_factory.mktemp("lab")) as system:
        system.start_executor()
        yield system


def request_twice(lab: LabSystem, service_id: str, action: str) -> None:
    """Request an action twice at the same time; both requests are accepted."""
    both_ready = threading.Barrier(2)

    def request(_number: int) -> None:
        with AdminClient(lab.core.url) as admin:
            admin.get_service(service_id)  # opens the connection
            both_ready.wait()
            admin.request_action(service_id, action)

    lab.core.set_switches(simultaneous_requests_all_succeed=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(request, range(2)))
    lab.core.set_switches(simultaneous_requests_all_succeed=False)


def wait_for_outcomes(lab: LabSystem, service_id: str, action: str) -> list[tuple[str, str]]:
    """Wait until all jobs have ended; return the status and the error code of each job of the action."""

    def ended() -> bool:
        return all(job["status"] in ("Completed", "Failed") for job in lab.admin.list_jobs(service_id))

    wait_for(ended, 60, "the end of both jobs")
    jobs = [job for job in lab.admin.list_jobs(service_id) if job["action"] == action]
    return sorted((job["status"], str(job.get("errorMessage", "")).partition(":")[0]) for job in jobs)


def test_both_jobs_of_an_action_that_may_be_repeated_complete(lab: LabSystem) -> None:
    service_id = lab.order_service("snapshots")
    lab.wait_for_jobs(service_id)
    request_twice(lab, service_id, "snapshot")
    assert wait_for_outcomes(lab, service_id, "snapshot") == [("Completed", ""), ("Completed", "")]


@pytest.mark.parametrize(("action", "status"), [("start", "Started"), ("delete", "Deleted")])
def test_a_second_job_whose_result_fulcrumcore_does_not_accept_fails_with_result_refused(
    lab: LabSystem, action: str, status: str
) -> None:
    service_id = lab.order_service(action)
    lab.wait_for_jobs(service_id)
    request_twice(lab, service_id, action)
    assert wait_for_outcomes(lab, service_id, action) == [("Completed", ""), ("Failed", "RESULT_REFUSED")]
    assert lab.admin.get_service(service_id)["status"] == status
    assert len(lab.guests_of(service_id)) == (0 if action == "delete" else 1)
