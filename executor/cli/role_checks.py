"""Checks the argument specs of the roles that a provider has added together with a playbook for an action.

Without argument specs, Ansible does not check the arguments of a role.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from executor.cli.action_checks import CheckResult


def check_roles(roles: Iterable[str], playbook_folder: Path) -> CheckResult:
    """Return the problems and hints of the roles that are in the folder `roles` beside the playbook."""
    problems, hints = [], []
    for role in roles:
        role_folder = playbook_folder / "roles" / role
        if not role_folder.is_dir():
            continue  # The role is part of a collection.
        specs_file = role_folder / "meta" / "argument_specs.yml"
        if not specs_file.is_file():
            hints.append(f"the role {role} has no meta/argument_specs.yml, so Ansible does not check its arguments")
        elif problem := _find_problem(specs_file):
            problems.append(f"roles/{role}/meta/argument_specs.yml {problem}")
    return CheckResult(problems=tuple(problems), hints=tuple(hints))


def _find_problem(specs_file: Path) -> str:
    """Return the problem of the argument specs of the role's entry point `main`, or '' if there is none."""
    try:
        document = yaml.safe_load(specs_file.read_text(encoding="utf-8"))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (yaml.YAMLError, UnicodeError, RecursionError):
        return "is not valid YAML"
    options = _nested_value(document, "argument_specs", "main", "options")
    if not isinstance(options, dict):
        return "must have argument_specs.main.options"
    if "vm" not in options:  # `vm` contains the guest's ids and what the job requests of the guest
        return "must have argument_specs.main.options.vm"
    return ""


def _nested_value(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document
