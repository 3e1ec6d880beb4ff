"""The stand-in that the tests of ProxmoxReader share, one per module, and a VM with our marker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.proxmox_connections import MARKED_UID, connection_to

from executor.proxmox.client import ProxmoxReader


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        running.control("grant", path="/", privilege="Sys.Audit")  # for /cluster/status; jobs do not need it
        yield running


@pytest.fixture(autouse=True)
def clear_faults_after_the_test(stand_in: ProxmoxStandIn) -> Iterator[None]:
    yield
    stand_in.control("clear_faults")


@pytest.fixture
def reader(stand_in: ProxmoxStandIn) -> ProxmoxReader:
    return ProxmoxReader(connection_to(stand_in))


@pytest.fixture
def vm(stand_in: ProxmoxStandIn) -> Iterator[int]:
    """Add a running VM with our marker: VMID 710 on pve2."""
    config = {"cores": 2, "memory": "512", "description": f"Acme\nsmith-uid={MARKED_UID}", "tags": "smith;web"}
    stand_in.control("add", vmid=710, name="web-1", node="pve2", status="running", config=config)
    yield 710
    stand_in.control("remove", vmid=710)
