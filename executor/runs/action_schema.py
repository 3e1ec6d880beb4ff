"""Checks a service's properties against the JSON Schema that a provider's action may have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
from jsonschema.protocols import Validator

from executor.errors import ErrorCode, JobError
from executor.runs.actions import Action

#: A larger schema is refused, because the schema is read again for each job.
MAX_SCHEMA_BYTES = 256 * 1024
#: Maximum number of wrong members that one error message names.
MAX_PROBLEMS = 8

#: The error text for each keyword of JSON Schema. `limit` is the value that the schema gives to the keyword. It is not
#: the value of the service's property, which may be a secret.
_MESSAGES = {
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
    "uniqueItems": "must not have the same item twice",
}


class SchemaError(ValueError):
    """A provider's schema cannot be used. The message states the reason."""


def check_properties(action: Action, properties: Mapping[str, Any]) -> None:
    """Check a service's properties against the action's schema, if the action has one.

    Raises JobError: INVALID_REQUEST when a property does not match (the message names it without its value),
    UNSUPPORTED_ACTION when the schema itself cannot be used.
    """
    if action.schema is None:
        return
    try:
        validator = read_schema(action.schema)
        problems = sorted({_message_of(error) for error in validator.iter_errors(dict(properties))})
    except SchemaError as error:
        raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"the action {action.name} is refused: {error}") from error
    except RecursionError:
        raise JobError(ErrorCode.INVALID_REQUEST, "properties are nested too deeply") from None
    if problems:
        text = "; ".join(problems[:MAX_PROBLEMS])[:400]
        # The name of an unknown member is text from FulcrumCore and may contain control characters.
        raise JobError(ErrorCode.INVALID_REQUEST, "".join(char if char.isprintable() else " " for char in text))


def read_schema(file: Path) -> Validator:
    """Read a file and check that it is a JSON Schema. Raises SchemaError.

    A reference in the schema may only point into the same file, because the jsonschema library would fetch any other
    address.
    """
    try:
        text = file.read_bytes()
        schema = json.loads(text) if len(text) <= MAX_SCHEMA_BYTES else None
    except OSError as error:
        raise SchemaError(f"{file.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{file.name} is not JSON: {error}") from error
    if schema is None:
        raise SchemaError(f"{file.name} is empty, or larger than {MAX_SCHEMA_BYTES} bytes")
    if not isinstance(schema, dict):
        raise SchemaError(f"{file.name} is not a JSON object")
    validator_class = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator_class.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SchemaError(
            f"{file.name} is not a JSON Schema, at {_path(error) or 'its top level'}: {error.message}"
        ) from error
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise SchemaError(f"{file.name} refers to {reference}: only references into the same file are allowed")
        if not _exists(schema, reference):
            raise SchemaError(f"{file.name} refers to {reference}, which does not exist")
    validator: Validator = validator_class(schema, format_checker=validator_class.FORMAT_CHECKER)
    return validator


def _references(schema: Any) -> Iterator[str]:
    """Return all references in the schema, at any depth."""
    if isinstance(schema, dict):
        references = (schema.get(key) for key in ("$ref", "$dynamicRef"))
        yield from (reference for reference in references if isinstance(reference, str))
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _references(item)


def _exists(schema: Any, reference: str) -> bool:
    """True when the target of the reference exists. The reference has the form `#/a/b` or `#anchor`."""
    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):
        return f'anchor": {json.dumps(pointer)}' in json.dumps(schema).replace("Anchor", "anchor")
    target = schema
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict) and key in target:
            target = target[key]
        else:
            return False
    return True


def _message_of(error: jsonschema.ValidationError) -> str:
    """Return our own text for the error. The library's text quotes the property's value, which may be a secret."""
    path = _path(error)
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = [name for name in error.validator_value if name not in error.instance]
        return "; ".join(f"{_joined(path, str(name))} is missing" for name in missing)
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = (error.schema.get("properties") or {}) if isinstance(error.schema, dict) else {}
        extra = [str(name) for name in error.instance if name not in known]
        return "; ".join(f"{_joined(path, name[:60])} is unknown" for name in extra)
    message = _MESSAGES.get(str(error.validator), "does not match the action's schema ({keyword})")
    limit = json.dumps(error.validator_value)[:120]
    return f"{path or 'the document'} {message.format(limit=limit.strip(chr(34)), keyword=error.validator)}"


def _path(error: jsonschema.exceptions._Error) -> str:
    """Return the dotted path of the wrong member; '' if the whole document is wrong."""
    return ".".join(str(part)[:60] for part in error.absolute_path)


def _joined(path: str, name: str) -> str:
    """Return the dotted path of the member `name` inside the member at `path`."""
    return f"{path}.{name}" if path else name
