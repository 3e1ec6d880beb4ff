"""Reads the extra variable `vm` of `smith play` from a YAML file and from `-e KEY=VALUE`.

`vm` is a dictionary. A member of `vm` is a key with its value. The roles and action plugins of a playbook describe each
member in argument_specs: its type, and whether it is required or secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from executor.views.job_rows import SECRET_KEY_PATTERN, VAULT_PREFIX
from executor.views.text import sanitized

#: The description of a valid value in error messages, keyed by the type of the member.
VALUE_DESCRIPTION_BY_TYPE = {
    "int": "a whole number",
    "bool": "yes or no",
    "dict": "a YAML mapping",
    "list": "a list: a,b",
}
#: The texts that are accepted as a value of the type bool.
TRUE_TEXTS, FALSE_TEXTS = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

#: The argument_specs of the members of `vm`, for example `{"type": "int", "required": True}`, keyed by the member's
#: name. If a member is a dictionary, its spec has the key `options`, which describes the members of this dictionary.
VmMemberSpecs = Mapping[str, Mapping[str, Any]]
#: Members that are accepted for every playbook, even if no argument_specs of the playbook's roles describe them.
#: `properties`: the service's properties. `allowed`: the bridges, VLANs, storages and tags that a service may use.
GENERAL_MEMBERS = ("properties", "allowed")


def refuse_unknown_members(members: Mapping[str, Any], member_specs: VmMemberSpecs, parent_path: str = "") -> None:
    """Raise typer.BadParameter for a member that no role and no action plugin of the playbook describes.

    `parent_path` names the member that contains these members, and ends with a dot, such as `network.`. It is empty
    for the members of `vm` itself. If `member_specs` is empty, no argument_specs describe these members (for example
    the members of `properties`), and all members are accepted.
    """
    if not member_specs:
        return
    for name, value in members.items():
        if name not in member_specs and (parent_path or name not in GENERAL_MEMBERS):
            raise typer.BadParameter(_unknown_member_text(name, member_specs, parent_path))
        inner_member_specs = member_specs.get(name, {}).get("options") or {}
        for inner_members in value if isinstance(value, list) else [value]:
            if isinstance(inner_members, Mapping):
                refuse_unknown_members(inner_members, inner_member_specs, f"{parent_path}{name}.")


def _unknown_member_text(name: str, member_specs: VmMemberSpecs, parent_path: str) -> str:
    similar_names = difflib.get_close_matches(str(name), member_specs, n=1)
    if similar_names:
        hint = f"did you mean {parent_path}{similar_names[0]}?"
    else:
        hint = (
            "docs/actions.md lists the members"
            if not parent_path
            else f"{parent_path[:-1]} has the members {', '.join(sorted(member_specs))}"
        )
    return f"{sanitized(f'{parent_path}{name}')} is not a member of vm: {hint}"


def read_members(file: Path | None, member_arguments: list[str], member_specs: VmMemberSpecs) -> dict[str, Any]:
    """Return the members of `vm` from the file and from the arguments of -e, which override the members of the file."""
    vm = _read_file(file) if file else {}
    for argument in member_arguments:
        key, separator, text = argument.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"-e takes KEY=VALUE, not {sanitized(key)}")
        _set_member(vm, key.split("."), text, member_specs)
    refuse_unknown_members(vm, member_specs)
    return vm


def _read_file(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from None
    except (UnicodeError, yaml.YAMLError) as error:
        position = getattr(error, "problem_mark", None)  # Its line numbers begin with 0.
        line_text = f", at line {position.line + 1}" if position else ""
        raise typer.BadParameter(f"{file} is not valid YAML{line_text}") from None
    if not isinstance(document, dict) or set(document) != {"vm"} or not isinstance(document["vm"], dict):
        raise typer.BadParameter(f"{file} must have one key, vm, whose value is a YAML mapping of the VM's members")
    return dict(document["vm"])


def _set_member(vm: dict[str, Any], member_path: list[str], text: str, member_specs: VmMemberSpecs) -> None:
    """Set a member of `vm`. With `-e a.b=c`, `member_path` is [a, b]: the member b of the dictionary a is set."""
    key, member_name = ".".join(member_path), member_path[-1]
    members, inner_specs = vm, member_specs
    for name in member_path[:-1]:
        inner_members = members.setdefault(name, {})
        if not isinstance(inner_members, dict):
            raise typer.BadParameter(f"{sanitized(name)} is not a dictionary, so -e cannot set a member of it")
        members, inner_specs = inner_members, inner_specs.get(name, {}).get("options") or {}
    member_spec = inner_specs.get(member_name, {})
    # A text with VAULT_PREFIX refers to a secret in FulcrumCore's vault, and is no secret itself.
    if _is_secret(member_path, member_spec) and not text.startswith(VAULT_PREFIX):
        raise typer.BadParameter(
            f"{key} is a secret, and other users can read a command line: set it in the file of --vars"
        )
    # If no argument_specs describe the members of the dictionary (for example `properties`), the text is YAML.
    if not inner_specs and len(member_path) > 1:
        members[member_name] = _parse_yaml(text)
        return
    try:
        members[member_name] = parse_value(text, str(member_spec.get("type") or "str"))
    except ValueError:
        raise typer.BadParameter(f"{key} must be {VALUE_DESCRIPTION_BY_TYPE[member_spec['type']]}") from None


def _is_secret(member_path: list[str], member_spec: Mapping[str, Any]) -> bool:
    """Return whether a member is a secret. If no argument_specs describe the member, the names in its path decide.

    A dictionary is not a secret, even if its argument_specs say `no_log`: only some of its members are secrets, such
    as `cloud_init.password`.
    """
    if member_spec:
        return bool(member_spec.get("no_log")) and member_spec.get("type") != "dict"
    return any(SECRET_KEY_PATTERN.search(name) for name in member_path)


def _parse_yaml(text: str) -> Any:
    """Return the text parsed as YAML, or the text itself if it is not valid YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def parse_value(text: str, member_type: str) -> Any:
    """Return the text converted to the type `member_type` of argument_specs. Raises ValueError for an invalid text."""
    if member_type == "int":
        return int(text)
    if member_type == "bool":
        lower_text = text.lower()
        if lower_text not in TRUE_TEXTS + FALSE_TEXTS:
            raise ValueError(text)
        return lower_text in TRUE_TEXTS
    if member_type == "list" and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    if member_type in ("list", "dict"):
        value = _parse_yaml(text)
        expected_class = list if member_type == "list" else dict
        if not isinstance(value, expected_class):
            raise ValueError(text)
        return value
    return text


def secrets_in(members: Mapping[str, Any], member_specs: VmMemberSpecs) -> list[str]:
    """Return the values of the members that are secrets, so that the caller can redact them.

    A member is a secret if its argument_specs say `no_log`, or if its name matches SECRET_KEY_PATTERN. A dictionary
    that is the value of a member, or is in a list, is searched in the same way. Unlike `_is_secret`, this function
    checks the name even if argument_specs describe the member.
    """
    secrets: list[str] = []
    for name, value in members.items():
        member_spec = member_specs.get(name) or {}
        is_secret = bool(member_spec.get("no_log") or SECRET_KEY_PATTERN.search(str(name)))
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                secrets += secrets_in(item, member_spec.get("options") or {})
            elif isinstance(item, str) and is_secret:
                secrets.append(item)
    return secrets
