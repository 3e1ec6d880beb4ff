"""`smith actions`: list the actions, check a provider's own, and write a new one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli import action_checks
from executor.cli import ansible_playbook as by_hand
from executor.cli.arguments import AsJson
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import sanitized, show_json, show_outcome, show_text
from executor.cli.tables import show_rows
from executor.errors import EXIT_FAILURE, SmithError
from executor.runs import action_schema, actions
from executor.runs.actions import ACTION_PATTERN, SCHEMA_SUFFIX, ListedAction, ansible_home

COLUMNS = {"name": "ACTION", "source": "SOURCE", "schema": "SCHEMA", "note": "NOTE"}
#: Set whatever the umask is: an action file that others can write is refused.
FILE_MODE = 0o644

PLAYBOOK = """\
---
# Runs for FulcrumCore's action `{name}`. The contract: docs/custom-actions.md.
# vm holds the VM (service_id, vmid, name, node, cluster, timeout_s) and, in vm.properties, the service's properties.
- name: Run {name} on a service's VM
  hosts: proxmox
  gather_facts: false
  module_defaults:
    group/community.proxmox.proxmox: "{{{{ smith_proxmox }}}}"
  environment: "{{{{ smith_module_environment }}}}"
  vars:
    vm_result_found: "{{{{ {variable}_after }}}}"
    vm_result_more:
      changed: false
      upids: "{{{{ {variable}_after.upids }}}}"
  tasks:
    - name: Run {name}
      block:
        # Change nothing before this task: it verifies that the VM with this VMID is the service's.
        - name: Verify the VM's identity
          ansible.builtin.import_role:
            name: vm_identity

        # Your tasks. The modules of community.proxmox have their login already (module_defaults).

        # Read the outcome from Proxmox: a module may answer "ok" without the wanted change.
        - name: Read the VM's state from Proxmox
          smith_vm_facts:
            connection: "{{{{ smith_proxmox }}}}"
            ca_bundle: "{{{{ smith_ca_bundle }}}}"
            vmid: "{{{{ vm.vmid }}}}"
            node: "{{{{ vm_identity_found.node }}}}"
            known_tasks: "{{{{ vm_identity_found.known_tasks }}}}"
            deadline: "{{{{ vm_identity_found.deadline }}}}"
            wait_for: unlocked
          register: {variable}_after

        - name: Publish the result
          ansible.builtin.import_role:
            name: vm_result
      rescue:
        - name: Fail with the error code first
          ansible.builtin.fail:
            msg: "{{{{ ansible_failed_result | smith_failure }}}}"
"""
SCHEMA = """\
{{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "The properties of a service that {name} needs",
  "type": "object",
  "required": [],
  "properties": {{
  }}
}}
"""


class NoFolder(SmithError):
    """SMITH_ACTIONS_PATH, the folder of the provider's own actions, is not set."""


class AlreadyThere(SmithError):
    """A file that would be written exists."""


@examples("smith actions list", "smith actions list --json")
def list_actions(as_json: AsJson = False) -> None:
    """List the actions; a refused one with the reason."""
    rows = [facts(listed) for listed in _listed()]
    if as_json:
        show_json(rows)
        return
    shown = [
        row
        | {"source": "ours" if row["is_ours"] else Path(row["playbook"]).parent, "note": _note(row)}
        | {"schema": row["has_schema"]}
        for row in rows
    ]
    show_rows(shown, COLUMNS, nothing="there are no actions")


@examples("smith actions validate", "smith actions validate attach-iso --json")
def validate(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One action; default: all of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that an action can work and is safe. Nothing is run."""
    listed = _listed()
    chosen = [each for each in listed if each.name == name] if name else [each for each in listed if not each.is_ours]
    if name and not chosen:
        raise typer.BadParameter(f"there is no action {sanitized(name)}: `smith actions list` shows them")
    found = [{"name": each.name, "playbook": str(each.playbook), **_findings(each)} for each in chosen]
    if as_json:
        show_json(found)
    else:
        _show_findings(found)
    if any(each["problems"] for each in found):
        raise typer.Exit(EXIT_FAILURE)


@examples("smith actions new attach-iso")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The action's name in FulcrumCore's service type.")],
    as_json: AsJson = False,
) -> None:
    """Write a new action into the folder SMITH_ACTIONS_PATH.

    That is: a playbook template and a schema for its properties.
    """
    folder = open_settings().smith_actions_path
    if folder is None:
        raise NoFolder("SMITH_ACTIONS_PATH is not set: set it to a folder that only you can write to")
    if not ACTION_PATTERN.match(name):
        raise typer.BadParameter("an action's name has lower-case letters, digits, - and _, and starts with a letter")
    playbook, schema = folder / f"{name}.yml", folder / f"{name}{SCHEMA_SUFFIX}"
    for file in (playbook, schema):
        if os.path.lexists(file):
            raise AlreadyThere(f"{file} exists already")
    _write(playbook, PLAYBOOK.format(name=name, variable=name.replace("-", "_")))
    _write(schema, SCHEMA.format(name=name))
    text = f"{playbook}\n{schema}\nthen: smith actions validate {name}"
    show_outcome(text, as_json=as_json, name=name, playbook=str(playbook), schema=str(schema))


def facts(listed: ListedAction) -> dict[str, Any]:
    """Return an action's columns. The names are the keys of `--json`."""
    return {
        "name": listed.name,
        "is_ours": listed.is_ours,
        "replaces_ours": listed.replaces_ours,
        "playbook": str(listed.playbook),
        "has_schema": listed.has_schema,
        "problem": listed.problem,
    }


def _note(row: Mapping[str, Any]) -> str:
    return f"refused: {row['problem']}" if row["problem"] else "replaces ours" if row["replaces_ours"] else ""


def _listed() -> list[ListedAction]:
    return actions.list_all(folders())


def folders() -> tuple[Path, ...]:
    """Return the folders with actions: the provider's first, ours last."""
    own = open_settings().smith_actions_path
    return (*((own,) if own else ()), ansible_home() / "playbooks")


def _findings(listed: ListedAction) -> dict[str, list[str]]:
    found = action_checks.check(listed.playbook)
    problems = [*([listed.problem] if listed.problem else []), *found.problems]
    if listed.has_schema:
        try:
            action_schema.read_schema(listed.playbook.with_name(f"{listed.name}{actions.SCHEMA_SUFFIX}"))
        except action_schema.SchemaError as error:
            problems.append(str(error))
    if not listed.problem and (problem := by_hand.syntax_problem(listed.playbook)):
        problems.append(f"ansible-playbook --syntax-check: {problem}")
    return {"problems": problems, "hints": list(found.hints)}


def _show_findings(found: list[dict[str, Any]]) -> None:
    if not found:
        show_text("no actions of your own: SMITH_ACTIONS_PATH names their folder")
    for each in found:
        show_text(f"{each['name']}: {'refused or broken' if each['problems'] else 'ok'}")
        for problem in each["problems"]:
            show_text(f"  problem: {problem}")
        for hint in each["hints"]:
            show_text(f"  hint: {hint}")


def _write(file: Path, text: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w", encoding="utf-8") as handle:
        os.fchmod(handle.fileno(), FILE_MODE)
        handle.write(text)
