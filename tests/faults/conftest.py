"""Fault tests with real processes, sockets and databases. Each ends with a check that FulcrumCore, our rows and Proxmox
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults.system import SystemUnderTest, running_system
from support.databases import PostgresCluster, postgres_binaries, postgres_cluster


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresCluster]:
    """Start a PostgreSQL server for the module."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("NOT TESTED ON POSTGRESQL: no server binaries in PATH or /usr/lib/postgresql")
    with postgres_cluster(binaries) as cluster:
        yield cluster


MakeSystem = Callable[..., SystemUnderTest]


@pytest.fixture
def make_system(tmp_path: Path) -> Iterator[MakeSystem]:
    """Return a function that starts a system with the test's settings. The test starts the executor of the system."""
    with ExitStack() as stack:
        count = 0

        def make(*, time_scale: float = 0.0, **settings: str) -> SystemUnderTest:
            nonlocal count
            count += 1
            folder = tmp_path / f"system{count}"
            folder.mkdir()
            return stack.enter_context(running_system(folder, time_scale=time_scale, **settings))

        yield make


@pytest.fixture(scope="module")
def module_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    """One running system for the module. A clone takes two seconds, so that a test can act while it runs."""
    with running_system(tmp_path_factory.mktemp("system"), time_scale=0.2) as system:
        system.start()
        yield system


@pytest.fixture
def system(module_system: SystemUnderTest) -> Iterator[SystemUnderTest]:
    """The module's system. The faults of a test end with the test, even if it fails."""
    yield module_system
    module_system.clear_faults()
