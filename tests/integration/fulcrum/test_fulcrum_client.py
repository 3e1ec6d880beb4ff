"""The client of FulcrumCore against the simulator: agent, jobs, secrets and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.fulcrum_setup import METRIC_TYPES, AdminClient, CreatedObjects, add_agent, bootstrap
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.client_jobs import only_job, order

from executor.errors import FulcrumAuthError, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient

UNKNOWN_ID = "ffffffff-ffff-4fff-8fff-ffffffffffff"


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


# The agent


def test_an_agent_reads_its_own_row(client: FulcrumClient, core: CreatedObjects) -> None:
    agent = client.get_own_agent()
    assert (agent.id, agent.name, agent.provider_id) == (core.agent_id, "smith-dc1", core.provider_id)
    assert agent.agent_type
    assert core.service_type_id in agent.agent_type.service_type_ids
    assert agent.configuration["apiTokenSecret"].startswith("vault://")
    assert not agent.is_disabled
    assert agent.defects == ()


def test_put_status_sets_the_status_of_the_agent(client: FulcrumClient) -> None:
    assert client.put_status("Connected").status == "Connected"
    assert client.get_own_agent().status == "Connected"
    with pytest.raises(FulcrumRefused):
        client.put_status("connected")


def test_an_agent_reads_that_an_administrator_disabled_it(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    admin.call("PATCH", f"/participants/{core.provider_id}", {"status": "Disabled"})
    assert client.get_own_agent().is_disabled


# Jobs


def test_a_job_goes_from_pending_to_completed(client: FulcrumClient, admin: AdminClient, core: CreatedObjects) -> None:
    service = order(admin, core)
    job = only_job(client)
    assert (job.action, job.status, job.service_id, job.defects) == ("create", "Pending", service["id"], ())
    assert job.service
    assert (job.service.name, job.service.group_id) == ("web-1", service["groupId"])
    assert job.params["cores"] == 2

    client.claim_job(job.id)
    assert client.get_job(job.id).status == "Processing"
    assert [found.id for found in client.processing_jobs_of_agent(core.agent_id)] == [job.id]
    client.complete_job(
        job.id,
        agent_instance_id=f"{core.agent_id}/100000",
        agent_instance_data={"vmid": 100000, "node": "pve1"},
        properties={"vmid": 100000, "node": "pve1"},
    )

    ended = client.get_job(job.id)
    assert (ended.status, ended.error_message) == ("Completed", None)
    assert ended.completed_at
    found = client.get_service(service["id"])
    assert (found.status, found.agent_instance_id) == ("Stopped", f"{core.agent_id}/100000")
    assert found.agent_instance_data == {"vmid": 100000, "node": "pve1"}
    assert found.properties
    assert found.properties["node"] == "pve1"
    assert client.pending_jobs().jobs == []
    assert client.processing_jobs_of_agent(core.agent_id) == []


def test_a_job_goes_from_pending_to_failed(client: FulcrumClient, admin: AdminClient, core: CreatedObjects) -> None:
    service = order(admin, core)
    job = only_job(client)
    client.claim_job(job.id)
    client.fail_job(job.id, "CAPACITY: no space left")
    ended = client.get_job(job.id)
    assert (ended.status, ended.error_message) == ("Failed", "CAPACITY: no space left")
    assert client.get_service(service["id"]).status == "CreateFailed"


def test_a_completion_without_values_keeps_the_values_in_fulcrumcore(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    service = order(admin, core)
    job = only_job(client)
    client.claim_job(job.id)
    client.complete_job(job.id, agent_instance_id="a/1", agent_instance_data={"vmid": 1})
    admin.request_action(service["id"], "start")
    job = only_job(client)
    client.claim_job(job.id)
    client.complete_job(job.id)
    found = client.get_service(service["id"])
    assert (found.status, found.agent_instance_id, found.agent_instance_data) == ("Started", "a/1", {"vmid": 1})


def test_a_transition_that_the_status_of_the_job_does_not_allow_is_refused(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    order(admin, core)
    job = only_job(client)
    for refused_call in (lambda: client.complete_job(job.id), lambda: client.fail_job(job.id, "INTERNAL: x")):
        with pytest.raises(FulcrumRefused):
            refused_call()
    client.claim_job(job.id)
    with pytest.raises(FulcrumRefused):
        client.claim_job(job.id)
    client.fail_job(job.id, "INTERNAL: x")
    for refused_call in (lambda: client.complete_job(job.id), lambda: client.fail_job(job.id, "INTERNAL: x")):
        with pytest.raises(FulcrumRefused):
            refused_call()


def test_properties_that_violate_the_schema_are_refused_and_the_job_stays_processing(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    order(admin, core)
    job = only_job(client)
    client.claim_job(job.id)
    with pytest.raises(FulcrumRefused):
        client.complete_job(job.id, properties={"vmid": "not a number"})
    assert client.get_job(job.id).status == "Processing"
    client.complete_job(job.id)


def test_a_duplicate_instance_id_raises_the_error_of_an_outage(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    """FulcrumCore answers 500, as in an outage, so the client retries. Only the reporter can decide to stop."""
    order(admin, core, "web-1")
    order(admin, core, "web-2")
    first, second = client.pending_jobs().jobs
    for job in (first, second):
        client.claim_job(job.id)
    client.complete_job(first.id, agent_instance_id="a/1")
    with pytest.raises(FulcrumUnavailable) as caught:
        client.complete_job(second.id, agent_instance_id="a/1")
    assert caught.value.status == 500
    assert client.get_job(second.id).status == "Processing"


def test_an_unknown_job_or_service_raises_fulcrum_auth_failing(client: FulcrumClient) -> None:
    for call in (client.get_job, client.claim_job, client.get_service):
        with pytest.raises(FulcrumAuthError) as caught:
            call(UNKNOWN_ID)
        assert caught.value.status == 403


def test_a_job_with_invalid_members_can_be_claimed_and_failed(
    client: FulcrumClient, simulator: SimulatorThread, admin: AdminClient, core: CreatedObjects
) -> None:
    order(admin, core)
    job = only_job(client)
    simulator.override_job(job.id, remove=("params",), action={"a": 1}, priority="urgent", createdAt="soon")
    invalid = only_job(client)
    assert (invalid.id, invalid.action, invalid.priority, invalid.created_at, invalid.params) == (
        job.id,
        None,
        1,
        None,
        None,
    )
    assert [text.partition(":")[0] for text in invalid.defects] == ["action", "priority", "createdAt"]
    client.claim_job(invalid.id)
    client.fail_job(invalid.id, f"INVALID_REQUEST: {invalid.defects[0]}")


def test_items_that_are_not_jobs_are_counted_and_skipped(
    client: FulcrumClient, simulator: SimulatorThread, admin: AdminClient, core: CreatedObjects
) -> None:
    order(admin, core)
    simulator.add_raw_pending_items(None, [], {"id": "7"}, "job", {"action": "create"})
    pending = client.pending_jobs()
    simulator.delete_raw_pending_items()
    assert len(pending.jobs) == 1
    assert len(pending.unusable_item_descriptions) == 5


def test_a_poll_returns_at_most_as_many_jobs_as_its_limit(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    for number in range(3):
        order(admin, core, f"web-{number}")
    assert len(client.pending_jobs(limit=2).jobs) == 2
    assert len(client.pending_jobs().jobs) == 3


def test_processing_jobs_of_another_agent_are_not_listed(
    client: FulcrumClient, simulator: SimulatorThread, admin: AdminClient, core: CreatedObjects
) -> None:
    """FulcrumCore lets an agent see, claim and end the jobs of every agent of its provider."""
    sibling_id, sibling_token = add_agent(
        admin, name="smith-dc2", provider_id=core.provider_id, agent_type_id=core.agent_type_id
    )
    order(admin, core, agent_id=sibling_id)
    sibling = FulcrumClient(simulator.url, lambda: sibling_token)
    job = only_job(sibling)
    sibling.claim_job(job.id)
    assert client.pending_jobs().jobs == []
    assert client.processing_jobs_of_agent(core.agent_id) == []
    assert [found.id for found in sibling.processing_jobs_of_agent(sibling_id)] == [job.id]
    assert [(found.name, found.agent_id) for found in client.services()] == [("web-1", sibling_id)]
    assert [found.name for found in sibling.services()] == ["web-1"]


def test_the_processing_jobs_of_all_pages_are_listed(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    for number in range(120):
        order(admin, core, f"web-{number % 3}")  # many equal names
    jobs = client.pending_jobs(limit=500).jobs
    for job in jobs:
        client.claim_job(job.id)
    assert len(jobs) == 120
    assert {job.id for job in client.processing_jobs_of_agent(core.agent_id)} == {job.id for job in jobs}
    assert {service.id for service in client.services()} == {job.service_id for job in jobs}


# Types, vault, metrics


def test_a_secret_is_resolved_until_it_is_deleted(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    order(admin, core, properties={"ciPassword": "correct horse"})
    job = only_job(client)
    assert job.service
    assert job.service.service_type_id == core.service_type_id
    service_type = client.get_service_type(core.service_type_id)
    assert service_type.secret_paths() == {("ciPassword",)}
    assert client.get_secret(job.params["ciPassword"]) == "correct horse"
    client.claim_job(job.id)
    client.fail_job(job.id, "CAPACITY: x")
    with pytest.raises(FulcrumNotFound) as caught:
        client.get_secret(job.params["ciPassword"])
    assert caught.value.status == 404


@pytest.mark.parametrize("value", ["text", 7, 0.5, True, None, {"a": [1]}, [], ""])
def test_a_secret_may_be_any_json(client: FulcrumClient, simulator: SimulatorThread, value: Any) -> None:
    assert client.get_secret(simulator.add_secret(value)) == value


def test_a_disabled_vault_raises_fulcrum_unavailable(client: FulcrumClient, simulator: SimulatorThread) -> None:
    reference = simulator.add_secret("x")
    simulator.set_switches(vault_off=True)
    with pytest.raises(FulcrumUnavailable) as caught:
        client.get_secret(reference)
    assert caught.value.status == 500


def test_an_unknown_service_type_is_not_found(client: FulcrumClient) -> None:
    with pytest.raises(FulcrumNotFound):
        client.get_service_type(UNKNOWN_ID)


def test_the_metric_types_are_listed(client: FulcrumClient) -> None:
    assert sorted(str(metric.name) for metric in client.metric_types()) == sorted(METRIC_TYPES)


def test_a_metric_with_a_known_vm_and_type_is_stored_and_others_are_not(
    client: FulcrumClient, admin: AdminClient, core: CreatedObjects
) -> None:
    order(admin, core)
    job = only_job(client)
    client.claim_job(job.id)
    client.complete_job(job.id, agent_instance_id="a/1")
    client.post_metric(agent_instance_id="a/1", resource_id="cpu", type_name="vm.cpu.usage", value=0.25)
    with pytest.raises(FulcrumNotFound):
        client.post_metric(agent_instance_id="a/2", resource_id="cpu", type_name="vm.cpu.usage", value=0.25)
    with pytest.raises(FulcrumNotFound):
        client.post_metric(agent_instance_id="a/1", resource_id="cpu", type_name="vm.unknown", value=0.25)
    with pytest.raises(FulcrumRefused):
        client.post_metric(agent_instance_id="a/1", resource_id="", type_name="vm.cpu.usage", value=0.25)
