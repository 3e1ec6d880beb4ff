"""Resolving references to FulcrumCore's vault, and what happens if the vault does not return a value."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smith_lab.fulcrum_setup import VM_SERVICE_TYPE_FILE, AdminClient, CreatedObjects, bootstrap, read_type_file
from smith_lab.simulator.control import SimulatorThread, running_simulator

from executor.errors import FulcrumUnavailable, JobError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import MAX_SECRET_CHARS, MAX_VAULT_ATTEMPTS, JobForSecretResolver, SecretResolver
from executor.model import PlaybookRun
from executor.redaction import MASK, Redactor
from executor.runs.actions import collection_folder
from executor.runs.runner import Runner, RunnerPaths
from executor.shared.error_codes import ErrorCode

MISSING_SECRET_REFERENCE = "vault://0b6f3a52-0000-4000-8000-000000000000"
SECRET_TYPE = {"type": "persistent"}
#: Properties that the tests add to the service type: a secret that may be any JSON, one that is not secret, and an
#: array of objects with a secret.
PROPERTIES = {
    "anything": {"type": "json", "secret": SECRET_TYPE},
    "note": {"type": "string"},
    "users": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "password": {"type": "string", "secret": SECRET_TYPE}},
        },
    },
}


@pytest.fixture(scope="module")
def core() -> Iterator[tuple[SimulatorThread, CreatedObjects, str]]:
    """Return a FulcrumCore and the id of a service type with `PROPERTIES`."""
    with running_simulator() as simulator, AdminClient(simulator.url) as admin:
        service_type = copy.deepcopy(read_type_file(VM_SERVICE_TYPE_FILE)) | {"name": "vm-with-secrets"}
        service_type["propertySchema"]["properties"] |= PROPERTIES
        ids = bootstrap(admin)
        yield simulator, ids, admin.create("service-types", **service_type)["id"]


@pytest.fixture
def simulator(core: tuple[SimulatorThread, CreatedObjects, str]) -> Iterator[SimulatorThread]:
    yield core[0]
    core[0].set_switches(vault_off=False)
    core[0].clear_faults()


@pytest.fixture
def resolver(core: tuple[SimulatorThread, CreatedObjects, str]) -> SecretResolver:
    simulator, ids, _type_id = core
    return SecretResolver(FulcrumClient(simulator.url, lambda: ids.agent_token, read_timeout_s=5))


@pytest.fixture
def type_id(core: tuple[SimulatorThread, CreatedObjects, str]) -> str:
    return core[2]


def job_of(
    type_id: str, properties: dict[str, Any], *, action: str = "create", status: str = "New", **more: Any
) -> JobForSecretResolver:
    service = {"serviceTypeId": type_id, "status": status, "properties": more.pop("before", {})}
    return JobForSecretResolver(action=action, params=properties, service=service, **{"attempt": 1, **more})


def test_only_properties_that_the_type_marks_secret_are_resolved(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str
) -> None:
    reference = simulator.add_secret("correct horse")
    job_properties = {
        "ciPassword": reference,
        "note": reference,  # not a secret, but it looks like a reference
        "hostname": "vault://x",
        "users": [{"name": reference, "password": reference}, {"name": "b", "password": "in the clear"}],
        "unknown": {"ciPassword": reference},
    }
    before = copy.deepcopy(job_properties)
    resolved = resolver.resolve(job_of(type_id, job_properties), job_properties)
    assert resolved == {
        **job_properties,
        "ciPassword": "correct horse",
        "users": [{"name": reference, "password": "correct horse"}, {"name": "b", "password": "in the clear"}],
    }
    assert job_properties == before, "the properties of the job still contain the references"


def test_properties_without_a_reference_cause_no_request(resolver: SecretResolver, simulator: SimulatorThread) -> None:
    simulator.add_fault("status", method="GET", path=".*", times=1, status=503)
    properties = {"ciPassword": "x", "note": "see vault"}
    assert resolver.resolve(job_of("no-such-type", properties), properties) is properties


@pytest.mark.parametrize(
    "reference", ["vault://", "vault://../agents/me", "vault://%2e%2e/tokens", MISSING_SECRET_REFERENCE, "vault://x y"]
)
def test_a_first_create_fails_if_its_secret_does_not_exist(
    resolver: SecretResolver, type_id: str, reference: str
) -> None:
    properties = {"ciPassword": reference}
    with pytest.raises(JobError) as caught:
        resolver.resolve(job_of(type_id, properties), properties)
    assert caught.value.code is ErrorCode.SECRET_MISSING
    assert reference not in caught.value.detail


@pytest.mark.parametrize(
    ("action", "status"), [("create", "Failed"), ("update", "Started"), ("start", "Stopped"), ("leak", "Started")]
)
def test_a_repeated_create_or_another_action_omits_a_property_whose_secret_does_not_exist(
    resolver: SecretResolver, type_id: str, action: str, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    properties = {
        "ciPassword": MISSING_SECRET_REFERENCE,
        "users": [{"password": MISSING_SECRET_REFERENCE}, {"password": MISSING_SECRET_REFERENCE, "name": "b"}],
    }
    job = job_of(type_id, properties, action=action, status=status)
    names: list[str] = []
    assert resolver.resolve(job, properties, on_property_left_out=names.append) == {"users": [{}, {"name": "b"}]}
    assert sorted(names) == ["ciPassword", "password", "password"]
    left_out = [record.msg["property"] for record in caplog.records if "secret_left_out" in str(record.msg)]
    assert sorted(left_out) == ["ciPassword", "password", "password"], "each omitted password is logged"


def test_an_update_does_not_request_a_secret_that_it_does_not_change(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str
) -> None:
    """The vault may no longer have the value of the old reference. The VM keeps its password."""
    old, new = simulator.add_secret("old"), simulator.add_secret("new")
    before = {"ciPassword": old, "anything": old}
    job = job_of(type_id, before | {"anything": new}, action="update", status="Started", before=before)
    assert resolver.resolve(job, job.params) == {"anything": "new"}


@pytest.mark.parametrize("path", ["/vault/secrets/", "/service-types/"])
@pytest.mark.parametrize("status", [400, 404, 409, 500])
def test_no_text_of_fulcrumcore_is_in_the_error_of_a_job(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str, path: str, status: int
) -> None:
    properties = {"ciPassword": simulator.add_secret("x")}
    body = {"error": "CAPACITY: SELECT * FROM vault (SQLSTATE 42P01)", "status": "hostile"}
    simulator.add_fault("status", status=status, body=body, method="GET", path=path)
    job = job_of(type_id, properties, attempt=MAX_VAULT_ATTEMPTS)
    try:
        with pytest.raises((JobError, FulcrumUnavailable)) as caught:
            resolver.resolve(job, properties)
    finally:
        simulator.clear_faults()
    assert isinstance(caught.value, JobError) or status == 500, "a refusal ends the job, and does not crash it"
    if isinstance(caught.value, JobError):
        assert caught.value.code is ErrorCode.SECRET_MISSING
        assert "SQL" not in caught.value.detail
        assert "hostile" not in caught.value.detail


def test_a_disabled_vault_is_retried_and_then_fails_the_job(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str
) -> None:
    properties = {"ciPassword": simulator.add_secret("x")}
    simulator.set_switches(vault_off=True)
    for attempt in range(1, MAX_VAULT_ATTEMPTS):
        with pytest.raises(FulcrumUnavailable):
            resolver.resolve(job_of(type_id, properties, attempt=attempt), properties)
    with pytest.raises(JobError) as caught:
        resolver.resolve(job_of(type_id, properties, attempt=MAX_VAULT_ATTEMPTS), properties)
    assert caught.value.code is ErrorCode.SECRET_MISSING
    assert "vault cannot be read" in caught.value.detail


def test_an_outage_is_not_reported_as_a_missing_secret(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str
) -> None:
    properties = {"ciPassword": simulator.add_secret("x")}
    simulator.add_fault("status", method="GET", path=".*/vault/.*", times=9, status=503)
    with pytest.raises(FulcrumUnavailable):
        resolver.resolve(job_of(type_id, properties, attempt=7), properties)


@pytest.mark.parametrize("type_id", [None, "00000000-0000-4000-8000-000000000000"])
def test_without_a_known_service_type_a_job_with_a_secret_fails(resolver: SecretResolver, type_id: Any) -> None:
    properties = {"ciPassword": MISSING_SECRET_REFERENCE}
    with pytest.raises(JobError) as caught:
        resolver.resolve(job_of(type_id, properties), properties)
    assert caught.value.code is ErrorCode.SECRET_MISSING


def test_a_secret_of_a_megabyte_is_refused(resolver: SecretResolver, simulator: SimulatorThread, type_id: str) -> None:
    properties = {"anything": simulator.add_secret("x\n" * 500_000)}
    with pytest.raises(JobError) as caught:
        resolver.resolve(job_of(type_id, properties), properties)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert f"the secret anything is longer than {MAX_SECRET_CHARS}" in caught.value.detail


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("quotes ' \" and\nlines\t{{ x }} $HOME ü☃💥", ("quotes ' \" and\nlines\t{{ x }} $HOME ü☃💥",)),
        ({"user": "root", "keys": ["key-1", {"deep": "key-2"}], "on": True, "no": None}, ("root", "key-1", "key-2")),
        (["a", "a"], ("a",)),
        (123456, ("123456",)),
        ("", ("",)),
        (None, ()),
        (False, ()),
    ],
)
def test_secret_values_returns_every_text_inside_a_secret(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str, value: Any, texts: tuple[str, ...]
) -> None:
    properties = {"anything": simulator.add_secret(value), "note": "not secret"}
    job = job_of(type_id, properties)
    resolved = resolver.resolve(job, properties)
    assert resolved["anything"] == value
    assert resolver.secret_values(job, resolved) == texts


JSON = st.recursive(
    st.text(st.characters(codec="utf-8"), max_size=20) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_any_value_of_the_vault_is_returned_unchanged(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str, value: Any
) -> None:
    properties = {"anything": simulator.add_secret(value)}
    assert resolver.resolve(job_of(type_id, properties), properties)["anything"] == value


#: Prints every secret of the run in a way that Ansible writes to the artifacts.
LEAKING_PLAYBOOK = """---
- name: Tell everything
  hosts: all
  gather_facts: false
  tasks:
    - name: Say it
      ansible.builtin.debug:
        msg: "{{ vm }} {{ vm.properties.anything.pin }} {{ vm.properties.anything.lines | to_json }}"
"""


def test_a_secret_that_is_an_object_is_masked_in_the_artifacts_of_a_run(
    resolver: SecretResolver, simulator: SimulatorThread, type_id: str, tmp_path: Path
) -> None:
    value = {"pin": 918273645, "lines": 'it\'s "one"\nand the other ü☃💥', "in": [{"deep": "key-material-7"}]}
    properties = {"anything": simulator.add_secret(value)}
    job = job_of(type_id, properties)
    resolved = resolver.resolve(job, properties)
    playbook = tmp_path / "tell.yml"
    playbook.write_text(LEAKING_PLAYBOOK)
    paths = RunnerPaths(
        collection_folder=collection_folder(), run_dir=tmp_path / "run", artifacts_dir=tmp_path / "kept"
    )
    runner = Runner(paths, lambda: {"api_host": "pve.example", "api_token_secret": "nobody's"}, redactor=Redactor())
    artifacts = runner.run(
        PlaybookRun(
            ident="tell-1",
            action="tell",
            playbook=playbook,
            vm={"properties": resolved},
            timeout_s=120,
            secrets=resolver.secret_values(job, resolved),
        )
    )
    written = "".join(file.read_text() for file in artifacts.folder.rglob("*") if file.is_file())
    assert MASK in written
    for secret in ("918273645", "and the other", "key-material-7", "it's"):
        assert secret not in written
