"""The table of private names that warm runs need is complete, and agrees with the installed packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from executor.runs.warm import patches
from executor.runs.warm.compatibility import read_package_file, why_warm_runs_unavailable
from executor.runs.warm.patches import PRIVATE_NAMES, PrivateName

#: Prints each name that the imported module does not have. An instance has an attribute if `__init__` sets it.
FIND_MISSING_AT_RUN_TIME = """
from executor.runs.warm.patches import PRIVATE_NAMES

def exists(name):
    owner = name._owner()
    members = getattr(owner, "__annotations__", {})
    init = getattr(getattr(owner, "__init__", None), "__code__", None)
    return hasattr(owner, name.attribute) or name.attribute in members or name.attribute in init.co_names

print(*(f"{name.module}:{name.name}" for name in PRIVATE_NAMES if not exists(name)), sep="\\n", end="")
"""
#: Private names of the standard library.
PRIVATE_NAMES_OF_PYTHON = {"_exit", "_run_exitfuncs"}


def make_private_name(**fields: str) -> PrivateName:
    return PrivateName(**{"module": "ansible.utils.vars", "name": "random_int", "purpose": "a test"} | fields)


@pytest.mark.parametrize("name", PRIVATE_NAMES, ids=lambda name: f"{name.module}:{name.name}")
def test_each_name_is_defined_in_the_installed_sources(name: PrivateName) -> None:
    assert name.is_defined(read_package_file)


def test_each_name_exists_in_the_imported_modules() -> None:
    completed = subprocess.run(
        [sys.executable, "-P", "-c", FIND_MISSING_AT_RUN_TIME],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout == ""


@pytest.mark.parametrize("name", PRIVATE_NAMES, ids=lambda name: f"{name.module}:{name.name}")
def test_each_private_name_has_a_purpose_and_the_tested_versions_that_need_it(name: PrivateName) -> None:
    assert name.purpose
    assert name.series
    assert set(name.series) <= set(patches.TESTED_SERIES)


def test_each_private_attribute_that_warm_runs_use_is_in_the_table() -> None:
    used: set[str] = set()
    defined_by_us: set[str] = set()
    for file in Path(patches.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
                (defined_by_us if is_own and isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                defined_by_us.add(node.name)
    assert used - defined_by_us - PRIVATE_NAMES_OF_PYTHON <= {name.attribute for name in PRIVATE_NAMES}


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "no_such_name"},
        {"name": "random"},
        {"module": "ansible.no_such_module"},
        {"module": "no_such_package.at_all"},
        {"module": "jinja2.environment", "name": "Environment.no_such_member"},
        {"module": "jinja2.environment", "name": "NoSuchClass.make_globals"},
        {"module": "jinja2.environment", "name": "Environment.from_code"},
        {"source": "ansible/config/base.yml:NO_SUCH_CONSTANT"},
    ],
)
def test_a_missing_name_is_a_reason_against_warm_runs(fields: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = make_private_name(**fields)
    monkeypatch.setattr(patches, "PRIVATE_NAMES", (*PRIVATE_NAMES, name))

    assert not name.is_defined(read_package_file)
    assert (
        why_warm_runs_unavailable() == f"warm runs need the name {name.name} in the Python module {name.module}, "
        "but the installed version of this module lacks it"
    )


def test_a_name_that_only_another_version_has_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = PrivateName(module="ansible.utils.vars", name="no_such_name", purpose="a test", series=("2.18",))
    monkeypatch.setattr(patches, "PRIVATE_NAMES", (*PRIVATE_NAMES, name))

    assert why_warm_runs_unavailable() == ""
