"""Properties of the test runner and of the test files on which the suite relies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def shared() -> None:
    """Take the place of a fixture whose setup takes minutes."""


def test_tests_that_share_a_fixture_run_on_one_worker(request: pytest.FixtureRequest, shared: None) -> None:
    """pytest 9.2 with pytest-xdist 3.8 ignores the groups without a warning, and each worker sets up everything."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("only with pytest -n 2 --dist loadgroup, as `make test` has it")
    assert request.node.nodeid.endswith("@test_suite")


def test_no_two_test_files_of_one_run_have_the_same_name() -> None:
    """pytest imports each file as a module with the file's name, and refuses a second file with the same name."""
    tests = Path(__file__).parents[1]
    names = Counter(file.name for file in tests.rglob("test_*.py") if tests / "playbooks/modules" not in file.parents)
    assert [name for name, count in names.items() if count > 1] == []
