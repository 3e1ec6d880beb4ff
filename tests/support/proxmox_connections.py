"""Connections of ProxmoxReader to the Proxmox stand-in, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from executor.errors import JobError
from executor.proxmox.connection import ProxmoxConnection

#: The service id in the marker of the VM that the fixture `vm` adds.
MARKED_UID = "e5b72a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"


def connection_to(stand_in: ProxmoxStandIn) -> ProxmoxConnection:
    return ProxmoxConnection(
        host=stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_id=stand_in.token_id,
        token_secret=stand_in.token_secret,
        verify=stand_in.ca_bundle,
    )


@contextmanager
def failing(code: str) -> Iterator[None]:
    """Expect a JobError with this code."""
    with pytest.raises(JobError) as caught:
        yield
    assert caught.value.code == code
