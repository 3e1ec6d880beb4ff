"""How jobs end in the FulcrumCore simulator: completions, failures, and the state of the service afterwards.

The lifecycle of a service type says which state follows an action: after a success, or after an error whose message
matches a regular expression (`onError`, `onErrorRegexp`).
"""

from __future__ import annotations

from collections.abc import Iterator
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


# Calls that the job's status does not allow


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
        world.admin.request_action(service["id"], "snapshot")
        world.agent.complete(world.claimed(service), agentInstanceData=data)
    assert world.service(service)["agentInstanceData"] == {"b": 3}


def test_null_and_absent_members_keep_the_old_values(world: World) -> None:
    service = world.created(instance="agent/1")
    world.admin.request_action(service["id"], "snapshot")
    world.agent.complete(world.claimed(service), agentInstanceId=None)
    assert world.service(service)["agentInstanceId"] == "agent/1"


def test_undeclared_properties_are_dropped_without_an_error(world: World) -> None:
    service = world.order()
    assert world.agent.complete(world.claimed(service), properties={"vmid": 5, "uptime": 1}).status_code == 204
    properties = world.service(service)["properties"]
    assert (properties["vmid"], "uptime" in properties) == (5, False)


def test_a_refused_property_changes_neither_the_job_nor_the_service(world: World) -> None:
    service = world.order()
    job = world.claimed(service)
    answer = world.agent.complete(job, agentInstanceId="agent/1", properties={"vmid": 5, "cores": 8})
    assert answer.status_code == 400
    after = world.service(service)
    assert (after["status"], "agentInstanceId" in after, after["properties"]) == ("New", False, service["properties"])
    assert world.job_of(service)["status"] == "Processing"
    assert world.agent.complete(job, properties={"vmid": 5}).status_code == 204


def test_an_instance_id_of_any_other_service_is_500_and_changes_nothing(world: World) -> None:
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
    world.admin.request_action(service["id"], "start")
    assert world.agent.complete(world.claimed(service), agentInstanceId="agent/1").status_code == 204


def test_completing_a_deletion_removes_the_instance_id_and_keeps_the_instance_data(world: World) -> None:
    service = world.created(instance="agent/1")
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service), agentInstanceData={"vmid": 1})
    deleted = world.service(service)
    assert (deleted["status"], "agentInstanceId" in deleted, deleted["agentInstanceData"]) == (
        "Deleted",
        False,
        {"vmid": 1},
    )
    assert world.created(instance="agent/1")["agentInstanceId"] == "agent/1"


def test_a_failure_that_leads_to_a_terminal_state_keeps_the_instance_id_and_persistent_secrets(world: World) -> None:
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
    world.admin.request_action(service["id"], "break")
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
    world.admin.request_action(service["id"], "update")
    assert "params" not in world.agent.pending()[0]
    world.agent.complete(world.claimed(service))
    assert "properties" not in world.service(service)
    patched = world.admin_caller.send("PATCH", f"/services/{service['id']}", {"properties": {"cores": 4}})
    assert (patched.status_code, patched.content) == (500, b"")
    world.admin.request_action(service["id"], "start")
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


def test_a_failure_without_a_matching_transition_is_204_and_keeps_the_services_state(world: World) -> None:
    service = world.created()
    world.admin.request_action(service["id"], "start")
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
    for action, error in (("start", None), ("restart", message)):
        world.admin.request_action(service["id"], action)
        job = world.claimed(service)
        world.agent.complete(job) if error is None else world.agent.fail(job, error)
    assert world.service(service)["status"] == state


def test_an_error_regexp_may_match_anywhere_in_the_message_and_the_first_match_decides(world: World) -> None:
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
def test_ending_a_job_whose_action_was_removed_from_the_lifecycle_is_400_and_the_job_stays_processing(
    world: World, verb: str
) -> None:
    service = world.order_with({"properties": {"a": {"type": "string"}}}, {}).json()
    job = world.claimed(service)
    without_create = {**SIMPLE_LIFECYCLE, "actions": SIMPLE_LIFECYCLE["actions"][1:]}
    world.admin.call("PATCH", f"/service-types/{service['serviceTypeId']}", {"lifecycleSchema": without_create})
    assert world.agent.post(f"/jobs/{job['id']}/{verb}", {}).status_code == 400
    assert world.job_of(service)["status"] == "Processing"


def test_completing_a_job_without_a_transition_for_success_is_400_and_the_job_stays_processing(world: World) -> None:
    lifecycle = {
        **SIMPLE_LIFECYCLE,
        "actions": [{"name": "create", "transitions": [{"from": "New", "to": "Gone", "onError": True}]}],
    }
    service = world.order_with({"properties": {"a": {"type": "string"}}}, {}, lifecycle).json()
    job = world.claimed(service)
    assert world.agent.complete(job).status_code == 400
    assert world.job_of(service)["status"] == "Processing"
    assert world.agent.fail(job).status_code == 204
