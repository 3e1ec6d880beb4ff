"""Reads from the database what a drift check needs: the mappings, and the services that are busy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.database import mappings, queries
from executor.database.tables import Mapping
from executor.drift.facts import MappingFacts

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The facts that were read from the database in one transaction."""

    mappings: tuple[MappingFacts, ...]
    busy_services: frozenset[str]  #: services with an open job or a due report
    foreign_services: frozenset[str]  #: services with a mapping on another cluster

    def changed_since(self, earlier: Rows) -> frozenset[str]:
        """Return the services whose mapping differs between the earlier rows and these rows."""
        return frozenset(mapping.service_id for mapping in set(earlier.mappings) ^ set(self.mappings))


def read(session: Session, cluster: str) -> Rows:
    """Read the mappings of a cluster, and the services that are busy or mapped on another cluster."""
    rows = mappings.all_current(session)
    return Rows(
        mappings=tuple(mapping_facts(row) for row in rows if row.cluster == cluster),
        busy_services=queries.busy_services(session),
        foreign_services=frozenset(row.service_id for row in rows if row.cluster != cluster),
    )


def mapping_facts(row: Mapping) -> MappingFacts:
    """Return those columns of a mapping's row that a drift check compares."""
    return MappingFacts(
        id=row.id,
        service_id=row.service_id,
        vmid=row.vmid,
        node=row.node or "",
        name=row.name,
        state=row.state,
        updated_at=row.updated_at,
        kind=row.kind,
    )
