"""Agents in the FulcrumCore simulator: /agents/me, statuses, configuration, disconnecting silent agents, installation.

FulcrumCore offers an install command, which downloads the agent's configuration from a URL with a short-lived token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.fulcrum_setup import read_type_file
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


def test_agents_me_returns_provider_type_and_a_configuration_with_defaults_and_secret_references(world: World) -> None:
    me = world.agent.get("/agents/me").json()
    configuration = me["configuration"]
    assert (me["status"], me["tags"], me["participant"]["name"]) == ("Disconnected", ["proxmox"], "Northwind Cloud")
    assert me["agentType"]["serviceTypeIds"] == [world.ids.service_type_id, world.ids.container_type_id]
    assert me["agentType"]["configurationSchema"]["properties"]["apiTokenSecret"]["secret"] == {"type": "persistent"}
    assert (configuration["apiPort"], configuration["vmidRange"]) == (8006, {"min": 100000, "max": 199999})
    for name, value in (("apiTokenSecret", "not-a-real-secret"), ("fulcrumToken", world.ids.agent_token)):
        reference = configuration[name].removeprefix("vault://")
        assert world.agent.get(f"/vault/secrets/{reference}").json() == {"value": value}


@pytest.mark.parametrize("first", ["New", "Connected", "Disconnected", "Error", "Disabled"])
@pytest.mark.parametrize("second", ["New", "Connected", "Disconnected", "Error", "Disabled"])
def test_an_agent_may_set_every_status_after_every_status(world: World, first: str, second: str) -> None:
    for status in (first, second):
        answer = world.agent.send("PUT", "/agents/me/status", {"status": status})
        assert (answer.status_code, answer.json()["status"], answer.json()["id"]) == (200, status, world.ids.agent_id)
    assert world.agent.get("/agents/me").json()["status"] == second


@pytest.mark.parametrize("body", [{}, {"state": "Connected"}, {"status": "connected"}, {"status": ""}, {"status": 1}])
def test_a_body_without_a_known_status_is_400(world: World, body: dict[str, Any]) -> None:
    assert world.agent.send("PUT", "/agents/me/status", body).status_code == 400


def test_the_maintenance_disconnects_only_connected_agents_without_a_heartbeat(world: World) -> None:
    world.sim.set_options(agent_maintenance=True)
    world.sim.freeze()
    _, other_agent = world.other_agent()
    world.agent.send("PUT", "/agents/me/status", {"status": "Connected"})
    other_agent.send("PUT", "/agents/me/status", {"status": "Error"})
    world.sim.advance(30)
    assert world.sim.sweep()["disconnected"] == 0
    world.sim.advance(1)
    assert world.sim.sweep()["disconnected"] == 1
    assert world.agent.get("/agents/me").json()["status"] == "Disconnected"
    assert other_agent.get("/agents/me").json()["status"] == "Error"


def test_polling_does_not_count_as_a_heartbeat(world: World) -> None:
    world.sim.set_options(agent_maintenance=True)
    world.agent.send("PUT", "/agents/me/status", {"status": "Connected"})
    world.sim.advance(31)
    world.agent.pending()
    world.sim.sweep()
    assert world.agent.get("/agents/me").json()["status"] == "Disconnected"


def test_a_configuration_without_required_members_is_400_and_unknown_members_are_dropped(world: World) -> None:
    body = {"name": "a", "providerId": world.ids.provider_id, "agentTypeId": world.ids.agent_type_id}
    answer = world.admin_caller.post("/agents", {**body, "configuration": {"apiHost": "h", "other": 1}})
    assert (answer.status_code, error_of(answer)["status"]) == (400, "Invalid request")
    assert "errors" in error_of(answer)["error"]
    patched = world.admin.call("PATCH", f"/agents/{world.ids.agent_id}", {"configuration": {"other": 1}})
    assert "other" not in patched["configuration"]


def test_without_a_configuration_nothing_is_validated(world: World) -> None:
    body = {"name": "a", "providerId": world.ids.provider_id, "agentTypeId": world.ids.agent_type_id}
    answer = world.admin_caller.post("/agents", body)
    assert (answer.status_code, "configuration" in answer.json()) == (201, False)


def test_a_configuration_is_merged_and_a_new_secret_deletes_the_old_reference(world: World) -> None:
    before = world.agent.get("/agents/me").json()["configuration"]
    world.admin.call(
        "PATCH",
        f"/agents/{world.ids.agent_id}",
        {"configuration": {"apiTokenSecret": "new", "vmidRange": {"min": 500}}},
    )
    after = world.agent.get("/agents/me").json()["configuration"]
    assert (after["apiHost"], after["vmidRange"]) == (before["apiHost"], {"min": 500, "max": 199999})
    old, new = (item["apiTokenSecret"].removeprefix("vault://") for item in (before, after))
    assert world.agent.get(f"/vault/secrets/{old}").status_code == 404
    assert world.agent.get(f"/vault/secrets/{new}").json() == {"value": "new"}


# The install command


@pytest.fixture
def command_path(world: World) -> str:
    return f"/agents/{world.ids.agent_id}/install-command"


def _url_path(body: dict[str, Any]) -> str:
    """Return the path of the URL from which the install command downloads the configuration."""
    return str(body["url"].split("/api/v1", 1)[1])


def _bearer(body: dict[str, Any]) -> str:
    """Return the token with which the install command downloads the configuration."""
    return str(body["installCommand"].split("Bearer ", 1)[1].split("'", 1)[0])


def test_the_url_of_an_install_command_delivers_the_agents_settings(world: World, command_path: str) -> None:
    answer = world.admin_caller.post(command_path)
    body = answer.json()
    installer = world.caller(_bearer(body))
    fetched = installer.get(_url_path(body))
    assert (answer.status_code, fetched.status_code) == (201, 200)
    assert body["url"] in body["installCommand"]
    assert body["url"].startswith(world.sim.api_url)
    assert fetched.headers["content-type"] == "text/plain; charset=utf-8"
    assert (fetched.headers["cache-control"], fetched.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert [line for line in fetched.text.splitlines() if not line.startswith("#")] == [
        f"FULCRUM_API_URL={world.sim.url}",
        f"FULCRUM_API_TOKEN={world.ids.agent_token}",
        "SMITH_REMOTE_CONFIG=true",
    ]


def test_the_bearer_token_of_an_install_command_permits_the_calls_of_the_agent(world: World, command_path: str) -> None:
    installer = world.caller(_bearer(world.admin_caller.post(command_path).json()))
    assert installer.get("/agents/me").json()["id"] == world.ids.agent_id
    assert installer.pending() == []


def test_url_and_bearer_token_expire_after_five_minutes(world: World, command_path: str) -> None:
    body = world.admin_caller.post(command_path).json()
    installer = world.caller(_bearer(body))
    world.sim.advance(290)
    assert installer.get(_url_path(body)).status_code == 200
    world.sim.advance(11)
    assert installer.get("/agents/me").status_code == 403
    late = world.agent.get(_url_path(body))
    assert (late.status_code, error_of(late)) == (404, {"status": "Resource not found"})
    assert world.admin_caller.get(command_path).status_code == 200


def test_a_second_install_command_is_409_even_after_the_first_expired(world: World, command_path: str) -> None:
    assert world.admin_caller.post(command_path).status_code == 201
    world.sim.advance(301)
    assert world.admin_caller.post(command_path).status_code == 409


def test_regenerating_invalidates_the_old_url_and_bearer_token(world: World, command_path: str) -> None:
    assert world.admin_caller.post(f"{command_path}/regenerate").status_code == 404
    old = world.admin_caller.post(command_path).json()
    renewed = world.admin_caller.post(f"{command_path}/regenerate")
    assert renewed.status_code == 200
    assert world.caller(_bearer(old)).get("/agents/me").status_code == 403
    assert world.agent.get(_url_path(old)).status_code == 404
    assert world.caller(_bearer(renewed.json())).get(_url_path(renewed.json())).status_code == 200


def test_the_first_revocation_is_204_and_the_second_404(world: World, command_path: str) -> None:
    assert world.admin_caller.get(command_path).status_code == 404
    body = world.admin_caller.post(command_path).json()
    assert set(world.agent.get(command_path).json()) == {"id", "expiresAt", "createdAt"}
    assert world.agent.send("DELETE", command_path).status_code == 403
    assert world.admin_caller.send("DELETE", command_path).status_code == 204
    assert world.agent.get(_url_path(body)).status_code == 404
    assert world.admin_caller.send("DELETE", command_path).status_code == 404


def test_the_url_is_404_if_a_secret_of_the_configuration_is_missing(world: World, command_path: str) -> None:
    body = world.admin_caller.post(command_path).json()
    world.sim.delete_all_secrets()
    assert world.agent.get(_url_path(body)).status_code == 404
    assert world.agent.get("/agents/install/unknown/config").status_code == 404


def test_an_agent_whose_type_has_no_templates_has_no_install_command(world: World) -> None:
    agent_type = {**read_type_file("agent-type-proxmox.json"), "name": "plain", "configTemplate": "", "cmdTemplate": ""}
    type_id = world.admin.create("agent-types", **agent_type)["id"]
    agent = world.admin.create("agents", name="p", providerId=world.ids.provider_id, agentTypeId=type_id)
    assert world.admin_caller.post(f"/agents/{agent['id']}/install-command").status_code == 400
