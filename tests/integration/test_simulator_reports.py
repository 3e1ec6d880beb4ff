"""Metric entries, metric types, service options and pools in the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from simulator_world import NOBODY, World, error_of
from smith_lab.fulcrum_setup import METRIC_TYPES
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


def _entry(**members: Any) -> dict[str, Any]:
    return {"agentInstanceId": "agent/1", "resourceId": "cpu", "typeName": "vm.cpu.usage", "value": 0.25, **members}


def _without(name: str, **members: Any) -> dict[str, Any]:
    return {key: value for key, value in _entry(**members).items() if key != name}


def test_the_set_up_makes_our_metric_types(world: World) -> None:
    names = {row["name"] for row in world.agent.get("/metric-types", pageSize=100).json()["items"]}
    assert names == set(METRIC_TYPES)


def test_an_entry_is_201_with_the_entry_and_the_servers_time(world: World) -> None:
    service = world.created(instance="agent/1")
    world.sim.freeze()
    world.sim.set_clock("2026-11-24T03:04:05Z")
    token = world.admin.create_token("now", "agent", world.ids.agent_id)["value"]
    answer = world.caller(token).post("/metric-entries", _entry(timestamp="2001-01-01T00:00:00Z"))
    entry = answer.json()
    assert (answer.status_code, entry["serviceId"], entry["value"]) == (201, service["id"], 0.25)
    assert (entry["createdAt"], entry["resourceId"]) == ("2026-11-24T03:04:05Z", "cpu")


def test_a_service_id_wins_and_is_not_scope_checked(world: World) -> None:
    service = world.created(instance="agent/1")
    _, foreigner = world.foreigner()
    answer = foreigner.post("/metric-entries", _entry(agentInstanceId="unknown", serviceId=service["id"]))
    assert answer.status_code == 201


def test_an_instance_is_looked_up_among_the_agents_own_services(world: World) -> None:
    world.created(instance="agent/1")
    _, sibling = world.sibling()
    assert sibling.post("/metric-entries", _entry()).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        _without("agentInstanceId"),
        _without("resourceId"),
        _entry(resourceId=""),
        _entry(value="0.25"),
        _entry(timestamp="yesterday"),
        _entry(metricTypeId="nonsense"),
        _entry(serviceId="nonsense"),
        {"externalId": "agent/1", "resourceId": "cpu", "typeName": "vm.cpu.usage"},
        [_entry()],
    ],
)
def test_what_makes_no_entry_is_400(world: World, body: Any) -> None:
    world.created(instance="agent/1")
    assert world.agent.post("/metric-entries", body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [_entry(typeName="vm.colour"), _without("typeName"), _entry(agentInstanceId="x"), _entry(serviceId=NOBODY)],
)
def test_what_is_not_found_is_404(world: World, body: dict[str, Any]) -> None:
    world.created(instance="agent/1")
    answer = world.agent.post("/metric-entries", body)
    assert (answer.status_code, error_of(answer)) == (404, {"status": "Resource not found"})


def test_a_missing_value_is_zero(world: World) -> None:
    world.created(instance="agent/1")
    assert world.agent.post("/metric-entries", _without("value")).json()["value"] == 0


def test_a_deleted_services_instance_is_404(world: World) -> None:
    service = world.created(instance="agent/1")
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service))
    assert world.agent.post("/metric-entries", _entry()).status_code == 404


def test_people_list_entries_and_send_none(world: World) -> None:
    world.created(instance="agent/1")
    world.agent.post("/metric-entries", _entry())
    assert len(world.root.get("/metric-entries").json()["items"]) == 1
    assert world.root.post("/metric-entries", _entry()).status_code == 403


def test_a_metric_type_in_use_cannot_be_deleted(world: World) -> None:
    world.created(instance="agent/1")
    entry = world.agent.post("/metric-entries", _entry()).json()
    assert world.root.send("DELETE", f"/metric-types/{entry['typeId']}").status_code == 500


@pytest.mark.parametrize(
    "body", [{"name": "m"}, {"name": "", "entityType": "Agent"}, {"name": "m", "entityType": "VM"}]
)
def test_a_wrong_metric_type_is_400(world: World, body: dict[str, str]) -> None:
    assert world.root.post("/metric-types", body).status_code == 400


# Service options


def _image_type(world: World) -> str:
    kind = world.root.post("/service-option-types", {"name": "Images", "type": "os_image", "description": ""})
    assert kind.status_code == 201
    return str(kind.json()["id"])


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
    type_id = _image_type(world)
    made = world.agent.post("/service-options", _option(world, type_id))
    path = f"/service-options/{made.json()['id']}"
    _, foreigner = world.foreigner()
    assert made.status_code == 201
    assert foreigner.post("/service-options", _option(world, type_id)).status_code == 403
    assert foreigner.get(path).status_code == 403
    assert foreigner.get("/service-options").json()["items"] == []
    assert world.agent.send("PATCH", path, {"enabled": False}).json()["enabled"] is False
    assert world.agent.get("/service-options", enabled="false").json()["totalItems"] == 1
    assert world.agent.send("DELETE", path).status_code == 204
    assert world.agent.get(path).status_code == 403


def test_only_an_enabled_options_value_passes(world: World) -> None:
    type_id = _image_type(world)
    schema = {
        "properties": {
            "image": {"type": "string", "validators": [{"type": "serviceOption", "config": {"value": "os_image"}}]}
        }
    }
    service_type = world.type_with(schema)
    order = world.order_body(service_type, {"image": "debian-12"})
    assert world.root.post("/services", order).status_code == 400
    option = world.agent.post("/service-options", _option(world, type_id, enabled=False)).json()
    assert world.root.post("/services", order).status_code == 400
    world.agent.send("PATCH", f"/service-options/{option['id']}", {"enabled": True})
    assert world.root.post("/services", order).status_code == 201


def test_an_option_types_word_is_letters_digits_and_underscores(world: World) -> None:
    assert world.root.post("/service-option-types", {"name": "x", "type": "os image"}).status_code == 400
    assert world.agent.post("/service-option-types", {"name": "x", "type": "ok"}).status_code == 403


@pytest.mark.parametrize("collection", ["service-pools", "service-pool-values", "service-pool-sets", "config-pools"])
def test_pools_are_refused_in_words(world: World, collection: str) -> None:
    answer = world.root.post(f"/{collection}", {"name": "x"})
    assert (answer.status_code, error_of(answer)["error"]) == (400, "pools are not simulated")
