"""Reads from the database what a drift check needs: mappings, volumes of deleted VMs, and busy services.

A mapping says which VM serves which service. The drift of a busy service is not reported, see
`DatabaseFacts.busy_services`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.database import busy_services, mappings, volumes_left
from executor.database.tables.mappings import Mapping
from executor.drift.facts import MappingFacts, VolumesLeft

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True, kw_only=True)
class DatabaseFacts:
    """The facts that `read_database_facts` reads from the database in one transaction."""

    mappings: tuple[MappingFacts, ...]
    #: Services with a pending or processing job, with a job result that is not yet sent to FulcrumCore, or with a run
    #: that an operator has started.
    busy_services: frozenset[str]
    services_on_other_clusters: frozenset[str]  #: services with a mapping on another cluster
    volumes_left: tuple[VolumesLeft, ...] = ()  #: volumes that existed after the deletion of their VM

    def services_changed_since(self, earlier_facts: DatabaseFacts) -> frozenset[str]:
        """Return the services whose mapping was added, changed or removed between `earlier_facts` and these facts."""
        differing_mappings = set(earlier_facts.mappings) ^ set(self.mappings)
        return frozenset(mapping.service_id for mapping in differing_mappings)


def read_database_facts(session: Session, cluster: str) -> DatabaseFacts:
    """Read the facts that a drift check of this cluster needs."""
    mapping_rows = mappings.all_current_mappings(session)  # all that are not deleted
    return DatabaseFacts(
        mappings=tuple(mapping_facts(row) for row in mapping_rows if row.cluster == cluster),
        busy_services=busy_services.find_busy_service_ids(session),
        services_on_other_clusters=frozenset(row.service_id for row in mapping_rows if row.cluster != cluster),
        volumes_left=read_volumes_left(session, cluster),
    )


def read_volumes_left(session: Session, cluster: str) -> tuple[VolumesLeft, ...]:
    """Return which volumes of deleted VMs existed after the deletion. The column `note` of a mapping names them."""
    return tuple(
        VolumesLeft(mapping=mapping_facts(row), volumes=tuple(volumes_left.volume_ids_in_note(row)))
        for row in volumes_left.mappings_with_volumes_left(session, cluster)
    )


def mapping_facts(row: Mapping) -> MappingFacts:
    """Return the columns of a mapping's row that a drift check compares."""
    return MappingFacts(
        id=row.id,
        service_id=row.service_id,
        vmid=row.vmid,
        node=row.node or "",  # the Proxmox node of the VM; "" if it is unknown
        name=row.name,
        state=row.state,
        updated_at=row.updated_at,
        kind=row.kind,  # the kind of the guest: a VM or a container
    )
