"""Describes what is wrong with settings: one line per problem, with the meaning of the setting and an example.

No line shows a secret.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from executor.errors import SettingsError
from executor.settings.declare import extra_of

#: The text for each of pydantic's error types. `{…}` is replaced by a value from the error's context.
_TEXTS: dict[str, str] = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
}


def raise_if_any(lines: list[str]) -> None:
    """Raise a SettingsError of these lines, if there are any."""
    if lines:
        raise SettingsError("\n".join(lines))


def problem_line(name: str, problem: str, field: FieldInfo) -> str:
    """Return one line: the variable, what is wrong, its description and an example."""
    return f"{name} {problem}: {field.description}. Example: {name}={extra_of(field)['example']}"


def is_set(settings: BaseModel, name: str) -> bool:
    """Return whether a setting has a value that is not empty."""
    value = getattr(settings, name.lower())
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def missing_lines(settings: BaseModel, *names: str) -> list[str]:
    """Return a problem line for each of these settings that has no value."""
    return [problem_line_of(settings, name, "is missing") for name in names if not is_set(settings, name)]


def problem_line_of(settings: BaseModel, name: str, problem: str) -> str:
    """Return the line that describes a problem of one of these settings."""
    return problem_line(name, problem, type(settings).model_fields[name.lower()])


def problems_in(error: ValidationError) -> dict[str, str]:
    """Return what is wrong with each setting that pydantic rejects, by the name of its variable.

    A setting whose default depends on a rejected setting is left out.
    """
    problems: dict[str, str] = {}
    for details in error.errors(include_url=False):
        if details["type"] != "default_factory_not_called":
            problems.setdefault(str(details["loc"][0]).upper(), _reason(details))
    return problems


def _reason(details: ErrorDetails) -> str:
    """Describe one error. Only values of the types in `_TEXTS` are shown: none of them can be a misplaced secret."""
    context: dict[str, Any] = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    if text := _TEXTS.get(details["type"]):
        return f"{text.format(**context)}, not {str(details['input'])[:40]!r}"
    return f"is wrong ({details['msg']})"
