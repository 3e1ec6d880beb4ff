"""The client of FulcrumCore against the simulator: revoked tokens, outages and broken responses."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from smith_lab.fulcrum_setup import AdminClient, CreatedObjects, bootstrap
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.client_jobs import only_job, order

from executor.errors import FulcrumAuthError, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumJob


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorThread]:
    with running_simulator() as running:
        yield running


@pytest.fixture
def simulator(server: SimulatorThread) -> SimulatorThread:
    """An empty FulcrumCore."""
    server.reset()
    return server


@pytest.fixture
def admin(simulator: SimulatorThread) -> Iterator[AdminClient]:
    with AdminClient(simulator.url) as client:
        yield client


@pytest.fixture
def core(admin: AdminClient) -> CreatedObjects:
    return bootstrap(admin)


@pytest.fixture
def client(simulator: SimulatorThread, core: CreatedObjects) -> FulcrumClient:
    return FulcrumClient(simulator.url, lambda: core.agent_token, read_timeout_s=5)


# Outages


def test_a_revoked_token_and_a_database_outage_are_the_same_temporary_error(
    client: FulcrumClient, simulator: SimulatorThread, admin: AdminClient, core: CreatedObjects
) -> None:
    simulator.set_switches(database_down=True)
    with pytest.raises(FulcrumAuthError):
        client.get_own_agent()
    simulator.set_switches(database_down=False)
    assert client.get_own_agent().id == core.agent_id
    simulator.revoke_tokens(agent_id=core.agent_id)
    with pytest.raises(FulcrumAuthError) as caught:
        client.get_own_agent()
    assert core.agent_token not in str(caught.value)


def test_a_rotated_token_is_used_without_a_new_client(
    simulator: SimulatorThread, admin: AdminClient, core: CreatedObjects
) -> None:
    token = [core.agent_token]
    client = FulcrumClient(simulator.url, lambda: token[0])
    client.get_own_agent()
    simulator.revoke_tokens(agent_id=core.agent_id)
    with pytest.raises(FulcrumAuthError):
        client.get_own_agent()
    token[0] = admin.create_token("smith-dc1", "agent", core.agent_id)["value"]
    assert client.get_own_agent().id == core.agent_id


def test_requests_succeed_again_after_an_outage(client: FulcrumClient, simulator: SimulatorThread) -> None:
    client.get_own_agent()
    simulator.pause()
    try:
        with pytest.raises(FulcrumUnavailable) as caught:
            client.get_own_agent()
        assert caught.value.status is None
    finally:
        simulator.resume()
    assert client.get_own_agent().name == "smith-dc1"


@pytest.mark.parametrize("kind", ["html", "empty", "wrong_json", "truncate", "drop_before", "drop_after"])
def test_every_broken_response_to_a_poll_raises_fulcrum_unavailable(
    client: FulcrumClient, simulator: SimulatorThread, kind: str
) -> None:
    simulator.add_fault(kind, path="/jobs/pending")
    with pytest.raises(FulcrumUnavailable):
        client.pending_jobs()
    simulator.clear_faults()
    assert client.pending_jobs().jobs == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_poll_is_retried_after_a_server_error(client: FulcrumClient, simulator: SimulatorThread, status: int) -> None:
    simulator.add_fault("status", path="/jobs/pending", status=status, times=2)
    simulator.clear_history()
    assert client.pending_jobs().jobs == []
    assert len(simulator.history(path_end="/jobs/pending")) == 3


def test_after_a_lost_response_to_a_claim_the_job_is_processing(
    client: FulcrumClient, simulator: SimulatorThread, admin: AdminClient, core: CreatedObjects
) -> None:
    order(admin, core)
    job = only_job(client)
    simulator.add_fault("drop_after", path="/claim$", times=1)
    simulator.clear_history()
    with pytest.raises(FulcrumUnavailable):
        client.claim_job(job.id)
    assert len(simulator.history(path_end="/claim")) == 1
    assert client.get_job(job.id).status == "Processing"
    with pytest.raises(FulcrumRefused):
        client.claim_job(job.id)


def test_the_offset_of_fulcrumcores_clock_is_measured(client: FulcrumClient, simulator: SimulatorThread) -> None:
    assert client.clock_offset_s == 0.0
    simulator.advance(3600)
    client.get_own_agent()
    assert abs(client.clock_offset_s - 3600) < 30
    simulator.advance(-7200)
    client.get_own_agent()
    assert abs(client.clock_offset_s + 3600) < 30


def test_several_threads_can_use_one_client(client: FulcrumClient, admin: AdminClient, core: CreatedObjects) -> None:
    for number in range(12):
        order(admin, core, f"web-{number}")
    jobs = client.pending_jobs().jobs
    failures: list[BaseException] = []

    def process(assigned_jobs: list[FulcrumJob]) -> None:
        try:
            for job in assigned_jobs:
                client.claim_job(job.id)
                client.complete_job(job.id, agent_instance_id=job.id)
        except BaseException as exc:  # asserted by the main thread
            failures.append(exc)

    threads = [threading.Thread(target=process, args=(jobs[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {client.get_job(job.id).status for job in jobs} == {"Completed"}
