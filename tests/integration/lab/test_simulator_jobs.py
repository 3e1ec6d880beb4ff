"""Jobs in the simulator: the pending list, claim, complete and fail."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.simulator_world import SIMPLE_LIFECYCLE, World, error_of


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


def test_pending_is_a_bare_array_and_empty_when_idle(world: World) -> None:
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


def test_the_next_job_contains_a_reported_instance(world: World) -> None:
    service = world.created(instance="agent/7")
    world.admin.start_action(service["id"], "start")
    assert world.agent.pending()[0]["service"]["agentInstanceId"] == "agent/7"


def test_the_job_of_an_action_has_no_params(world: World) -> None:
    world.admin.start_action(world.created()["id"], "start")
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
    sibling_id, other_agent = world.other_agent()
    group = world.group()
    theirs = world.admin.create_service(
        group_id=group,
        service_type_id=world.ids.service_type_id,
        agent_id=sibling_id,
        name="theirs",
        properties={"cores": 1, "memoryMb": 512, "diskGb": 5, "image": "x"},
    )
    ours = world.order(group)
    assert other_agent.claim(world.job_of(theirs)) == 204
    assert [job["serviceId"] for job in world.agent.pending()] == [ours["id"]]


def test_pending_is_sorted_by_group_id_not_by_age(world: World) -> None:
    groups = [world.group(f"g{number}") for number in range(6)]
    for number, group in enumerate(groups):
        world.order(group, name=f"web-{number}")
    assert [job["service"]["groupId"] for job in world.agent.pending()] == sorted(groups)


@pytest.mark.parametrize(("limit", "shown"), [(None, 10), ("3", 3), ("100", 12), ("0", 10), ("-1", 10), ("many", 10)])
def test_an_invalid_limit_means_ten(world: World, limit: str | None, shown: int) -> None:
    for number in range(12):
        world.order(world.group(f"g{number}"), name=f"web-{number}")
    query = {} if limit is None else {"limit": limit}
    assert len(world.agent.pending(**query)) == shown


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


def test_of_eight_claims_at_once_one_succeeds(world: World) -> None:
    job = world.job_of(world.order())
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: world.caller(world.ids.agent_token).claim(job), range(8)))
    assert sorted(statuses) == [204] + [400] * 7


def test_two_claims_succeed_when_the_race_is_switched_on(world: World) -> None:
    world.sim.set_switches(two_claims_win=True)
    job = world.job_of(world.order())
    assert [world.agent.claim(job), world.agent.claim(job)] == [204, 204]
    world.agent.complete(job)
    assert world.agent.claim(job) == 400


def test_a_second_job_of_a_group_can_be_claimed_by_id(world: World) -> None:
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


# Calls that do not fit the status


@pytest.mark.parametrize("verb", ["complete", "fail"])
def test_an_unclaimed_job_can_be_neither_completed_nor_failed(world: World, verb: str) -> None:
    job = world.job_of(world.order())
    assert world.agent.post(f"/jobs/{job['id']}/{verb}", {}).status_code == 400


@pytest.mark.parametrize("end", ["complete", "fail", "timeout"])
def test_an_ended_job_can_be_neither_claimed_nor_ended_again(world: World, end: str) -> None:
    job = world.claimed(world.order())
    if end == "timeout":
        world.sim.expire_job(job["id"])
    else:
        assert world.agent.post(f"/jobs/{job['id']}/{end}", {}).status_code == 204
    answers = [world.agent.post(f"/jobs/{job['id']}/{verb}", {}).status_code for verb in ("claim", "complete", "fail")]
    assert answers == [400, 400, 400]


# Complete


def test_a_completion_changes_the_state_and_stores_the_report(world: World) -> None:
    service = world.order()
    job = world.claimed(service)
    answer = world.agent.complete(
        job,
        agentInstanceId="agent/100000",
        agentInstanceData={"vmid": 100000},
        properties={"vmid": 100000, "node": "pve1", "ipAddresses": ["192.0.2.10"]},
    )
    after = world.service(service)
    assert answer.status_code == 204
    assert (after["status"], after["agentInstanceId"], after["agentInstanceData"]) == (
        "Stopped",
        "agent/100000",
        {"vmid": 100000},
    )
    assert after["properties"] == {
        **service["properties"],
        "vmid": 100000,
        "node": "pve1",
        "ipAddresses": ["192.0.2.10"],
    }
    ended = world.job_of(service)
    assert (ended["status"], "completedAt" in ended) == ("Completed", True)


def test_an_empty_report_completes_the_job(world: World) -> None:
    service = world.order()
    assert world.agent.complete(world.claimed(service)).status_code == 204
    assert "agentInstanceId" not in world.service(service)


def test_instance_data_is_replaced_not_merged(world: World) -> None:
    service = world.created()
    for data in ({"a": 1, "b": 2}, {"b": 3}):
        world.admin.start_action(service["id"], "snapshot")
        world.agent.complete(world.claimed(service), agentInstanceData=data)
    assert world.service(service)["agentInstanceData"] == {"b": 3}


def test_null_and_absent_members_keep_the_old_values(world: World) -> None:
    service = world.created(instance="agent/1")
    world.admin.start_action(service["id"], "snapshot")
    world.agent.complete(world.claimed(service), agentInstanceId=None)
    assert world.service(service)["agentInstanceId"] == "agent/1"


def test_undeclared_properties_are_dropped_without_an_error(world: World) -> None:
    service = world.order()
    assert world.agent.complete(world.claimed(service), properties={"vmid": 5, "uptime": 1}).status_code == 204
    properties = world.service(service)["properties"]
    assert (properties["vmid"], "uptime" in properties) == (5, False)


def test_a_refused_property_rolls_the_completion_back(world: World) -> None:
    service = world.order()
    job = world.claimed(service)
    answer = world.agent.complete(job, agentInstanceId="agent/1", properties={"vmid": 5, "cores": 8})
    assert answer.status_code == 400
    after = world.service(service)
    assert (after["status"], "agentInstanceId" in after, after["properties"]) == ("New", False, service["properties"])
    assert world.job_of(service)["status"] == "Processing"
    assert world.agent.complete(job, properties={"vmid": 5}).status_code == 204


def test_a_duplicate_instance_id_is_500_across_types_and_providers_and_rolls_back(world: World) -> None:
    world.created(instance="agent/100")
    schema = {"properties": {"size": {"type": "integer"}}}
    other = world.order_with(schema, {"size": 1}).json()
    job = world.claimed(other)
    answer = world.agent.complete(job, agentInstanceId="agent/100", properties={"size": 2})
    assert (answer.status_code, error_of(answer)["status"]) == (500, "Internal server error")
    after = world.service(other)
    assert (after["status"], after["properties"], world.job_of(other)["status"]) == ("New", {"size": 1}, "Processing")
    assert world.agent.complete(job, agentInstanceId="agent/101").status_code == 204


def test_an_empty_instance_id_must_be_unique_too(world: World) -> None:
    world.created(instance="")
    job = world.claimed(world.order())
    assert world.agent.complete(job, agentInstanceId="").status_code == 500


def test_a_service_may_report_its_instance_id_again(world: World) -> None:
    service = world.created(instance="agent/1")
    world.admin.start_action(service["id"], "start")
    assert world.agent.complete(world.claimed(service), agentInstanceId="agent/1").status_code == 204


def test_a_terminal_completion_frees_the_instance_id_and_keeps_the_data(world: World) -> None:
    service = world.created(instance="agent/1")
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service), agentInstanceData={"vmid": 1})
    gone = world.service(service)
    assert (gone["status"], "agentInstanceId" in gone, gone["agentInstanceData"]) == ("Deleted", False, {"vmid": 1})
    assert world.created(instance="agent/1")["agentInstanceId"] == "agent/1"


def test_a_terminal_failure_keeps_the_instance_id_and_persistent_secrets(world: World) -> None:
    lifecycle: dict[str, Any] = {
        **SIMPLE_LIFECYCLE,
        "actions": [
            SIMPLE_LIFECYCLE["actions"][0],
            {"name": "break", "transitions": [{"from": "Up", "to": "Gone", "onError": True}]},
        ],
    }
    schema = {"properties": {"key": {"type": "string", "secret": {"type": "persistent"}}}}
    service = world.order_with(schema, {"key": "k"}, lifecycle).json()
    world.agent.complete(world.claimed(service), agentInstanceId="agent/1")
    world.admin.start_action(service["id"], "break")
    world.agent.fail(world.claimed(service))
    after = world.service(service)
    assert (after["status"], after["agentInstanceId"]) == ("Gone", "agent/1")
    reference = after["properties"]["key"].removeprefix("vault://")
    assert world.agent.get(f"/vault/secrets/{reference}").json() == {"value": "k"}


def test_an_update_stores_its_params_and_discards_reported_properties(world: World) -> None:
    service = world.created()
    world.admin.patch_service(service["id"], {"cores": 4})
    world.agent.complete(world.claimed(service), properties={"vmid": 5, "node": "pve1"})
    properties = world.service(service)["properties"]
    assert (properties["cores"], "vmid" in properties, "node" in properties) == (4, False, False)


def test_an_update_without_params_deletes_the_properties(world: World) -> None:
    service = world.created()
    world.admin.start_action(service["id"], "update")
    assert "params" not in world.agent.pending()[0]
    world.agent.complete(world.claimed(service))
    assert "properties" not in world.service(service)
    patched = world.admin_caller.send("PATCH", f"/services/{service['id']}", {"properties": {"cores": 4}})
    assert (patched.status_code, patched.content) == (500, b"")
    world.admin.start_action(service["id"], "start")
    assert world.agent.complete(world.claimed(service), properties={"vmid": 5}).status_code == 400


# Fail


def test_a_failed_job_has_its_message_and_no_completion_time(world: World) -> None:
    service = world.order()
    world.agent.fail(world.claimed(service), "CAPACITY: no space")
    job = world.job_of(service)
    assert (job["status"], job["errorMessage"], "completedAt" in job) == ("Failed", "CAPACITY: no space", False)
    assert world.service(service)["status"] == "CreateFailed"


@pytest.mark.parametrize("body", [{}, {"errorMessage": ""}, {"errorMessage": None}])
def test_the_error_message_may_be_missing_or_empty(world: World, body: dict[str, Any]) -> None:
    service = world.order()
    job = world.claimed(service)
    assert world.agent.post(f"/jobs/{job['id']}/fail", body).status_code == 204
    assert world.service(service)["status"] == "CreateFailed"


def test_a_failure_without_a_matching_transition_keeps_the_state_and_is_204(world: World) -> None:
    service = world.created()
    world.admin.start_action(service["id"], "start")
    assert world.agent.fail(world.claimed(service), "PVE_TIMEOUT: no answer").status_code == 204
    assert (world.service(service)["status"], world.job_of(service)["status"]) == ("Stopped", "Failed")


@pytest.mark.parametrize(
    ("message", "state"),
    [
        ("VM_NOT_FOUND: 100000", "Lost"),
        ("VM_NOT_RUNNING: 100000", "Stopped"),
        ("vm_not_found: 100000", "Started"),
        ("oh, VM_NOT_FOUND", "Started"),
        ("VM_NOT_FOUNDLING", "Started"),
        ("PLAYBOOK_FAILED: VM_NOT_RUNNING", "Started"),
    ],
)
def test_the_first_matching_error_regexp_determines_the_state(world: World, message: str, state: str) -> None:
    service = world.created()
    for action, end in (("start", None), ("restart", message)):
        world.admin.start_action(service["id"], action)
        job = world.claimed(service)
        world.agent.complete(job) if end is None else world.agent.fail(job, end)
    assert world.service(service)["status"] == state


def test_an_error_regexp_may_match_anywhere_and_the_first_one_counts(world: World) -> None:
    lifecycle = {
        **SIMPLE_LIFECYCLE,
        "actions": [
            {
                "name": "create",
                "transitions": [
                    {"from": "New", "to": "Up"},
                    {"from": "New", "to": "Gone", "onError": True, "onErrorRegexp": "(?i)disk"},
                    {"from": "New", "to": "Up", "onError": True, "onErrorRegexp": "disk full"},
                    {"from": "New", "to": "New", "onError": True},
                ],
            }
        ],
    }
    service = world.order_with({"properties": {"a": {"type": "string"}}}, {}, lifecycle).json()
    world.agent.fail(world.claimed(service), "CAPACITY: the DISK full of it")
    assert world.service(service)["status"] == "Gone"


@pytest.mark.parametrize("verb", ["complete", "fail"])
def test_an_action_removed_from_the_lifecycle_is_400_and_the_job_stays(world: World, verb: str) -> None:
    service = world.order_with({"properties": {"a": {"type": "string"}}}, {}).json()
    job = world.claimed(service)
    left = {**SIMPLE_LIFECYCLE, "actions": SIMPLE_LIFECYCLE["actions"][1:]}
    world.admin.call("PATCH", f"/service-types/{service['serviceTypeId']}", {"lifecycleSchema": left})
    assert world.agent.post(f"/jobs/{job['id']}/{verb}", {}).status_code == 400
    assert world.job_of(service)["status"] == "Processing"


def test_a_success_without_a_transition_is_400_and_the_job_stays(world: World) -> None:
    lifecycle = {
        **SIMPLE_LIFECYCLE,
        "actions": [{"name": "create", "transitions": [{"from": "New", "to": "Gone", "onError": True}]}],
    }
    service = world.order_with({"properties": {"a": {"type": "string"}}}, {}, lifecycle).json()
    job = world.claimed(service)
    assert world.agent.complete(job).status_code == 400
    assert world.job_of(service)["status"] == "Processing"
    assert world.agent.fail(job).status_code == 204


def test_simultaneous_requests_all_win_while_the_switch_is_on(world: World) -> None:
    job = world.job_of(world.order())
    callers = [world.caller(world.ids.agent_token) for _ in range(4)]
    world.sim.set_switches(simultaneous_requests_win=True)
    with ThreadPoolExecutor(len(callers)) as pool:
        claims = list(pool.map(lambda caller: caller.claim(job), callers))
    assert claims == [204] * len(callers)
    assert world.agent.claim(job) == 400


def test_simultaneous_actions_make_several_jobs_while_the_switch_is_on(world: World) -> None:
    service = world.created()
    callers = [world.caller(world.ids.admin_token) for _ in range(3)]
    world.sim.set_switches(simultaneous_requests_win=True)
    with ThreadPoolExecutor(len(callers)) as pool:
        answers = list(pool.map(lambda caller: caller.post(f"/services/{service['id']}/start"), callers))
    assert [answer.status_code for answer in answers] == [200] * len(callers)
    assert world.admin_caller.post(f"/services/{service['id']}/start").status_code == 400
