"""How the poller stores FulcrumCore's jobs: each job with an id gets a row, without the values that exceed a limit."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smith_lab.fulcrum_setup import AdminClient, CreatedObjects, bootstrap
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine
from support.databases import row

from executor.agent.poller import MAX_DEPTH, MAX_PAYLOAD_CHARS, Poller, check_json_object
from executor.agent.state import AgentState
from executor.database import queries
from executor.database.engine import read_only_session
from executor.database.times import utc_now
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumJob
from executor.fulcrum.vault import SecretResolver

JOB_TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def core() -> Iterator[tuple[SimulatorThread, CreatedObjects]]:
    """Run a FulcrumCore simulator with one agent for the whole module. Every test adds the jobs that it needs."""
    with running_simulator() as simulator, AdminClient(simulator.url) as admin:
        yield simulator, bootstrap(admin)


@pytest.fixture
def poller(engine: Engine, core: tuple[SimulatorThread, CreatedObjects]) -> Poller:
    """Return the agent's poller with an empty database. FulcrumCore has no pending job for it."""
    simulator, world = core
    simulator.delete_raw_pending_items()
    client = FulcrumClient(simulator.url, lambda: world.agent_token)
    state = AgentState(agent_id=world.agent_id)
    return Poller(
        engine=engine,
        fulcrum=client,
        secret_resolver=SecretResolver(client),
        state=state,
        job_timeout_s=JOB_TIMEOUT_S,
        interval_s=2.0,
    )


@pytest.fixture
def simulator(core: tuple[SimulatorThread, CreatedObjects]) -> SimulatorThread:
    """Return the FulcrumCore simulator that the poller polls."""
    return core[0]


def raw_job(poller: Poller | None = None, **members: Any) -> dict[str, Any]:
    """Return a job as FulcrumCore sends it. A member with the value `...` is left out."""
    service_id = str(uuid.uuid4())
    service = {"id": service_id, "name": "web", "status": "New", "properties": {"cores": 2}}
    job: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "action": "create",
        "status": "Pending",
        "priority": 1,
        "agentId": poller.state.agent_id if poller else None,
        "serviceId": service_id,
        "service": service,
        "createdAt": "2026-03-01T12:00:00Z",
    }
    return {name: value for name, value in (job | members).items() if value is not ...}


def poll_and_read_row(poller: Poller, simulator: SimulatorThread, **members: Any) -> Any:
    """Let FulcrumCore list one job with these members, poll, and return the job's row."""
    job = raw_job(poller, **members)
    simulator.add_raw_pending_items(job)
    poller.poll()
    with read_only_session(poller.engine) as session:
        (listed,) = queries.list_jobs(session)
    return row(poller.engine, listed.id)


# --- check_json_object ------------------------------------------------------------------------------------------------


def nested_object(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, None),
        ({}, None),
        ({"a": [1, 2.5, None, True, "ü", {"b": []}]}, None),
        (nested_object(MAX_DEPTH - 1), None),
        ({"a": 2**63}, None),
        ([], "is not a JSON object"),
        ("text", "is not a JSON object"),
        (5, "is not a JSON object"),
        (nested_object(MAX_DEPTH), "is nested more than 32 levels deep"),
        (nested_object(sys.getrecursionlimit() * 3), "is nested more than 32 levels deep"),
        ({"a": float("nan")}, "contains a number that is not finite"),
        ({"a": [{"b": float("inf")}]}, "contains a number that is not finite"),
        ({"a": "x" * (MAX_PAYLOAD_CHARS + 1)}, "is larger than 262144 characters"),
        ({"x" * (MAX_PAYLOAD_CHARS + 1): 1}, "is larger than 262144 characters"),
        ({"a": [0] * MAX_PAYLOAD_CHARS}, "is larger than 262144 characters"),
        ({str(number): {} for number in range(MAX_PAYLOAD_CHARS)}, "is larger than 262144 characters"),
    ],
    ids=lambda value: "" if isinstance(value, dict | list) else str(value)[:20],
)
def test_a_value_over_a_limit_is_not_stored_and_the_problem_is_named(value: Any, problem: str | None) -> None:
    assert check_json_object(value) == (None if problem else value, problem)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
))  # fmt: skip
def test_any_value_is_accepted_or_its_problem_is_named(value: Any) -> None:
    accepted, problem = check_json_object(value)
    assert accepted == value if problem is None else accepted is None


# --- rows ---------------------------------------------------------------------------------------------------------


def test_a_job_becomes_a_row_with_its_deadline(poller: Poller, simulator: SimulatorThread) -> None:
    group = str(uuid.uuid4())
    job = raw_job(poller)
    service = job["service"] | {"groupId": group.upper(), "consumerId": None, "unknown": 1}
    job_row = poll_and_read_row(poller, simulator, **job | {"service": service, "priority": 7, "params": {"cores": 4}})
    assert (job_row.fulcrum_id, job_row.action, job_row.priority, job_row.status) == (job["id"], "create", 7, "pending")
    assert (job_row.service_id, job_row.group_id, job_row.params) == (job["serviceId"], group, {"cores": 4})
    assert job_row.core_created_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert job_row.deadline_at - job_row.core_created_at == timedelta(seconds=JOB_TIMEOUT_S)
    assert (job_row.defect, job_row.claimed_at) == (None, None)
    assert (job_row.service["properties"], job_row.service["name"]) == ({"cores": 2}, "web")
    assert "unknown" not in job_row.service


@pytest.mark.parametrize(
    ("priority", "expected"), [(0, 0), (-5, -5), (1, 1), (5000, 1000), (-5000, -1000), (..., 1), (None, 1)]
)
def test_a_priority_is_kept_within_bounds(
    poller: Poller, simulator: SimulatorThread, priority: Any, expected: int
) -> None:
    assert poll_and_read_row(poller, simulator, priority=priority).priority == expected


@pytest.mark.parametrize(
    ("members", "defect"),
    [
        ({"service": None}, "the service is missing or has no valid id"),
        ({"service": ...}, "the service is missing or has no valid id"),
        ({"service": {"id": "not-a-uuid"}}, "the service is missing or has no valid id"),
        ({"service": []}, "the service is missing or has no valid id"),
        ({"params": []}, "params is not a JSON object"),
        ({"params": "text"}, "params is not a JSON object"),
        ({"params": nested_object(40)}, "params is nested more than 32 levels deep"),
        ({"params": {"a": "x" * 300_000}}, "params is larger than 262144 characters"),
        ({"priority": "high"}, "priority"),
        ({"priority": 2**63}, "priority"),
        ({"action": None}, "action: missing"),
        ({"params": {"name": "nul\x00"}}, "params"),
    ],
    ids=str,
)
def test_an_invalid_job_is_stored_with_its_defect(
    poller: Poller, simulator: SimulatorThread, members: dict[str, Any], defect: str
) -> None:
    """To fail the job, the agent must claim it. If the agent ignored it, it would stay Pending and block its group."""
    job_row = poll_and_read_row(poller, simulator, **members)
    assert defect in job_row.defect
    assert len(job_row.defect) <= 500
    assert job_row.defect.isprintable()


@pytest.mark.parametrize(
    ("action", "stored_action"),
    [
        ("create", "create"),
        ("../../x", "../../x"),
        ("create;rm", "create;rm"),
        ("create\n", "create?"),
        ("\x1b[2J\u202ecreate", "?[2J?create"),
        ("x" * 300, "x" * 100),
        ("", "?"),
        (None, "?"),
        (5, "?"),
    ],
)
def test_the_stored_action_of_a_job_is_short_and_printable(
    poller: Poller, simulator: SimulatorThread, action: Any, stored_action: str
) -> None:
    assert poll_and_read_row(poller, simulator, action=action).action == stored_action


@pytest.mark.parametrize("created", [None, ..., "yesterday", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59+14:00", 5])
def test_an_impossible_creation_time_is_replaced_by_now(
    poller: Poller, simulator: SimulatorThread, created: Any
) -> None:
    before = utc_now()
    assert before <= poll_and_read_row(poller, simulator, createdAt=created).core_created_at <= utc_now()


def test_invalid_jobs_do_not_prevent_the_storage_of_a_valid_job(poller: Poller, simulator: SimulatorThread) -> None:
    valid_job = raw_job(poller)
    simulator.add_raw_pending_items(
        "text",
        None,
        [],
        {},
        {"id": "no-uuid"},
        raw_job(poller, params={"a": "\x00"}),
        nested_object(200),
        valid_job,
        valid_job,
    )
    poller.poll()
    with read_only_session(poller.engine) as session:
        rows = queries.list_jobs(session)
    assert len(rows) == 2
    assert valid_job["id"] in {job_row.fulcrum_id for job_row in rows}


def test_a_job_of_another_agent_is_not_stored(poller: Poller, simulator: SimulatorThread) -> None:
    simulator.add_raw_pending_items(raw_job(poller, agentId=str(uuid.uuid4())), raw_job(poller, agentId=None))
    poller.poll()
    with read_only_session(poller.engine) as session:
        assert len(queries.list_jobs(session)) == 1


def test_polling_the_same_job_twice_writes_one_row(poller: Poller, simulator: SimulatorThread) -> None:
    simulator.add_raw_pending_items(raw_job(poller))
    for _ in range(3):
        poller.poll()
    with read_only_session(poller.engine) as session:
        assert len(queries.list_jobs(session)) == 1
    assert poller.state.dispatch_requested.is_set()


def test_the_wait_between_polls_grows_up_to_a_maximum_while_no_job_arrives(
    poller: Poller, simulator: SimulatorThread
) -> None:
    waits_s = [poller.poll() for _ in range(130)]
    assert waits_s[:30] == [2.0] * 30
    assert waits_s == sorted(waits_s)
    assert waits_s[-1] == 10.0
    simulator.add_raw_pending_items(raw_job(poller))
    assert poller.poll() == 2.0


def test_an_agent_that_does_not_know_its_id_does_not_poll(poller: Poller, simulator: SimulatorThread) -> None:
    poller.state.agent_id = ""
    simulator.clear_history()
    assert poller.poll() == 2.0
    assert simulator.history(path_end="/jobs/pending") == []


MEMBERS = st.sampled_from(["action", "priority", "params", "service", "createdAt", "agentId"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "name", "properties"]), inner),
    max_leaves=10,
)


@given(st.dictionaries(MEMBERS, ANYTHING))
def test_any_job_with_an_id_becomes_a_row_that_a_database_accepts(members: dict[str, Any]) -> None:
    poller = Poller(
        engine=None,  # type: ignore[arg-type]  the test stores no row
        fulcrum=None,
        secret_resolver=SecretResolver(None),  # type: ignore[arg-type]
        state=AgentState(),
        job_timeout_s=JOB_TIMEOUT_S,
        interval_s=2.0,
    )
    new = poller._new_row(FulcrumJob.parse(raw_job() | members), False)
    values = json.dumps([new.action, new.defect, new.params, new.service], allow_nan=False, ensure_ascii=False)
    assert r"\u0000" not in values.encode().decode()
    assert 1 <= len(new.action) <= 100
    assert new.action.isprintable()
    assert -1000 <= new.priority <= 1000
    assert new.deadline_at > new.core_created_at


def test_jobs_without_an_id_are_counted_in_one_log_line_at_a_bounded_rate(
    poller: Poller, simulator: SimulatorThread, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[Any]:
        return [record.msg for record in caplog.records if "pending_jobs_ignored" in str(record.msg)]

    simulator.add_raw_pending_items(*[{"action": "create"}] * 50)
    for _ in range(3):
        poller.poll()
    assert len(lines()) == 1
    assert "50" in str(lines()[0])
    simulator.add_raw_pending_items({"action": "create"})
    poller.poll()
    assert len(lines()) == 2, "the number has changed"


def test_jobs_of_other_agents_are_counted_in_one_log_line_at_a_bounded_rate(
    poller: Poller, simulator: SimulatorThread, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[Any]:
        return [record.msg for record in caplog.records if "jobs_of_other_agents_ignored" in str(record.msg)]

    def inject(count: int) -> None:
        simulator.delete_raw_pending_items()
        simulator.add_raw_pending_items(*[raw_job(poller, agentId=str(uuid.uuid4())) for _ in range(count)])

    for count in (3, 3, 2, 3, 0, 3):
        inject(count)
        poller.poll()
    assert len(lines()) == 1
    assert "3" in str(lines()[0])
    inject(4)
    poller.poll()
    assert len(lines()) == 2, "the number has grown"
