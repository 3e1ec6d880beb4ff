"""The HTTP interface of the FulcrumCore simulator: bodies, errors, content types, unknown paths, pages and filters.

The simulator must answer exactly as FulcrumCore does, also where this is unusual (an error labelled as plain text).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
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


def test_errors_are_json_with_the_content_type_plain_text(world: World) -> None:
    answer = world.agent.get("/jobs/nonsense")
    assert set(error_of(answer)) == {"status", "error"}


def test_a_refused_service_lists_every_problem(world: World) -> None:
    body = world.order_body(world.ids.service_type_id, {"cores": 0, "memoryMb": "lots", "image": "debian-12"})
    answer = world.admin_caller.post("/services", body)
    error = error_of(answer)
    assert answer.status_code == 400
    assert (error["status"], error["valid"]) == ("Validation failed", False)
    assert {item["path"] for item in error["errors"]} == {"cores", "memoryMb", "diskGb"}
    assert all(set(item) == {"path", "message"} for item in error["errors"])


def test_a_problem_of_several_properties_has_an_empty_path(world: World) -> None:
    schema = {
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "validators": [{"type": "exactlyOne", "config": {"properties": ["a", "b"]}}],
    }
    error = error_of(world.order_with(schema, {"a": "x", "b": "y"}))
    assert [item["path"] for item in error["errors"]] == [""]


def test_a_refused_property_in_a_completion_is_400_with_a_text_and_no_list_of_problems(world: World) -> None:
    job = world.claimed(world.order())
    one_problem = world.agent.complete(job, properties={"cores": 4})
    two_problems = world.agent.complete(job, properties={"cores": 4, "memoryMb": 1})
    assert (one_problem.status_code, error_of(one_problem)["status"]) == (400, "Invalid request")
    assert "cores" in error_of(one_problem)["error"]
    assert "cores" not in error_of(two_problems)["error"]
    assert "2 errors" in error_of(two_problems)["error"]


@pytest.mark.parametrize("path", ["/jobs/{}/complete", "/jobs/{}/fail"])
@pytest.mark.parametrize(
    "body", [b"", b"   ", b"{", b"[]", b'"text"', b"1", b"{'a': 1}", b'{"a": NaN}', b"\xef\xbb\xbf{}"]
)
def test_a_missing_or_malformed_body_is_400(world: World, path: str, body: bytes) -> None:
    job = world.claimed(world.order())
    assert world.agent.raw("POST", path.format(job["id"]), body).status_code == 400
    assert world.job_of({"id": job["serviceId"]})["status"] == "Processing"


def test_a_request_that_sets_the_status_needs_a_body(world: World) -> None:
    assert world.agent.raw("PUT", "/agents/me/status", b"").status_code == 400


def test_a_claims_body_is_never_read(world: World) -> None:
    job = world.job_of(world.order())
    assert world.agent.raw("POST", f"/jobs/{job['id']}/claim", b"{{{ nonsense").status_code == 204


def test_the_content_type_is_ignored(world: World) -> None:
    body = b'{"status": "Connected"}'
    assert world.agent.raw("PUT", "/agents/me/status", body, **{"Content-Type": "text/plain"}).status_code == 200


def test_text_after_the_first_json_value_is_ignored(world: World) -> None:
    body = b'{"status": "Connected"} and then some'
    assert world.agent.raw("PUT", "/agents/me/status", body).status_code == 200


@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize(("depth", "status"), [(500, 200), (10_000, 200), (10_001, 400)])
def test_json_is_accepted_up_to_the_nesting_depth_of_gos_decoder(
    world: World, brackets: str, depth: int, status: int
) -> None:
    opening, closing = ('{"a":', "}") if brackets == "{}" else brackets
    nested = opening * (depth - 1) + "1" + closing * (depth - 1)
    body = f'{{"unknown": {nested}, "status": "Connected"}} {"[" * 20_000}'.encode()
    answer = world.agent.raw("PUT", "/agents/me/status", body)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert "exceeded max depth" in answer.json()["error"]


def test_brackets_in_a_text_do_not_count_as_depth(world: World) -> None:
    body = f'{{"unknown": "{"[" * 20_000}", "status": "Connected"}}'.encode()
    assert world.agent.raw("PUT", "/agents/me/status", body).status_code == 200


def test_unknown_members_are_ignored(world: World) -> None:
    assert world.agent.send("PUT", "/agents/me/status", {"status": "Error", "state": 1}).json()["status"] == "Error"


def test_a_body_of_null_counts_as_an_empty_object(world: World) -> None:
    job = world.claimed(world.order())
    assert world.agent.raw("POST", f"/jobs/{job['id']}/fail", b"null").status_code == 204


@pytest.mark.parametrize(
    "body",
    [
        {"agentInstanceId": 100},
        {"agentInstanceId": True},
        {"agentInstanceId": {}},
        {"agentInstanceData": "text"},
        {"agentInstanceData": []},
        {"properties": []},
        {"properties": "text"},
    ],
)
def test_members_of_a_wrong_type_are_400_and_the_job_stays_processing(world: World, body: dict[str, object]) -> None:
    service = world.order()
    job = world.claimed(service)
    assert world.agent.complete(job, **body).status_code == 400
    assert world.job_of(service)["status"] == "Processing"


def test_an_unknown_path_is_plain_text_404_with_a_token_and_401_without(world: World) -> None:
    answer = world.agent.get("/nothing-here")
    assert answer.status_code == 404
    with pytest.raises(requests.exceptions.JSONDecodeError):
        answer.json()
    assert world.caller(None).get("/nothing-here").status_code == 401
    assert world.caller("bad").get("/nothing-here").status_code == 403


def test_a_wrong_method_is_405_without_a_body(world: World) -> None:
    answer = world.agent.send("DELETE", "/jobs/pending")
    assert (answer.status_code, answer.content) == (405, b"")


def test_collections_answer_with_and_without_a_trailing_slash(world: World) -> None:
    assert world.agent.get("/jobs/").json() == world.agent.get("/jobs").json()


def test_other_paths_with_a_trailing_slash_are_404(world: World) -> None:
    service = world.order()
    assert world.agent.get("/jobs/pending/").status_code == 404
    assert world.agent.get(f"/services/{service['id']}/").status_code == 404
    assert world.agent.get("/agents/me/").status_code == 404


def test_the_health_page_is_not_served_on_the_port_of_the_api(world: World) -> None:
    assert world.agent.send("GET", "/../../healthz").status_code == 404


def test_a_request_for_a_secret_without_a_vault_is_an_empty_500(world: World) -> None:
    world.sim.set_switches(vault_off=True)
    answer = world.agent.get("/vault/secrets/anything")
    assert (answer.status_code, answer.content) == (500, b"")


def test_a_response_204_has_no_body(world: World) -> None:
    job = world.job_of(world.order())
    answer = world.agent.post(f"/jobs/{job['id']}/claim")
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_successful_response_is_json_with_times_in_whole_utc_seconds(world: World) -> None:
    world.sim.freeze()
    world.sim.set_clock("2026-01-02T03:04:05.678Z")
    world.order()
    answer = world.agent.get("/jobs/pending")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()[0]["createdAt"] == "2026-01-02T03:04:05Z"


def test_the_date_header_is_the_servers_time(world: World) -> None:
    world.sim.freeze()
    world.sim.set_clock("2026-01-02T03:04:05Z")
    token = world.admin.create_token("now", "agent", world.ids.agent_id)
    answer = world.caller(token["value"]).get("/agents/me")
    assert answer.headers["date"] == "Fri, 02 Jan 2026 03:04:05 GMT"


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/services", {"agentId": "x"}),
        ("/services", {"status": "Stopped"}),
        ("/services", {"sort": "createdAt"}),
        ("/jobs", {"unknown": "x"}),
        ("/jobs", {"status": "Running"}),
        ("/jobs", {"agentId": "not-a-uuid"}),
        ("/jobs", {"sort": "-status"}),
        ("/agents", {"status": "Sleeping"}),
    ],
)
def test_unknown_filters_and_sorts_are_500(world: World, path: str, query: dict[str, str]) -> None:
    answer = world.agent.get(path, **query)
    assert answer.status_code == 500
    assert error_of(answer)["error"]


@pytest.mark.parametrize(
    "query", [{"page": "0"}, {"page": "x"}, {"pageSize": "0"}, {"pageSize": "101"}, {"pageSize": "-1"}]
)
def test_pages_out_of_range_are_400(world: World, query: dict[str, str]) -> None:
    assert world.agent.get("/services", **query).status_code == 400


def test_a_page_has_ten_items_by_default_and_its_position(world: World) -> None:
    group = world.group()
    for number in range(12):
        world.order(group, name=f"web-{number:02}")
    first = world.agent.get("/services", sort="name").json()
    second = world.agent.get("/services", sort="name", page=2).json()
    assert [len(first["items"]), len(second["items"])] == [10, 2]
    assert (first["totalItems"], first["totalPages"], first["currentPage"]) == (12, 2, 1)
    assert (first["hasNext"], first["hasPrev"], second["hasNext"], second["hasPrev"]) == (True, False, False, True)
    assert [item["name"] for item in second["items"]] == ["web-10", "web-11"]


def test_a_page_past_the_end_is_empty(world: World) -> None:
    answer = world.agent.get("/services", page=9)
    assert (answer.status_code, answer.json()["items"]) == (200, [])


def test_the_name_filter_ignores_case_and_the_state_filter_is_exact(world: World) -> None:
    world.order(name="Web-One")
    world.created(instance="a/1")
    assert [row["name"] for row in world.agent.get("/services", name="wEB-o").json()["items"]] == ["Web-One"]
    assert len(world.agent.get("/services", currentStatus=["New", "Stopped"]).json()["items"]) == 2
    assert world.agent.get("/services", currentStatus="new").json()["items"] == []


def test_processing_jobs_are_listed_oldest_first(world: World) -> None:
    world.sim.freeze()
    services = []
    for number in range(3):
        services.append(world.order(world.group(f"g{number}")))
        world.sim.advance(10)
    jobs = [world.claimed(service) for service in services[:2]]
    query = {"agentId": world.ids.agent_id, "status": "Processing", "sort": "createdAt", "pageSize": 100}
    assert [row["id"] for row in world.agent.get("/jobs", **query).json()["items"]] == [job["id"] for job in jobs]
    query["sort"] = "-createdAt"
    assert [row["id"] for row in world.agent.get("/jobs", **query).json()["items"]] == [job["id"] for job in jobs[::-1]]


def test_a_duplicate_name_of_a_type_is_500(world: World) -> None:
    body = {"name": "vm.cpu.usage", "entityType": "Resource"}
    answer = world.admin_caller.post("/metric-types", body)
    assert (answer.status_code, "duplicate key" in error_of(answer)["error"]) == (500, True)


def test_absent_members_are_left_out_and_unset_tags_are_null(world: World) -> None:
    agent = world.admin_caller.post(
        "/agents", {"name": "bare", "providerId": world.ids.provider_id, "agentTypeId": world.ids.agent_type_id}
    ).json()
    assert agent["tags"] is None
    assert not {"configuration", "servicePoolSetId"} & set(agent)
    assert None not in world.order().values()
