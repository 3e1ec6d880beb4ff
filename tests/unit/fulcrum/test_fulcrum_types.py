"""How FulcrumCore's objects and its JSON are read. An invalid member of an object is a defect (`defects`)."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.fulcrum.types import (
    FulcrumAgent,
    FulcrumJob,
    FulcrumService,
    MetricType,
    ServiceType,
)
from executor.fulcrum.untrusted_json import MAX_JSON_DEPTH, parse_json

JOB_ID = "1d6c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
SERVICE_ID = "e5b72a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
AGENT_ID = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
TYPE_FILE = Path(__file__).resolve().parents[3] / "deploy" / "service-type-vm.json"


def raw_job(**members: Any) -> dict[str, Any]:
    """Return a job as `/jobs/pending` sends it, with the given members replaced."""
    job = {
        "id": JOB_ID,
        "agentId": AGENT_ID,
        "serviceId": SERVICE_ID,
        "action": "create",
        "params": {"cores": 2, "ciPassword": "vault://97d12a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"},
        "status": "Pending",
        "priority": 3,
        "createdAt": "2026-01-02T03:04:05Z",
        "service": {
            "id": SERVICE_ID,
            "agentId": AGENT_ID,
            "name": "web-1",
            "status": "New",
            "agentInstanceId": f"{AGENT_ID}/100000",
            "properties": {"cores": 2},
        },
    }
    return job | members


def nested(levels: int) -> Any:
    """Return a list that is nested so many levels deep."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_a_valid_job_is_read_without_defects() -> None:
    job = FulcrumJob.parse(raw_job())
    assert (job.id, job.action, job.status, job.priority) == (JOB_ID, "create", "Pending", 3)
    assert job.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert job.params["cores"] == 2
    assert job.service
    assert (job.service.id, job.service.name, job.service.properties) == (SERVICE_ID, "web-1", {"cores": 2})
    assert job.service.agent_instance_id == f"{AGENT_ID}/100000"
    assert job.defects == ()


def test_unknown_members_are_ignored_even_a_member_with_the_name_defects() -> None:
    job = FulcrumJob.parse(raw_job(defects=["made up"], _defects=["made up"], futureThing={"a": 1}))
    assert job.defects == ()


@pytest.mark.parametrize(
    ("members", "defect"),
    [
        ({"action": 7}, "action: "),
        ({"action": None}, "action: missing"),
        ({"action": ""}, "action: missing"),
        ({"status": ["Pending"]}, "status: "),
        ({"priority": "urgent"}, "priority: "),
        ({"priority": 2**70}, "priority: "),
        ({"priority": math.nan}, "priority: "),
        ({"createdAt": "yesterday"}, "createdAt: "),
        ({"createdAt": {"at": 1}}, "createdAt: "),
        ({"createdAt": "0001-01-01T00:00:00+14:00"}, "createdAt: "),
        ({"agentId": "agent-one"}, "agentId: "),
        ({"serviceId": "../../agents/me"}, "serviceId: "),
        ({"service": "web-1"}, "service: "),
        ({"service": None}, "service: missing"),
        ({"service": {"name": "no id"}}, "service: "),
        ({"serviceId": JOB_ID}, "service: its id"),
        ({"params": {"cores": math.inf}}, "params: "),
        ({"params": {"name": "a\x00b"}}, "params: "),
        ({"params": {"name": "\ud800"}}, "params: "),
        ({"params": {"a\x00b": 1}}, "params: "),
        ({"params": {"deep": nested(MAX_JSON_DEPTH)}}, "params: "),
    ],
)
def test_an_invalid_member_is_a_defect_and_the_job_keeps_its_id(members: dict[str, Any], defect: str) -> None:
    job = FulcrumJob.parse(raw_job(**members))
    assert job.id == JOB_ID
    assert [text for text in job.defects if text.startswith(defect)] == list(job.defects)
    assert len(job.defects) == 1
    json.dumps(job.model_dump(mode="json"), allow_nan=False).encode()


def test_an_invalid_member_of_the_service_does_not_affect_its_other_members() -> None:
    service = raw_job()["service"] | {"status": 4, "properties": [1], "agentInstanceData": {"x": math.nan}}
    job = FulcrumJob.parse(raw_job(service=service))
    assert job.service
    assert (job.service.id, job.service.name, job.service.status) == (SERVICE_ID, "web-1", None)
    assert sorted(text.partition(":")[0] for text in job.defects) == [
        "service.agentInstanceData",
        "service.properties",
        "service.status",
    ]


def test_the_text_of_a_defect_does_not_contain_the_invalid_value() -> None:
    """A value may be a secret, and a defect is sent to FulcrumCore and logged."""
    job = FulcrumJob.parse(raw_job(action={"password": "hunter2!"}, createdAt="hunter2!", service="hunter2!"))
    assert len(job.defects) == 3
    assert "hunter2!" not in " ".join(job.defects)


def test_the_repr_of_a_job_has_no_member_that_may_hold_secrets() -> None:
    text = repr(
        FulcrumJob.parse(
            raw_job(params={"ciPassword": "hunter2!"}, service={"id": SERVICE_ID, "properties": {"p": "hunter2!"}})
        )
    )
    assert JOB_ID in text
    assert "hunter2!" not in text


@pytest.mark.parametrize("ident", [None, 7, "", "1", JOB_ID + "\n", f"{{{JOB_ID}}}", JOB_ID.replace("-", ""), "ä" * 36])
def test_a_job_without_a_uuid_cannot_be_read(ident: Any) -> None:
    with pytest.raises(ValueError, match="id"):
        FulcrumJob.parse(raw_job(id=ident))


def test_ids_are_written_in_lower_case() -> None:
    """FulcrumCore compares UUIDs as numbers, our database compares their text."""
    assert FulcrumJob.parse(raw_job(id=JOB_ID.upper())).id == JOB_ID


def test_a_time_with_another_zone_becomes_utc() -> None:
    job = FulcrumJob.parse(raw_job(createdAt="2026-01-02T05:04:05+02:00", claimedAt="2026-01-02T03:04:05"))
    assert job.created_at == job.claimed_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_job_is_the_same_after_storing_and_loading_it() -> None:
    """The poller stores the service as FulcrumCore sent it, and reads it after a restart."""
    service = FulcrumJob.parse(raw_job()).service
    assert service
    stored = json.loads(json.dumps(service.model_dump(mode="json", by_alias=True)))
    assert FulcrumService.model_validate(stored) == service


@settings(deadline=None)  # a slow machine must not fail the test
@given(
    st.dictionaries(
        st.sampled_from(["id", "action", "priority", "params", "service", "createdAt", "agentId", "status", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "name", "properties", ""]), inner),
        ),
    )
)
def test_any_json_object_with_an_id_is_read_as_a_job(members: dict[str, Any]) -> None:
    job = FulcrumJob.parse(members | {"id": JOB_ID})
    json.dumps(job.model_dump(mode="json"), allow_nan=False).encode()


def test_an_agent_is_disabled_by_its_status_or_by_that_of_its_participant() -> None:
    def agent(status: str, participant: str) -> FulcrumAgent:
        raw = {"id": AGENT_ID, "status": status, "participant": {"id": SERVICE_ID, "status": participant}}
        return FulcrumAgent.parse(raw)

    assert not agent("Connected", "Enabled").is_disabled
    assert agent("Disabled", "Enabled").is_disabled
    assert agent("Connected", "Disabled").is_disabled
    assert not FulcrumAgent.parse({"id": AGENT_ID}).is_disabled


def test_an_agent_without_tags_and_configuration_has_empty_ones() -> None:
    """FulcrumCore sends `tags: null` if they were never set, and omits the configuration."""
    agent = FulcrumAgent.parse({"id": AGENT_ID, "tags": None})
    assert (agent.tags, agent.configuration, agent.defects) == ([], {}, ())


def test_the_secret_property_of_the_shipped_service_type_is_found() -> None:
    raw = json.loads(TYPE_FILE.read_text())
    assert ServiceType.parse(raw | {"id": SERVICE_ID}).secret_paths() == {("ciPassword",)}


def test_secrets_are_found_at_any_depth_and_invalid_schemas_are_skipped() -> None:
    secret = {"type": "string", "secret": {"type": "persistent"}}
    users = {
        "type": "array",
        "items": {"type": "object", "properties": {"password": secret, "name": {"type": "string"}}},
    }
    schema = {
        "properties": {
            "token": secret,
            "ipmi": {"type": "object", "properties": {"password": secret}},
            "users": users,
            "properties": {"type": "string"},
            "odd": None,
            "odder": {"properties": ["a"], "items": "b"},
        }
    }
    found = ServiceType.parse({"id": SERVICE_ID, "propertySchema": schema}).secret_paths()
    assert found == {("token",), ("ipmi", "password"), ("users", "*", "password")}
    assert ServiceType.parse({"id": SERVICE_ID}).secret_paths() == set()


def test_the_name_and_the_entity_type_of_a_metric_type_are_read() -> None:
    metric = MetricType.parse({"id": SERVICE_ID, "name": "vm.cpu.usage", "entityType": "Resource"})
    assert (metric.name, metric.entity_type) == ("vm.cpu.usage", "Resource")


# JSON


@pytest.mark.parametrize(
    "content", [b"", b" ", b"<html>", b'{"a":', b"\xff\xfe", b'"\xff"', b"[" * 100_000, b'["' + b"[" * 100]
)
def test_text_that_is_not_json_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


def test_json_with_a_string_that_is_not_closed_is_refused_in_one_pass() -> None:
    """A search that begins again at each quote would take minutes for this text."""
    for end in ("", "\\"):
        with pytest.raises(ValueError, match="string that is not closed"):
            parse_json(("[" * (MAX_JSON_DEPTH + 1) + '"' + '\\"' * 400_000 + end).encode())


def test_json_is_read_with_a_byte_order_mark_and_with_the_last_of_two_equal_names() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e309", "9" * 5000, "-" + "9" * 5000])
def test_a_number_that_is_not_finite_is_a_defect_of_its_job_and_of_no_other(number: str) -> None:
    valid_job, invalid_job = json.dumps(raw_job()), json.dumps(raw_job(params={"cores": "@"})).replace('"@"', number)
    jobs = [FulcrumJob.parse(item) for item in parse_json(f"[{valid_job}, {invalid_job}]".encode())]
    assert [job.defects for job in jobs] == [(), ("params: a number that is not finite",)]


@pytest.mark.parametrize("levels", [MAX_JSON_DEPTH + 1, 2_000, 200_000])
def test_json_that_is_nested_too_deeply_is_a_defect_of_its_job_and_of_no_other(levels: int) -> None:
    """The text also has brackets and quotes inside strings, which do not count as levels."""
    bomb = '{"text": "]]}\\"[[", "bomb": ' + '{"a":[' * levels + "1" + "]}" * levels + ', "after": 2}'
    valid_job, invalid_job = json.dumps(raw_job()), json.dumps(raw_job(params="@")).replace('"@"', bomb)
    jobs = [FulcrumJob.parse(item) for item in parse_json(f"[{valid_job}, {invalid_job}, {valid_job}]".encode())]
    assert [job.defects[0].partition(":")[0] if job.defects else "" for job in jobs] == ["", "params", ""]
    assert jobs[1].service == jobs[0].service
