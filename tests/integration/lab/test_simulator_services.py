"""Services in the FulcrumCore simulator: which job each request creates, and in which states a request is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.simulator_world import SIMPLE_LIFECYCLE, UNKNOWN_ID, VM, World, error_of


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


def test_a_new_service_is_201_and_has_a_create_job_with_the_processed_properties(world: World) -> None:
    service = world.order(ciPassword="pass-word-1")
    job = world.job_of(service)
    assert service["status"] == "New"
    assert service["properties"]["network"] == {"mode": "dhcp"}
    assert job["params"] == service["properties"]
    assert job["params"]["ciPassword"].startswith("vault://")


def test_without_an_agent_id_the_first_agent_with_all_tags_is_chosen(world: World) -> None:
    body = world.order_body(world.ids.service_type_id, VM)
    del body["agentId"]
    chosen = world.admin_caller.post("/services", {**body, "agentTags": ["proxmox"]})
    assert chosen.json()["agentId"] == world.ids.agent_id
    assert world.admin_caller.post("/services", {**body, "agentTags": ["proxmox", "gpu"]}).status_code == 400


def test_an_unknown_group_is_403_an_unknown_agent_400_and_an_unknown_type_404(world: World) -> None:
    body = world.order_body(world.ids.service_type_id, VM)
    assert world.admin_caller.post("/services", {**body, "groupId": UNKNOWN_ID}).status_code == 403
    assert world.admin_caller.post("/services", {**body, "agentId": UNKNOWN_ID}).status_code == 400
    assert world.admin_caller.post("/services", {**body, "serviceTypeId": UNKNOWN_ID}).status_code == 404
    assert world.admin_caller.post("/services", {**body, "name": ""}).status_code == 400


def test_a_refused_service_creates_neither_service_nor_job(world: World) -> None:
    body = world.order_body(world.ids.service_type_id, {**VM, "cores": 0})
    assert world.admin_caller.post("/services", body).status_code == 400
    assert world.admin.list_services() == []
    assert world.agent.pending() == []


def test_a_service_type_that_the_type_of_the_agent_does_not_list_is_400(world: World) -> None:
    service_type = world.admin.create(
        "service-types",
        name="other",
        propertySchema={"properties": {"a": {"type": "string"}}},
        lifecycleSchema=SIMPLE_LIFECYCLE,
    )
    assert world.admin_caller.post("/services", world.order_body(service_type["id"], {})).status_code == 400


def test_a_patch_of_properties_is_200_and_applies_when_the_job_ends(world: World) -> None:
    service = world.created()
    answer = world.admin_caller.send("PATCH", f"/services/{service['id']}", {"properties": {"cores": 4}})
    job = world.agent.pending()[0]
    assert (answer.status_code, answer.json()["properties"]["cores"]) == (200, 2)
    assert (job["action"], job["service"]["properties"]["cores"]) == ("update", 2)
    assert job["params"] == {**service["properties"], "cores": 4}
    world.agent.complete(world.claimed(service))
    assert world.service(service)["properties"]["cores"] == 4


def test_a_patch_of_the_name_creates_no_job(world: World) -> None:
    service = world.created()
    answer = world.admin_caller.send("PATCH", f"/services/{service['id']}", {"name": "renamed"})
    assert (answer.status_code, answer.json()["name"]) == (200, "renamed")
    assert world.agent.pending() == []


def test_a_refused_patch_does_not_rename_the_service(world: World) -> None:
    service = world.order(name="before")
    answer = world.admin_caller.send(
        "PATCH", f"/services/{service['id']}", {"name": "after", "properties": {"tags": ["a"]}}
    )
    assert answer.status_code == 400
    assert world.service(service)["name"] == "before"


def test_a_failed_update_discards_the_new_values(world: World) -> None:
    service = world.created()
    world.admin.patch_service(service["id"], {"cores": 4})
    world.agent.fail(world.claimed(service), "CAPACITY: none")
    assert world.service(service)["properties"]["cores"] == 2
    assert world.agent.pending() == []


def test_an_action_is_200_and_its_body_is_ignored(world: World) -> None:
    service = world.created()
    answer = world.admin_caller.raw("POST", f"/services/{service['id']}/snapshot", b'{"properties": {"name": "x"}} {{{')
    assert (answer.status_code, answer.json()["status"]) == (200, "Stopped")
    assert "params" not in world.agent.pending()[0]


def test_a_delete_is_204_and_the_service_row_stays(world: World) -> None:
    service = world.created()
    answer = world.admin_caller.send("DELETE", f"/services/{service['id']}")
    assert (answer.status_code, answer.content, world.service(service)["status"]) == (204, b"", "Stopped")
    world.agent.complete(world.claimed(service))
    assert world.service(service)["status"] == "Deleted"
    assert [row["id"] for row in world.admin.list_services()] == [service["id"]]


def test_a_create_that_is_repeated_after_a_failure_has_no_params(world: World) -> None:
    service = world.order()
    world.agent.fail(world.claimed(service))
    world.admin.request_action(service["id"], "create")
    job = world.agent.pending()[0]
    assert ("params" in job, job["service"]["properties"]) == (False, service["properties"])
    world.agent.complete(world.claimed(service))
    assert world.service(service)["status"] == "Stopped"


@pytest.mark.parametrize("action", ["stop", "restart", "create", "fly"])
def test_an_action_without_a_transition_from_the_state_is_400(world: World, action: str) -> None:
    service = world.created()
    answer = world.admin_caller.post(f"/services/{service['id']}/{action}")
    assert (answer.status_code, error_of(answer)["status"]) == (400, "Invalid request")


def test_an_action_is_allowed_in_a_state_from_which_it_has_only_an_error_transition(world: World) -> None:
    actions: list[Any] = [
        *SIMPLE_LIFECYCLE["actions"],
        {"name": "check", "transitions": [{"from": "Up", "to": "New", "onError": True}]},
    ]
    service = world.order_with(
        {"properties": {"a": {"type": "string"}}}, {}, {**SIMPLE_LIFECYCLE, "actions": actions}
    ).json()
    world.agent.complete(world.claimed(service))
    assert world.admin_caller.post(f"/services/{service['id']}/check").status_code == 200


def test_a_service_has_at_most_one_active_job(world: World) -> None:
    service = world.created()
    path = f"/services/{service['id']}"
    world.admin.request_action(service["id"], "start")
    for claimed in (False, True):
        if claimed:
            world.claimed(service)
        assert world.admin_caller.post(f"{path}/snapshot").status_code == 400
        assert world.admin_caller.send("PATCH", path, {"properties": {"tags": ["a"]}}).status_code == 400
        assert world.admin_caller.send("DELETE", path).status_code == 400
        assert world.admin_caller.send("PATCH", path, {"name": "free"}).status_code == 200
    assert len(world.admin.list_jobs(service["id"])) == 2


def test_a_service_in_a_terminal_state_accepts_only_a_new_name(world: World) -> None:
    service = world.created()
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service))
    path = f"/services/{service['id']}"
    assert world.admin_caller.post(f"{path}/start").status_code == 400
    assert world.admin_caller.send("DELETE", path).status_code == 400
    assert world.admin_caller.send("PATCH", path, {"properties": {"tags": ["a"]}}).status_code == 400
    assert world.admin_caller.send("PATCH", path, {"name": "renamed"}).json()["name"] == "renamed"


def test_a_service_contains_its_agent_and_type_in_a_list_and_in_a_single_response(world: World) -> None:
    service = world.created()
    for body in (world.agent.get("/services").json()["items"][0], world.agent.get(f"/services/{service['id']}").json()):
        assert body["agent"]["configuration"]["apiHost"] == "pve.test"
        assert set(body["serviceType"]) >= {"propertySchema", "lifecycleSchema", "name"}


def test_an_agent_with_services_cannot_be_deleted(world: World) -> None:
    world.order()
    assert world.admin_caller.send("DELETE", f"/agents/{world.ids.agent_id}").status_code == 500


def test_users_can_list_events_in_both_orders(world: World) -> None:
    world.created()
    kinds = [row["type"] for row in world.admin_caller.get("/events", sort="-createdAt", pageSize=100).json()["items"]]
    assert kinds[:2] == ["service.transitioned", "service.created"]
    numbers = [row["sequenceNumber"] for row in world.admin_caller.get("/events", sort="createdAt").json()["items"]]
    assert numbers == sorted(numbers)
