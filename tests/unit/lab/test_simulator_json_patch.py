"""The differences in the simulator's events."""

from __future__ import annotations

import json

import pytest
from smith_lab.simulator.json_patch import patch_operations


@pytest.mark.parametrize(
    ("before", "after", "operations"),
    [
        ('{"a": [1, 2, 3]}', '{"a": [1]}', ["test /a/1 2", "remove /a/1", "test /a/1 3", "remove /a/1"]),
        ("[1, 2, 3]", "[1, 9]", ["test /2 3", "remove /2", "test /1 2", "replace /1 9"]),
        (
            '[{"x": 1}, {"x": 2}, {"x": 3}]',
            '[{"x": 2}]',
            ['test /1 {"x": 2}', "remove /1", 'test /1 {"x": 3}', "remove /1", "test /0/x 1", "replace /0/x 2"],
        ),
        ("[1]", "[1, 2, 3]", ["add /- 2", "add /- 3"]),
    ],
)
def test_the_operations_of_lists_are_those_of_fulcrumcores_package(
    before: str, after: str, operations: list[str]
) -> None:
    """The expected operations are the output of jsondiff 0.7.0 with the option Invertible."""
    patch = patch_operations(json.loads(before), json.loads(after))
    texts = [
        " ".join([item["op"], item["path"], *([json.dumps(item["value"])] if "value" in item else [])])
        for item in patch
    ]
    assert texts == operations
