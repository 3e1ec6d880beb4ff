"""pytest's plugin of the lab: fixtures for tests of playbooks. docs/lab_test.md describes them.

Every pytest loads the plugin in whose environment the lab is installed. So it imports the lab only in fixtures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from executor.proxmox.client import ProxmoxReader
    from smith_lab.lab_test.open_lab import LabRun


@pytest.fixture(scope="session")
def lab_run() -> Iterator[LabRun]:
    """The run of lab tests: the settings of the lab, and the reserved range.

    `smith lab-test` has reserved the range. Otherwise it is reserved here, in the lab of LAB_PROXMOX_* or a stand-in.
    """
    from smith_lab.lab_test.open_lab import open_lab, reserved_run, run_of_parent  # noqa: PLC0415

    run = run_of_parent(os.environ)
    if run is not None:
        yield run
        return
    with open_lab(os.environ) as lab, reserved_run(lab, time_limit_s=3600) as run:
        yield run


@pytest.fixture(scope="session")
def proxmox(lab_run: LabRun) -> ProxmoxReader:
    """The lab's Proxmox, to read from."""
    from smith_lab.lab_test.cluster import LabCluster  # noqa: PLC0415

    return LabCluster(lab_run.settings).reader
