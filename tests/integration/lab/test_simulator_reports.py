"""Metric entries, metric types, service options and pools in the FulcrumCore simulator.

Service options are values that a provider offers for a property, such as the names of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.fulcrum_setup import METRIC_TYPES
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.simulator_world import UNKNOWN_ID, World, error_of


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


def _entry(**members: Any) -> dict[str, Any]:
    return {"agentInstanceId": "agent/1", "resourceId": "cpu", "typeName": "vm.cpu.usage", "value": 0.25, **members}


def _entry_without(name: str, **members: Any) -> dict[str, Any]:
    return {key: value for key, value in _entry(**members).items() if key != name}


def test_the_set_up_creates_all_metric_types_of_the_agent(world: World) -> None:
    names = {row["name"] for row in world.agent.get("/metric-types", pageSize=100).json()["items"]}
    assert names == set(METRIC_TYPES)


def test_a_new_metric_entry_is_201_and_has_the_servers_time(world: World) -> None:
    service = world.created(instance="agent/1")
    world.sim.freeze()
    world.sim.set_clock("2026-11-24T03:04:05Z")
    token = world.admin.create_token("now", "agent", world.ids.agent_id)["value"]
    answer = world.caller(token).post("/metric-entries", _entry(timestamp="2001-01-01T00:00:00Z"))
    entry = answer.json()
    assert (answer.status_code, entry["serviceId"], entry["value"]) == (201, service["id"], 0.25)
    assert (entry["createdAt"], entry["resourceId"]) == ("2026-11-24T03:04:05Z", "cpu")


def test_a_service_id_has_priority_over_the_instance_id_and_may_be_of_another_provider(world: World) -> None:
    service = world.created(instance="agent/1")
    _, other_providers_agent = world.agent_of_other_provider()
    answer = other_providers_agent.post("/metric-entries", _entry(agentInstanceId="unknown", serviceId=service["id"]))
    assert answer.status_code == 201


def test_an_instance_id_is_searched_only_among_the_services_of_the_agent(world: World) -> None:
    world.created(instance="agent/1")
    _, other_agent = world.other_agent()
    assert other_agent.post("/metric-entries", _entry()).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        _entry_without("agentInstanceId"),
        _entry_without("resourceId"),
        _entry(resourceId=""),
        _entry(value="0.25"),
        _entry(timestamp="yesterday"),
        _entry(metricTypeId="nonsense"),
        _entry(serviceId="nonsense"),
        {"externalId": "agent/1", "resourceId": "cpu", "typeName": "vm.cpu.usage"},
        [_entry()],
    ],
)
def test_an_incomplete_or_malformed_entry_is_400(world: World, body: Any) -> None:
    world.created(instance="agent/1")
    assert world.agent.post("/metric-entries", body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        _entry(typeName="vm.colour"),
        _entry_without("typeName"),
        _entry(agentInstanceId="x"),
        _entry(serviceId=UNKNOWN_ID),
    ],
)
def test_an_entry_for_an_unknown_service_or_type_is_404(world: World, body: dict[str, Any]) -> None:
    world.created(instance="agent/1")
    answer = world.agent.post("/metric-entries", body)
    assert (answer.status_code, error_of(answer)) == (404, {"status": "Resource not found"})


def test_an_entry_without_a_value_has_the_value_zero(world: World) -> None:
    world.created(instance="agent/1")
    assert world.agent.post("/metric-entries", _entry_without("value")).json()["value"] == 0


def test_an_entry_for_the_instance_of_a_deleted_service_is_404(world: World) -> None:
    service = world.created(instance="agent/1")
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service))
    assert world.agent.post("/metric-entries", _entry()).status_code == 404


def test_users_can_list_metric_entries_and_cannot_send_them(world: World) -> None:
    world.created(instance="agent/1")
    world.agent.post("/metric-entries", _entry())
    assert len(world.admin_caller.get("/metric-entries").json()["items"]) == 1
    assert world.admin_caller.post("/metric-entries", _entry()).status_code == 403


def test_a_metric_type_in_use_cannot_be_deleted(world: World) -> None:
    world.created(instance="agent/1")
    entry = world.agent.post("/metric-entries", _entry()).json()
    assert world.admin_caller.send("DELETE", f"/metric-types/{entry['typeId']}").status_code == 500


@pytest.mark.parametrize(
    "body", [{"name": "m"}, {"name": "", "entityType": "Agent"}, {"name": "m", "entityType": "VM"}]
)
def test_a_wrong_metric_type_is_400(world: World, body: dict[str, str]) -> None:
    assert world.admin_caller.post("/metric-types", body).status_code == 400


# Service options


def _create_image_option_type(world: World) -> str:
    response = world.admin_caller.post(
        "/service-option-types", {"name": "Images", "type": "os_image", "description": ""}
    )
    assert response.status_code == 201
    return str(response.json()["id"])


def _option(world: World, type_id: str, **members: Any) -> dict[str, Any]:
    return {
        "providerId": world.ids.provider_id,
        "serviceOptionTypeId": type_id,
        "name": "Debian 12",
        "value": "debian-12",
        "enabled": True,
        "displayOrder": 1,
        **members,
    }


def test_an_agent_publishes_options_of_its_own_provider_only(world: World) -> None:
    type_id = _create_image_option_type(world)
    option_response = world.agent.post("/service-options", _option(world, type_id))
    path = f"/service-options/{option_response.json()['id']}"
    _, other_providers_agent = world.agent_of_other_provider()
    assert option_response.status_code == 201
    assert other_providers_agent.post("/service-options", _option(world, type_id)).status_code == 403
    assert other_providers_agent.get(path).status_code == 403
    assert other_providers_agent.get("/service-options").json()["items"] == []
    assert world.agent.send("PATCH", path, {"enabled": False}).json()["enabled"] is False
    assert world.agent.get("/service-options", enabled="false").json()["totalItems"] == 1
    assert world.agent.send("DELETE", path).status_code == 204
    assert world.agent.get(path).status_code == 403


def test_only_the_value_of_an_enabled_option_is_accepted(world: World) -> None:
    type_id = _create_image_option_type(world)
    schema = {
        "properties": {
            "image": {"type": "string", "validators": [{"type": "serviceOption", "config": {"value": "os_image"}}]}
        }
    }
    service_type = world.type_with(schema)
    order = world.order_body(service_type, {"image": "debian-12"})
    assert world.admin_caller.post("/services", order).status_code == 400
    option = world.agent.post("/service-options", _option(world, type_id, enabled=False)).json()
    assert world.admin_caller.post("/services", order).status_code == 400
    world.agent.send("PATCH", f"/service-options/{option['id']}", {"enabled": True})
    assert world.admin_caller.post("/services", order).status_code == 201


def test_a_service_option_type_with_a_space_is_400_and_agents_cannot_create_one(world: World) -> None:
    assert world.admin_caller.post("/service-option-types", {"name": "x", "type": "os image"}).status_code == 400
    assert world.agent.post("/service-option-types", {"name": "x", "type": "ok"}).status_code == 403


@pytest.mark.parametrize(
    ("collection", "status"),
    [("service-pools", 404), ("service-pool-values", 404), ("service-pool-sets", 404), ("config-pools", 500)],
)
def test_an_incomplete_pool_is_refused(world: World, collection: str, status: int) -> None:
    answer = world.admin_caller.post(f"/{collection}", {"name": "x"})
    assert answer.status_code == status
    assert error_of(answer)["status"]
