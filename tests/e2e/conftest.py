"""End-to-end tests: the FulcrumCore simulator, the stand-in for Proxmox and `smith run`, connected by real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from smith_lab.system import LabSystem, run_lab_system

MakeLab = Callable[..., LabSystem]


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[MakeLab]:
    """Return a function that starts a lab with the given settings. The test itself starts the executor."""
    with ExitStack() as stack:
        count = 0

        def make(*, time_scale: float = 0.0, **settings: str) -> LabSystem:
            nonlocal count
            count += 1
            folder = tmp_path / f"lab{count}"
            folder.mkdir()
            return stack.enter_context(run_lab_system(folder, time_scale=time_scale, settings=settings))

        yield make


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """One lab with a running executor for all tests of a module. Each test orders services of its own."""
    with run_lab_system(tmp_path_factory.mktemp("lab")) as system:
        system.start_executor()
        yield system
