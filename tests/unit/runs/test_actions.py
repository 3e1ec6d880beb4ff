"""Listing actions, refusing unsafe ones of a provider, and checking properties against their schemas."""

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
def ours(tmp_path: Path) -> Path:
    return folder_with(tmp_path / "ours", "create", "stop")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
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


def refusal(name: str, *folders: Path) -> str:
    with pytest.raises(JobError) as caught:
        actions.find_safe_action(name, folders)
    assert caught.value.code == "UNSUPPORTED_ACTION"
    return caught.value.detail


def action_with(folder: Path, schema: Any) -> Action:
    write(folder / "attach-iso.schema.json", schema if isinstance(schema, str) else json.dumps(schema))
    return actions.find_safe_action("attach-iso", (folder, folder.parent / "ours"))


def test_the_providers_folder_comes_first(ours: Path, theirs: Path) -> None:
    stop, create = (actions.find_safe_action(name, (theirs, ours)) for name in ("stop", "create"))
    assert (stop.playbook, stop.is_ours) == (theirs / "stop.yml", False)
    assert (create.playbook, create.is_ours) == (ours / "create.yml", True)
    assert actions.find_safe_action("stop", (ours,)).is_ours


@pytest.mark.parametrize(
    "name", ["", "../theirs/stop", "Stop", "stop/../stop", "stop\n", "9lives", "a" * 51, "nothing", "stop.yml"]
)
def test_an_invalid_or_unknown_name_is_unsupported(ours: Path, theirs: Path, name: str) -> None:
    assert "no playbook for the action" in refusal(name, theirs, ours)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o777])
def test_a_playbook_writable_by_others_is_refused_and_not_replaced_by_ours(ours: Path, theirs: Path, mode: int) -> None:
    (theirs / "stop.yml").chmod(mode)
    assert "stop.yml is writable by" in refusal("stop", theirs, ours)
    assert actions.find_safe_action("attach-iso", (theirs, ours)).playbook == theirs / "attach-iso.yml"


@pytest.mark.parametrize(
    ("spoil", "reason"),
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
    ours: Path, theirs: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(theirs)
    try:
        assert reason in refusal("attach-iso", theirs, ours)
    finally:
        theirs.parent.chmod(0o755)


def _role(folder: Path) -> Path:
    tasks = folder / "roles" / "mine" / "tasks"
    tasks.mkdir(parents=True)
    for path in (tasks, *tasks.parents[:2]):
        path.chmod(0o755)
    return write(tasks / "main.yml", "---\n")


def test_a_link_inside_the_folder_is_followed(ours: Path, theirs: Path) -> None:
    """Kubernetes mounts a ConfigMap with such links: attach.yml -> ..data/attach.yml, ..data -> ..2026."""
    place = folder_with(theirs / "..2026", "mounted")
    (theirs / "..data").symlink_to(place.name)
    (theirs / "mounted.yml").symlink_to("..data/mounted.yml")
    assert actions.find_safe_action("mounted", (theirs, ours)).playbook == theirs / "mounted.yml"
    (place / "mounted.yml").chmod(0o666)
    assert "mounted.yml is writable by all users" in refusal("mounted", theirs, ours)


def test_a_playbook_that_links_out_of_the_folder_is_refused(ours: Path, theirs: Path) -> None:
    outside = write(theirs.parent / "outside.yml", PLAYBOOK)
    (theirs / "evil.yml").symlink_to(outside)
    assert "evil.yml is a link out of the folder" in refusal("evil", theirs, ours)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(ours: Path, theirs: Path) -> None:
    os.chown(theirs / "stop.yml", 12345, 0)
    assert "is owned by user 12345" in refusal("stop", theirs, ours)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_in_the_sticky_folder_of_another_user_is_refused(ours: Path, theirs: Path) -> None:
    """The owner of a sticky folder can replace every entry of it."""
    theirs.parent.chmod(0o1777)
    assert actions.find_safe_action("stop", [theirs, ours]).playbook == theirs / "stop.yml"
    os.chown(theirs.parent, 65534, 65534)
    assert ", a parent folder, is owned by user 65534" in refusal("stop", theirs, ours)


def test_the_modes_of_our_own_folder_are_not_checked(ours: Path) -> None:
    """A checkout with umask 002 is group-writable, and the wheel's files have the installer's owner."""
    (ours / "stop.yml").chmod(0o664)
    assert actions.find_safe_action("stop", (ours,)).is_ours


def test_the_list_shows_the_owner_and_the_refusal_of_each_action(ours: Path, theirs: Path) -> None:
    action_with(theirs, {"type": "object"})
    (theirs / "stop.yml").chmod(0o666)
    write(theirs / "Not An Action.yml", PLAYBOOK)
    rows = {row.name: row for row in actions.list_all_actions((theirs, ours))}
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
    ("properties", "said"),
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
    ours: Path, theirs: Path, properties: dict[str, Any], said: str
) -> None:
    with pytest.raises(JobError) as caught:
        action_schema.check_properties(action_with(theirs, SCHEMA), properties)
    assert caught.value.code == "INVALID_REQUEST"
    assert caught.value.detail == said
    assert "hunter2" not in str(caught.value)


def test_control_characters_in_a_members_name_are_replaced(ours: Path, theirs: Path) -> None:
    with pytest.raises(JobError) as caught:
        action_schema.check_properties(action_with(theirs, {"additionalProperties": False}), {"a\x00b\x1b[31m": 1})
    assert caught.value.detail.isprintable()


def test_valid_properties_pass_and_without_a_schema_all_pass(ours: Path, theirs: Path) -> None:
    action_schema.check_properties(action_with(theirs, SCHEMA), {"isoImage": "local:x", "bus": "ide", "cores": 2})
    action_schema.check_properties(actions.find_safe_action("stop", (theirs, ours)), {"anything": 1})


@pytest.mark.parametrize(
    ("schema", "said"),
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
def test_an_action_with_an_unusable_schema_is_refused(ours: Path, theirs: Path, schema: str, said: str) -> None:
    action = action_with(theirs, schema)
    assert action.schema is not None
    with pytest.raises(UnusableSchemaError) as caught:
        action_schema.read_schema(action.schema)
    assert said in str(caught.value)
    with pytest.raises(JobError) as refused:
        action_schema.check_properties(action, {})
    assert refused.value.code == "UNSUPPORTED_ACTION"


def test_anchors_in_the_schema_are_found(ours: Path, theirs: Path) -> None:
    schema = {"properties": {"a": {"$ref": "#name"}}, "$defs": {"x": {"$anchor": "name", "type": "integer"}}}
    action = action_with(theirs, schema)
    action_schema.check_properties(action, {"a": 1})
    with pytest.raises(JobError, match="a must be of type integer"):
        action_schema.check_properties(action, {"a": "x"})


def test_properties_nested_too_deeply_are_an_invalid_request(ours: Path, theirs: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"a": deep}
    action = action_with(theirs, {"properties": {"a": {"$ref": "#"}}})
    with pytest.raises(JobError) as caught:
        action_schema.check_properties(action, deep)
    assert caught.value.code == "INVALID_REQUEST"
