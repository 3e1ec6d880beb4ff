"""`smith actions`: lists the actions, checks the provider's own actions, and writes a new action.

An action is what a FulcrumCore job requests, such as `start`, and the playbook of this name. The provider is the
organisation that runs this agent.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli import action_checks, ansible_playbook
from executor.cli.action_files import new_action_files
from executor.cli.arguments import AsJson
from executor.cli.completion import complete_action
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_outcome, show_text
from executor.cli.role_checks import check_roles
from executor.cli.tables import show_rows
from executor.errors import EXIT_FAILURE, JobError, SmithError
from executor.runs import action_schema, actions
from executor.runs.action_effect import find_effect
from executor.runs.actions import ACTION_PATTERN, SCHEMA_SUFFIX, Action, ListedAction, collection_folder
from executor.views.text import sanitized

COLUMNS = {"name": "ACTION", "source": "SOURCE", "effect": "EFFECT", "schema": "SCHEMA", "note": "NOTE"}
#: The modes of new files and folders. They do not depend on the umask. Only the owner can write to the files, because
#: the agent refuses an action that other users can write to.
FILE_MODE, FOLDER_MODE = 0o644, 0o755


class ActionsFolderNotSet(SmithError):
    """The setting SMITH_ACTIONS_PATH (the folder with the provider's own actions) is not set."""


class FileExists(SmithError):
    """The command would write a file that exists already."""


@examples("smith actions list", "smith actions list --json")
def list_actions(as_json: AsJson = False) -> None:
    """List the actions, and show why the agent refuses an action."""
    rows = [_json_fields(action) for action in _read_all_actions()]
    if as_json:
        show_json(rows)
    else:
        show_rows([row | _table_fields(row) for row in rows], COLUMNS, if_empty="there are no actions")


@examples("smith actions validate", "smith actions validate attach-iso --json")
def validate_actions(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="One action; default: all of your own actions.", autocompletion=complete_action
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an action's files, playbook, schema and syntax. Nothing is run."""
    all_actions = _read_all_actions()
    if name:
        selected_actions = [action for action in all_actions if action.name == name]
    else:
        # `is_ours` is True for a built-in action.
        selected_actions = [action for action in all_actions if not action.is_ours]
    if name and not selected_actions:
        raise typer.BadParameter(f"there is no action {sanitized(name)}: `smith actions list` shows the actions")
    reports = [
        {"name": action.name, "playbook": str(action.playbook), **_check_action(action)} for action in selected_actions
    ]
    if as_json:
        show_json(reports)
    else:
        _show_reports(reports)
    if any(report["problems"] for report in reports):
        raise typer.Exit(EXIT_FAILURE)


@examples("smith actions new attach-iso")
def write_new_action(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The action's name in FulcrumCore's service type.")],
    as_json: AsJson = False,
) -> None:
    """Write the files of a new action into the folder SMITH_ACTIONS_PATH.

    The action consists of a playbook, a JSON schema for the service's properties, a role to which you add your Ansible
    tasks, and tests, which `smith actions test` runs.
    """
    folder = open_settings().smith_actions_path
    if folder is None:
        raise ActionsFolderNotSet("SMITH_ACTIONS_PATH is not set: set it to a folder that only you can write to")
    if not ACTION_PATTERN.match(name):
        raise typer.BadParameter("an action's name has lower-case letters, digits, - and _, and starts with a letter")
    text_by_file = {folder / path: text for path, text in new_action_files(name).items()}
    for file in text_by_file:
        if os.path.lexists(file):
            raise FileExists(f"{file} exists already, and is not overwritten")
    for file, text in text_by_file.items():
        _make_folders(folder, file.relative_to(folder).parent)
        _write_new_file(file, text)
    files = [str(file) for file in text_by_file]
    text = "\n".join(
        [*files, f"next: add your Ansible tasks, then run smith actions validate {name} and smith actions test {name}"]
    )
    playbook, schema = files[:2]
    show_outcome(text, as_json=as_json, name=name, playbook=playbook, schema=schema, files=files)


def _json_fields(action: ListedAction) -> dict[str, Any]:
    """Return an action as a dictionary with the keys of `--json`. In a key, `ours` means a built-in action.

    A `ListedAction` may be an action that the agent refuses.
    """
    return {
        "name": action.name,
        "is_ours": action.is_ours,
        "replaces_ours": action.replaces_ours,
        "playbook": str(action.playbook),
        "has_schema": action.has_schema,
        "effect": _find_effect_or_none(action),
        "problem": action.problem,
    }


def _find_effect_or_none(action: ListedAction) -> str | None:
    """Return whether the action `reads`, `changes` or `destroys` a VM, or None if its schema cannot be used."""
    schema = action.playbook.with_name(f"{action.name}{SCHEMA_SUFFIX}") if action.has_schema else None
    action_with_schema = Action(name=action.name, playbook=action.playbook, schema=schema, is_ours=action.is_ours)
    try:
        return find_effect(action_with_schema)
    except JobError:
        return None


def _table_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table's values for the columns that `--json` does not have. `row` has the fields of `--json`."""
    source = "built-in" if row["is_ours"] else Path(row["playbook"]).parent
    note = "replaces the built-in action" if row["replaces_ours"] else ""
    if row["problem"]:
        note = f"refused: {row['problem']}"
    return {"source": source, "schema": row["has_schema"], "note": note}


def _read_all_actions() -> list[ListedAction]:
    """Return all actions, including the actions that the agent refuses."""
    return actions.list_all_actions(action_folders())


def action_folders() -> tuple[Path, ...]:
    """Return the folders with actions: the provider's own folder first, if it is set, then the built-in folder."""
    builtin_folder = collection_folder() / "playbooks"
    provider_folder = open_settings().smith_actions_path
    return (provider_folder, builtin_folder) if provider_folder else (builtin_folder,)


def find_action(name: str) -> Action:
    """Return the action with this name. Raises JobError if no action has this name, or if the action is refused.

    The agent refuses an action that is not safe, for example because other users can change the action's files.
    """
    folders = action_folders()
    try:
        return actions.find_safe_action(name, folders)
    except JobError as error:
        action_names = [action.name for action in actions.list_all_actions(folders)]
        if name in action_names:  # the action exists, but it is refused
            raise
        similar_names = difflib.get_close_matches(name, action_names, n=1)
        hint = f"did you mean {similar_names[0]}? " if similar_names else ""
        raise JobError(error.code, f"{error.detail}: {hint}`smith actions list` shows the actions") from None


def _check_action(action: ListedAction) -> dict[str, list[str]]:
    """Check the action's files, playbook, JSON schema and Ansible syntax, and return the problems and hints."""
    result = action_checks.check_playbook(action.playbook)
    roles = action_checks.read_playbook(action.playbook).roles
    # The roles of a built-in action are part of our collection, and are not checked here.
    roles_result = check_roles([] if action.is_ours else roles, action.playbook.parent)
    problems = [*result.problems, *roles_result.problems]
    if action.problem:
        problems.insert(0, action.problem)
    if action.has_schema:
        try:
            action_schema.read_validator(action.playbook.with_name(f"{action.name}{actions.SCHEMA_SUFFIX}"))
        except action_schema.UnusableSchemaError as error:
            problems.append(str(error))
    # `--syntax-check` can load Python plugins from the action's folder. So it is not called for a refused action.
    if not action.problem:
        syntax_problem = ansible_playbook.find_syntax_problem(action.playbook)
        if syntax_problem:
            problems.append(f"ansible-playbook --syntax-check: {syntax_problem}")
    return {"problems": problems, "hints": [*result.hints, *roles_result.hints]}


def _show_reports(reports: list[dict[str, Any]]) -> None:
    if not reports:
        show_text("there are no actions of your own in the folder SMITH_ACTIONS_PATH")
    for report in reports:
        verdict = "not usable" if report["problems"] else "ok"
        show_text(f"{report['name']}: {verdict}")
        for problem in report["problems"]:
            show_text(f"  problem: {problem}")
        for hint in report["hints"]:
            show_text(f"  hint: {hint}")


def _make_folders(folder: Path, relative_path: Path) -> None:
    """Make the missing folders of `relative_path` below `folder`, with the mode FOLDER_MODE."""
    for path in (*reversed(relative_path.parents), relative_path):
        if not (folder / path).is_dir() and path.parts:
            (folder / path).mkdir()
            (folder / path).chmod(FOLDER_MODE)


def _write_new_file(file: Path, text: str) -> None:
    """Write a new file with the mode FILE_MODE. Raises FileExistsError if the file exists."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with open(descriptor, "w", encoding="utf-8") as opened_file:
        os.fchmod(opened_file.fileno(), FILE_MODE)
        opened_file.write(text)
