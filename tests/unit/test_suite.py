"""What the suite itself relies on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def shared() -> None:
    """Stand for something that takes minutes to set up."""


def test_tests_that_share_a_fixture_run_on_one_worker(request: pytest.FixtureRequest, shared: None) -> None:
    """pytest 9.2 and pytest-xdist 3.8 together forget the groups, in silence: each worker then sets up everything."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("only with pytest -n 2 --dist loadgroup, as `make test` has it")
    assert request.node.nodeid.endswith("@test_suite")


def test_no_two_test_files_of_one_run_have_the_same_name() -> None:
    """pytest imports each as a module of its file's name, and refuses to collect the second."""
    tests = Path(__file__).parents[1]
    names = Counter(file.name for file in tests.rglob("test_*.py") if tests / "playbooks/modules" not in file.parents)
    assert [name for name, count in names.items() if count > 1] == []
