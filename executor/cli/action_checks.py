"""Checks the content of an action's playbook without running it. `executor.cli.ansible_playbook` checks the syntax.

A problem means that the action cannot work or is not safe. A hint names an unusual property of the playbook, which the
author of the playbook may have intended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from executor.shared.required_members import REQUIRED_MEMBERS_BY_PLUGIN
from executor.shared.vm_arguments import VM_ARGUMENTS

#: The name of the group of all community.proxmox modules. A play sets the modules' Proxmox login in its
#: `module_defaults`, under this key.
PROXMOX_MODULE_GROUP = "group/community.proxmox.proxmox"
#: The accepted values of a play's `hosts`: `proxmox`, the only host in our inventory; `all`, Ansible's group of all
#: hosts; the expression in the built-in playbooks, which also works if an inventory lacks the host `proxmox`.
ALLOWED_HOSTS = ("proxmox", "all", "{{ 'proxmox' if 'proxmox' in groups['all'] else 'localhost' }}")
#: The modules that include a role.
ROLE_MODULES = ("import_role", "include_role")
#: The modules that include a file with Ansible tasks.
TASK_FILE_MODULES = ("import_tasks", "include_tasks")
#: The keys of a block whose values are lists of Ansible tasks.
BLOCK_SECTIONS = ("block", "rescue", "always")
#: The beginning of the full names of the built-in roles and action plugins.
COLLECTION_PREFIX = "agent_smith.proxmox."
#: The filter that turns the failure of an Ansible task into a text with an error code.
FAILURE_FILTER = f"{COLLECTION_PREFIX}failure"
#: The built-in roles and action plugins that verify the VM's identity (that the VM is the service's) and publish a
#: result (in the variable `vm_result`, by set_stats). Each name is the name of an action plugin. All names except
#: vm_identity are the names of roles, too.
IDENTITY_VERIFIERS = (
    "vm_absent",
    "vm_backed_up",
    "vm_configured",
    "vm_identity",
    "vm_placed",
    "vm_power",
    "vm_present",
    "vm_snapshot",
)
#: The maximum depth of nested blocks and includes. If a playbook exceeds it, the check reports that a file includes
#: itself.
MAX_NESTING_DEPTH = 20
#: The maximum length of the YAML parser's error message in the text of a problem.
MAX_YAML_ERROR_LENGTH = 300


class _AnsibleYamlLoader(yaml.SafeLoader):
    """Reads Ansible's YAML. For a value with a YAML tag of Ansible (!unsafe, !vault), it returns the tag's name."""


_AnsibleYamlLoader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


@dataclass
class PlaybookContents:
    """The plays, Ansible tasks and role names of a playbook and of the files and roles that it includes."""

    plays: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    #: One text for each file that cannot be read or used, with the reason.
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CheckResult:
    """The texts of the problems and hints that `check_playbook` has found in a playbook."""

    problems: tuple[str, ...]
    hints: tuple[str, ...]


def check_playbook(playbook: Path) -> CheckResult:
    """Return the problems and hints of a playbook."""
    contents = read_playbook(playbook)
    if contents.problems:
        return CheckResult(problems=tuple(contents.problems), hints=())
    problems = [problem for play in contents.plays for problem in _find_play_problems(play, contents)]
    if not _publishes_result(contents):
        problems.append(
            "the playbook publishes no result: end it with the action plugin agent_smith.proxmox.vm_identity, or set "
            "vm_result with set_stats"
        )
    problems_without_duplicates = tuple(dict.fromkeys(problems))
    return CheckResult(problems=problems_without_duplicates, hints=tuple(_find_hints(contents)))


def read_playbook(playbook: Path) -> PlaybookContents:
    """Read a playbook and the files and roles that it includes.

    A file whose name contains a Jinja template (`{{ … }}`) is not read: Ansible evaluates the template only in a run.
    """
    contents = PlaybookContents()
    document = _read_yaml(playbook, contents)
    if contents.problems:
        return contents
    is_list_of_dictionaries = isinstance(document, list) and all(isinstance(entry, dict) for entry in document)
    if not is_list_of_dictionaries or not document:
        contents.problems.append(f"{playbook.name} is not a list of plays")
        return contents
    # An entry without `hosts` is not a play: it imports another playbook.
    contents.plays = [entry for entry in document if "hosts" in entry]
    for entry in document:
        for role in _list_or_empty(entry.get("roles")):
            # Ansible accepts the role's name, or a dictionary that contains the name.
            role_name = role.get("role", role.get("name")) if isinstance(role, dict) else role
            _add_role(role_name, playbook, contents, depth=0)
        for section in ("pre_tasks", "tasks", "post_tasks", "handlers"):
            _add_tasks(_list_or_empty(entry.get(section)), playbook, contents, depth=0)
    return contents


def read_vm_member_specs(playbook: Path) -> dict[str, dict[str, Any]]:
    """Return the members that a playbook accepts in the variable `vm`, each with its Ansible argument spec.

    The keys of the returned dictionary are the names of the members. It contains the members of the built-in roles and
    action plugins that the playbook uses, and the members in the argument_specs of the roles in the folder `roles`
    beside the playbook. A member is required if at least one of these roles and action plugins requires it.
    """
    contents = read_playbook(playbook)
    spec_sets = [_builtin_member_specs(name) for name in _identity_verifiers_in(contents)]
    for role in contents.roles:
        # A role may lack argument_specs. `_read_yaml` adds the error about the missing file to a new PlaybookContents,
        # which is discarded.
        document = _read_yaml(playbook.parent / "roles" / role / "meta" / "argument_specs.yml", PlaybookContents())
        spec_sets.append(_dictionary_at(document, "argument_specs", "main", "options", "vm", "options"))
    spec_by_member: dict[str, dict[str, Any]] = {}
    for specs in spec_sets:
        for member, spec in specs.items():
            earlier_spec = spec_by_member.get(member, {})
            is_required = bool(spec.get("required") or earlier_spec.get("required"))
            spec_by_member[member] = {**earlier_spec, **spec, "required": is_required}
    return spec_by_member


def _identity_verifiers_in(contents: PlaybookContents) -> list[str]:
    """Return the names in IDENTITY_VERIFIERS that the playbook uses."""
    # One of the keys of an Ansible task is the name of the task's module or action plugin.
    task_keys = (key for task in contents.tasks for key in task)
    role_and_module_names = (
        name.removeprefix(COLLECTION_PREFIX) for name in (*contents.roles, *task_keys) if COLLECTION_PREFIX in name
    )
    return [name for name in role_and_module_names if name in IDENTITY_VERIFIERS]


def _builtin_member_specs(name: str) -> dict[str, Any]:
    """Return the argument specs of the members of `vm` that the built-in role or action plugin `name` accepts."""
    # All built-in roles and action plugins accept the members in VM_ARGUMENTS. Some require members that are optional
    # in VM_ARGUMENTS.
    required_members = REQUIRED_MEMBERS_BY_PLUGIN.get(name, ())
    return {
        member: {**spec, "required": spec.get("required", False) or member in required_members}
        for member, spec in VM_ARGUMENTS.items()
    }


def _dictionary_at(document: Any, *keys: str) -> dict[str, Any]:
    """Return `document[key1][key2]…`, or an empty dictionary if this value is no dictionary or does not exist."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, dict) else {}


def _find_play_problems(play: dict[str, Any], contents: PlaybookContents) -> Iterator[str]:
    """Yield one text for each problem of this play."""
    if play.get("hosts") not in ALLOWED_HOSTS:
        yield f"hosts is {play.get('hosts')!r}: it must be proxmox, the only host in the inventory"
    if play.get("gather_facts") is not False:
        yield "gather_facts must be false: Ansible would gather facts of the agent's machine, which takes a second"
    proxmox_login = _dictionary_at(play, "module_defaults").get(PROXMOX_MODULE_GROUP)
    uses_proxmox_modules = any("community.proxmox." in key for task in contents.tasks for key in task)
    if proxmox_login is None and uses_proxmox_modules:
        yield (
            f"module_defaults lacks {PROXMOX_MODULE_GROUP}, so the modules of community.proxmox have no login: set "
            'this key to "{{ smith_proxmox }}"'
        )
    if "vars_prompt" in play:
        yield "vars_prompt needs an operator's answer, but no operator is present when the agent runs a job"


def _publishes_result(contents: PlaybookContents) -> bool:
    """Return whether a built-in role, a built-in action plugin or set_stats publishes `vm_result` in the playbook."""
    if _identity_verifiers_in(contents):
        return True
    published_data = (_dictionary_at(_module_arguments(task, "set_stats"), "data") for task in contents.tasks)
    return any("vm_result" in data for data in published_data)


def _find_hints(contents: PlaybookContents) -> Iterator[str]:
    """Yield one text for each unusual property of the playbook."""
    if not _identity_verifiers_in(contents):
        yield (
            "the playbook does not use the action plugin agent_smith.proxmox.vm_identity, which verifies the VM's "
            "identity"
        )
    if not any(FAILURE_FILTER in str(task["rescue"]) for task in contents.tasks if "rescue" in task):
        yield (
            f"the playbook has no rescue with the filter {FAILURE_FILTER}, so its failures may have only the general "
            "error code PLAYBOOK_FAILED"
        )
    if any(_module_arguments(task, "pause") is not None for task in contents.tasks):
        yield "the playbook pauses, and the time of the pause counts towards FulcrumCore's job timeout"


def _add_tasks(tasks: list[Any], file: Path, contents: PlaybookContents, depth: int) -> None:
    """Add `tasks`, the Ansible tasks of `file`, to `contents`, with the roles and files that these tasks include.

    `depth` is the number of blocks and includes that contain these Ansible tasks.
    """
    if depth > MAX_NESTING_DEPTH:
        contents.problems.append(f"{file.name} includes itself")
        return
    for task in tasks:
        if not isinstance(task, dict):
            continue
        contents.tasks.append(task)
        for section in BLOCK_SECTIONS:
            _add_tasks(_list_or_empty(task.get(section)), file, contents, depth + 1)
        for module in ROLE_MODULES:
            arguments = _module_arguments(task, module)
            role_name = arguments.get("name") if isinstance(arguments, dict) else None
            _add_role(role_name, file, contents, depth + 1)
        for module in TASK_FILE_MODULES:
            _add_task_file(_module_arguments(task, module), file, contents, depth + 1)


def _add_role(name: Any, including_file: Path, contents: PlaybookContents, depth: int) -> None:
    """Add a role that `including_file` includes: the role's name and Ansible tasks.

    The Ansible tasks are added only if the role is in the folder `roles` beside `including_file`.
    """
    if not isinstance(name, str) or name in contents.roles:
        return
    contents.roles.append(name)
    task_file = including_file.parent / "roles" / name / "tasks" / "main.yml"
    if task_file.is_file():  # A built-in role is in another folder, and is not checked.
        _add_tasks(_list_or_empty(_read_yaml(task_file, contents)), task_file, contents, depth)


def _add_task_file(arguments: Any, including_file: Path, contents: PlaybookContents, depth: int) -> None:
    """Add the Ansible tasks of an included file, unless its name contains a Jinja template.

    `arguments` are the arguments of the including module: the file's name, or a dictionary with the key `file`.
    """
    name = arguments.get("file") if isinstance(arguments, dict) else arguments
    if not isinstance(name, str) or "{{" in name:
        return
    included_file = including_file.parent / name
    if included_file.is_file():
        _add_tasks(_list_or_empty(_read_yaml(included_file, contents)), included_file, contents, depth)


def _module_arguments(task: Mapping[str, Any], module: str) -> Any:
    """Return the arguments that the Ansible task passes to the module, or None if the task uses another module."""
    return task.get(f"ansible.builtin.{module}", task.get(module))


def _read_yaml(file: Path, contents: PlaybookContents) -> Any:
    """Return the file's YAML document. If the file cannot be read, add the error to `contents` and return None."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_AnsibleYamlLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        contents.problems.append(f"{file.name} cannot be read: {error.strerror}")
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        error_line = " ".join(str(error).split())[:MAX_YAML_ERROR_LENGTH]
        contents.problems.append(f"{file.name} is not valid YAML: {error_line}")
    return None


def _list_or_empty(value: Any) -> list[Any]:
    """Return the value as a list, or an empty list if the value is no list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
