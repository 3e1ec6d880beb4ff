"""Computes the difference between two JSON objects as a JSON patch, in the form that FulcrumCore's events contain.

The patch also contains the old values, so that a program can undo the patch. The operations and their order are those
of the Go package jsondiff 0.7 with the option Invertible, which FulcrumCore uses (source: pkg/domain/event.go).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smith_lab.simulator.rows import Json


def patch_operations(json_before: Any, json_after: Any, path: str = "") -> Iterator[Json]:
    """Yield the operations of the patch. Before each `replace` and `remove`, yield a `test` that has the old value."""
    if isinstance(json_before, dict) and isinstance(json_after, dict):
        for name in sorted(json_before.keys() | json_after.keys()):
            yield from _member_operations(json_before, json_after, name, f"{path}/{_escape_name(name)}")
    elif isinstance(json_before, list) and isinstance(json_after, list):
        yield from _item_operations(json_before, json_after, path)
    elif json_before != json_after or type(json_before) is not type(json_after):
        yield {"op": "test", "path": path, "value": json_before}
        yield {"op": "replace", "path": path, "value": json_after}


def _member_operations(json_before: Json, json_after: Json, name: str, path: str) -> Iterator[Json]:
    if name not in json_before:
        yield {"op": "add", "path": path, "value": json_after[name]}
    elif name not in json_after:
        yield {"op": "test", "path": path, "value": json_before[name]}
        yield {"op": "remove", "path": path}
    else:
        yield from patch_operations(json_before[name], json_after[name], path)


def _item_operations(json_before: list[Any], json_after: list[Any], path: str) -> Iterator[Json]:
    # Each removal moves the next item to the same index.
    for item in json_before[len(json_after) :]:
        yield {"op": "test", "path": f"{path}/{len(json_after)}", "value": item}
        yield {"op": "remove", "path": f"{path}/{len(json_after)}"}
    for index, (old_item, new_item) in enumerate(zip(json_before, json_after, strict=False)):
        yield from patch_operations(old_item, new_item, f"{path}/{index}")
    for item in json_after[len(json_before) :]:
        yield {"op": "add", "path": f"{path}/-", "value": item}


def _escape_name(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
