"""The plan of a run: its playbook and its variables. Text from outside is only ever passed as data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.plan_requests import ACTIONS, INJECTIONS, KEY, MINIMAL, SERVICE, make_request, make_settings

from executor.errors import JobError
from executor.runs.actions import ACTION_PATTERN
from executor.runs.extra_vars import MAX_DESCRIPTION_LENGTH, make_description
from executor.runs.plan import plan
from executor.runs.private_folder import validate_ident, write_extra_vars
from executor.runs.request import PlaybookSettings
from executor.shared.marker import marker_values_in, service_id_in


def test_the_ident_of_a_long_action_name_leaves_room_for_a_sockets_path(folder: Path) -> None:
    action = "a" * 50
    (folder / f"{action}.yml").write_text("---\n[]\n")
    run = plan(make_request(action), make_settings(folder, folder))
    assert len(run.ident) <= 29
    assert run.action == action


@given(st.from_regex(ACTION_PATTERN, fullmatch=True))
def test_the_ident_of_each_possible_action_can_be_a_folder(action: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{action}.yml").touch()
        run = plan(make_request(action), make_settings(Path(folder)))
    assert validate_ident(run.ident) == run.ident


def test_the_run_of_a_create_has_the_whole_configuration_of_the_vm(settings: PlaybookSettings) -> None:
    properties = MINIMAL | {"ciUser": "admin", "ciPassword": "open-sesame", "sshPublicKeys": [KEY], "tags": ["web"]}
    run = plan(make_request(properties=properties, secrets=("open-sesame",)), settings)
    assert run.vm == {
        "service_id": SERVICE,
        "vmid": 101,
        "name": "web-0a1b2c3d",
        "cluster": "default",
        "node": "",
        "timeout_s": 240,
        "shutdown_timeout_s": 60,
        "address_timeout_s": 10,
        "cores": 2,
        "memory_mib": 2048,
        "disk_gib": 10,
        "tags": ["web"],
        "description": "web",
        "template_vmid": 9000,
        "storage": "local-zfs",
        "pool": "",
        "network": {"mode": "dhcp", "bridge": "vmbr0"},
        "cloud_init": {"user": "admin", "password": "open-sesame", "ssh_public_keys": [KEY]},
    }
    assert (run.action, run.playbook.name, run.timeout_s) == ("create", "create.yml", 240.0)
    assert run.secrets == ("open-sesame",)
    assert "open-sesame" not in repr(run)
    assert "open-sesame" not in repr(make_request(properties=properties, secrets=("open-sesame",)))


@pytest.mark.parametrize("action", [action for action in ACTIONS if action not in ("create", "update")])
def test_our_other_actions_get_only_the_identity_and_the_timeouts(settings: PlaybookSettings, action: str) -> None:
    run = plan(make_request(action, {"cores": "nonsense", "secret": "x"}, node="pve2"), settings)
    limits = {"timeout_s", "shutdown_timeout_s", "address_timeout_s"}
    assert set(run.vm) == {"service_id", "vmid", "name", "cluster", "node"} | limits
    assert run.vm["node"] == "pve2"


def test_a_providers_own_action_gets_the_properties_too(folder: Path, tmp_path: Path) -> None:
    provider_folder = tmp_path / "own"
    provider_folder.mkdir()
    (provider_folder / "resize-gpu.yml").touch()
    (provider_folder / "stop.yml").touch()
    settings = make_settings(provider_folder, folder)
    for action in ("resize-gpu", "stop"):
        assert plan(make_request(action, {"gpu": 2}), settings).vm["properties"] == {"gpu": 2}
    assert "properties" not in plan(make_request("start", {"gpu": 2}), settings).vm


@pytest.mark.parametrize(
    ("settings_node", "mapping_node", "expected_node"),
    [("pve1", "", "pve1"), ("pve1", "pve2", "pve2"), ("", "", ""), ("", "pve2", "pve2")],
)
def test_the_node_of_the_mapping_takes_precedence_over_the_node_of_the_settings(
    folder: Path, settings_node: str, mapping_node: str, expected_node: str
) -> None:
    assert (
        plan(make_request("stop", node=mapping_node), make_settings(folder, node=settings_node)).vm["node"]
        == expected_node
    )


@pytest.mark.parametrize(
    ("time_left_s", "timeout_s", "shutdown_timeout_s"), [(280.0, 240, 60), (100.9, 100, 50), (10.0, 10, 5), (0.5, 0, 1)]
)
def test_the_timeout_of_a_run_is_within_the_jobs_deadline(
    settings: PlaybookSettings, time_left_s: float, timeout_s: int, shutdown_timeout_s: int
) -> None:
    run = plan(make_request("stop", time_left_s=time_left_s), settings)
    assert (run.vm["timeout_s"], run.vm["shutdown_timeout_s"]) == (timeout_s, shutdown_timeout_s)
    assert run.timeout_s == min(time_left_s, 240.0)


def test_each_run_has_a_unique_ident_that_can_name_a_folder(settings: PlaybookSettings) -> None:
    idents = {plan(make_request("stop"), settings).ident for _ in range(50)}
    assert len(idents) == 50
    assert all(ident.startswith("stop-") and ident.replace("-", "").isalnum() for ident in idents)


def test_an_image_without_a_template_is_not_found(settings: PlaybookSettings, folder: Path) -> None:
    with pytest.raises(
        JobError, match=r"PROXMOX_TEMPLATES has no template arch \(configured templates: debian-12, ubuntu"
    ) as caught:
        plan(make_request(properties=MINIMAL | {"image": "arch"}), settings)
    assert caught.value.detail == "no template is called arch"
    with pytest.raises(JobError, match=r"NOT_FOUND: .*configured templates: none"):
        plan(make_request(), make_settings(folder, templates={}))


@pytest.mark.parametrize("image", [None, ...])
def test_a_create_without_an_image_is_refused(settings: PlaybookSettings, image: Any) -> None:
    properties = {name: value for name, value in (MINIMAL | {"image": image}).items() if value is not ...}
    with pytest.raises(JobError, match="INVALID_REQUEST: image is missing"):
        plan(make_request(properties=properties), settings)


def test_an_unsupported_action_is_refused_before_its_properties(settings: PlaybookSettings) -> None:
    with pytest.raises(JobError, match="UNSUPPORTED_ACTION"):
        plan(make_request("explode", {"cores": "nonsense"}), settings)


#: Properties with logins, keys and a network.
FULL = MINIMAL | {
    "ciUser": "admin",
    "ciPassword": "one",
    "sshPublicKeys": [KEY],
    "network": {"mode": "dhcp", "vlan": 20},
    "hostname": "web",
}


@pytest.mark.parametrize(
    ("changed", "expected_members"),
    [
        ({}, {}),
        ({"cores": 4}, {}),
        ({"image": "unknown-image", "hostname": "db"}, {}),
        ({"network": {"mode": "dhcp"}}, {"network": {"mode": "dhcp", "bridge": "vmbr0"}}),
        ({"ciUser": "root"}, {"cloud_init": {"user": "root"}}),
        ({"ciPassword": "two"}, {"cloud_init": {"password": "two"}}),
        ({"sshPublicKeys": [KEY, KEY]}, {"cloud_init": {"ssh_public_keys": [KEY, KEY]}}),
        ({"ciUser": "root", "ciPassword": "two"}, {"cloud_init": {"user": "root", "password": "two"}}),
    ],
    ids=str,
)
def test_an_update_changes_network_and_logins_only_where_they_differ(
    settings: PlaybookSettings, changed: dict[str, Any], expected_members: dict[str, Any]
) -> None:
    run = plan(make_request("update", FULL | changed, previous_properties=FULL), settings)
    assert {name: run.vm[name] for name in ("network", "cloud_init") if name in run.vm} == expected_members
    assert run.vm["cores"] == changed.get("cores", 2)
    assert not {"template_vmid", "storage", "pool"} & set(run.vm)


def test_an_update_that_removes_all_keys_is_refused(settings: PlaybookSettings) -> None:
    with pytest.raises(JobError, match="INVALID_REQUEST: sshPublicKeys cannot be emptied"):
        plan(make_request("update", FULL | {"sshPublicKeys": []}, previous_properties=FULL), settings)


def test_an_update_without_a_login_does_not_change_it(settings: PlaybookSettings) -> None:
    run = plan(make_request("update", MINIMAL, previous_properties=FULL), settings)
    assert not {"network", "cloud_init"} & set(run.vm)


@pytest.mark.parametrize("changed", [{"cores": "4"}, {"memoryMb": 0}, {"network": {"mode": "static"}}], ids=str)
def test_the_properties_of_an_update_are_checked_like_those_of_a_create(
    settings: PlaybookSettings, changed: dict[str, Any]
) -> None:
    with pytest.raises(JobError, match="INVALID_REQUEST"):
        plan(make_request("update", FULL | changed, previous_properties=FULL), settings)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_text_with_an_injection_reaches_ansible_unchanged(
    settings: PlaybookSettings, tmp_path: Path, injection: str
) -> None:
    """The file that Ansible reads marks the text as unsafe, so that it is never evaluated as a template."""
    properties = MINIMAL | {"ciPassword": injection, "sshPublicKeys": [f"{KEY} {injection.splitlines()[0]}"]}
    run = plan(make_request(properties=properties, service_name=injection), settings)
    assert run.vm["cloud_init"]["password"] == injection
    write_extra_vars(tmp_path / "vm.yml", run.vm)
    assert read_extra_vars(tmp_path / "vm.yml") == run.vm
    assert run.vm["description"] == make_description(injection)


def read_extra_vars(file: Path) -> Any:
    """Return the extra vars. `vm` as a whole must be marked unsafe, which Ansible applies to everything inside."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_mapping(node, deep=True))
    text = file.read_text()
    assert text.startswith('"vm": !unsafe')
    return yaml.load(text, Loader=Loader)["vm"]  # noqa: S506  a SafeLoader with one more tag


VICTIM = "ffffffff-2222-4000-8000-000000000002"


@pytest.mark.parametrize(
    "name",
    [
        f"smith-uid={VICTIM}",
        f"SMITH-UID={VICTIM}",
        f"web\nsmith-uid={VICTIM}",
        f"web\r\nsmith-uid={VICTIM}\n",
        f"web\u2028smith-uid={VICTIM}",
        f"web\u0085smith-uid={VICTIM}",
        f"  smith-uid={VICTIM}  ",
        f"smith-uid ={VICTIM}",
        f"smith-\x00uid={VICTIM}",
        f"smith-uid=smith-uid={VICTIM}",
    ],
)
def test_the_name_of_a_service_cannot_forge_the_marker_of_another_service(name: str) -> None:
    """A description, even one with several lines, must not identify a VM of another service."""
    assert service_id_in(f"smith-uid={VICTIM}")
    assert not marker_values_in(make_description(name))
    assert not marker_values_in(f"{make_description(name)}\nsmith")


@given(st.text())
def test_a_description_is_one_short_printable_line(name: str) -> None:
    description = make_description(name)
    assert description.isprintable()
    assert len(description) <= MAX_DESCRIPTION_LENGTH
    assert description == description.strip()


def test_an_ordinary_service_name_becomes_the_description_unchanged() -> None:
    assert make_description("Web server (Zürich) 😀") == "Web server (Zürich) 😀"


def test_only_the_run_of_a_delete_gets_the_member_half_made(folder: Path) -> None:
    half_made_by_action = {
        action: plan(make_request(action=action, may_be_partial_clone=True), make_settings(folder)).vm.get("half_made")
        for action in ("start", "stop", "delete")
    }
    assert half_made_by_action == {"start": None, "stop": None, "delete": True}
    assert "half_made" not in plan(make_request(action="delete"), make_settings(folder)).vm
