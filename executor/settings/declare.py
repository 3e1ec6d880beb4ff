"""Declares one setting: its default, bounds, unit, example and description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

DAY_S = 86_400


class Area(BaseModel):
    """The settings of one area. `Settings` inherits every area."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def setting(
    default: Any, description: str, *, example: str, unit: str = "", default_text: str = "", **rules: Any
) -> Any:
    """Declare a setting.

    `default` may be a function of the settings declared before this one; `default_text` then describes it.
    """
    extra: dict[str, Any] = {"example": example, "unit": unit, "default_text": default_text}
    argument = "default_factory" if callable(default) else "default"
    return Field(**{argument: default}, description=description, json_schema_extra=extra, **rules)


def seconds(default: Any, description: str, *, ge: float, le: float = 365 * DAY_S, **more: Any) -> Any:
    """Declare a duration in seconds."""
    more.setdefault("example", f"{default:g}" if not callable(default) else "")
    return setting(default, description, unit="s", ge=ge, le=le, **more)


def count(default: int, description: str, *, ge: int, le: int = 1_000_000_000, **more: Any) -> Any:
    """Declare a whole number."""
    more.setdefault("example", str(default))
    return setting(default, description, ge=ge, le=le, **more)


def extra_of(field: FieldInfo) -> dict[str, str]:
    """Return the example, unit and default text that `setting` stored."""
    extra = field.json_schema_extra
    return {key: str(value) for key, value in extra.items()} if isinstance(extra, dict) else {}
