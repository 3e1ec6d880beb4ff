"""Step 5 of 7, what there is to choose from: our own actions and a provider's, and whether theirs may be run.

An action is a playbook `<action>.yml`, with an optional JSON Schema `<action>.schema.json` for the service's
properties. A provider's folder comes first. What is in it runs with our credentials, so nobody but root and we may be
able to write there; an action that is not safe is refused, never replaced by ours in silence.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
from jsonschema.protocols import Validator

from executor.errors import ErrorCode, JobError
from executor.log import get_logger

log = get_logger(__name__)

ACTION_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,49}\Z")
SCHEMA_SUFFIX = ".schema.json"
#: A schema is read with each job.
MAX_SCHEMA_BYTES = 256 * 1024
#: More entries than this are no folder of actions, but somebody's home.
MAX_ENTRIES = 5_000
#: How many wrong members an error names.
MAX_PROBLEMS = 8

#: What each keyword of JSON Schema means to the one who sent the properties. The limit is the schema's, not theirs.
_WORDS = {
    "type": "must be of type {limit}",
    "enum": "must be one of {limit}",
    "const": "must be {limit}",
    "minimum": "must be at least {limit}",
    "maximum": "must be at most {limit}",
    "exclusiveMinimum": "must be greater than {limit}",
    "exclusiveMaximum": "must be less than {limit}",
    "multipleOf": "must be a multiple of {limit}",
    "minLength": "must have at least {limit} characters",
    "maxLength": "must have at most {limit} characters",
    "pattern": "must match {limit}",
    "format": "must be of format {limit}",
    "minItems": "must have at least {limit} items",
    "maxItems": "must have at most {limit} items",
    "uniqueItems": "must not hold the same item twice",
}


@dataclass(frozen=True, kw_only=True)
class Action:
    """A playbook that may be run for its name."""

    name: str
    playbook: Path
    schema: Path | None  #: a provider's own, for the service's properties
    is_ours: bool


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One action as a list shows it."""

    name: str
    playbook: Path
    has_schema: bool
    is_ours: bool
    replaces_ours: bool
    problem: str  #: why it is refused; '' when it may be run


def find(name: str, folders: Sequence[Path]) -> Action:
    """Return the action of that name: of the first folder that has one; the last folder is our own.

    Raises JobError UNSUPPORTED_ACTION when there is none, or when it is a provider's that is not safe to run.
    """
    if ACTION_PATTERN.match(name):
        for folder in folders:
            playbook = folder / f"{name}.yml"
            if not os.path.lexists(playbook):
                continue
            is_ours = folder == folders[-1]
            if reason := _refusal(folder, name, is_ours=is_ours):
                log.warning("action_refused", action=name, reason=reason)
                raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"the action {name} is refused: {reason}")
            return Action(name=name, playbook=playbook, schema=_schema_of(playbook, is_ours), is_ours=is_ours)
    raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"no playbook for the action {name[:60]!r}")


def listing(folders: Sequence[Path]) -> list[Listed]:
    """Return every action that there is, by name, those that are refused included."""
    found: dict[str, Listed] = {}
    for folder in reversed(folders):
        is_ours = folder == folders[-1]
        for playbook in sorted(folder.glob("*.yml")):
            found[playbook.stem] = Listed(
                name=playbook.stem,
                playbook=playbook,
                has_schema=_schema_of(playbook, is_ours) is not None,
                is_ours=is_ours,
                replaces_ours=playbook.stem in found,
                problem=_refusal(folder, playbook.stem, is_ours=is_ours),
            )
    return [found[name] for name in sorted(found)]


def _schema_of(playbook: Path, is_ours: bool) -> Path | None:
    schema = playbook.with_name(f"{playbook.stem}{SCHEMA_SUFFIX}")
    return schema if not is_ours and os.path.lexists(schema) else None


# ---------------------------------------------------------------------------------------------------------------
# May it be run? What a provider's folder holds gets our credentials.


def _refusal(folder: Path, name: str, *, is_ours: bool) -> str:
    """Say why an action is not run; '' when it is."""
    if not ACTION_PATTERN.match(name):
        return "its name is not one of an action"
    if is_ours:
        return "" if (folder / f"{name}.yml").is_file() else "it is not a file"
    try:
        return _folder_problem(folder) or next(_entry_problems(folder, name), "")
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except RuntimeError:  # how Python before 3.13 says it
        return "it holds a link that leads to itself"


def _folder_problem(folder: Path) -> str:
    """Say who else may change the folder, or put another one into its place."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    place = folder.resolve()
    if reason := _writer_of(place.stat(), place):
        return f"{place} {reason}"
    for parent in place.parents:
        # In a sticky folder, such as /tmp, only the owner of an entry may replace it.
        if not parent.stat().st_mode & stat.S_ISVTX and (reason := _writer_of(parent.stat(), parent)):
            return f"{parent}, which holds it, {reason}"
    return ""


def _entry_problems(folder: Path, name: str) -> Iterator[str]:
    """Look at the action's own files, and at all that is not another action's: roles, plugins, included tasks."""
    place, seen = folder.resolve(), 0
    for path in _walk(folder):
        seen += 1
        if seen > MAX_ENTRIES:
            yield f"{folder} holds more than {MAX_ENTRIES} entries"
            return
        if _is_another_actions(path, folder, name):
            continue
        real = path.resolve()
        if not real.is_relative_to(place):
            yield f"{path.relative_to(folder)} leads out of the folder"
        elif not real.exists():
            yield f"{path.relative_to(folder)} leads nowhere"
        elif reason := _writer_of(real.stat(), real):
            yield f"{path.relative_to(folder)} {reason}"
    if not (folder / f"{name}.yml").is_file():
        yield f"{name}.yml is not a file"


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")  # Ansible reads nothing there
        yield from (Path(root, entry) for entry in (*folders, *files))


def _is_another_actions(path: Path, folder: Path, name: str) -> bool:
    if path.parent != folder or not path.name.endswith((".yml", SCHEMA_SUFFIX)):
        return False
    return path.name not in (f"{name}.yml", f"{name}{SCHEMA_SUFFIX}")


def _writer_of(facts: os.stat_result, path: Path) -> str:
    """Say who, other than root and we, may write here; '' when nobody may."""
    if facts.st_uid not in (0, os.geteuid()):
        return f"belongs to user {facts.st_uid}, neither to root nor to us"
    if facts.st_mode & 0o022 and not _is_read_only(path):
        who = "everybody" if facts.st_mode & stat.S_IWOTH else "its group"
        return f"may be written by {who} (mode {stat.S_IMODE(facts.st_mode):04o})"
    return ""


def _is_read_only(path: Path) -> bool:
    """A mount that is read-only, such as a Kubernetes ConfigMap: its modes say nothing."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


# ---------------------------------------------------------------------------------------------------------------
# Do the properties fit?


class SchemaError(ValueError):
    """A provider's schema cannot be used; the text says why."""


def check_properties(action: Action, properties: Mapping[str, Any]) -> None:
    """Check a service's properties against the action's schema, if it has one.

    Raises JobError INVALID_REQUEST naming the members, never their values; UNSUPPORTED_ACTION when the schema itself
    cannot be used.
    """
    if action.schema is None:
        return
    try:
        validator = read_schema(action.schema)
        problems = sorted({_said(error) for error in validator.iter_errors(dict(properties))})
    except SchemaError as error:
        raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"the action {action.name} is refused: {error}") from error
    except RecursionError:
        raise JobError(ErrorCode.INVALID_REQUEST, "properties are nested too deeply") from None
    if problems:
        told = "; ".join(problems[:MAX_PROBLEMS])[:400]
        # The names of members that nobody knows are text from outside.
        raise JobError(ErrorCode.INVALID_REQUEST, "".join(char if char.isprintable() else " " for char in told))


def read_schema(file: Path) -> Validator:
    """Read and check a schema. Raises SchemaError.

    A reference may only lead to another place in the same file: the library would ask whoever serves that address.
    """
    try:
        text = file.read_bytes()
        schema = json.loads(text) if len(text) <= MAX_SCHEMA_BYTES else None
    except OSError as error:
        raise SchemaError(f"{file.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{file.name} is no JSON: {error}") from error
    if schema is None:
        raise SchemaError(f"{file.name} is empty, or larger than {MAX_SCHEMA_BYTES} bytes")
    if not isinstance(schema, dict):
        raise SchemaError(f"{file.name} is no JSON object")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SchemaError(f"{file.name} is no JSON Schema, at {_path(error) or 'its top'}: {error.message}") from error
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise SchemaError(f"{file.name} refers to {reference}: only references into the file itself are followed")
        if not _is_there(schema, reference):
            raise SchemaError(f"{file.name} refers to {reference}, which is not there")
    validator: Validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    return validator


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        found = (schema.get(key) for key in ("$ref", "$dynamicRef"))
        yield from (reference for reference in found if isinstance(reference, str))
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _references(item)


def _is_there(schema: Any, reference: str) -> bool:
    """Tell whether a reference of the form `#/a/b` or `#anchor` leads anywhere."""
    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):
        return f'anchor": {json.dumps(pointer)}' in json.dumps(schema).replace("Anchor", "anchor")
    place = schema
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, dict) and key in place:
            place = place[key]
        else:
            return False
    return True


def _said(error: jsonschema.ValidationError) -> str:
    """Say in our words what is wrong: the library's quote the value."""
    where = _path(error)
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = [name for name in error.validator_value if name not in error.instance]
        return "; ".join(f"{_joined(where, str(name))} is missing" for name in missing)
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = (error.schema.get("properties") or {}) if isinstance(error.schema, dict) else {}
        extra = [str(name) for name in error.instance if name not in known]
        return "; ".join(f"{_joined(where, name[:60])} is not known" for name in extra)
    words = _WORDS.get(str(error.validator), "does not fit the action's schema ({keyword})")
    limit = json.dumps(error.validator_value)[:120]
    return f"{where or 'the whole'} {words.format(limit=limit.strip(chr(34)), keyword=error.validator)}"


def _path(error: jsonschema.exceptions._Error) -> str:
    return ".".join(str(part)[:60] for part in error.absolute_path)


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
