"""Which service types and agent types the FulcrumCore simulator accepts. It must accept those in deploy/."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.fulcrum_setup import read_type_file
from smith_lab.simulator.control import SimulatorThread, running_simulator
from smith_lab.simulator.definitions import lifecycle_as_stored, schema_as_stored
from support.simulator_world import SIMPLE_LIFECYCLE, UNKNOWN_ID, World


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


def _post_service_type(world: World, **changes: Any) -> int:
    """Create a valid service type with these changes; return the HTTP status."""
    body = {
        "name": "t",
        "propertySchema": {"properties": {"a": {"type": "string"}}},
        "lifecycleSchema": SIMPLE_LIFECYCLE,
        **changes,
    }
    return world.admin_caller.post("/service-types", body).status_code


def test_the_types_in_deploy_are_stored_in_the_form_of_fulcrumcore(world: World) -> None:
    service_type = read_type_file("service-type-vm.json")
    stored = world.admin.call("GET", f"/service-types/{world.ids.service_type_id}")
    assert (stored["propertySchema"], stored["lifecycleSchema"]) == (
        schema_as_stored(service_type["propertySchema"]),
        lifecycle_as_stored(service_type["lifecycleSchema"]),
    )
    agent_type = read_type_file("agent-type-proxmox.json")
    stored = world.admin.call("GET", f"/agent-types/{world.ids.agent_type_id}")
    assert stored["configurationSchema"] == schema_as_stored(agent_type["configurationSchema"])
    assert {name: stored[name] for name in ("configTemplate", "cmdTemplate")} == {
        name: agent_type[name] for name in ("configTemplate", "cmdTemplate")
    }


def test_a_service_type_needs_a_unique_name_and_both_schemas(world: World) -> None:
    assert _post_service_type(world) == 201
    assert _post_service_type(world) == 500
    assert _post_service_type(world, name="") == 400
    assert _post_service_type(world, name="u", propertySchema={}) == 400
    assert _post_service_type(world, name="u", propertySchema={"properties": {}}) == 400
    assert _post_service_type(world, name="u", lifecycleSchema=None) == 400


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "text"},
        {},
        {"type": "string", "validators": [{"type": "uniqueItems", "config": {"value": True}}]},
        {"type": "string", "validators": [{"type": "pattern", "config": {"pattern": "(?=look)ahead"}}]},
        {"type": "string", "validators": [{"type": "pattern", "config": {"pattern": "(unclosed"}}]},
        {"type": "string", "validators": [{"type": "pattern", "config": {"pattern": r"(a)\1"}}]},
        {"type": "string", "validators": [{"type": "pattern"}]},
        {"type": "string", "validators": [{"type": "minLength", "config": {"value": -1}}]},
        {"type": "string", "validators": [{"type": "enum", "config": {"values": []}}]},
        {"type": "integer", "validators": [{"type": "min", "config": {}}]},
        {"type": "integer", "default": "1"},
        {"type": "integer", "default": 1.5},
        {"type": "string", "default": "x", "generator": {"type": "pool", "config": {"poolType": "ipv4"}}},
        {"type": "string", "generator": {"type": "dice", "config": {}}},
        {"type": "string", "secret": {"type": "sometimes"}},
        {"type": "object", "secret": {"type": "persistent"}},
        {"type": "array", "secret": {"type": "persistent"}},
        {"type": "array", "items": {"type": "string", "secret": {"type": "persistent"}}},
        {"type": "array", "items": {"type": "text"}},
        {"type": "object", "properties": {"inner": {"type": "text"}}},
        {"type": "string", "authorizers": [{"type": "owner", "config": {}}]},
        {"type": "string", "authorizers": [{"type": "actor", "config": {"actors": ["robot"]}}]},
        {"type": "string", "authorizers": [{"type": "state", "config": {}}]},
        {"type": "string", "required": "yes"},
    ],
)
def test_an_invalid_definition_of_a_property_is_400(world: World, definition: dict[str, Any]) -> None:
    assert _post_service_type(world, propertySchema={"properties": {"a": definition}}) == 400


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "uuid"},
        {"type": "json", "secret": {"type": "persistent"}},
        {
            "type": "array",
            "items": {"type": "object", "properties": {"s": {"type": "string", "secret": {"type": "ephemeral"}}}},
        },
        {"type": "string", "generator": {"type": "pool", "config": {"poolType": "ipv4"}}},
        {"type": "integer", "default": 2.0},
        {"type": "string", "validators": [{"type": "serviceReference", "config": {"origin": "group"}}]},
        {"type": "string", "label": "x", "helpText": "unknown members are ignored"},
    ],
)
def test_a_valid_definition_of_a_property_is_accepted(world: World, definition: dict[str, Any]) -> None:
    assert _post_service_type(world, propertySchema={"properties": {"a": definition}}) == 201


@pytest.mark.parametrize(
    "validator",
    [
        {"type": "atLeastOne", "config": {"properties": ["a", "b"]}},
        {"type": "exactlyOne", "config": {"properties": ["a"]}},
        {"type": "uniqueValues", "config": {}},
    ],
)
def test_a_validator_of_several_properties_must_be_known_and_name_at_least_two(
    world: World, validator: dict[str, Any]
) -> None:
    schema = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "validators": [validator]}
    assert _post_service_type(world, propertySchema=schema) == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"states": []},
        {"states": [{"name": "New"}, {"name": "New"}, {"name": "Up"}, {"name": "Gone"}]},
        {"states": [{"name": ""}, {"name": "New"}, {"name": "Up"}, {"name": "Gone"}]},
        {"initialState": ""},
        {"initialState": "Elsewhere"},
        {"terminalStates": ["Elsewhere"]},
        {"runningStates": ["Elsewhere"]},
        {"actions": []},
        {"actions": [{"name": "create", "transitions": []}]},
        {"actions": [{"name": "", "transitions": [{"from": "New", "to": "Up"}]}]},
        {"actions": [{"name": "create", "transitions": [{"from": "Nowhere", "to": "Up"}]}]},
        {"actions": [{"name": "create", "transitions": [{"from": "New", "to": "Nowhere"}]}]},
        {"actions": [{"name": "create", "transitions": [{"from": "New", "to": "Up", "onErrorRegexp": "("}]}]},
        {"actions": [{"name": "a", "transitions": [{"from": "New", "to": "Up", "onErrorRegexp": "(?!no)"}]}]},
        {"actions": [SIMPLE_LIFECYCLE["actions"][0]] * 2},
    ],
)
def test_an_inconsistent_lifecycle_is_400(world: World, changes: dict[str, Any]) -> None:
    assert _post_service_type(world, lifecycleSchema={**SIMPLE_LIFECYCLE, **changes}) == 400


def test_duplicate_transitions_and_a_missing_action_create_are_not_refused(world: World) -> None:
    lifecycle = {**SIMPLE_LIFECYCLE, "actions": [{"name": "x", "transitions": [{"from": "New", "to": "Up"}] * 2}]}
    assert _post_service_type(world, lifecycleSchema=lifecycle) == 201


def _post_agent_type(world: World, **changes: Any) -> int:
    """Create the agent type in deploy/ with another name and these changes; return the HTTP status."""
    body = {**copy.deepcopy(read_type_file("agent-type-proxmox.json")), "name": "other", **changes}
    return world.admin_caller.post("/agent-types", body).status_code


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"configurationSchema": {"properties": {}}},
        {"configTemplate": ""},
        {"cmdTemplate": ""},
        {"configTemplate": "{{ .unknown }}"},
        {"configTemplate": "{{ .apiHost "},
        {"configTemplate": "{{ if .apiHost }}"},
        {"configTemplate": "{{ nonsense .apiHost }}"},
        {"configTemplate": "{{ .vmidRange.low }}"},
        {"cmdTemplate": "curl {{ .configUrl }}"},
        {"cmdTemplate": "curl {{ .authToken }}"},
        {"configContentType": "not a type"},
        {"configContentType": "/"},
        {"serviceTypeIds": ["nonsense"]},
        {"configurationSchema": {"properties": {"a": {"type": "string", "authorizers": [{"type": "actor"}]}}}},
        {
            "configurationSchema": {
                "properties": {
                    "a": {"type": "string", "validators": [{"type": "serviceOption", "config": {"value": "x"}}]}
                }
            }
        },
    ],
)
def test_an_invalid_agent_type_is_400(world: World, changes: dict[str, Any]) -> None:
    assert _post_agent_type(world, **changes) == 400


def test_a_duplicate_agent_type_is_500(world: World) -> None:
    assert _post_agent_type(world, name="proxmox") == 500


def test_an_agent_type_may_have_no_templates(world: World) -> None:
    assert (
        _post_agent_type(world, configTemplate="", cmdTemplate="", configContentType="text/plain; charset=utf-8") == 201
    )


def test_an_unknown_service_type_id_creates_an_empty_service_type(world: World) -> None:
    assert _post_agent_type(world, serviceTypeIds=[UNKNOWN_ID]) == 201
    assert world.admin_caller.get(f"/service-types/{UNKNOWN_ID}").json()["name"] == ""


def test_types_in_use_cannot_be_deleted(world: World) -> None:
    world.order()
    assert world.admin_caller.send("DELETE", f"/service-types/{world.ids.service_type_id}").status_code == 500
    assert world.admin_caller.send("DELETE", f"/agent-types/{world.ids.agent_type_id}").status_code == 500
