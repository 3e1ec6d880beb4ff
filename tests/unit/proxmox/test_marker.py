"""Executor, actions and inventory find the same service in a description. Another test runs the dynamic inventory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import guest_facts, identity, notes

from executor.proxmox.client import ProxmoxReader
from executor.runs.extra_vars import make_description
from executor.shared.marker import MARKER_LINE, is_service_id, marker_values_in, service_id_in, without_smith_lines

ROOT = Path(__file__).parents[3]
CASES: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "data" / "markers.json").read_text())
ANY_SERVICE = "0d5d5bd1-2f7e-4b8a-9e0c-7f5a2c1b3d4e"


@pytest.fixture(params=CASES, ids=lambda case: case["title"])
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


def test_the_executor_and_its_commands_read_the_service_of_the_case(case: dict[str, Any]) -> None:
    assert marker_values_in(case["description"]) == case["markers"]
    assert service_id_in(case["description"]) == case["service"]
    assert ProxmoxReader.service_id_in_marker({"description": case["description"]}) == case["service"]


def test_the_action_plugins_assign_a_vm_to_a_service_exactly_if_the_executor_does(case: dict[str, Any]) -> None:
    settings = [{"key": "description", "value": case["description"]}]
    facts = guest_facts.facts_from_configuration(settings, {"status": "stopped"})
    assert facts["markers"] == case["markers"]
    assert identity.is_marked(facts, {"service_id": ANY_SERVICE.upper()}) == (case["service"] == ANY_SERVICE)


def test_a_marker_in_the_description_of_a_service_is_removed(case: dict[str, Any]) -> None:
    assert marker_values_in(make_description(case["description"])) == []
    written = notes.new_description({"service_id": ANY_SERVICE, "description": case["description"]})
    assert service_id_in(written) == ANY_SERVICE
    assert marker_values_in(without_smith_lines(written)) == []


def test_each_case_has_a_service_only_if_its_marker_is_a_valid_id() -> None:
    assert [case["title"] for case in CASES if case["service"] and [case["service"]] != case["markers"]] == []
    assert all(is_service_id(case["service"]) for case in CASES if case["service"])


def test_the_inventory_has_the_pattern_of_a_marker() -> None:
    """With this pattern the inventory, too, takes only linear time for a long row of blanks."""
    inventory = (ROOT / "inventory" / "smith.proxmox.yml").read_text(encoding="utf-8")
    assert f"regex_findall('(?im){MARKER_LINE.pattern}')" in inventory
