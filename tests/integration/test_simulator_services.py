"""Services in the simulator: what each request makes, when an action is allowed, what is visible meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from simulator_world import NOBODY, SIMPLE_LIFECYCLE, VM, World, error_of
from smith_lab.simulator.control import RunningSimulator, running_simulator


@pytest.fixture(scope="module")
def sim() -> Iterator[RunningSimulator]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: RunningSimulator) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


def test_an_order_is_201_new_and_a_create_job_with_the_processed_properties(world: World) -> None:
    service = world.order(ciPassword="pass-word-1")
    job = world.job_of(service)
    assert service["status"] == "New"
    assert service["properties"]["network"] == {"mode": "dhcp"}
    assert job["params"] == service["properties"]
    assert job["params"]["ciPassword"].startswith("vault://")


def test_without_an_agent_the_first_with_all_the_tags_is_taken(world: World) -> None:
    body = world.order_body(world.ids.service_type_id, VM)
    del body["agentId"]
    chosen = world.root.post("/services", {**body, "agentTags": ["proxmox"]})
    assert chosen.json()["agentId"] == world.ids.agent_id
    assert world.root.post("/services", {**body, "agentTags": ["proxmox", "gpu"]}).status_code == 400


def test_an_order_for_an_unknown_group_is_403_agent_400_and_type_404(world: World) -> None:
    body = world.order_body(world.ids.service_type_id, VM)
    assert world.root.post("/services", {**body, "groupId": NOBODY}).status_code == 403
    assert world.root.post("/services", {**body, "agentId": NOBODY}).status_code == 400
    assert world.root.post("/services", {**body, "serviceTypeId": NOBODY}).status_code == 404
    assert world.root.post("/services", {**body, "name": ""}).status_code == 400


def test_a_refused_order_leaves_neither_service_nor_job(world: World) -> None:
    body = world.order_body(world.ids.service_type_id, {**VM, "cores": 0})
    assert world.root.post("/services", body).status_code == 400
    assert world.admin.list_services() == []
    assert world.agent.pending() == []


def test_a_type_that_the_agent_does_not_support_is_400(world: World) -> None:
    kind = world.admin.create(
        "service-types",
        name="other",
        propertySchema={"properties": {"a": {"type": "string"}}},
        lifecycleSchema=SIMPLE_LIFECYCLE,
    )
    assert world.root.post("/services", world.order_body(kind["id"], {})).status_code == 400


def test_a_patch_of_properties_is_200_and_the_old_set_stays_until_the_job_ends(world: World) -> None:
    service = world.created()
    answer = world.root.send("PATCH", f"/services/{service['id']}", {"properties": {"cores": 4}})
    job = world.agent.pending()[0]
    assert (answer.status_code, answer.json()["properties"]["cores"]) == (200, 2)
    assert (job["action"], job["service"]["properties"]["cores"]) == ("update", 2)
    assert job["params"] == {**service["properties"], "cores": 4}
    world.agent.complete(world.claimed(service))
    assert world.service(service)["properties"]["cores"] == 4


def test_a_patch_of_the_name_alone_makes_no_job(world: World) -> None:
    service = world.created()
    answer = world.root.send("PATCH", f"/services/{service['id']}", {"name": "renamed"})
    assert (answer.status_code, answer.json()["name"]) == (200, "renamed")
    assert world.agent.pending() == []


def test_a_refused_patch_does_not_rename_either(world: World) -> None:
    service = world.order(name="before")
    answer = world.root.send("PATCH", f"/services/{service['id']}", {"name": "after", "properties": {"tags": ["a"]}})
    assert answer.status_code == 400
    assert world.service(service)["name"] == "before"


def test_a_failed_update_loses_the_wanted_values(world: World) -> None:
    service = world.created()
    world.admin.patch_service(service["id"], {"cores": 4})
    world.agent.fail(world.claimed(service), "CAPACITY: none")
    assert world.service(service)["properties"]["cores"] == 2
    assert world.agent.pending() == []


def test_an_action_is_200_and_its_body_is_ignored(world: World) -> None:
    service = world.created()
    answer = world.root.raw("POST", f"/services/{service['id']}/snapshot", b'{"properties": {"name": "x"}} {{{')
    assert (answer.status_code, answer.json()["status"]) == (200, "Stopped")
    assert "params" not in world.agent.pending()[0]


def test_a_delete_is_204_and_the_service_stays_for_ever(world: World) -> None:
    service = world.created()
    answer = world.root.send("DELETE", f"/services/{service['id']}")
    assert (answer.status_code, answer.content, world.service(service)["status"]) == (204, b"", "Stopped")
    world.agent.complete(world.claimed(service))
    assert world.service(service)["status"] == "Deleted"
    assert [row["id"] for row in world.admin.list_services()] == [service["id"]]


def test_a_failed_create_is_tried_again_without_params(world: World) -> None:
    service = world.order()
    world.agent.fail(world.claimed(service))
    world.admin.action(service["id"], "create")
    job = world.agent.pending()[0]
    assert ("params" in job, job["service"]["properties"]) == (False, service["properties"])
    world.agent.complete(world.claimed(service))
    assert world.service(service)["status"] == "Stopped"


@pytest.mark.parametrize("action", ["stop", "restart", "create", "fly"])
def test_an_action_without_a_transition_from_here_is_400(world: World, action: str) -> None:
    service = world.created()
    answer = world.root.post(f"/services/{service['id']}/{action}")
    assert (answer.status_code, error_of(answer)["status"]) == (400, "Invalid request")


def test_an_error_transition_alone_allows_the_request(world: World) -> None:
    actions: list[Any] = [
        *SIMPLE_LIFECYCLE["actions"],
        {"name": "check", "transitions": [{"from": "Up", "to": "New", "onError": True}]},
    ]
    service = world.order_with(
        {"properties": {"a": {"type": "string"}}}, {}, {**SIMPLE_LIFECYCLE, "actions": actions}
    ).json()
    world.agent.complete(world.claimed(service))
    assert world.root.post(f"/services/{service['id']}/check").status_code == 200


def test_one_active_job_a_service_at_most(world: World) -> None:
    service = world.created()
    path = f"/services/{service['id']}"
    world.admin.action(service["id"], "start")
    for claimed in (False, True):
        if claimed:
            world.claimed(service)
        assert world.root.post(f"{path}/snapshot").status_code == 400
        assert world.root.send("PATCH", path, {"properties": {"tags": ["a"]}}).status_code == 400
        assert world.root.send("DELETE", path).status_code == 400
        assert world.root.send("PATCH", path, {"name": "free"}).status_code == 200
    assert len(world.admin.jobs(service["id"])) == 2


def test_a_terminal_service_takes_no_action_and_no_properties_but_a_name(world: World) -> None:
    service = world.created()
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service))
    path = f"/services/{service['id']}"
    assert world.root.post(f"{path}/start").status_code == 400
    assert world.root.send("DELETE", path).status_code == 400
    assert world.root.send("PATCH", path, {"properties": {"tags": ["a"]}}).status_code == 400
    assert world.root.send("PATCH", path, {"name": "the late"}).json()["name"] == "the late"


def test_lists_and_single_reads_hold_agent_and_type(world: World) -> None:
    service = world.created()
    for body in (world.agent.get("/services").json()["items"][0], world.agent.get(f"/services/{service['id']}").json()):
        assert body["agent"]["configuration"]["apiHost"] == "pve.test"
        assert set(body["serviceType"]) >= {"propertySchema", "lifecycleSchema", "name"}


def test_an_agent_with_services_cannot_be_deleted(world: World) -> None:
    world.order()
    assert world.root.send("DELETE", f"/agents/{world.ids.agent_id}").status_code == 500


def test_events_tell_people_what_happened(world: World) -> None:
    world.created()
    kinds = [row["type"] for row in world.root.get("/events", sort="-createdAt", pageSize=100).json()["items"]]
    assert kinds[:2] == ["service.transitioned", "service.created"]
    numbers = [row["sequenceNumber"] for row in world.root.get("/events", sort="createdAt").json()["items"]]
    assert numbers == sorted(numbers)
