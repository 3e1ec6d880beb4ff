"""The run on a FulcrumCore that is killed: a short one with the simulator, and the rules that judge its exchanges.

`make real-core` is the run with a real FulcrumCore.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from faults.real_core.core import SimulatedCore
from faults.real_core.exchanges import ExchangeLog, Outage, contract_violations, statuses_by_request
from faults.real_core.run import Size, run
from smith_lab.simulator.control import SimulatorThread, running_simulator
from smith_lab.simulator.store import SEED_TOKEN
from support.contract_rules import ContractRules, recorded_rules
from support.forwarder import Exchange, Forwarder, running_forwarder

JOB_ID = "7a1c5e90-2b64-4d3f-8a17-5c0e9b2d6f41"
JSON_HEADERS = {"Content-Type": "application/json", "Vary": "Origin"}


@pytest.mark.timeout(600)
def test_a_short_run_on_a_killed_fulcrumcore_violates_no_promise(tmp_path: Path, figure: Callable[[str], None]) -> None:
    with running_simulator() as simulator:
        size = Size(jobs=20, kills=4, seed=4)
        result = run(tmp_path / "run", SimulatedCore(simulator), size, tmp_path / "exchanges.jsonl")
    assert result.report.violations == []
    assert result.report.is_passed
    assert sum(result.report.kills.values()) == 4
    assert set(result.report.kills) == {"database", "process", "database and process"}
    total = sum(sum(statuses.values()) for statuses in result.exchanges.values())
    assert len((tmp_path / "exchanges.jsonl").read_text().splitlines()) == total
    figure(f"killed FulcrumCore: {result.report.jobs}, {result.report.kills}, {total} exchanges")


# --- the contract -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rules() -> ContractRules:
    return recorded_rules()


@pytest.mark.parametrize(
    ("method", "path", "query", "body"),
    [
        ("GET", "/agents/me", "", None),
        ("PUT", "/agents/me/status", "", {"status": "Connected"}),
        ("GET", "/jobs/pending", "limit=100", None),
        ("GET", "/jobs", f"agentId={JOB_ID}&status=Processing&sort=createdAt&page=1&pageSize=100", None),
        ("POST", f"/jobs/{JOB_ID}/claim", "", None),
        ("POST", f"/jobs/{JOB_ID}/complete", "", {"agentInstanceId": "a/1", "agentInstanceData": {"vmid": 1}}),
        ("POST", f"/jobs/{JOB_ID}/fail", "", {"errorMessage": "CAPACITY: no node"}),
        ("GET", "/services", "sort=name&page=1&pageSize=100", None),
        ("GET", f"/services/{JOB_ID}", "", None),
        ("GET", f"/service-types/{JOB_ID}", "", None),
        ("GET", f"/vault/secrets/{JOB_ID}", "", None),
        ("GET", "/metric-types", "sort=name&page=1&pageSize=100", None),
        (
            "POST",
            "/metric-entries",
            "",
            {"agentInstanceId": "a/1", "resourceId": "cpu", "typeName": "cpu", "value": 0.5},
        ),
    ],
)
def test_each_request_of_the_agent_is_in_the_contract(
    rules: ContractRules, method: str, path: str, query: str, body: Any
) -> None:
    assert rules.problems(method, path, query, body, None) == []


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "problem"),
    [
        ("GET", "/jobs/next", "", None, "no conversation has this request of an agent"),
        ("GET", "/tokens", "", None, "no conversation has this request of an agent"),
        ("GET", "/jobs/pending", "offset=3", None, "the parameter offset is in no accepted request"),
        ("PUT", "/agents/me/status", "", None, "the request has no body"),
        ("POST", f"/jobs/{JOB_ID}/claim", "", {"agentId": JOB_ID}, "the request has a body"),
        ("POST", f"/jobs/{JOB_ID}/complete", "", {"result": {}}, "request.result is in no recorded example"),
        ("POST", f"/jobs/{JOB_ID}/fail", "", {"errorMessage": 5}, "request.errorMessage is a number"),
    ],
)
def test_a_request_unlike_those_of_the_contract_is_a_problem(  # noqa: PLR0917 (one argument for each column)
    rules: ContractRules, method: str, path: str, query: str, body: Any, problem: str
) -> None:
    (found,) = rules.problems(method, path, query, body, None)
    assert found.startswith(problem)


def a_metric_type(**changed: Any) -> dict[str, Any]:
    times = {"createdAt": "2026-11-27T08:00:00Z", "updatedAt": "2026-11-27T08:00:00.5Z"}
    return {"id": JOB_ID, "name": "cpu", "entityType": "Resource", **times, **changed}


def an_answer(**changed: Any) -> dict[str, Any]:
    return {"status": 200, "headers": JSON_HEADERS, "body": a_metric_type()} | changed


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (an_answer(), ""),
        (an_answer(status=202), "the status 202 is in no recorded answer"),
        (an_answer(headers={"Content-Type": "text/html", "Vary": "Origin"}), "the header Content-Type is text/html"),
        (an_answer(body="<html>"), "answer is a str"),
        (an_answer(body=a_metric_type(unit="%")), "answer.unit is in no recorded example"),
        (an_answer(body={"id": JOB_ID}), "answer.createdAt is missing"),
        (an_answer(body=a_metric_type(name=None)), "answer.name is a NoneType"),
        (an_answer(body=a_metric_type(createdAt="yesterday")), "answer.createdAt is no time"),
        (an_answer(body=a_metric_type(id="17")), "answer.id is no identifier"),
    ],
)
def test_an_answer_unlike_the_recorded_ones_is_a_problem(
    rules: ContractRules, answer: dict[str, Any], problem: str
) -> None:
    found = rules.problems("GET", f"/metric-types/{JOB_ID}", "", None, answer)
    assert bool(found) == bool(problem)
    assert not found or found[0].startswith(problem)


# --- the order of the exchanges -----------------------------------------------------------------------------------


def exchanges_of(*calls: tuple[str, int | None], at: float = 1000.0) -> list[Exchange]:
    """Return exchanges, one a second, each from the verb of a request about the job and the status of its answer."""
    return [
        Exchange(
            seq=number,
            time=at + number,
            method="POST",
            path=f"/api/v1/jobs/{JOB_ID}/{verb}",
            query="",
            status=status,
            duration_s=0.1,
        )
        for number, (verb, status) in enumerate(calls, 1)
    ]


def violations_of(exchanges: list[Exchange], *outages: Outage, timed_out: frozenset[str] = frozenset()) -> list[str]:
    return contract_violations(ExchangeLog(io.StringIO()), exchanges, list(outages), set(timed_out))


def test_a_claimed_and_reported_job_violates_nothing() -> None:
    assert violations_of(exchanges_of(("claim", 204), ("complete", 204))) == []


def test_a_refused_claim_is_foreseen_only_after_a_lost_answer() -> None:
    assert violations_of(exchanges_of(("claim", None), ("claim", 400), ("complete", 204))) == []
    (found,) = violations_of(exchanges_of(("claim", 400)))
    assert "HTTP 400 is not foreseen here" in found


def test_a_refused_report_is_foreseen_only_after_a_lost_answer_or_a_time_out() -> None:
    refused = exchanges_of(("claim", 204), ("complete", 400))
    assert violations_of(refused, timed_out=frozenset({JOB_ID})) == []
    (found,) = violations_of(refused)
    assert "HTTP 400 is not foreseen here" in found


def test_a_403_is_foreseen_only_while_fulcrumcore_is_killed() -> None:
    calls = exchanges_of(("claim", 204), ("complete", 403), ("complete", 204))
    assert violations_of(calls, Outage("database", 1001.5, 1002.5)) == []
    (found,) = violations_of(calls, Outage("database", 900.0, 950.0))
    assert "HTTP 403 is not foreseen here" in found


def test_a_404_is_a_violation_even_while_fulcrumcore_is_killed() -> None:
    (found,) = violations_of(exchanges_of(("claim", 404)), Outage("process", 1000.0, 1002.0))
    assert "HTTP 404 is not foreseen here" in found


def test_a_missing_secret_is_foreseen_only_after_it_was_read() -> None:
    exchanges = exchanges_of(("claim", 200), ("claim", 404))
    for exchange in exchanges:
        exchange.path = f"/api/v1/vault/secrets/{JOB_ID}"
    assert violations_of(exchanges) == []
    (found,) = violations_of(exchanges[1:])
    assert "HTTP 404 is not foreseen here" in found


def test_a_report_without_a_claim_and_a_second_report_are_violations() -> None:
    (found,) = violations_of(exchanges_of(("complete", 204)))
    assert found.endswith("the job was not claimed before")
    (found,) = violations_of(exchanges_of(("claim", 204), ("complete", 204), ("fail", 204)))
    assert found.endswith("the report of this job was acknowledged before")


# --- the forwarder ------------------------------------------------------------------------------------------------


@pytest.fixture
def simulator() -> Iterator[SimulatorThread]:
    with running_simulator() as started:
        yield started


def send_request(forwarder: Forwarder, method: str, path: str, body: Any = None) -> requests.Response:
    headers = {"Authorization": f"Bearer {SEED_TOKEN}"}
    return requests.request(method, f"http://127.0.0.1:{forwarder.port}{path}", json=body, headers=headers, timeout=30)


def test_the_forwarder_passes_requests_and_answers_and_records_them(simulator: SimulatorThread) -> None:
    answers: list[Any] = []
    with running_forwarder(simulator.server.port, lambda exchange: answers.append(exchange.answer)) as forwarder:
        created = send_request(forwarder, "POST", "/api/v1/metric-types", {"name": "cpu", "entityType": "Resource"})
        listed = send_request(forwarder, "GET", "/api/v1/metric-types?sort=name")
        refused = send_request(forwarder, "GET", "/api/v1/metric-types/nonsense")
        deleted = send_request(forwarder, "DELETE", f"/api/v1/metric-types/{created.json()['id']}")
    assert listed.json()["items"] == [created.json()]
    assert "Date" in listed.headers
    assert answers == [created.json(), listed.json(), refused.json(), None]
    assert [(item.method, item.query, item.status) for item in forwarder.exchanges] == [
        ("POST", "", 201),
        ("GET", "sort=name", 200),
        ("GET", "", 400),
        ("DELETE", "", deleted.status_code),
    ]
    assert forwarder.exchanges[0].body == {"name": "cpu", "entityType": "Resource"}
    assert statuses_by_request(forwarder.exchanges)["GET /metric-types"] == {"200": 1}


def test_the_forwarder_ends_a_connection_whose_request_has_no_answer_and_repeats_nothing(
    simulator: SimulatorThread,
) -> None:
    simulator.add_fault("drop_after", method="POST", times=1)
    with running_forwarder(simulator.server.port) as forwarder:
        with pytest.raises(requests.ConnectionError):
            send_request(forwarder, "POST", "/api/v1/metric-types", {"name": "cpu", "entityType": "Resource"})
        assert len(send_request(forwarder, "GET", "/api/v1/metric-types").json()["items"]) == 1
        simulator.pause()
        with pytest.raises(requests.ConnectionError):
            send_request(forwarder, "GET", "/api/v1/metric-types")
    assert [item.status for item in forwarder.exchanges] == [None, 200, None]
    assert len(simulator.server.faults_and_history.entries()) == 2
