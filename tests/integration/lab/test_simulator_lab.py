"""The endpoints that the FulcrumCore simulator has only for tests: faults, history of calls, clock, changes of objects.

Also its pause and resume, and the simulator as a process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from smith_lab.fulcrum_setup import AdminCallFailed, AdminClient, bootstrap
from smith_lab.simulator.control import SimulatorThread, running_simulator, start_simulator_process
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


# Faults


def test_a_fault_applies_to_as_many_calls_as_its_parameter_times_says(world: World) -> None:
    world.sim.add_fault("status", status=503, path="/jobs/pending$", times=2)
    statuses = [world.agent.get("/jobs/pending").status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    assert world.agent.get("/agents/me").status_code == 200


def test_an_injected_status_has_the_shape_of_a_real_error(world: World) -> None:
    world.sim.add_fault("status", status=403, times=1)
    assert set(error_of(world.agent.get("/jobs"))) == {"status", "error"}


def test_a_fault_may_skip_calls_and_apply_to_one_method_only(world: World) -> None:
    world.sim.add_fault("status", status=500, method="PUT", path="status$", skip=1)
    sent = [world.agent.send("PUT", "/agents/me/status", {"status": "Connected"}).status_code for _ in range(3)]
    assert sent == [200, 500, 500]
    world.sim.clear_faults()
    assert world.agent.send("PUT", "/agents/me/status", {"status": "Connected"}).status_code == 200


def test_a_fault_may_send_an_html_page_an_empty_body_or_other_json(world: World) -> None:
    world.sim.add_fault("html", times=1)
    world.sim.add_fault("empty", times=1)
    world.sim.add_fault("wrong_json", times=1)
    world.sim.add_fault("wrong_json", times=1, body={"items": 5})
    html, empty, wrong, chosen = (world.agent.get("/jobs/pending") for _ in range(4))
    assert (html.status_code, html.headers["content-type"].split(";")[0]) == (502, "text/html")
    assert (empty.status_code, empty.content) == (200, b"")
    assert isinstance(wrong.json(), str)
    assert chosen.json() == {"items": 5}


def test_a_fault_may_add_headers(world: World) -> None:
    world.sim.add_fault("status", status=429, times=1, headers={"Retry-After": "7"})
    answer = world.agent.get("/jobs")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


def test_a_truncated_body_ends_in_the_middle(world: World) -> None:
    world.sim.add_fault("truncate", path="/agents/me$", times=1)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        world.agent.get("/agents/me")


@pytest.mark.parametrize(("kind", "status"), [("drop_before", "Pending"), ("drop_after", "Processing")])
def test_the_connection_closes_before_or_after_the_call_is_processed(world: World, kind: str, status: str) -> None:
    service = world.order()
    job = world.job_of(service)
    world.sim.add_fault(kind, path="/claim$", times=1)
    with pytest.raises(requests.ConnectionError):
        world.agent.claim(job)
    assert world.job_of(service)["status"] == status


def test_a_completion_repeated_after_a_lost_answer_is_400(world: World) -> None:
    service = world.order()
    job = world.claimed(service)
    world.sim.add_fault("drop_after", path="/complete$", times=1)
    with pytest.raises(requests.ConnectionError):
        world.agent.complete(job)
    assert world.agent.complete(job).status_code == 400
    assert world.agent.get(f"/jobs/{job['id']}").json()["status"] == "Completed"


def test_with_the_parameter_effect_the_call_is_processed_before_the_fault_answers(world: World) -> None:
    service = world.order()
    world.sim.add_fault("status", status=502, path="/claim$", times=1, effect=True)
    assert world.agent.claim(world.job_of(service)) == 502
    assert world.job_of(service)["status"] == "Processing"


def test_a_delayed_call_does_not_delay_other_calls(world: World) -> None:
    world.sim.add_fault("delay", path="/agents/me$", delay_s=60, times=1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(world.caller(world.ids.agent_token).get, "/agents/me")
        while not world.sim.history(path_end="/agents/me"):
            time.sleep(0.01)
        world.agent.pending()
        assert not slow.done()
        world.sim.clear_faults()
        assert slow.result().status_code == 200


def test_the_server_works_after_a_client_has_timed_out(world: World) -> None:
    world.sim.add_fault("delay", path="/agents/me$", delay_s=60, times=1)
    with pytest.raises(requests.Timeout):
        requests.get(f"{world.sim.api_url}/agents/me", timeout=0.05)
    world.sim.clear_faults()
    assert world.agent.get("/agents/me").status_code == 200


def test_an_unknown_kind_of_fault_is_refused(world: World) -> None:
    with pytest.raises(requests.HTTPError, match="unknown kind"):
        world.sim.add_fault("gremlin")


# History


def test_the_history_contains_every_call_in_order(world: World) -> None:
    since = world.sim.history()[-1]["seq"]
    job = world.job_of(world.order())
    world.agent.get("/jobs/pending", limit="100")
    world.agent.claim(job)
    world.agent.fail(job, "CAPACITY: none")
    world.agent.claim(job)
    agent_calls = [entry for entry in world.sim.history(since=since) if entry["role"] == "agent"]
    assert [(entry["method"], entry["path"].rsplit("/", 1)[1], entry["status"]) for entry in agent_calls] == [
        ("GET", "pending", 200),
        ("POST", "claim", 204),
        ("POST", "fail", 204),
        ("POST", "claim", 400),
    ]
    assert (agent_calls[0]["query"], agent_calls[2]["body"]) == ("limit=100", {"errorMessage": "CAPACITY: none"})
    assert {entry["agent_id"] for entry in agent_calls} == {world.ids.agent_id}
    assert "not in pending" in agent_calls[3]["error"]
    assert [entry["seq"] for entry in agent_calls] == sorted(entry["seq"] for entry in agent_calls)


def test_the_history_contains_the_fault_and_the_missing_answer(world: World) -> None:
    world.sim.add_fault("drop_after", path="/agents/me$", times=1)
    with pytest.raises(requests.ConnectionError):
        world.agent.get("/agents/me")
    entry = world.sim.history(path_end="/agents/me")[-1]
    assert (entry["fault"], entry["status"], entry["token_name"]) == ("drop_after", None, "smith-dc1")


def test_a_call_with_an_unknown_token_has_no_role_in_the_history(world: World) -> None:
    world.caller("nonsense").get("/jobs")
    entry = world.sim.history(path_end="/jobs")[-1]
    assert (entry["status"], entry["role"]) == (403, None)


# Changes of the simulator's objects by a test


def test_items_of_any_form_can_be_added_to_the_pending_list_and_removed(world: World) -> None:
    world.order()
    world.sim.add_raw_pending_items({"id": 5}, "nonsense", None, [])
    assert world.agent.pending()[1:] == [{"id": 5}, "nonsense", None, []]
    world.sim.delete_raw_pending_items()
    assert len(world.agent.pending()) == 1


def test_a_job_can_be_delivered_with_changed_members_and_still_be_claimed(world: World) -> None:
    job = world.job_of(world.order())
    world.sim.override_job(job["id"], remove=("params",), action="../../evil", priority="high")
    delivered = world.agent.pending()[0]
    assert (delivered["action"], delivered["priority"], "params" in delivered) == ("../../evil", "high", False)
    assert world.agent.claim(delivered) == 204
    assert world.agent.fail(delivered).status_code == 204


def test_a_report_with_a_revoked_token_is_403(world: World) -> None:
    job = world.claimed(world.order())
    world.sim.revoke_tokens(agent_id=world.ids.agent_id)
    assert world.agent.complete(job).status_code == 403


def test_a_report_for_a_timed_out_job_is_400(world: World) -> None:
    job = world.claimed(world.order())
    world.sim.expire_job(job["id"])
    assert world.agent.complete(job).status_code == 400
    assert world.agent.get(f"/jobs/{job['id']}").json()["status"] == "Failed"
    with pytest.raises(requests.HTTPError, match="job is Failed"):
        world.sim.expire_job(job["id"])


def test_a_secret_can_be_deleted(world: World) -> None:
    reference = world.order(ciPassword="pass-word-1")["properties"]["ciPassword"].removeprefix("vault://")
    assert reference in world.sim.secret_references()
    world.sim.delete_secret(reference)
    assert world.agent.get(f"/vault/secrets/{reference}").status_code == 404


def test_a_job_can_be_deleted(world: World) -> None:
    job = world.claimed(world.order())
    world.sim.delete_job(job["id"])
    assert world.agent.complete(job).status_code == 403
    assert world.agent.pending() == []


def test_the_state_contains_every_table_and_no_secret(world: World) -> None:
    world.order(ciPassword="pass-word-1")
    state = world.sim.state()
    assert (len(state["jobs"]), len(state["services"]), len(state["agents"])) == (1, 1, 1)
    assert "pass-word-1" not in str(state)
    assert world.ids.agent_token not in str(state)


def test_the_clock_can_be_frozen_and_advanced(world: World) -> None:
    world.sim.freeze()
    before = world.sim.now()
    world.sim.advance(100)
    assert world.sim.now() == before + 100
    unfrozen_at = time.monotonic()
    world.sim.freeze(frozen=False)
    now = world.sim.now()
    assert before + 100 <= now <= before + 101 + (time.monotonic() - unfrozen_at)


def test_a_reset_restores_the_state_of_a_new_server(world: World) -> None:
    world.sim.add_fault("status")
    world.sim.set_options(job_timeout_s=1.0)
    world.sim.reset()
    assert world.agent.get("/agents/me").status_code == 403
    assert world.caller("change-me").get("/services").json()["items"] == []
    assert world.sim.call_lab("POST", "options", {})["job_timeout_s"] == 300.0


@pytest.mark.parametrize(
    ("path", "body", "error_text"), [("switches", {"x": 1}, "unknown"), ("tokens/revoke", {}, "at least one of")]
)
def test_an_unknown_or_missing_member_of_a_lab_request_is_refused(
    world: World, path: str, body: object, error_text: str
) -> None:
    with pytest.raises(requests.HTTPError, match=error_text):
        world.sim.call_lab("POST", path, body)


# Pause and resume, and the simulator as a process


def test_a_paused_server_refuses_connections_and_keeps_its_state(world: World) -> None:
    service = world.order()
    assert world.agent.get("/agents/me").status_code == 200
    world.sim.pause()
    with pytest.raises(requests.ConnectionError):
        world.agent.get("/agents/me")
    world.sim.resume()
    assert [job["serviceId"] for job in world.agent.pending()] == [service["id"]]


def test_each_restart_adds_a_seed_token_and_only_the_one_with_the_lowest_id_is_checked(world: World) -> None:
    for _ in range(8):
        world.sim.advance(86_400 + 1)
        world.sim.pause()
        world.sim.resume()
    rows = [token for token in world.sim.state()["tokens"] if token["name"] == "Bootstrap Admin Token"]
    lowest = min(rows, key=lambda row: row["id"])
    is_valid = lowest["expireAt"] > world.sim.call_lab("GET", "clock")["text"]
    assert len(rows) == 9
    assert (world.caller("change-me").get("/tokens").status_code == 200) is is_valid


def test_two_simulators_share_no_state(world: World) -> None:
    with running_simulator() as other:
        assert other.url != world.sim.url
        answer = requests.get(
            f"{other.api_url}/agents/me", headers={"Authorization": f"Bearer {world.ids.agent_token}"}, timeout=10
        )
        assert answer.status_code == 403


def test_the_simulator_runs_as_a_process_and_can_be_set_up() -> None:
    process = start_simulator_process("--job-timeout", "60")
    try:
        with AdminClient(process.url) as admin:
            ids = bootstrap(admin)
            assert admin.call("GET", f"/agents/{ids.agent_id}")["name"] == "smith-dc1"
        assert process.call_lab("POST", "options", {})["job_timeout_s"] == 60.0
    finally:
        process.stop()
    with pytest.raises(requests.ConnectionError):
        process.now()


def test_a_second_set_up_adds_an_agent(world: World) -> None:
    second_objects = bootstrap(world.admin, agent_name="second", provider_name="Other", consumer_name="Another")
    assert second_objects.agent_id != world.ids.agent_id
    assert second_objects.service_type_id == world.ids.service_type_id


def test_a_refused_set_up_call_has_the_http_status(world: World) -> None:
    with pytest.raises(AdminCallFailed) as refused:
        world.admin.create("participants", name="")
    assert refused.value.status == 400


def test_sixty_services_in_sixty_groups_are_delivered_claimed_and_completed(world: World) -> None:
    for number in range(60):
        world.order(world.group(f"g{number}"), name=f"web-{number:02}")
    jobs = world.agent.pending(limit="100")
    assert len(jobs) == 60
    with ThreadPoolExecutor(8) as pool:
        callers = [world.caller(world.ids.agent_token) for _ in jobs]
        assert set(pool.map(lambda pair: pair[0].claim(pair[1]), zip(callers, jobs, strict=True))) == {204}
        done = pool.map(
            lambda pair: pair[0].complete(pair[1], agentInstanceId=pair[1]["id"]).status_code,
            zip(callers, jobs, strict=True),
        )
        assert set(done) == {204}
    assert {service["status"] for service in world.admin.list_services()} == {"Stopped"}
