"""Text of a service is never evaluated: in no text field, and neither by Ansible nor by Proxmox (promise R13)."""

from __future__ import annotations

import ipaddress
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus import JINJA, corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smith_lab.system import LabSystem, run_lab_system

from executor.database.vm_names import vm_name
from executor.errors import JobError
from executor.model import PlaybookRun, RunStatus
from executor.redaction import Redactor
from executor.runs.actions import collection_folder
from executor.runs.extra_vars import make_description
from executor.runs.plan import find_playbook, plan
from executor.runs.request import PlaybookSettings, RunRequest
from executor.runs.runner import Runner, RunnerPaths
from executor.runs.vm_properties import VmProperties
from executor.shared.error_codes import ErrorCode

pytestmark = pytest.mark.timeout(900)

SERVICE = "0a1b2c3d-1111-4000-8000-000000000001"
MINIMAL = {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"
#: Codes by which a property may be refused before anything runs.
REFUSALS = frozenset({ErrorCode.INVALID_REQUEST, ErrorCode.NOT_FOUND, ErrorCode.UNSUPPORTED_ACTION})
#: A playbook that uses its input in each way in which Ansible might evaluate it, and then writes it to a file.
ECHO = """---
- name: Echo the input
  hosts: all
  gather_facts: false
  vars:
    again: "{{ vm }}"
    as_text: "{% for case in vm.cases %}{{ case }}{% endfor %}"
    joined: "{{ vm.cases | map('to_json') | join('\\n') }}"
  tasks:
    - name: Template the input once more
      ansible.builtin.set_fact:
        kept: "{{ again.cases }}"
        length: "{{ as_text | length + joined | length }}"

    - name: Write the input
      ansible.builtin.copy:
        content: "{{ kept | to_json }}"
        dest: "{{ lookup('ansible.builtin.env', 'HOME') }}/../../../said.json"
        mode: "0600"
      when: (length | int) > 0
"""


def text_fields(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of each text in VmProperties, as in `networks[].bridge`, so that no field is missed."""
    definitions = VmProperties.model_json_schema(by_alias=True).get("$defs", {})
    for kind in (schema, *schema.get("anyOf", ())):
        kind = definitions[kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind  # noqa: PLW2901 (the definition)
        if kind.get("type") == "string":
            yield path
        for name, member in kind.get("properties", {}).items():
            yield from text_fields(member, f"{path}.{name}" if path else name)
        if "items" in kind:
            yield from text_fields(kind["items"], f"{path}[]")


FIELDS = tuple(dict.fromkeys(text_fields(VmProperties.model_json_schema(by_alias=True))))
#: For a field: the other members without which each value of the field is refused.
REQUIRED_MEMBERS: dict[str, dict[str, Any]] = {
    "network.ipv4Cidr": {"mode": "static"},
    "network.ipv4Gateway": {"mode": "static", "ipv4Cidr": "192.0.2.9/24"},
    "networks[].ipv4Gateway": {"mode": "static", "ipv4Cidr": "192.0.2.9/24"},
    "network.ipv6Gateway": {"ipv6Mode": "static", "ipv6Cidr": "2001:db8::9/64"},
    "networks[].ipv6Gateway": {"ipv6Mode": "static", "ipv6Cidr": "2001:db8::9/64"},
    "disks[].storage": {"disk": "scsi1", "sizeGb": 8},
    "disks[].disk": {"sizeGb": 8},
}
#: Fields that are not in the plan: it contains the template's VMID and the reserved name instead.
NOT_PLANNED = frozenset({"image", "hostname"})


def properties_with(field: str, text: str) -> dict[str, Any]:
    """Return a service's properties with the text in one field."""
    head, _, rest = field.partition(".")
    value: Any = {**REQUIRED_MEMBERS.get(field, {}), **as_member(rest, text)} if rest else text
    return as_member(head, value)


def as_member(name: str, value: Any) -> dict[str, Any]:
    """Return a member with this value, which becomes a list if the name ends with `[]`."""
    return {name.removesuffix("[]"): [value] if name.endswith("[]") else value}


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from texts_in(item)


def is_address(text: str) -> bool:
    """Whether the text is an address, which the plan may normalise."""
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return True


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """Return the folder in which an executed payload creates a file."""
    folder = tmp_path / "witness"
    folder.mkdir()
    return folder


@pytest.fixture
def playbook_settings(tmp_path: Path) -> PlaybookSettings:
    """Return settings with an action `custom` of a provider, which gets every property unchanged."""
    actions = tmp_path / "actions"
    actions.mkdir(mode=0o755)
    (actions / "custom.yml").write_text("---\n[]\n")
    (actions / "custom.yml").chmod(0o644)
    return PlaybookSettings(
        cluster="default",
        templates={"debian-12": 9000},
        storage="local-zfs",
        bridge="vmbr0",
        pool="",
        node="",
        playbook_folders=(actions, collection_folder() / "playbooks"),
        playbook_timeout_s=240.0,
        shutdown_timeout_s=60.0,
    )


def make_request(action: str, properties: dict[str, Any], *, name: str = "web") -> RunRequest:
    return RunRequest(
        action=action,
        service_id=SERVICE,
        service_name=name,
        properties=properties,
        vmid=101,
        vm_name=vm_name(name, SERVICE),
        time_left_s=280.0,
    )


def plan_each_text_in_each_field(
    playbook_settings: PlaybookSettings, texts: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Plan a VM for each text in each field. Return the variables for Ansible and the refused fields."""
    cases, refused = [], []
    for text in texts:
        requested = {field: properties_with(field, text) for field in FIELDS}
        requested["comment of a key"] = {"sshPublicKeys": [f"{KEY} {text}"]}
        for field, properties in requested.items():
            try:
                vm = plan(make_request("create", MINIMAL | properties, name=text), playbook_settings).vm
            except JobError as error:
                if error.code not in REFUSALS:
                    raise
                refused.append(field)
                continue
            expected_texts = {text, text.strip(), f"{KEY} {text}".strip()}
            assert field in NOT_PLANNED or is_address(text) or not text or expected_texts & {*texts_in(vm)}, (
                field,
                text,
            )
            assert vm["description"] == make_description(text)
            cases.append(vm)
        cases.append(plan(make_request("custom", {"free": text, "in": {text: [text]}}), playbook_settings).vm)
    return cases, refused


def test_every_text_property_of_a_service_is_among_the_tested_fields() -> None:
    """The fields come from the model itself; this checks how they are found."""
    assert {"ciPassword", "tags[]", "network.dnsServers[]", "networks[].mac", "disks[].storage"} <= {*FIELDS}
    assert len(FIELDS) > 25
    for field, required_members in REQUIRED_MEMBERS.items():
        assert field in FIELDS, field
        assert required_members


def test_no_payload_in_any_field_is_evaluated_by_ansible(
    tmp_path: Path, playbook_settings: PlaybookSettings, witness: Path
) -> None:
    texts = corpus(witness)
    assert len(texts) >= 200
    cases, refused = plan_each_text_in_each_field(playbook_settings, texts)
    distinct = list({json.dumps(case): case for case in cases}.values())
    assert len(distinct) > len(texts)
    assert {*refused} == {*FIELDS, "comment of a key"} - {"ciPassword"}, (
        "each field but the password refuses some texts"
    )
    paths = RunnerPaths(
        collection_folder=collection_folder(), run_dir=tmp_path / "run", artifacts_dir=tmp_path / "artifacts"
    )
    playbook = tmp_path / "echo.yml"
    playbook.write_text(ECHO)
    runner = Runner(
        paths, lambda: {"api_host": "pve.example", "api_token_secret": "unused-secret"}, redactor=Redactor()
    )
    run = PlaybookRun(ident="echo-1", action="echo", playbook=playbook, vm={"cases": distinct}, timeout_s=600)

    artifacts = runner.run(run)

    assert artifacts.status is RunStatus.SUCCESSFUL, (artifacts.folder / "stdout").read_text()[-2000:]
    assert json.loads((tmp_path / "said.json").read_text()) == distinct
    assert list(witness.iterdir()) == []


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=80))
def test_any_text_in_any_field_is_passed_on_unchanged_or_refused_with_a_code(
    playbook_settings: PlaybookSettings, text: str
) -> None:
    plan_each_text_in_each_field(playbook_settings, [text])


@given(action=st.one_of(st.text(max_size=60), st.sampled_from(JINJA)))
def test_no_action_name_resolves_to_a_file_outside_the_playbook_folders(action: str) -> None:
    home = collection_folder() / "playbooks"
    try:
        playbook = find_playbook(action, [home])
    except JobError as error:
        playbook, code = None, error.code
    assert (code is ErrorCode.UNSUPPORTED_ACTION) if playbook is None else (playbook == home / f"{action}.yml")


# --- end to end --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with run_lab_system(tmp_path_factory.mktemp("lab"), settings={"SMITH_CONCURRENCY": "3"}) as system:
        system.start_executor()
        yield system


@pytest.mark.xdist_group("injection")
def test_payloads_are_stored_in_a_vm_as_plain_text(lab: LabSystem) -> None:
    witness = lab.folder / "witness"
    witness.mkdir()
    payloads = [text for text in corpus(witness) if str(witness) in text and text.isprintable()]
    chosen = [next(text for text in payloads if start in text) for start in ("{{ lookup('pipe'", "$(touch", "!!python")]
    chosen.append(payloads[-1])

    services = {
        text: lab.order_service(text, ciUser="ops", ciPassword=text, sshPublicKeys=[f"{KEY} {text}"]) for text in chosen
    }

    for text, service in services.items():
        assert lab.wait_for_jobs(service, 280)["status"] == "Stopped", lab.last_job(service).get("errorMessage")
        (vm,) = lab.guests_of(service)
        assert vm["config"]["description"].startswith(make_description(text))
        assert urllib.parse.unquote(vm["config"]["sshkeys"]).strip() == f"{KEY} {text}"
        assert vm["name"] == vm_name(text, service)
    assert list(witness.iterdir()) == []
