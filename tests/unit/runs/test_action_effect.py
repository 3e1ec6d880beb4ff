"""The effect of an action, which decides whether `smith play` asks for a confirmation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from executor.errors import JobError
from executor.model import ActionEffect
from executor.runs.action_effect import find_effect
from executor.runs.actions import Action


def action(folder: Path, name: str, schema: dict[str, Any] | None) -> Action:
    file = None
    if schema is not None:
        file = folder / f"{name}.schema.json"
        file.write_text(json.dumps(schema))
    return Action(name=name, playbook=folder / f"{name}.yml", schema=file, is_ours=schema is None)


@pytest.mark.parametrize(
    ("name", "schema", "effect"),
    [
        ("start", None, "changes"),
        ("delete", None, "destroys"),
        ("rollback", None, "destroys"),
        ("own", {}, "changes"),
        ("own", {"x-smith-effect": "reads"}, "reads"),
        ("own", {"x-smith-effect": "destroys"}, "destroys"),
        ("delete", {"x-smith-effect": "reads"}, "destroys"),
    ],
)
def test_name_and_schema_decide_the_effect(
    tmp_path: Path, name: str, schema: dict[str, Any] | None, effect: str
) -> None:
    assert find_effect(action(tmp_path, name, schema)) == ActionEffect(effect)


@pytest.mark.parametrize("value", ["destroy", None, ["reads"]])
def test_an_unknown_effect_makes_the_schema_unusable(tmp_path: Path, value: object) -> None:
    with pytest.raises(JobError, match="x-smith-effect must be one of reads, changes, destroys"):
        find_effect(action(tmp_path, "own", {"x-smith-effect": value}))
