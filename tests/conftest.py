"""Gives every test the same environment: no variables of this program, and a home folder of the test session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from smith_lab import system
from support import fork_server, surroundings
from support.costs import LONGEST_FIRST, Recorder
from support.support_record import SupportRecorder

from executor.redaction import redactor

# Hypothesis sets no time limit for an example: its duration depends more on the machine than on the code.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

# The lab starts `smith` commands as forks of one process that has imported everything.
system.run_smith_command = fork_server.run

surroundings.reset_process()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", metavar="FILE", help="add a line for each test to FILE: name, CPU s, wall s")
    parser.addoption("--support-record", metavar="FILE", help="write to FILE with which versions the tests have run")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--costs"):
        config.pluginmanager.register(Recorder(Path(file).resolve()))
    file = config.getoption("--support-record")
    if file and not hasattr(config, "workerinput"):  # only in the process that starts pytest-xdist's workers
        config.pluginmanager.register(SupportRecorder(Path(file).resolve()))


@pytest.fixture(scope="session", autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give all tests the same environment, whatever a developer's shell or a CI system has set."""
    with pytest.MonkeyPatch.context() as patch:
        surroundings.reset_environment(patch, str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def remove_secrets_after_test() -> Iterator[None]:
    """Remove a test's secrets from the redactor. Otherwise its secret, such as `password`, is masked in later tests.

    Commands, settings and the agent's parts add secrets to the process's redactor, which removes none by itself.
    """
    counts_before = redactor._add_counts.copy()
    yield
    redactor.discard(*(redactor._add_counts - counts_before).elements())


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that takes a text with measured values. All such texts are printed at the end of the test run.

    Durations are printed in this way, because no test asserts how long something took.
    """
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures, wherever they were measured: reports carry them from xdist's workers."""
    reports = terminalreporter.getreports("passed")
    texts = [value for report in reports for name, value in report.user_properties if name == "figure"]
    if texts:
        terminalreporter.section("figures")
        for text in sorted(set(texts)):
            terminalreporter.write_line(text)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a fixture of their module on one worker, so that it starts their lab once.

    The longest tests start first, so that no worker is left with a long group at the end.
    """
    items.sort(key=_position_in_longest_first)  # a stable sort: the other tests stay in the order of collection
    for item in items:
        if item.get_closest_marker("xdist_group") is None and _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _position_in_longest_first(item: pytest.Item) -> int:
    name = item.path.relative_to(Path(__file__).parent).as_posix()
    return next(
        (position for position, start in enumerate(LONGEST_FIRST) if name.startswith(start)), len(LONGEST_FIRST)
    )


def _shares_a_fixture(item: pytest.Item) -> bool:
    fixture_info = getattr(item, "_fixtureinfo", None)  # pytest has no public way to ask for a fixture's scope
    definitions = fixture_info.name2fixturedefs.values() if fixture_info else ()
    return any(
        definition.scope == "module" for definitions_of_name in definitions for definition in definitions_of_name
    )
