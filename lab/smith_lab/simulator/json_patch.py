"""Computes the difference between two JSON objects as a JSON patch, in the form that FulcrumCore's events contain.

The patch also contains the old values, so that a program can undo the patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smith_lab.simulator.rows import Json


def patch_operations(before: Any, after: Any, path: str = "") -> Iterator[Json]:
    """Yield the operations of the patch. Before each `replace` and `remove`, yield a `test` that has the old value."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _member_operations(before, after, name, f"{path}/{_escape(name)}")
    elif isinstance(before, list) and isinstance(after, list):
        yield from _item_operations(before, after, path)
    elif before != after or type(before) is not type(after):
        yield {"op": "test", "path": path, "value": before}
        yield {"op": "replace", "path": path, "value": after}


def _member_operations(before: Json, after: Json, name: str, path: str) -> Iterator[Json]:
    if name not in before:
        yield {"op": "add", "path": path, "value": after[name]}
    elif name not in after:
        yield {"op": "test", "path": path, "value": before[name]}
        yield {"op": "remove", "path": path}
    else:
        yield from patch_operations(before[name], after[name], path)


def _item_operations(before: list[Any], after: list[Any], path: str) -> Iterator[Json]:
    for index, (old, new) in enumerate(zip(before, after, strict=False)):
        yield from patch_operations(old, new, f"{path}/{index}")
    for item in reversed(before[len(after) :]):
        yield {"op": "test", "path": f"{path}/{len(after)}", "value": item}
        yield {"op": "remove", "path": f"{path}/{len(after)}"}
    for item in after[len(before) :]:
        yield {"op": "add", "path": f"{path}/-", "value": item}


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
