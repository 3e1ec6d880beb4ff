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

#: The text for each type of error that pydantic reports. `{…}` is replaced by a value from the error's context.
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
    """Raise a SettingsError whose text is these lines, if there are any."""
    if lines:
        raise SettingsError("\n".join(lines))


def problem_line(name: str, problem: str, field: FieldInfo) -> str:
    """Return one line with the variable `name`, what is wrong with it, its description and an example."""
    return f"{name} {problem}: {field.description}. Example: {name}={extra_of(field)['example']}"


def is_set(settings: BaseModel, name: str) -> bool:
    """Return whether the setting has a value that is not empty. `name` is the name of its variable."""
    value = getattr(settings, name.lower())
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def missing_lines(settings: BaseModel, *names: str) -> list[str]:
    """Return one line for each of the named settings that has no value."""
    return [problem_line_of(settings, name, "is missing") for name in names if not is_set(settings, name)]


def problem_line_of(settings: BaseModel, name: str, problem: str) -> str:
    """Return one line as `problem_line` does, for the setting of `settings` with this name."""
    return problem_line(name, problem, type(settings).model_fields[name.lower()])


def problems_in(error: ValidationError) -> dict[str, str]:
    """Return what is wrong with each setting that pydantic has rejected. The keys are the names of the variables.

    A setting is left out if pydantic could not compute its default, because another setting was rejected.
    """
    problems: dict[str, str] = {}
    for details in error.errors(include_url=False):
        if details["type"] != "default_factory_not_called":
            problems.setdefault(str(details["loc"][0]).upper(), _reason(details))
    return problems


def _reason(details: ErrorDetails) -> str:
    """Describe one error. The text shows the value only if the type of error is in `_TEXTS`.

    Such an error occurs only in a variable that holds a number or one of a few words, and no secret.
    """
    context: dict[str, Any] = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    if text := _TEXTS.get(details["type"]):
        return f"{text.format(**context)}, not {str(details['input'])[:40]!r}"
    return f"is wrong ({details['msg']})"
