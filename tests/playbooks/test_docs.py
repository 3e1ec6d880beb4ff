"""The documents match the arguments of the roles and the results of the playbooks."""

from __future__ import annotations

import re
from pathlib import Path

import action_docs
import pytest
import role_docs
import yaml
from play_bench import ACTIONS, ROOT

from executor.proxmox.privileges import list_privilege_needs
from executor.shared.error_codes import ErrorCode

ROLES = sorted((ROOT / "roles").iterdir())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_roles_readme_lists_its_arguments(role: Path) -> None:
    assert role_docs.with_table(role) == (role / "README.md").read_text(), "run tests/playbooks/role_docs.py"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_roles_defaults_are_those_of_its_argument_specs(role: Path) -> None:
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text()) or {}
    assert defaults == {name: spec["default"] for name, spec in specs.items() if "default" in spec}


def test_the_actions_page_contains_the_generated_tables() -> None:
    page = action_docs.PAGE.read_text()
    assert action_docs.with_tables(page) == page, "run tests/playbooks/action_docs.py"
    assert set(action_docs.ACTIONS) == set(ACTIONS)
    assert all(f"| `{action}` |" in page for action in ACTIONS)


def test_the_actions_page_names_the_modules_that_the_actions_execute() -> None:
    plugins = ROOT / "plugins"
    sources = [*(plugins / "action").glob("*.py"), *(plugins / "plugin_utils").glob("*.py")]
    executed = {module for path in sources for module in re.findall(r"\"(proxmox(?:_\w+)?)\"", path.read_text())}
    section = action_docs.PAGE.read_text().partition("## How an action works")[2].partition("\n##")[0]
    assert set(re.findall(r"`(proxmox(?:_\w+)?)`", section)) == executed


def test_every_test_named_in_the_actions_table_exists() -> None:
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in action_docs.tests_named() if f"def {name}(" not in sources] == []


def test_every_code_and_privilege_of_the_actions_table_exists() -> None:
    codes = [*action_docs.DATA["common"]["codes"], *action_docs.DATA["common"]["identity_codes"]]
    codes += [code for row in action_docs.ACTIONS.values() for code in row["codes"]]
    assert set(codes) <= set(ErrorCode)
    text = " ".join(row["privileges"] for row in action_docs.ACTIONS.values())
    named_privileges = set(re.findall(r"(?:VM|Datastore|SDN|Mapping)\.[A-Za-z.]*[a-z]", text, re.IGNORECASE)) | {
        "VM.Audit"
    }
    needed_privileges = {
        one
        for major in (8, 9)
        for need in list_privilege_needs(major, disk_storages=["a"], bridges={"b": "localnetwork"})
        for one in need.privileges
    }
    # Granted only if backups are enabled, or for a template with a mapped device.
    assert named_privileges - {"VM.Backup", "Mapping.Use"} <= needed_privileges
    assert needed_privileges - named_privileges <= {"Datastore.Audit"}
