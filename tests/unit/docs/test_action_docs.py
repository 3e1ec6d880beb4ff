"""docs/actions.md says which actions the shipped service types have."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[3]
NOT_SHIPPED = "no shipped service type has it"


def shipped_actions(kind: str) -> set[str]:
    """Return the actions in the lifecycle of a service type in deploy/."""
    service_type = json.loads((ROOT / "deploy" / f"service-type-{kind}.json").read_text())
    return {action["name"] for action in service_type["lifecycleSchema"]["actions"]}


def test_the_page_names_each_action_that_no_shipped_service_type_has() -> None:
    playbooks = {file.stem for file in (ROOT / "playbooks").glob("*.yml")}
    rows = (ROOT / "docs" / "actions.md").read_text().splitlines()
    named = {row.split("`")[1] for row in rows if row.startswith("| `") and NOT_SHIPPED in row}
    assert shipped_actions("container") <= shipped_actions("vm")
    assert playbooks - shipped_actions("vm") == named
