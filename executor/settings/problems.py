"""Describes each problem of a setting in one line, with the description of the setting and an example.

No line shows a secret.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from executor.errors import SettingsError
from executor.settings.declare import documentation_of

#: The text for each type of error that pydantic reports. `{…}` is replaced by a value from the error's context.
_TEXT_BY_ERROR_TYPE: dict[str, str] = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
}
#: A problem line shows only the beginning of a description that has more characters than this.
_MAX_DESCRIPTION_LENGTH = 300
#: A problem line shows at most this many characters of a wrong value.
_MAX_SHOWN_CHARACTERS = 40


def raise_if_problems(problem_lines: list[str]) -> None:
    """Raise a SettingsError with these lines as its text, if there are any lines."""
    if problem_lines:
        raise SettingsError("\n".join(problem_lines))


def problem_line(settings_class: type[BaseModel], name: str, problem: str) -> str:
    """Return one line: the environment variable's name, the problem, the setting's description, and an example.

    A long description is shortened; docs/settings.md has the whole description.
    """
    field = settings_class.model_fields[name.lower()]
    description = field.description or ""
    if len(description) > _MAX_DESCRIPTION_LENGTH:
        description = description.partition("; ")[0].partition(", because ")[0]
    return f"{name} {problem}: {description}. Example: {name}={documentation_of(field)['example']}"


def has_value(settings: BaseModel, name: str) -> bool:
    """Return whether the setting has a value that is not empty. `name` is the name of its environment variable."""
    value = getattr(settings, name.lower())
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def describe_missing_settings(settings: BaseModel, *names: str) -> list[str]:
    """Return one problem line for each setting in `names` that has no value."""
    return [problem_line(type(settings), name, "is missing") for name in names if not has_value(settings, name)]


def problems_in(error: ValidationError) -> dict[str, str]:
    """Return the problem of each setting that pydantic has rejected, by the name of the environment variable.

    If a default depends on a rejected setting, pydantic cannot compute the default and reports this as another error.
    The returned problems do not contain such errors.
    """
    problems: dict[str, str] = {}
    for details in error.errors(include_url=False):
        if details["type"] != "default_factory_not_called":
            name = str(details["loc"][0]).upper()
            problems.setdefault(name, _describe_error(details))
    return problems


def _describe_error(details: ErrorDetails) -> str:
    """Describe one error.

    The text of a `value_error` comes from a function that checks the setting, and never shows a secret. Any other text
    shows the wrong value only if the type of the error is in `_TEXT_BY_ERROR_TYPE`. These types occur only for settings
    whose value is a number, true or false, or a word of a fixed list. They never occur for secrets.
    """
    context: dict[str, Any] = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    if text := _TEXT_BY_ERROR_TYPE.get(details["type"]):
        return f"{text.format(**context)}, not {str(details['input'])[:_MAX_SHOWN_CHARACTERS]!r}"
    return f"is wrong ({details['msg']})"
