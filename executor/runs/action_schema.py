"""Checks a service's properties against the JSON Schema that a provider's action may have.

The provider is the organisation that operates the agent, and can add actions to the actions of Agent Smith. Such an
action is a playbook, beside which the provider may put a file with a JSON Schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
from jsonschema.protocols import Validator

from executor.errors import JobError
from executor.model import ActionEffect
from executor.runs.actions import Action
from executor.shared.error_codes import ErrorCode

#: Maximum size of a schema. A larger schema is refused, because the schema is read again for each job.
MAX_SCHEMA_BYTES = 256 * 1024
#: Maximum number of wrong properties that one error message names.
MAX_PROBLEMS = 8
#: Maximum length of an error message, in characters.
MAX_MESSAGE_LENGTH = 400
#: Maximum length of a schema keyword's value in an error message.
MAX_KEYWORD_VALUE_LENGTH = 120
#: Maximum length of a property's name in an error message.
MAX_NAME_LENGTH = 60

#: The keyword by which a schema may state its action's effect on a VM: `reads` (the VM is not changed), `changes` (the
#: default) or `destroys`.
EFFECT_KEYWORD = "x-smith-effect"

#: The error text for each keyword of JSON Schema. `{expected}` is replaced by the keyword's value in the schema, not by
#: the value of the service's property, which may be a secret.
_MESSAGE_FORMATS = {
    "type": "must be of type {expected}",
    "enum": "must be one of {expected}",
    "const": "must be {expected}",
    "minimum": "must be at least {expected}",
    "maximum": "must be at most {expected}",
    "exclusiveMinimum": "must be greater than {expected}",
    "exclusiveMaximum": "must be less than {expected}",
    "multipleOf": "must be a multiple of {expected}",
    "minLength": "must have at least {expected} characters",
    "maxLength": "must have at most {expected} characters",
    "pattern": "must match the pattern {expected}",
    "format": "must be of format {expected}",
    "minItems": "must have at least {expected} items",
    "maxItems": "must have at most {expected} items",
    "uniqueItems": "must not have the same item twice",
}


class UnusableSchemaError(ValueError):
    """A provider's schema cannot be used. The message states the reason."""


def check_properties(action: Action, properties: Mapping[str, Any]) -> None:
    """Check a service's properties against the action's schema, if the action has one.

    Raises JobError: INVALID_REQUEST when a property does not match (the message names the property, but not its value),
    UNSUPPORTED_ACTION when the schema itself cannot be used.
    """
    schema_file = action.schema
    if schema_file is None:
        return
    try:
        validator = read_validator(schema_file)
        problems = sorted({_make_message(error) for error in validator.iter_errors(dict(properties))})
    except UnusableSchemaError as error:
        raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"the action {action.name} is refused: {error}") from error
    except RecursionError:
        raise JobError(ErrorCode.INVALID_REQUEST, "properties are nested too deeply") from None
    if problems:
        text = "; ".join(problems[:MAX_PROBLEMS])[:MAX_MESSAGE_LENGTH]
        # The name of an unknown property is text from FulcrumCore and may contain control characters.
        raise JobError(ErrorCode.INVALID_REQUEST, "".join(char if char.isprintable() else " " for char in text))


def read_validator(file: Path) -> Validator:
    """Read the JSON Schema in a file and return its validator. Raises UnusableSchemaError when it cannot be used.

    A reference in the schema may only point into the same file. Otherwise, the jsonschema library would
    download a schema from the address in the reference.
    """
    schema = _read_json_object(file)
    validator_class = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator_class.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UnusableSchemaError(
            f"{file.name} is not a valid JSON Schema: at {_path_of_error(error) or 'the top level'}: {error.message}"
        ) from error
    if schema.get(EFFECT_KEYWORD, ActionEffect.CHANGES) not in list(ActionEffect):
        raise UnusableSchemaError(f"{file.name}: {EFFECT_KEYWORD} must be one of {', '.join(ActionEffect)}")
    for reference in _find_references(schema):
        if not reference.startswith("#"):
            raise UnusableSchemaError(
                f"{file.name} refers to {reference}: only references into the same file are allowed"
            )
        if not _has_target(schema, reference):
            raise UnusableSchemaError(f"{file.name} refers to {reference}, which does not exist")
    validator: Validator = validator_class(schema, format_checker=validator_class.FORMAT_CHECKER)
    return validator


def _read_json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises UnusableSchemaError if the file contains no such object."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UnusableSchemaError(f"{file.name} cannot be read: {error.strerror}") from error
    if len(content) > MAX_SCHEMA_BYTES:
        raise UnusableSchemaError(f"{file.name} is larger than {MAX_SCHEMA_BYTES} bytes")
    try:
        schema = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnusableSchemaError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UnusableSchemaError(f"{file.name} is not a JSON object")
    return schema


def _find_references(schema: Any) -> Iterator[str]:
    """Return all references in the schema, at any depth."""
    if isinstance(schema, dict):
        references = (schema.get(key) for key in ("$ref", "$dynamicRef"))
        yield from (reference for reference in references if isinstance(reference, str))
        for value in schema.values():
            yield from _find_references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _find_references(item)


def _has_target(schema: Any, reference: str) -> bool:
    """True when the schema contains the part to which the reference, such as `#/a/b` or `#name`, points."""
    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):  # the name of an anchor, which "$anchor" or "$dynamicAnchor" declares
        # The replacement makes "$dynamicAnchor" end like "$anchor", so that one search finds both keywords.
        schema_text = json.dumps(schema).replace("Anchor", "anchor")
        return f'anchor": {json.dumps(pointer)}' in schema_text
    target = schema
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")  # the escape sequences of a JSON Pointer (RFC 6901)
        if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict) and key in target:
            target = target[key]
        else:
            return False
    return True


def _make_message(error: jsonschema.ValidationError) -> str:
    """Return our own text for the error. The library's text quotes the property's value, which may be a secret."""
    path = _path_of_error(error)
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = [name for name in error.validator_value if name not in error.instance]
        return "; ".join(f"{_join_path(path, str(name))} is missing" for name in missing)
    if error.validator == "additionalProperties" and error.validator_value is False:
        defined_properties = (error.schema.get("properties") or {}) if isinstance(error.schema, dict) else {}
        unknown_properties = [str(name) for name in error.instance if name not in defined_properties]
        return "; ".join(f"{_join_path(path, name[:MAX_NAME_LENGTH])} is unknown" for name in unknown_properties)
    message_format = _MESSAGE_FORMATS.get(
        str(error.validator), "must satisfy the keyword {keyword} of the action's schema"
    )
    expected = json.dumps(error.validator_value)[:MAX_KEYWORD_VALUE_LENGTH].strip('"')
    problem = message_format.format(expected=expected, keyword=error.validator)
    return f"{path or 'the properties as a whole'} {problem}"


def _path_of_error(error: jsonschema.exceptions._Error) -> str:
    """Return the dotted path of the wrong value (a property, or a part of an invalid schema); '' for the top level."""
    return ".".join(str(part)[:MAX_NAME_LENGTH] for part in error.absolute_path)


def _join_path(path: str, name: str) -> str:
    """Return the dotted path of the property `name` inside the property at `path`."""
    return f"{path}.{name}" if path else name
