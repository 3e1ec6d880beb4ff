"""Which file is the playbook of an action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plan_requests import ACTIONS

from executor.errors import JobError
from executor.runs.actions import collection_folder
from executor.runs.plan import find_playbook
from executor.shared.error_codes import ErrorCode


@pytest.mark.parametrize("action", ACTIONS)
def test_the_playbook_of_an_action_has_its_name(folder: Path, action: str) -> None:
    assert find_playbook(action, [folder]) == folder / f"{action}.yml"


@pytest.mark.parametrize(
    "action",
    [
        "",
        "?",
        "unknown",
        "Create",
        "CREATE",
        "create\n",
        "create;rm",
        "create.yml",
        "../../x",
        "../create",
        "./create",
        "/etc/passwd",
        "create\x00",
        "-create",
        "1create",
        "a" * 51,
        "\u217dreate",  # a Roman numeral that looks like c
        "\u0441reate",  # a Cyrillic letter that looks like c
        "\uff43reate",  # a full-width c
        "cre\u200bate",
        "create ",
    ],
)
def test_an_invalid_action_name_has_no_playbook(folder: Path, action: str) -> None:
    nested = folder / "nested"
    nested.mkdir()
    (folder / "x.yml").touch()
    for name in (action[:60], action.lower()[:60]):
        if name and "/" not in name and "\x00" not in name and name not in ACTIONS and name != "unknown":
            (nested / f"{name}.yml").touch()
    with pytest.raises(JobError, match="no playbook for the action") as caught:
        find_playbook(action, [nested, folder])
    assert caught.value.code is ErrorCode.UNSUPPORTED_ACTION
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 300


def test_an_action_name_may_have_fifty_characters(tmp_path: Path) -> None:
    action = "a" + "b-_1" * 12 + "c"
    (tmp_path / f"{action}.yml").touch()
    assert (len(action), find_playbook(action, [tmp_path]).stem) == (50, action)


def test_the_providers_own_playbook_comes_before_ours(folder: Path, tmp_path: Path) -> None:
    provider_folder = tmp_path / "own"
    provider_folder.mkdir()
    (provider_folder / "create.yml").touch()
    assert find_playbook("create", [provider_folder, folder]) == provider_folder / "create.yml"
    assert find_playbook("delete", [provider_folder, folder]) == folder / "delete.yml"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.yml"])
def test_a_link_that_leads_out_of_a_providers_folder_is_refused(tmp_path: Path, folder: Path, target: str) -> None:
    """The link is refused, and our playbook of the same name does not run instead of it."""
    provider_folder = tmp_path / "own"
    provider_folder.mkdir()
    (tmp_path / "outside.yml").touch()
    (provider_folder / "create.yml").symlink_to(target)
    with pytest.raises(JobError, match="UNSUPPORTED_ACTION"):
        find_playbook("create", [provider_folder, folder])


def test_playbooks_are_found_in_a_folder_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert find_playbook("create", [tmp_path / "link"]).is_file()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("create.yml"), lambda path: None])
def test_a_folder_a_loop_and_a_broken_link_are_no_playbooks(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "create.yml")
    for folders in ([tmp_path, tmp_path / "missing"], [tmp_path / "missing", tmp_path]):
        with pytest.raises(JobError, match="UNSUPPORTED_ACTION"):
            find_playbook("create", folders)


def test_every_action_of_ours_has_a_playbook_in_the_project() -> None:
    assert {find_playbook(action, [collection_folder() / "playbooks"]).stem for action in ACTIONS} == set(ACTIONS)
