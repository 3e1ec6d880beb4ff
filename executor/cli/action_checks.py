"""Checks of an action's playbook that do not run it (`ansible_playbook.syntax_problem` checks the syntax). Reads only.

With a problem the action does not work or is not safe; a hint may be intended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MODULE_GROUP = "group/community.proxmox.proxmox"
#: The host of our inventory, and the group of all hosts.
HOSTS = ("proxmox", "all")
INCLUDES_ROLE = ("import_role", "include_role")
INCLUDES_TASKS = ("import_tasks", "include_tasks")
BLOCKS = ("block", "rescue", "always")
#: Our roles that verify the VM's identity before they change it.
PROOFS = ("vm_identity", "vm_present")
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """Reads Ansible's YAML; the values of its own tags (!unsafe, !vault) become the tag's name."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


@dataclass
class Contents:
    """The contents of a playbook, with its included tasks and the roles beside it."""

    plays: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """The result of a check."""

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
    """Read a playbook, with the files and roles that it includes by a literal name."""
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
    """Return the members of `vm` by name, as the argument_specs of the playbook's roles describe them.

    `own_roles` is the folder with our roles; a role beside the playbook takes precedence.
    """
    found: dict[str, dict[str, Any]] = {}
    for role in read(playbook).roles:
        for folder in (playbook.parent / "roles", own_roles):
            specs = _yaml(folder / role / "meta" / "argument_specs.yml", Contents())
            options = _member(specs, "argument_specs", "main", "options", "vm", "options")
            for name, option in options.items():
                is_required = bool(option.get("required")) or bool(found.get(name, {}).get("required"))
                found[name] = {**found.get(name, {}), **option, "required": is_required}
            if isinstance(specs, dict):
                break
    return found


def _member(document: Any, *names: str) -> dict[str, Any]:
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document if isinstance(document, dict) else {}


def _play_problems(play: dict[str, Any], contents: Contents) -> Iterator[str]:
    if play.get("hosts") not in HOSTS:
        yield f"hosts is {play.get('hosts')!r}: the inventory has one host, proxmox, where the modules run"
    if play.get("gather_facts") is not False:
        yield "gather_facts must be false: it would gather this machine's facts, which takes a second"
    login = _member(play, "module_defaults").get(MODULE_GROUP)
    if login is None and any("community.proxmox." in key for task in contents.tasks for key in task):
        yield f"module_defaults lacks {MODULE_GROUP}: smith_proxmox, so the modules have no login"
    if "vars_prompt" in play:
        yield "vars_prompt needs an operator's answer, which the executor cannot give"


def _publishes(contents: Contents) -> bool:
    if "vm_result" in contents.roles:
        return True
    data = (_member(_arguments(task, "set_stats"), "data") for task in contents.tasks)
    return any("vm_result" in item for item in data)


def _hints(contents: Contents) -> Iterator[str]:
    if not set(PROOFS) & set(contents.roles):
        yield "it does not import the role vm_identity, which verifies the VM's identity before any change"
    if not any("rescue" in task for task in contents.tasks):
        yield "it has no rescue with smith_failure, so its failures may end as PLAYBOOK_FAILED"
    if any(_arguments(task, name) is not None for task in contents.tasks for name in ("pause", "prompt")):
        yield "it pauses, which counts against FulcrumCore's job timeout"


def _add_tasks(tasks: list[Any], file: Path, contents: Contents, depth: int) -> None:
    if depth > MAX_DEPTH:
        contents.problems.append(f"{file.name} includes itself")
        return
    for task in tasks:
        if not isinstance(task, dict):
            continue
        contents.tasks.append(task)
        for section in BLOCKS:
            _add_tasks(_list(task.get(section)), file, contents, depth + 1)
        for name in INCLUDES_ROLE:
            _add_role(_member({name: _arguments(task, name)}, name).get("name"), file, contents, depth + 1)
        for name in INCLUDES_TASKS:
            _add_file(_arguments(task, name), file, contents, depth + 1)


def _add_role(name: Any, file: Path, contents: Contents, depth: int) -> None:
    if not isinstance(name, str) or name in contents.roles:
        return
    contents.roles.append(name)
    tasks = file.parent / "roles" / name / "tasks" / "main.yml"
    if tasks.is_file():  # a role of the provider; ours are not checked
        _add_tasks(_list(_yaml(tasks, contents)), tasks, contents, depth)


def _add_file(included: Any, file: Path, contents: Contents, depth: int) -> None:
    name = included.get("file") if isinstance(included, dict) else included
    if isinstance(name, str) and "{{" not in name and (path := file.parent / name).is_file():
        _add_tasks(_list(_yaml(path, contents)), path, contents, depth)


def _arguments(task: Mapping[str, Any], module: str) -> Any:
    return task.get(f"ansible.builtin.{module}", task.get(module))


def _yaml(file: Path, contents: Contents) -> Any:
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        contents.problems.append(f"{file.name} cannot be read: {error.strerror}")
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        contents.problems.append(f"{file.name} is not valid YAML: {' '.join(str(error).split())[:300]}")
    return None


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
