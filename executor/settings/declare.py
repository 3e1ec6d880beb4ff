"""Provides the functions that declare a setting with its default, bounds, unit, example and description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

#: Seconds of a day.
DAY_S = 86_400


class Area(BaseModel):
    """Base of classes that each declare the settings of one area. The class `Settings` inherits from all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def setting(
    default: Any, description: str, *, example: str, unit: str = "", default_text: str = "", **rules: Any
) -> Any:
    """Declare a setting.

    `default` is the default value, or a function that computes it from the settings declared before this one. For a
    function, `default_text` describes the default in the documentation. `rules` are pydantic's arguments of `Field`,
    such as bounds.
    """
    extra: dict[str, Any] = {"example": example, "unit": unit, "default_text": default_text}
    argument = "default_factory" if callable(default) else "default"
    return Field(**{argument: default}, description=description, json_schema_extra=extra, **rules)


def seconds(default: Any, description: str, *, ge: float, le: float = 365 * DAY_S, **more: Any) -> Any:
    """Declare a duration in seconds, from `ge` to `le`."""
    more.setdefault("example", f"{default:g}" if not callable(default) else "")
    return setting(default, description, unit="s", ge=ge, le=le, **more)


def whole_number(default: int, description: str, *, ge: int, le: int = 1_000_000_000, **more: Any) -> Any:
    """Declare a whole number from `ge` to `le`, such as a quantity, a port or a VMID."""
    more.setdefault("example", str(default))
    return setting(default, description, ge=ge, le=le, **more)


def extra_of(field: FieldInfo) -> dict[str, str]:
    """Return the example, unit and default text that `setting` stored in a field."""
    extra = field.json_schema_extra
    return {key: str(value) for key, value in extra.items()} if isinstance(extra, dict) else {}
