"""Jobs of the FulcrumCore simulator: which ones the pending list contains, and which claims succeed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.simulator_world import World


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


# The pending list


def test_the_pending_list_is_an_empty_json_array_without_jobs(world: World) -> None:
    assert world.agent.pending() == []


def test_a_pending_job_embeds_its_service_and_nothing_else(world: World) -> None:
    service = world.order()
    job = world.agent.pending()[0]
    assert job["service"] == service
    assert (job["action"], job["status"], job["priority"]) == ("create", "Pending", 1)
    assert job["params"] == service["properties"]
    absent = {"agent", "provider", "consumer", "claimedAt", "completedAt", "errorMessage"}
    assert not absent & set(job)
    assert not {"agent", "serviceType", "agentInstanceId", "agentInstanceData"} & set(job["service"])


def test_a_single_job_embeds_agent_provider_and_consumer(world: World) -> None:
    job = world.job_of(world.order())
    full = world.agent.get(f"/jobs/{job['id']}").json()
    assert full["agent"]["configuration"]["apiHost"] == "pve.test"
    assert (full["provider"]["name"], full["consumer"]["name"]) == ("Northwind Cloud", "Acme Corp")


def test_a_later_job_contains_the_instance_id_that_an_earlier_one_reported(world: World) -> None:
    service = world.created(instance="agent/7")
    world.admin.request_action(service["id"], "start")
    assert world.agent.pending()[0]["service"]["agentInstanceId"] == "agent/7"


def test_the_job_of_an_action_has_no_params(world: World) -> None:
    world.admin.request_action(world.created()["id"], "start")
    assert "params" not in world.agent.pending()[0]


def test_the_pending_list_contains_the_oldest_job_of_each_group(world: World) -> None:
    world.sim.freeze()
    group = world.group()
    services = []
    for number in range(3):
        services.append(world.order(group, name=f"web-{number}"))
        world.sim.advance(1)
    assert [job["serviceId"] for job in world.agent.pending()] == [services[0]["id"]]


def test_a_group_with_a_processing_job_is_not_listed(world: World) -> None:
    group = world.group()
    first, second = world.order(group), world.order(group, name="web-2")
    job = world.claimed(first)
    assert world.agent.pending() == []
    world.agent.complete(job)
    assert [job["serviceId"] for job in world.agent.pending()] == [second["id"]]


def test_a_job_of_another_agent_does_not_hide_the_group(world: World) -> None:
    other_agent_id, other_agent = world.other_agent()
    group = world.group()
    other_service = world.admin.create_service(
        group_id=group,
        service_type_id=world.ids.service_type_id,
        agent_id=other_agent_id,
        name="other",
        properties={"cores": 1, "memoryMb": 512, "diskGb": 5, "image": "x"},
    )
    own_service = world.order(group)
    assert other_agent.claim(world.job_of(other_service)) == 204
    assert [job["serviceId"] for job in world.agent.pending()] == [own_service["id"]]


def test_the_pending_list_is_sorted_by_group_id_and_not_by_age(world: World) -> None:
    groups = [world.group(f"g{number}") for number in range(6)]
    for number, group in enumerate(groups):
        world.order(group, name=f"web-{number}")
    assert [job["service"]["groupId"] for job in world.agent.pending()] == sorted(groups)


@pytest.mark.parametrize(
    ("limit", "listed_count"), [(None, 10), ("3", 3), ("100", 12), ("0", 10), ("-1", 10), ("many", 10)]
)
def test_the_pending_list_has_as_many_jobs_as_its_limit_or_ten_if_the_limit_is_missing_or_invalid(
    world: World, limit: str | None, listed_count: int
) -> None:
    for number in range(12):
        world.order(world.group(f"g{number}"), name=f"web-{number}")
    query = {} if limit is None else {"limit": limit}
    assert len(world.agent.pending(**query)) == listed_count


# Claim


def test_a_claim_records_its_time_and_not_the_agent(world: World) -> None:
    job = world.job_of(world.order())
    before = set(job)
    assert world.agent.claim(job) == 204
    after = world.agent.get(f"/jobs/{job['id']}").json()
    assert (after["status"], set(after) - before) == ("Processing", {"claimedAt"})


def test_a_second_claim_is_400(world: World) -> None:
    job = world.claimed(world.order())
    assert world.agent.claim(job) == 400


def test_of_eight_simultaneous_claims_of_a_job_one_succeeds(world: World) -> None:
    job = world.job_of(world.order())
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: world.caller(world.ids.agent_token).claim(job), range(8)))
    assert sorted(statuses) == [204] + [400] * 7


def test_a_second_claim_succeeds_while_the_switch_two_claims_win_is_on(world: World) -> None:
    world.sim.set_switches(two_claims_win=True)
    job = world.job_of(world.order())
    assert [world.agent.claim(job), world.agent.claim(job)] == [204, 204]
    world.agent.complete(job)
    assert world.agent.claim(job) == 400


def test_a_second_job_of_a_group_is_not_listed_and_can_be_claimed(world: World) -> None:
    group = world.group()
    first, second = world.order(group), world.order(group, name="web-2")
    world.claimed(first)
    assert world.agent.claim(world.job_of(second)) == 204


def test_a_disabled_agent_still_polls_and_claims(world: World) -> None:
    job = world.job_of(world.order())
    world.admin.call("PATCH", f"/agents/{world.ids.agent_id}", {"status": "Disabled"})
    assert len(world.agent.pending()) == 1
    assert world.agent.claim(job) == 204
    assert world.agent.complete(job).status_code == 204


def test_all_simultaneous_claims_succeed_while_the_switch_simultaneous_requests_win_is_on(world: World) -> None:
    job = world.job_of(world.order())
    callers = [world.caller(world.ids.agent_token) for _ in range(4)]
    world.sim.set_switches(simultaneous_requests_all_succeed=True)
    with ThreadPoolExecutor(len(callers)) as pool:
        claims = list(pool.map(lambda caller: caller.claim(job), callers))
    assert claims == [204] * len(callers)
    assert world.agent.claim(job) == 400


def test_simultaneous_actions_create_several_jobs_while_the_switch_simultaneous_requests_win_is_on(
    world: World,
) -> None:
    service = world.created()
    callers = [world.caller(world.ids.admin_token) for _ in range(3)]
    world.sim.set_switches(simultaneous_requests_all_succeed=True)
    with ThreadPoolExecutor(len(callers)) as pool:
        answers = list(pool.map(lambda caller: caller.post(f"/services/{service['id']}/start"), callers))
    assert [answer.status_code for answer in answers] == [200] * len(callers)
    assert world.admin_caller.post(f"/services/{service['id']}/start").status_code == 400
