"""How the FulcrumCore simulator validates and stores the properties of services, by the schema of their type.

An authorizer in the schema says which actor (user or agent) may set a property, and in which states of the service. A
property may be immutable, have a default, contain other properties, or be a secret, which is stored in the vault.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.simulator_world import World, error_of


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


def _schema(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"properties": properties}


def _validator(kind: str, **config: Any) -> dict[str, Any]:
    """Return a validator or an authorizer; both have the same form."""
    return {"type": kind, "config": config}


@pytest.mark.parametrize(
    ("kind", "accepted_values", "refused_values"),
    [
        ("string", ["", "x"], [1, True, [], {}]),
        ("integer", [1, 2.0, -3], [1.5, "1", True]),
        ("number", [1, 1.5], ["1", False]),
        ("boolean", [True, False], [0, "true"]),
        ("object", [{}, {"any": 1}], [[], "x"]),
        ("array", [[], [1, "x"]], [{}, "x"]),
        ("json", [1, "x", [], {}, True], []),
        ("uuid", ["9f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"], ["x", 1]),
    ],
)
def test_values_must_be_of_the_declared_type(
    world: World, kind: str, accepted_values: list[Any], refused_values: list[Any]
) -> None:
    type_id = world.type_with(_schema(a={"type": kind}))
    statuses = [
        world.admin_caller.post("/services", world.order_body(type_id, {"a": value})).status_code
        for value in accepted_values + refused_values
    ]
    assert statuses == [201] * len(accepted_values) + [400] * len(refused_values)


@pytest.mark.parametrize(
    ("kind", "validator", "accepted_values", "refused_values"),
    [
        ("string", _validator("minLength", value=3), ["abc", "äx"], ["ab", "ä"]),
        ("string", _validator("maxLength", value=3), ["abc", "ä"], ["abcd", "ää"]),
        ("string", _validator("pattern", pattern="b+"), ["abba"], ["aca"]),
        ("string", _validator("pattern", pattern="^b$"), ["b"], ["b\n", "ab"]),
        ("string", _validator("pattern", pattern=r"^\d$"), ["1"], ["\u0661"]),
        ("string", _validator("enum", values=["a", "b"]), ["a"], ["c", "A"]),
        ("integer", _validator("enum", values=[1, 2]), [2], [3]),
        ("integer", _validator("min", value=2), [2], [1]),
        ("number", _validator("max", value=2.5), [2.5], [2.6]),
        ("array", _validator("minItems", value=1), [[1]], [[]]),
        ("array", _validator("maxItems", value=1), [[1]], [[1, 2]]),
    ],
)
def test_values_must_satisfy_the_validators(
    world: World, kind: str, validator: dict[str, Any], accepted_values: list[Any], refused_values: list[Any]
) -> None:
    type_id = world.type_with(_schema(a={"type": kind, "validators": [validator]}))
    statuses = [
        world.admin_caller.post("/services", world.order_body(type_id, {"a": value})).status_code
        for value in accepted_values + refused_values
    ]
    assert statuses == [201] * len(accepted_values) + [400] * len(refused_values)


def test_a_property_that_is_null_counts_as_not_given(world: World) -> None:
    answer = world.order_with(
        _schema(a={"type": "string", "default": "d"}, b={"type": "string"}), {"a": None, "b": None}
    )
    assert answer.json()["properties"] == {"a": "d"}


def test_a_required_property_needs_a_value_a_default_or_an_old_value(world: World) -> None:
    required = {"type": "string", "required": True}
    assert world.order_with(_schema(a=required), {}).status_code == 400
    assert world.order_with(_schema(a={**required, "default": "d"}), {}).status_code == 201


def test_defaults_inside_an_object_apply_only_if_the_object_is_given(world: World) -> None:
    inner = {"x": {"type": "integer", "default": 5}, "y": {"type": "string"}}
    schema = _schema(
        a={"type": "object", "properties": inner}, b={"type": "object", "properties": inner, "default": {}}
    )
    assert world.order_with(schema, {}).json()["properties"] == {"b": {"x": 5}}
    assert world.order_with(schema, {"a": {"y": "q", "z": 1}}).json()["properties"]["a"] == {"x": 5, "y": "q"}


def test_items_of_arrays_are_validated_and_processed(world: World) -> None:
    items = {"type": "object", "properties": {"x": {"type": "integer", "required": True}}}
    schema = _schema(a={"type": "array", "items": items})
    assert world.order_with(schema, {"a": [{"x": 1, "drop": 2}]}).json()["properties"] == {"a": [{"x": 1}]}
    assert world.order_with(schema, {"a": [{}]}).status_code == 400
    assert world.order_with(schema, {"a": [None]}).status_code == 400


def test_a_problem_in_a_nested_property_is_reported_for_the_top_level_property(world: World) -> None:
    body = world.order_body(
        world.ids.service_type_id,
        {"cores": 1, "memoryMb": 512, "diskGb": 5, "image": "x", "network": {"mode": "magic"}},
    )
    assert [item["path"] for item in error_of(world.admin_caller.post("/services", body))["errors"]] == ["network"]


def test_a_user_cannot_set_a_property_of_the_agent(world: World) -> None:
    body = world.order_body(
        world.ids.service_type_id, {"cores": 1, "memoryMb": 512, "diskGb": 5, "image": "x", "vmid": 100}
    )
    assert [item["path"] for item in error_of(world.admin_caller.post("/services", body))["errors"]] == ["vmid"]


def test_without_an_actor_authorizer_users_and_agents_may_set_a_property(world: World) -> None:
    service = world.order_with(_schema(a={"type": "string"}), {"a": "user"}).json()
    world.agent.complete(world.claimed(service), properties={"a": "agent"})
    assert world.service(service)["properties"] == {"a": "agent"}


def test_a_state_authorizer_applies_to_updates_and_to_reports_of_agents_and_not_to_the_creation(world: World) -> None:
    up_only = {"type": "string", "authorizers": [_validator("state", allowedStates=["Up"])]}
    service = world.order_with(_schema(a=up_only), {"a": "at creation"}).json()
    job = world.claimed(service)
    assert world.agent.complete(job, properties={"a": "in New"}).status_code == 400
    world.agent.complete(job)
    world.admin.patch_service(service["id"], {"a": "in Up"})


def test_cores_can_be_changed_only_in_the_state_stopped_and_the_disk_also_in_the_state_started(world: World) -> None:
    service = world.created()
    world.admin.request_action(service["id"], "start")
    world.agent.complete(world.claimed(service))
    path = f"/services/{service['id']}"
    refused = world.admin_caller.send("PATCH", path, {"properties": {"cores": 4}})
    assert [item["path"] for item in error_of(refused)["errors"]] == ["cores"]
    assert world.admin_caller.send("PATCH", path, {"properties": {"diskGb": 30}}).status_code == 200


def test_an_immutable_text_may_be_sent_again_only_with_the_same_value(world: World) -> None:
    service = world.created()
    path = f"/services/{service['id']}"
    assert world.admin_caller.send("PATCH", path, {"properties": {"image": "other"}}).status_code == 400
    assert world.admin_caller.send("PATCH", path, {"properties": {"image": "debian-12"}}).status_code == 200


@pytest.mark.parametrize(("kind", "value"), [("integer", 5), ("number", 1.5), ("json", {"a": [1]}), ("array", [1])])
def test_an_immutable_value_other_than_text_cannot_even_be_sent_again_unchanged(
    world: World, kind: str, value: Any
) -> None:
    service = world.order_with(_schema(a={"type": kind, "immutable": True}, b={"type": "string"}), {"a": value}).json()
    world.agent.complete(world.claimed(service))
    path = f"/services/{service['id']}"
    assert world.admin_caller.send("PATCH", path, {"properties": {"a": value}}).status_code == 400
    assert world.admin_caller.send("PATCH", path, {"properties": {"b": "x"}}).status_code == 200


def test_an_unset_immutable_property_can_be_set_later(world: World) -> None:
    service = world.created()
    world.admin.patch_service(service["id"], {"hostname": "web-1"})
    assert world.job_of(service)["params"]["hostname"] == "web-1"


def test_objects_are_merged_arrays_replaced_and_unknown_names_dropped(world: World) -> None:
    service = world.created(network={"mode": "dhcp", "bridge": "vmbr1"}, tags=["a", "b"])
    patch = {"network": {"vlan": 7, "other": 1}, "tags": ["c"], "unknown": 1, "hostname": None}
    world.admin.patch_service(service["id"], patch)
    params = world.job_of(service)["params"]
    assert params["network"] == {"mode": "dhcp", "bridge": "vmbr1", "vlan": 7}
    assert (params["tags"], "unknown" in params, "hostname" in params) == (["c"], False, False)


def test_old_values_are_not_validated_again(world: World) -> None:
    service = world.order_with(_schema(a={"type": "string"}, b={"type": "string"}), {"a": "long text"}).json()
    world.agent.complete(world.claimed(service))
    strict = _schema(a={"type": "string", "validators": [_validator("maxLength", value=2)]}, b={"type": "string"})
    world.admin.call("PATCH", f"/service-types/{service['serviceTypeId']}", {"propertySchema": strict})
    world.admin.patch_service(service["id"], {"b": "x"})
    assert world.job_of(service)["params"] == {"a": "long text", "b": "x"}


def test_with_the_validator_unique_values_the_values_of_two_properties_must_differ(world: World) -> None:
    schema = {
        **_schema(a={"type": "string"}, b={"type": "string"}),
        "validators": [_validator("uniqueValues", properties=["a", "b"])],
    }
    assert world.order_with(schema, {"a": "x", "b": "y"}).status_code == 201
    assert world.order_with(schema, {"a": "x", "b": "x"}).status_code == 400


def test_a_service_reference_must_name_an_allowed_service(world: World) -> None:
    disk = world.order_with(_schema(a={"type": "string"}), {}).json()
    schema = _schema(disk={"type": "string", "validators": [_validator("serviceReference", origin="consumer")]})
    assert world.order_with(schema, {"disk": disk["id"]}).status_code == 201
    assert world.order_with(schema, {"disk": world.ids.agent_id}).status_code == 400
    other_group = {**schema["properties"]["disk"], "validators": [_validator("serviceReference", origin="group")]}
    assert world.order_with(_schema(disk=other_group), {"disk": disk["id"]}).status_code == 400
    typed = {**schema["properties"]["disk"], "validators": [_validator("serviceReference", types=["elsewhere"])]}
    assert world.order_with(_schema(disk=typed), {"disk": disk["id"]}).status_code == 400


def test_a_pool_property_is_400_for_an_agent_without_a_pool_set(world: World) -> None:
    generated = {"type": "string", "generator": {"type": "pool", "config": {"poolType": "ipv4"}}}
    assert world.order_with(_schema(a=generated), {}).status_code == 400


def test_a_completion_keeps_the_other_members_of_a_nested_object(world: World) -> None:
    inner = {"x": {"type": "integer"}, "y": {"type": "integer"}}
    service = world.order_with(_schema(a={"type": "object", "properties": inner}), {"a": {"x": 1}}).json()
    world.agent.complete(world.claimed(service), properties={"a": {"y": 2}})
    assert world.service(service)["properties"] == {"a": {"x": 1, "y": 2}}


# Secrets


def _status_of_secret(world: World, reference: str) -> int:
    """Return the HTTP status of a request for the secret: 200, or 404 if it was deleted."""
    return world.agent.get(f"/vault/secrets/{reference.removeprefix('vault://')}").status_code


def test_the_first_completion_deletes_an_ephemeral_secret(world: World) -> None:
    service = world.order(ciPassword="pass-word-1")
    reference = service["properties"]["ciPassword"]
    assert _status_of_secret(world, reference) == 200
    world.agent.complete(world.claimed(service))
    assert _status_of_secret(world, reference) == 404
    assert world.service(service)["properties"]["ciPassword"] == reference


def test_a_failed_create_deletes_an_ephemeral_secret(world: World) -> None:
    service = world.order(ciPassword="pass-word-1")
    world.agent.fail(world.claimed(service))
    assert _status_of_secret(world, service["properties"]["ciPassword"]) == 404


def test_a_refused_completion_keeps_the_secret(world: World) -> None:
    service = world.order(ciPassword="pass-word-1")
    job = world.claimed(service)
    assert world.agent.complete(job, properties={"cores": 9}).status_code == 400
    assert _status_of_secret(world, service["properties"]["ciPassword"]) == 200


def test_the_completion_into_a_terminal_state_deletes_a_persistent_secret(world: World) -> None:
    schema = _schema(
        key={"type": "string", "secret": {"type": "persistent"}},
        disks={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"key": {"type": "string", "secret": {"type": "persistent"}}},
            },
        },
    )
    service = world.order_with(schema, {"key": "k", "disks": [{"key": "d"}]}).json()
    references = [service["properties"]["key"], service["properties"]["disks"][0]["key"]]
    world.agent.complete(world.claimed(service))
    assert [_status_of_secret(world, reference) for reference in references] == [200, 200]
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service))
    assert [_status_of_secret(world, reference) for reference in references] == [404, 404]


def _service_with_secret(world: World) -> dict[str, Any]:
    schema = _schema(key={"type": "string", "secret": {"type": "persistent"}}, a={"type": "string"})
    service = world.order_with(schema, {"key": "old"}).json()
    world.agent.complete(world.claimed(service))
    return service


def test_a_request_with_a_new_secret_deletes_the_old_one(world: World) -> None:
    service = _service_with_secret(world)
    world.admin.patch_service(service["id"], {"key": "new"})
    job = world.job_of(service)
    assert _status_of_secret(world, job["service"]["properties"]["key"]) == 404
    assert _status_of_secret(world, job["params"]["key"]) == 200
    world.agent.fail(world.claimed(service))
    assert world.service(service)["properties"]["key"] == service["properties"]["key"]


def test_a_refused_request_with_a_new_secret_deletes_the_old_one(world: World) -> None:
    service = _service_with_secret(world)
    world.admin.delete_service(service["id"])
    answer = world.admin_caller.send("PATCH", f"/services/{service['id']}", {"properties": {"key": "new"}})
    assert answer.status_code == 400
    assert _status_of_secret(world, service["properties"]["key"]) == 404


def test_a_value_that_starts_with_vault_is_stored_unchanged_without_validation(world: World) -> None:
    short_secret = {
        "type": "string",
        "secret": {"type": "persistent"},
        "validators": [_validator("maxLength", value=3)],
    }
    ordered_properties = {"key": "vault://any", "text": "vault://x"}
    assert (
        world.order_with(_schema(key=short_secret, text={"type": "string"}), ordered_properties).json()["properties"]
        == ordered_properties
    )


def test_a_secret_of_any_primitive_type_or_json_is_returned_unchanged(world: World) -> None:
    secret = {"type": "persistent"}
    schema = _schema(n={"type": "integer", "secret": secret}, j={"type": "json", "secret": secret})
    properties = world.order_with(schema, {"n": 5, "j": {"a": [1]}}).json()["properties"]
    values = [world.agent.get(f"/vault/secrets/{properties[name].removeprefix('vault://')}").json() for name in "nj"]
    assert values == [{"value": 5}, {"value": {"a": [1]}}]


def test_agents_read_any_secret_and_users_read_none(world: World) -> None:
    reference = world.sim.add_secret("s").removeprefix("vault://")
    _, other_providers_agent = world.agent_of_other_provider()
    assert other_providers_agent.get(f"/vault/secrets/{reference}").json() == {"value": "s"}
    assert world.admin_caller.get(f"/vault/secrets/{reference}").status_code == 403


def test_an_unknown_reference_is_404(world: World) -> None:
    answer = world.agent.get("/vault/secrets/unknown")
    assert (answer.status_code, error_of(answer)) == (404, {"status": "Resource not found"})


def test_without_a_vault_key_a_service_with_a_secret_is_refused(world: World) -> None:
    world.sim.set_switches(vault_off=True)
    body = {"cores": 1, "memoryMb": 512, "diskGb": 5, "image": "x"}
    order = world.order_body(world.ids.service_type_id, body)
    assert world.admin_caller.post("/services", order).status_code == 201
    refused = world.admin_caller.post("/services", {**order, "properties": {**body, "ciPassword": "pass-word-1"}})
    assert refused.status_code == 400
