"""The facts of a mapping that the tests of drift compare with guests and services."""

from __future__ import annotations

from typing import Any

from support.databases import LONG_AGO

from executor.drift.facts import (
    MappingFacts,
)
from executor.model import MappingState

#: The id of the service that `mapping` belongs to.
A = "aaaaaaaa-0000-4000-8000-000000000001"
ACTIVE, RESERVED, VM_LOST = MappingState.ACTIVE, MappingState.RESERVED, MappingState.VM_LOST


def mapping(**changes: Any) -> MappingFacts:
    """Return the facts of a mapping; `changes` replace single facts."""
    values: dict[str, Any] = {"service_id": A, "vmid": 100, "node": "pve1", "name": "web", "state": ACTIVE}
    return MappingFacts(**({"id": 1, "updated_at": LONG_AGO} | values | changes))
