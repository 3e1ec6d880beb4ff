"""Fixtures for tests of the built image, which `make image-test` builds. `make test` ignores these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from containers import IMAGE, Container, container_of, prepare_site_of_lab, wait_until_healthy
from smith_lab.system import LabSystem, run_lab_system

collect_ignore_glob = [] if IMAGE else ["test_*.py"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """The simulator and the stand-in, reachable from the container. A clone takes long enough to be interrupted."""
    with run_lab_system(tmp_path_factory.mktemp("lab"), time_scale=0.3, settings={"SMITH_CONCURRENCY": "4"}) as system:
        yield system


@pytest.fixture(scope="module")
def container(lab: LabSystem) -> Iterator[Container]:
    """The executor in a hardened container. A test may stop it."""
    with container_of(prepare_site_of_lab(lab)) as hardened:
        hardened.start()
        yield hardened


@pytest.fixture
def running_container(container: Container) -> Container:
    """The container, running and healthy; restarted if an earlier test stopped it."""
    if not container.is_running():
        container.start_again()
    wait_until_healthy(container)
    return container
