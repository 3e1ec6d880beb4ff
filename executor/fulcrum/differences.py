"""Compares an object in FulcrumCore with the wanted one, for `bootstrap.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def find_differences(wanted_value: Any, existing_value: Any, path: str = "") -> list[str]:
    """Return how an existing object, or a value in it, differs from the wanted one.

    A difference is the path of a member, such as `schema.cpu.type`, or a text such as `tags lacks proxmox`. A missing
    member counts as equal to an empty or false one. Additional top-level members, tags and service types of the
    existing object are not differences. `path` is the path of the two values in the whole object; it is empty for the
    whole object.
    """
    if isinstance(wanted_value, Mapping) and isinstance(existing_value, Mapping):
        compared_names = {**wanted_value, **existing_value} if path else wanted_value
        differences: list[str] = []
        for name in compared_names:
            member_path = f"{path}.{name}" if path else name
            differences += find_differences(wanted_value.get(name), existing_value.get(name), member_path)
        return differences
    if path in ("tags", "serviceTypeIds") and isinstance(existing_value, list):
        return [f"{path} lacks {item}" for item in wanted_value if item not in existing_value]
    if isinstance(wanted_value, list) and isinstance(existing_value, list) and len(wanted_value) == len(existing_value):
        differences = []
        for index, (wanted_item, existing_item) in enumerate(zip(wanted_value, existing_value, strict=True)):
            differences += find_differences(wanted_item, existing_item, f"{path}[{index}]")
        return differences
    is_equal = wanted_value == existing_value or (
        _counts_as_missing(wanted_value) and _counts_as_missing(existing_value)
    )
    return [] if is_equal else [path]


def _counts_as_missing(value: Any) -> bool:
    """Return whether a member with this value counts as missing: null, false, or an empty text, list or object."""
    return value is None or value is False or value in ("", [], {})
