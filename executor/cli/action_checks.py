"""Checks the content of an action's playbook without running it; `ansible_playbook.syntax_problem` checks the syntax.

A problem means that the action cannot work or is not safe. A hint names a property of the playbook that is unusual but
that its author may have intended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: The key of a play's `module_defaults` under which the play gives Proxmox's login to all modules of community.proxmox.
MODULE_GROUP = "group/community.proxmox.proxmox"
#: The accepted values of a play's `hosts`: the only host in our inventory, and Ansible's group of all hosts.
HOSTS = ("proxmox", "all")
#: The modules that include a role.
ROLE_MODULES = ("import_role", "include_role")
#: The modules that include a file with Ansible tasks.
TASK_FILE_MODULES = ("import_tasks", "include_tasks")
#: The keys of a block under which it has lists of Ansible tasks.
BLOCK_SECTIONS = ("block", "rescue", "always")
#: The built-in roles that verify the VM's identity before they or later Ansible tasks change the VM.
IDENTITY_ROLES = ("vm_identity", "vm_present")
#: The maximum number of nested blocks and includes. A playbook that exceeds it is reported as including itself.
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """Reads Ansible's YAML. A value with a YAML tag of Ansible (!unsafe, !vault) is replaced by the name of the tag."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


@dataclass
class Contents:
    """The plays, Ansible tasks and role names of a playbook and of the files and roles that it includes."""

    plays: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    #: One text for each file that could not be read, with the reason.
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """The problems and hints that `check` has found in a playbook, one text for each."""

    problems: tuple[str, ...]
    hints: tuple[str, ...]


def check(playbook: Path) -> Findings:
    """Return the problems and hints of a playbook."""
    contents = read(playbook)
    if contents.problems:
        return Findings(tuple(contents.problems), ())
    problems = [problem for play in contents.plays for problem in _play_problems(play, contents)]
    if not _publishes(contents):
        problems.append("it publishes no result: end with the role vm_result, or with set_stats of vm_result")
    return Findings(tuple(dict.fromkeys(problems)), tuple(_hints(contents)))


def read(playbook: Path) -> Contents:
    """Read a playbook and the files and roles that it includes.

    A file whose name contains a Jinja template (`{{ … }}`) is not read, because its name is known only in a run.
    """
    contents = Contents()
    document = _yaml(playbook, contents)
    if contents.problems:
        return contents
    if not isinstance(document, list) or not document or not all(isinstance(play, dict) for play in document):
        contents.problems.append(f"{playbook.name} is not a list of plays")
        return contents
    contents.plays = [play for play in document if "hosts" in play]
    for play in document:
        for role in _list(play.get("roles")):
            _add_role(role.get("role", role.get("name")) if isinstance(role, dict) else role, playbook, contents, 0)
        for section in ("pre_tasks", "tasks", "post_tasks", "handlers"):
            _add_tasks(_list(play.get(section)), playbook, contents, 0)
    return contents


def vm_options(playbook: Path, own_roles: Path) -> dict[str, dict[str, Any]]:
    """Return the options of the variable `vm` by name, as the argument_specs of the playbook's roles describe them.

    `own_roles` is the folder with the built-in roles. A role in the folder `roles` beside the playbook takes precedence
    over a built-in role of the same name.
    """
    options_by_name: dict[str, dict[str, Any]] = {}
    for role in read(playbook).roles:
        for folder in (playbook.parent / "roles", own_roles):
            specs = _yaml(folder / role / "meta" / "argument_specs.yml", Contents())
            options = _mapping_at(specs, "argument_specs", "main", "options", "vm", "options")
            for name, option in options.items():
                is_required = bool(option.get("required")) or bool(options_by_name.get(name, {}).get("required"))
                options_by_name[name] = {**options_by_name.get(name, {}), **option, "required": is_required}
            if isinstance(specs, dict):
                break
    return options_by_name


def _mapping_at(document: Any, *names: str) -> dict[str, Any]:
    """Return the dictionary at this path of keys, or an empty dictionary if the document has none there."""
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document if isinstance(document, dict) else {}


def _play_problems(play: dict[str, Any], contents: Contents) -> Iterator[str]:
    """Yield one text for each reason why this play cannot work in the executor."""
    if play.get("hosts") not in HOSTS:
        yield f"hosts is {play.get('hosts')!r}: the inventory has one host, proxmox, where the modules run"
    if play.get("gather_facts") is not False:
        yield "gather_facts must be false: it would gather this machine's facts, which takes a second"
    login = _mapping_at(play, "module_defaults").get(MODULE_GROUP)
    if login is None and any("community.proxmox." in key for task in contents.tasks for key in task):
        yield f"module_defaults lacks {MODULE_GROUP}: smith_proxmox, so the modules have no login"
    if "vars_prompt" in play:
        yield "vars_prompt needs an operator's answer, which the executor cannot give"


def _publishes(contents: Contents) -> bool:
    """Return whether the playbook publishes `vm_result`, with our role vm_result or with set_stats."""
    if "vm_result" in contents.roles:
        return True
    data = (_mapping_at(_arguments(task, "set_stats"), "data") for task in contents.tasks)
    return any("vm_result" in item for item in data)


def _hints(contents: Contents) -> Iterator[str]:
    """Yield one text for each unusual property of the playbook."""
    if not set(IDENTITY_ROLES) & set(contents.roles):
        yield "it does not import the role vm_identity, which verifies the VM's identity before any change"
    if not any("rescue" in task for task in contents.tasks):
        yield "it has no rescue with smith_failure, so its failures may end as PLAYBOOK_FAILED"
    if any(_arguments(task, name) is not None for task in contents.tasks for name in ("pause", "prompt")):
        yield "it pauses, which counts against FulcrumCore's job timeout"


def _add_tasks(tasks: list[Any], file: Path, contents: Contents, depth: int) -> None:
    """Add the Ansible tasks of `file`, and all that they include, to the contents. `depth` counts nested includes."""
    if depth > MAX_DEPTH:
        contents.problems.append(f"{file.name} includes itself")
        return
    for task in tasks:
        if not isinstance(task, dict):
            continue
        contents.tasks.append(task)
        for section in BLOCK_SECTIONS:
            _add_tasks(_list(task.get(section)), file, contents, depth + 1)
        for name in ROLE_MODULES:
            _add_role(_mapping_at({name: _arguments(task, name)}, name).get("name"), file, contents, depth + 1)
        for name in TASK_FILE_MODULES:
            _add_file(_arguments(task, name), file, contents, depth + 1)


def _add_role(name: Any, file: Path, contents: Contents, depth: int) -> None:
    """Add the role that `file` includes. If the role is beside `file`, also add its Ansible tasks."""
    if not isinstance(name, str) or name in contents.roles:
        return
    contents.roles.append(name)
    tasks = file.parent / "roles" / name / "tasks" / "main.yml"
    if tasks.is_file():  # The role is the provider's own. The built-in roles are elsewhere, and are not checked.
        _add_tasks(_list(_yaml(tasks, contents)), tasks, contents, depth)


def _add_file(included: Any, file: Path, contents: Contents, depth: int) -> None:
    """Add the Ansible tasks of the file that `file` includes, unless its name contains a Jinja template."""
    name = included.get("file") if isinstance(included, dict) else included
    if isinstance(name, str) and "{{" not in name and (path := file.parent / name).is_file():
        _add_tasks(_list(_yaml(path, contents)), path, contents, depth)


def _arguments(task: Mapping[str, Any], module: str) -> Any:
    """Return the arguments that the Ansible task passes to the module, or None if the task uses another module."""
    return task.get(f"ansible.builtin.{module}", task.get(module))


def _yaml(file: Path, contents: Contents) -> Any:
    """Return the file's YAML document. If the file cannot be read, add the error to `contents` and return None."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        contents.problems.append(f"{file.name} cannot be read: {error.strerror}")
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        contents.problems.append(f"{file.name} is not valid YAML: {' '.join(str(error).split())[:300]}")
    return None


def _list(value: Any) -> list[Any]:
    """Return the value as a list, or an empty list if the value is not a sequence or is text."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
