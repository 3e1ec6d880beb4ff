"""Provides the functions that declare a setting with its default, bounds, unit, example and description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

#: The lengths of a day and of a year, in seconds.
DAY_S = 86_400
YEAR_S = 365 * DAY_S
#: The default upper bound of a setting that is a whole number.
MAX_WHOLE_NUMBER = 1_000_000_000


class SettingsArea(BaseModel):
    """Base of the classes that declare the settings. Each class declares one area, which is a group of settings.

    For example, one area has the settings of the agent process. The class `Settings` inherits from all these classes.
    """

    # Only `Settings` is instantiated, so pydantic need not build the validators of the areas. This saves time at the
    # start of every command.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


def setting(
    default: Any, description: str, *, example: str, unit: str = "", default_text: str = "", **field_arguments: Any
) -> Any:
    """Declare a setting.

    `default` is the default value, or a function that computes the default. The function's argument is a dictionary of
    the settings that pydantic has already checked: the earlier settings of this area, and the settings of the areas
    that come after this area in the list of base classes of `Settings`. (Pydantic checks the last base class first.) If
    `default_text` is not empty, the documentation shows this text instead of the default. `example` is the value in the
    example `.env` file, and is shown in error messages. `field_arguments`, such as the bounds `ge` and `le`, are passed
    to pydantic's `Field`.
    """
    documentation: dict[str, Any] = {"example": example, "unit": unit, "default_text": default_text}
    default_keyword = "default_factory" if callable(default) else "default"
    return Field(
        **{default_keyword: default}, description=description, json_schema_extra=documentation, **field_arguments
    )


def duration_setting(default: Any, description: str, *, ge: float, le: float = YEAR_S, **setting_arguments: Any) -> Any:
    """Declare a duration in seconds, from `ge` to `le`."""
    # If the default is computed and the caller passes no `example`, the example is empty.
    setting_arguments.setdefault("example", "" if callable(default) else f"{default:g}")
    return setting(default, description, unit="s", ge=ge, le=le, **setting_arguments)


def whole_number_setting(
    default: int, description: str, *, ge: int, le: int = MAX_WHOLE_NUMBER, **setting_arguments: Any
) -> Any:
    """Declare a whole number from `ge` to `le`, such as a quantity, a port or a VMID."""
    setting_arguments.setdefault("example", str(default))
    return setting(default, description, ge=ge, le=le, **setting_arguments)


def documentation_of(field: FieldInfo) -> dict[str, str]:
    """Return the example, unit and default text that `setting` stored in a field."""
    documentation = field.json_schema_extra
    if not isinstance(documentation, dict):
        return {}  # never happens for a field that `setting` declared, but the type checker requires this check
    return {key: str(value) for key, value in documentation.items()}
