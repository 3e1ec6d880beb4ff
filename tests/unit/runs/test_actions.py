"""Listing actions, refusing a provider's unsafe actions, and checking properties against the actions' schemas."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor.errors import JobError
from executor.runs import action_schema, actions
from executor.runs.action_schema import UnusableSchemaError
from executor.runs.actions import Action

PLAYBOOK = "---\n- hosts: proxmox\n  tasks: []\n"


@pytest.fixture
def our_folder(tmp_path: Path) -> Path:
    """Return a folder with two playbooks, in the place of the folder of our playbooks."""
    return folder_with(tmp_path / "ours", "create", "stop")


@pytest.fixture
def provider_folder(tmp_path: Path) -> Path:
    """Return a provider's folder, with a playbook that replaces one of ours and with another one."""
    return folder_with(tmp_path / "theirs", "stop", "attach-iso")


def folder_with(folder: Path, *names: str) -> Path:
    folder.mkdir()
    folder.chmod(0o755)
    for name in names:
        write(folder / f"{name}.yml", PLAYBOOK)
    return folder


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o644)
    return file


def why_refused(name: str, *folders: Path) -> str:
    """Return the error for an action that is not found or not safe."""
    with pytest.raises(JobError) as caught:
        actions.find_safe_action(name, folders)
    assert caught.value.code == "UNSUPPORTED_ACTION"
    return caught.value.detail


def action_with(folder: Path, schema: Any) -> Action:
    """Write a schema for the action attach-iso of this provider's folder; return the action."""
    write(folder / "attach-iso.schema.json", schema if isinstance(schema, str) else json.dumps(schema))
    return actions.find_safe_action("attach-iso", (folder, folder.parent / "ours"))


def test_the_providers_folder_is_searched_before_ours(our_folder: Path, provider_folder: Path) -> None:
    stop, create = (actions.find_safe_action(name, (provider_folder, our_folder)) for name in ("stop", "create"))
    assert (stop.playbook, stop.is_ours) == (provider_folder / "stop.yml", False)
    assert (create.playbook, create.is_ours) == (our_folder / "create.yml", True)
    assert actions.find_safe_action("stop", (our_folder,)).is_ours


@pytest.mark.parametrize(
    "name", ["", "../theirs/stop", "Stop", "stop/../stop", "stop\n", "9lives", "a" * 51, "nothing", "stop.yml"]
)
def test_an_invalid_or_unknown_name_is_unsupported(our_folder: Path, provider_folder: Path, name: str) -> None:
    assert "no playbook for the action" in why_refused(name, provider_folder, our_folder)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o777])
def test_a_playbook_writable_by_others_is_refused_and_not_replaced_by_ours(
    our_folder: Path, provider_folder: Path, mode: int
) -> None:
    (provider_folder / "stop.yml").chmod(mode)
    assert "stop.yml is writable by" in why_refused("stop", provider_folder, our_folder)
    assert (
        actions.find_safe_action("attach-iso", (provider_folder, our_folder)).playbook
        == provider_folder / "attach-iso.yml"
    )


@pytest.mark.parametrize(
    ("make_unsafe", "reason"),
    [
        (lambda folder: folder.chmod(0o777), "is writable by all users (mode 0777)"),
        (lambda folder: folder.chmod(0o775), "is writable by its group (mode 0775)"),
        (lambda folder: folder.parent.chmod(0o777), ", a parent folder, is writable by all users"),
        (lambda folder: _role(folder).chmod(0o666), "roles/mine/tasks/main.yml is writable by all users"),
        (lambda folder: _role(folder).parent.chmod(0o777), "roles/mine/tasks is writable by all users"),
        (lambda folder: (folder / "library").symlink_to("/usr"), "library is a link out of the folder"),
        (lambda folder: (folder / "library").symlink_to("nowhere"), "library is a broken link"),
    ],
    ids=["folder", "folder-group", "parent", "role", "folder-in-it", "link-out", "link-to-nothing"],
)
def test_an_action_with_an_unsafe_folder_or_file_is_refused(
    our_folder: Path, provider_folder: Path, make_unsafe: Callable[[Path], None], reason: str
) -> None:
    make_unsafe(provider_folder)
    try:
        assert reason in why_refused("attach-iso", provider_folder, our_folder)
    finally:
        provider_folder.parent.chmod(0o755)


def _role(folder: Path) -> Path:
    tasks = folder / "roles" / "mine" / "tasks"
    tasks.mkdir(parents=True)
    for path in (tasks, *tasks.parents[:2]):
        path.chmod(0o755)
    return write(tasks / "main.yml", "---\n")


def test_a_link_inside_the_folder_is_followed(our_folder: Path, provider_folder: Path) -> None:
    """Kubernetes mounts a ConfigMap with such links: attach.yml -> ..data/attach.yml, ..data -> ..2026."""
    mounted_folder = folder_with(provider_folder / "..2026", "mounted")
    (provider_folder / "..data").symlink_to(mounted_folder.name)
    (provider_folder / "mounted.yml").symlink_to("..data/mounted.yml")
    assert (
        actions.find_safe_action("mounted", (provider_folder, our_folder)).playbook == provider_folder / "mounted.yml"
    )
    (mounted_folder / "mounted.yml").chmod(0o666)
    assert "mounted.yml is writable by all users" in why_refused("mounted", provider_folder, our_folder)


def test_a_playbook_that_links_out_of_the_folder_is_refused(our_folder: Path, provider_folder: Path) -> None:
    outside = write(provider_folder.parent / "outside.yml", PLAYBOOK)
    (provider_folder / "evil.yml").symlink_to(outside)
    assert "evil.yml is a link out of the folder" in why_refused("evil", provider_folder, our_folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(our_folder: Path, provider_folder: Path) -> None:
    os.chown(provider_folder / "stop.yml", 12345, 0)
    assert "is owned by user 12345" in why_refused("stop", provider_folder, our_folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_in_the_sticky_folder_of_another_user_is_refused(our_folder: Path, provider_folder: Path) -> None:
    """The owner of a sticky folder can replace every entry of it."""
    provider_folder.parent.chmod(0o1777)
    assert actions.find_safe_action("stop", [provider_folder, our_folder]).playbook == provider_folder / "stop.yml"
    os.chown(provider_folder.parent, 65534, 65534)
    assert ", a parent folder, is owned by user 65534" in why_refused("stop", provider_folder, our_folder)


def test_the_file_modes_in_the_folder_of_our_playbooks_are_not_checked(our_folder: Path) -> None:
    """A checkout with umask 002 is group-writable, and the wheel's files have the installer's owner."""
    (our_folder / "stop.yml").chmod(0o664)
    assert actions.find_safe_action("stop", (our_folder,)).is_ours


def test_the_list_shows_whether_an_action_is_ours_and_why_it_is_refused(
    our_folder: Path, provider_folder: Path
) -> None:
    action_with(provider_folder, {"type": "object"})
    (provider_folder / "stop.yml").chmod(0o666)
    write(provider_folder / "Not An Action.yml", PLAYBOOK)
    rows = {row.name: row for row in actions.list_all_actions((provider_folder, our_folder))}
    assert list(rows) == ["Not An Action", "attach-iso", "create", "stop"]
    assert (rows["attach-iso"].has_schema, rows["attach-iso"].problem) == (True, "")
    assert (rows["create"].is_ours, rows["create"].replaces_ours) == (True, False)
    assert (rows["stop"].is_ours, rows["stop"].replaces_ours) == (False, True)
    assert "is writable by all users" in rows["stop"].problem
    assert rows["Not An Action"].problem


SCHEMA = {
    "type": "object",
    "required": ["isoImage", "bus"],
    "properties": {
        "isoImage": {"type": "string", "pattern": "^local:"},
        "bus": {"enum": ["ide", "sata"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 4},
        "address": {"type": "string", "format": "ipv4"},
        "nested": {"$ref": "#/$defs/nested"},
    },
    "$defs": {"nested": {"type": "object", "additionalProperties": False, "properties": {"known": {}}}},
}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "isoImage is missing; bus is missing"),
        ({"isoImage": "hunter2", "bus": "ide"}, "isoImage must match the pattern ^local:"),
        ({"isoImage": "local:x", "bus": "hunter2"}, 'bus must be one of ["ide", "sata"]'),
        ({"isoImage": "local:x", "bus": "ide", "count": "hunter2"}, "count must be of type integer"),
        ({"isoImage": "local:x", "bus": "ide", "count": 9}, "count must be at most 4"),
        ({"isoImage": "local:x", "bus": "ide", "address": "hunter2"}, "address must be of format ipv4"),
        ({"isoImage": "local:x", "bus": "ide", "nested": {"odd": "hunter2"}}, "nested.odd is unknown"),
    ],
)
def test_an_error_names_the_wrong_members_and_never_their_values(
    our_folder: Path, provider_folder: Path, properties: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError) as caught:
        action_schema.check_properties(action_with(provider_folder, SCHEMA), properties)
    assert caught.value.code == "INVALID_REQUEST"
    assert caught.value.detail == message
    assert "hunter2" not in str(caught.value)


def test_control_characters_in_a_members_name_are_replaced(our_folder: Path, provider_folder: Path) -> None:
    with pytest.raises(JobError) as caught:
        action_schema.check_properties(
            action_with(provider_folder, {"additionalProperties": False}), {"a\x00b\x1b[31m": 1}
        )
    assert caught.value.detail.isprintable()


def test_valid_properties_are_accepted_and_without_a_schema_any_properties_are(
    our_folder: Path, provider_folder: Path
) -> None:
    action_schema.check_properties(
        action_with(provider_folder, SCHEMA), {"isoImage": "local:x", "bus": "ide", "cores": 2}
    )
    action_schema.check_properties(actions.find_safe_action("stop", (provider_folder, our_folder)), {"anything": 1})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"type": "objekt"}', "is not a valid JSON Schema: at type"),
        ('{"$ref": "https://example.net/schema.json"}', "only references into the same file are allowed"),
        ('{"properties": {"a": {"$ref": "other.json#/x"}}}', "only references into the same file are allowed"),
        ('{"properties": {"a": {"$ref": "#/$defs/none"}}}', "refers to #/$defs/none, which does not exist"),
        ('{"properties": {"a": {"$ref": "#none"}}}', "refers to #none, which does not exist"),
        (" " * (action_schema.MAX_SCHEMA_BYTES + 1), "larger than"),
    ],
)
def test_an_action_with_an_unusable_schema_is_refused(
    our_folder: Path, provider_folder: Path, schema: str, message: str
) -> None:
    action = action_with(provider_folder, schema)
    assert action.schema is not None
    with pytest.raises(UnusableSchemaError) as caught:
        action_schema.read_validator(action.schema)
    assert message in str(caught.value)
    with pytest.raises(JobError) as refused:
        action_schema.check_properties(action, {})
    assert refused.value.code == "UNSUPPORTED_ACTION"


def test_a_reference_to_an_anchor_in_the_schema_is_resolved(our_folder: Path, provider_folder: Path) -> None:
    schema = {"properties": {"a": {"$ref": "#name"}}, "$defs": {"x": {"$anchor": "name", "type": "integer"}}}
    action = action_with(provider_folder, schema)
    action_schema.check_properties(action, {"a": 1})
    with pytest.raises(JobError, match="a must be of type integer"):
        action_schema.check_properties(action, {"a": "x"})


def test_properties_nested_too_deeply_are_an_invalid_request(our_folder: Path, provider_folder: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"a": deep}
    action = action_with(provider_folder, {"properties": {"a": {"$ref": "#"}}})
    with pytest.raises(JobError) as caught:
        action_schema.check_properties(action, deep)
    assert caught.value.code == "INVALID_REQUEST"
