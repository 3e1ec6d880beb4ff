"""Allocates values of pools to properties of services and agents, and releases these values.

A property without a value can get one from a pool: a list of values, or the addresses of a subnet.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Container, Iterable
from typing import Any

from smith_lab.simulator.rows import Json, Pool, PoolValue


class AllocationFailed(Exception):
    """The pool has no free value, or its configuration is invalid."""


def allocate_value(
    table: dict[str, PoolValue], pool: Pool, service_or_agent_id: str, property_name: str, now: float
) -> Any:
    """Allocate a value of the pool to a property; return the value. Raises AllocationFailed.

    `table` contains the values of all pools. It maps the id of a PoolValue to this PoolValue.
    """
    values = [row for row in table.values() if row.pool_id == pool.id]
    if pool.generator_type == "subnet":
        row = _new_address_row(pool, values, now)
        table[row.id] = row
    else:
        free_values = sorted((row for row in values if row.allocated_to_id is None), key=lambda row: row.name)
        if not free_values:
            raise AllocationFailed("no available values in pool")
        row = free_values[0]
    row.allocated_to_id, row.property_name, row.allocated_at = service_or_agent_id, property_name, now
    return row.value


def _new_address_row(pool: Pool, values: Iterable[PoolValue], now: float) -> PoolValue:
    """Return a new row for the first address of the pool's subnet that is not in `values`.

    A released address keeps its row, so it is never allocated again. As in FulcrumCore, the members `excludeFirst`
    and `excludeLast` of the pool's `generator_config` have no effect.
    """
    config: Json = pool.generator_config or {}
    used_addresses = {row.value for row in values}
    try:
        addresses = (str(address) for address in ipaddress.ip_network(config.get("cidr") or "", strict=False))
    except ValueError as exc:
        raise AllocationFailed("invalid CIDR in generator config") from exc
    address = next((address for address in addresses if address not in used_addresses), None)
    if address is None:
        raise AllocationFailed("subnet exhausted: no available IPs in pool")
    return PoolValue(
        id=str(uuid.uuid4()),
        created_at=now,
        updated_at=now,
        name=address,
        value=address,
        pool_id=pool.id,
        participant_id=None,  # FulcrumCore stores no provider or consumer for a generated value
    )


def release_values(table: dict[str, PoolValue], service_or_agent_id: str, *, ids_to_keep: Container[str] = ()) -> None:
    """Release the values that are allocated to a service or an agent, except the rows with an id in `ids_to_keep`."""
    for row in table.values():
        if row.allocated_to_id == service_or_agent_id and row.id not in ids_to_keep:
            row.allocated_to_id = row.property_name = row.allocated_at = None
