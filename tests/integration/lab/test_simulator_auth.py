"""Authentication and authorization in the FulcrumCore simulator: which calls get 401, 403, 400 or 404.

The scope of a caller is what its token may see: an agent or a participant sees only objects of its own participant.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "bearer change-me", "Basic change-me", "change-me", "BEARER change-me"]
)
def test_a_missing_or_malformed_header_is_401(world: World, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = world.caller(None).send("GET", "/agents/me", headers=headers)
    assert (answer.status_code, error_of(answer)["status"]) == (401, "Unauthorized")


@pytest.mark.parametrize("header", ["Bearer unknown", "Bearer  change-me", "Bearer change-me "])
def test_an_unknown_token_is_403(world: World, header: str) -> None:
    answer = world.caller(None).send("GET", "/jobs", headers={"Authorization": header.rstrip() + "x"})
    assert (answer.status_code, error_of(answer)["status"]) == (403, "Forbidden")


def test_two_spaces_before_the_token_are_403(world: World) -> None:
    spaced = {"Authorization": f"Bearer  {world.ids.admin_token}"}
    assert world.caller(None).send("GET", "/jobs", headers=spaced).status_code == 403


def test_a_revoked_token_is_403(world: World) -> None:
    world.sim.revoke_tokens(name="smith-dc1")
    assert world.agent.get("/agents/me").status_code == 403


def test_regenerating_a_token_invalidates_the_old_value_at_once(world: World) -> None:
    token = world.admin.create_token("second", "agent", world.ids.agent_id)
    renewed = world.admin.call("POST", f"/tokens/{token['id']}/regenerate")
    assert world.caller(token["value"]).get("/agents/me").status_code == 403
    assert world.caller(renewed["value"]).get("/agents/me").status_code == 200


def test_an_expired_token_is_403(world: World) -> None:
    token = world.admin.create_token("old", "agent", world.ids.agent_id, expire_at="2020-01-01T00:00:00Z")
    assert world.caller(token["value"]).get("/agents/me").status_code == 403


def test_a_token_without_expiry_is_valid_for_a_day(world: World) -> None:
    world.sim.freeze()
    token = world.admin.create("tokens", name="daily", role="agent", scopeId=world.ids.agent_id)
    caller = world.caller(token["value"])
    world.sim.advance(86_400 - 60)
    assert caller.get("/agents/me").status_code == 200
    world.sim.advance(120)
    assert caller.get("/agents/me").status_code == 403


def test_the_token_of_a_deleted_agent_is_403(world: World) -> None:
    agent_id, other_agent = world.other_agent()
    world.admin.call("DELETE", f"/agents/{agent_id}")
    assert other_agent.get("/agents/me").status_code == 403


def test_a_database_outage_is_answered_like_an_unknown_token(world: World) -> None:
    unknown_token_error = error_of(world.caller("nonsense").get("/agents/me"))
    world.sim.set_switches(database_down=True)
    outage = world.agent.get("/agents/me")
    assert (outage.status_code, error_of(outage)) == (403, unknown_token_error)
    world.sim.set_switches(database_down=False)
    assert world.agent.get("/agents/me").status_code == 200


def test_the_seed_token_is_an_admin_token_for_a_day(world: World) -> None:
    seed = world.caller("change-me")
    assert seed.get("/participants").status_code == 200
    world.sim.advance(86_400 + 1)
    assert seed.get("/participants").status_code == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/agents/me"),
        ("PUT", "/agents/me/status"),
        ("GET", "/jobs/pending"),
        ("GET", "/vault/secrets/x"),
        ("POST", "/metric-entries"),
    ],
)
def test_admins_cannot_make_the_calls_of_agents(world: World, method: str, path: str) -> None:
    assert world.admin_caller.send(method, path, {"status": "Connected"}).status_code == 403


@pytest.mark.parametrize("verb", ["claim", "complete", "fail"])
def test_admins_and_participants_cannot_claim_complete_or_fail_jobs(world: World, verb: str) -> None:
    job = world.job_of(world.order())
    assert world.admin_caller.post(f"/jobs/{job['id']}/{verb}", {}).status_code == 403
    assert world.participant(world.ids.consumer_id).post(f"/jobs/{job['id']}/{verb}", {}).status_code == 403


@pytest.mark.parametrize(
    "collection",
    [
        "participants",
        "service-groups",
        "service-pool-sets",
        "config-pools",
        "config-pool-values",
        "events",
        "tokens",
        "metric-entries",
    ],
)
def test_agents_may_not_list_these_collections(world: World, collection: str) -> None:
    assert world.agent.get(f"/{collection}").status_code == 403


@pytest.mark.parametrize(
    "collection",
    [
        "agents",
        "services",
        "jobs",
        "agent-types",
        "service-types",
        "metric-types",
        "service-option-types",
        "service-options",
        "service-pools",
        "service-pool-values",
    ],
)
def test_agents_may_list_these_collections(world: World, collection: str) -> None:
    assert world.agent.get(f"/{collection}").status_code == 200


def test_agents_cannot_write_services(world: World) -> None:
    service = world.created()
    path = f"/services/{service['id']}"
    assert world.agent.send("PATCH", path, {"name": "x"}).status_code == 403
    assert world.agent.send("DELETE", path).status_code == 403
    assert world.agent.post(f"{path}/start").status_code == 403


@pytest.mark.parametrize("path", ["/jobs/{}", "/agents/{}", "/services/{}"])
def test_an_unknown_id_of_a_job_agent_or_service_is_403_not_404(world: World, path: str) -> None:
    assert world.agent.get(path.format(UNKNOWN_ID)).status_code == 403
    assert world.admin_caller.get(path.format(UNKNOWN_ID)).status_code == 403


def test_an_unknown_token_id_is_403_even_for_an_admin(world: World) -> None:
    assert world.admin_caller.get(f"/tokens/{UNKNOWN_ID}").status_code == 403


@pytest.mark.parametrize("verb", ["claim", "complete", "fail"])
def test_claiming_completing_or_failing_an_unknown_job_is_403(world: World, verb: str) -> None:
    assert world.agent.post(f"/jobs/{UNKNOWN_ID}/{verb}", {}).status_code == 403


@pytest.mark.parametrize("collection", ["service-types", "agent-types", "metric-types", "service-option-types"])
def test_an_unknown_id_of_a_type_is_404_because_all_callers_may_read_types(world: World, collection: str) -> None:
    answer = world.agent.get(f"/{collection}/{UNKNOWN_ID}")
    assert (answer.status_code, error_of(answer)) == (404, {"status": "Resource not found"})


@pytest.mark.parametrize("path", ["/jobs/nonsense", "/services/1", "/service-types/x", "/jobs/nonsense/claim"])
def test_a_malformed_id_is_400(world: World, path: str) -> None:
    answer = world.agent.send("POST" if path.endswith("claim") else "GET", path)
    assert (answer.status_code, error_of(answer)["status"]) == (400, "Invalid request")


def test_a_malformed_id_is_400_before_the_role_is_checked(world: World) -> None:
    assert world.admin_caller.post("/jobs/nonsense/claim").status_code == 400


def test_the_role_is_checked_before_the_body(world: World) -> None:
    job = world.job_of(world.order())
    assert world.admin_caller.raw("POST", f"/jobs/{job['id']}/fail", b"{").status_code == 403


def test_the_body_is_checked_before_the_scope_of_the_job(world: World) -> None:
    assert world.agent.raw("POST", f"/jobs/{UNKNOWN_ID}/fail", b"{").status_code == 400


def test_another_agent_of_the_provider_may_read_claim_and_end_the_job(world: World) -> None:
    job = world.job_of(world.order())
    _, other_agent = world.other_agent()
    assert other_agent.get(f"/jobs/{job['id']}").status_code == 200
    assert other_agent.claim(job) == 204
    assert other_agent.complete(job).status_code == 204


@pytest.mark.parametrize("verb", ["claim", "complete", "fail"])
def test_an_agent_of_another_provider_gets_403(world: World, verb: str) -> None:
    job = world.job_of(world.order())
    _, other_providers_agent = world.agent_of_other_provider()
    assert other_providers_agent.post(f"/jobs/{job['id']}/{verb}", {}).status_code == 403
    assert other_providers_agent.get(f"/jobs/{job['id']}").status_code == 403


def test_lists_contain_the_objects_of_all_agents_of_the_provider(world: World) -> None:
    service = world.order()
    _, other_agent = world.other_agent()
    _, other_providers_agent = world.agent_of_other_provider()
    assert [row["id"] for row in other_agent.get("/services").json()["items"]] == [service["id"]]
    assert len(other_agent.get("/jobs").json()["items"]) == 1
    assert len(other_agent.get("/agents").json()["items"]) == 2
    assert other_providers_agent.get("/services").json()["items"] == []
    assert other_providers_agent.get("/jobs").json()["items"] == []


def test_the_pending_list_contains_only_jobs_of_the_agent(world: World) -> None:
    world.order()
    _, other_agent = world.other_agent()
    assert len(world.agent.pending()) == 1
    assert other_agent.pending() == []


def test_a_consumer_creates_services_in_its_own_groups_only(world: World) -> None:
    provider = world.participant(world.ids.provider_id)
    consumer = world.participant(world.ids.consumer_id)
    body = world.order_body(world.ids.service_type_id, {"cores": 1, "memoryMb": 512, "diskGb": 5, "image": "x"})
    assert provider.post("/services", body).status_code == 403
    assert consumer.post("/services", body).status_code == 201


def test_a_participant_creates_its_own_tokens_and_no_admin_token(world: World) -> None:
    provider = world.participant(world.ids.provider_id)
    body = {"name": "t", "role": "agent", "scopeId": world.ids.agent_id}
    assert provider.post("/tokens", body).status_code == 201
    assert provider.post("/tokens", {"name": "t", "role": "admin"}).status_code == 403
    assert world.participant(world.ids.consumer_id).post("/tokens", body).status_code == 403
    assert world.agent.post("/tokens", body).status_code == 403


def test_only_the_create_answer_contains_a_tokens_value(world: World) -> None:
    token = world.admin.create_token("once", "agent", world.ids.agent_id)
    assert token["value"]
    assert "value" not in world.admin_caller.get(f"/tokens/{token['id']}").json()
    assert all("value" not in row for row in world.admin_caller.get("/tokens").json()["items"])


def test_an_agents_token_names_the_agent_and_its_provider(world: World) -> None:
    token = world.admin.create_token("both", "agent", world.ids.agent_id)
    assert (token["agentId"], token["participantId"]) == (world.ids.agent_id, world.ids.provider_id)


def test_deleting_a_token_is_204_and_invalidates_it(world: World) -> None:
    token = world.admin.create_token("short", "agent", world.ids.agent_id)
    assert world.admin_caller.send("DELETE", f"/tokens/{token['id']}").status_code == 204
    assert world.caller(token["value"]).get("/agents/me").status_code == 403
