"""Reads the extra variable `vm` of `smith play` from a YAML file and from `-e KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from executor.cli.output import sanitized

#: The description of a valid value in error messages, by the type in a role's argument_specs.
EXPECTED = {"int": "a whole number", "bool": "yes or no", "dict": "a YAML mapping", "list": "a list: a,b"}
#: The texts that are accepted as a value of the type bool.
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

#: The type of the parameters `options`: the options of the variable `vm` by name, as the argument_specs of the
#: playbook's roles describe them.
Options = Mapping[str, Mapping[str, Any]]


def read_values(file: Path | None, values: list[str], options: Options) -> dict[str, Any]:
    """Return the members of `vm`. `values` are the -e arguments; they override the members of the file."""
    vm = _read_file(file) if file else {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"-e takes KEY=VALUE, not {sanitized(key)}")
        _set_member(vm, key.split("."), text, options)
    return vm


def _read_file(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        raise typer.BadParameter(f"{file} is not valid YAML{f', at line {where.line + 1}' if where else ''}") from None
    if not isinstance(document, dict) or set(document) != {"vm"} or not isinstance(document["vm"], dict):
        raise typer.BadParameter(f"{file} must contain one mapping, vm: with the VM's members below it")
    return dict(document["vm"])


def _set_member(vm: dict[str, Any], path: list[str], text: str, options: Options) -> None:
    """Set the member of `vm` at the path. The option `-e a.b=c` has the path [a, b]: it sets member b of mapping a."""
    members, known = vm, options
    for part in path[:-1]:
        inner = members.setdefault(part, {})
        if not isinstance(inner, dict):
            raise typer.BadParameter(f"{part} has no members")
        members, known = inner, known.get(part, {}).get("options") or {}
    option = known.get(path[-1], {})
    if option.get("no_log") and option.get("type") != "dict":
        raise typer.BadParameter(
            f"{'.'.join(path)} is a secret, and other users can read a command line: set it in --vars"
        )
    if not known and len(path) > 1:  # a member of `properties`, which no argument spec describes
        members[path[-1]] = _parse_yaml(text)
        return
    try:
        members[path[-1]] = parse_value(text, str(option.get("type") or "str"))
    except ValueError:
        raise typer.BadParameter(f"{'.'.join(path)} must be {EXPECTED[option['type']]}") from None


def _parse_yaml(text: str) -> Any:
    """Return the text parsed as YAML, or the text itself if it is not valid YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def parse_value(text: str, kind: str) -> Any:
    """Return the text as a value of the type `kind` of argument_specs. Raises ValueError if the text does not fit."""
    if kind == "int":
        return int(text)
    if kind == "bool":
        if (word := text.lower()) not in TRUE + FALSE:
            raise ValueError(text)
        return word in TRUE
    if kind == "list" and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind in ("list", "dict"):
        value = _parse_yaml(text)
        if not isinstance(value, list if kind == "list" else dict):
            raise ValueError(text)
        return value
    return text


def secrets_in(value: Any, options: Options) -> list[str]:
    """Return the values that must be redacted: of members with `no_log` in `options`, or with "passw" in the name."""
    if not isinstance(value, Mapping):
        return []
    found: list[str] = []
    for name, item in value.items():
        option = options.get(name) or {}
        if isinstance(item, Mapping):
            found += secrets_in(item, option.get("options") or {})
        elif isinstance(item, str) and (option.get("no_log") or "passw" in name.lower()):
            found.append(item)
    return found
