"""Looks at our mappings, Proxmox and FulcrumCore, and tells what differs. No VM is ever changed here.

The periodic check is the critical job Reconcile. What it may do by itself is in `drift.BY_ITSELF`: follow a VM to its
node, and write down that a VM is gone. Everything else waits for `smith drift fix`, which repairs by `repair` as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from executor.database import audit, mappings
from executor.database.engine import reading, transaction
from executor.database.tables import Job, Mapping
from executor.drift import compare as drift
from executor.drift.compare import Facts, Finding, KnownService, Mapped, Repair, SeenVm, World
from executor.errors import ErrorCode, FulcrumAuthFailing, FulcrumRefused, JobError
from executor.fulcrum.client import FulcrumClient
from executor.model import GuestKind, JobStatus, MappingState, ReportState
from executor.proxmox.client import MARKER_LINE, ProxmoxReader
from executor.proxmox.rows import VmRow

#: The tag that every VM of ours has, and how the name ends that we gave it.
TAG = "smith"
OUR_NAME = re.compile(r"-[0-9a-f]{8}\Z")
#: Between the two looks that prove a VM's absence.
SECOND_LOOK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one check has found. When it is frozen nothing was concluded, and there are no findings."""

    findings: tuple[Finding, ...] = ()
    frozen: str = ""
    mapped: int = 0

    @property
    def damage(self) -> tuple[Finding, ...]:
        """The findings that a person should know of."""
        return tuple(finding for finding in self.findings if finding.is_damage)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What the database holds at one moment."""

    mapped: tuple[Mapped, ...]
    unsettled: frozenset[str]
    foreign: frozenset[str]


@dataclass(kw_only=True)
class Inspector:
    """Collects the facts of one cluster and compares them."""

    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    cluster: str
    wait: Callable[[float], Any] = time.sleep
    _others: set[str] = field(default_factory=set)  #: services of other agents: that never changes

    def check(self, agent_id: str, *, believe_list: bool = False) -> Outcome:
        """Look, and say what differs. Nothing is changed. Raises FulcrumUnavailable, JobError (Proxmox)."""
        with reading(self.engine) as session:
            before = _rows(session, self.cluster)
        world, rows = self._world()
        of_work = [each for each in before.mapped if each.service_id not in before.unsettled]
        if frozen := drift.frozen(world, of_work, believe_list=believe_list):
            return Outcome(frozen=frozen, mapped=len(before.mapped))
        services = [_known(service) for service in self.fulcrum.services(agent_id)]
        if frozen := drift.frozen_by_core(of_work, services):
            return Outcome(frozen=frozen, mapped=len(before.mapped))
        seen, absent = self._guests(before.mapped, services, rows)
        foreign = self._foreign(seen, before.mapped, services, agent_id)
        with reading(self.engine) as session:
            after = _rows(session, self.cluster)
        facts = Facts(
            mapped=after.mapped,
            seen=seen,
            absent=absent,
            services=services,
            unsettled=before.unsettled | after.unsettled | _changed(before.mapped, after.mapped),
            foreign=before.foreign | after.foreign | foreign,
        )
        return Outcome(findings=drift.compare(facts), mapped=len(after.mapped))

    # --- Proxmox --------------------------------------------------------------------------------------------------

    def _world(self) -> tuple[World, list[VmRow]]:
        quorate = self.proxmox.is_quorate()
        may_see = quorate and self.proxmox.may_see_all_vms()
        if not may_see:  # what the lists say now means nothing
            return World(is_quorate=quorate, may_see_all_vms=may_see), []
        offline = frozenset(node.name for node in self.proxmox.nodes() if not node.is_online)
        rows = self.proxmox.vms()
        listed = {row.vmid: row.node for row in rows}
        return World(is_quorate=True, may_see_all_vms=True, offline_nodes=offline, listed=listed), rows

    def _guests(
        self, mapped: Sequence[Mapped], services: Sequence[KnownService], rows: Sequence[VmRow]
    ) -> tuple[list[SeenVm], frozenset[int]]:
        """Return the guests that matter, each by its own configuration, and the VMIDs that are proven empty."""
        instances = [service.instance_vmid for service in services if service.should_have_vm]
        wanted = {each.vmid for each in mapped} | {vmid for vmid in instances if vmid is not None}
        candidates = [row for row in rows if row.vmid in wanted or _may_be_ours(row)]
        seen = [vm for row in candidates if (vm := self._look(row.node, row.vmid, row)) is not None]
        missing = wanted - {vm.vmid for vm in seen}
        found, absent = self._prove(missing) if missing else ([], frozenset())
        return seen + found, absent

    def _look(self, node: str, vmid: int, row: VmRow | None = None) -> SeenVm | None:
        """Return the guest as its configuration tells it; None when it is not on this node, or not to be read."""
        kinds = tuple(GuestKind) if row is None else (GuestKind(row.kind),)
        return next((vm for kind in kinds if (vm := self._look_for(node, vmid, kind)) is not None), None)

    def _look_for(self, node: str, vmid: int, kind: GuestKind) -> SeenVm | None:
        try:
            config = self.proxmox.vm_config(node, vmid, kind=kind)
        except JobError as error:
            if error.code in (ErrorCode.VM_NOT_FOUND, ErrorCode.PVE_PERMISSION):
                return None
            raise
        return SeenVm(
            vmid=vmid,
            node=node,
            kind=kind,
            name=str(config.get("name") or config.get("hostname") or ""),
            markers=frozenset(uid.lower() for uid in MARKER_LINE.findall(str(config.get("description") or ""))),
            is_template=str(config.get("template") or "0") == "1",
        )

    def _prove(self, missing: set[int]) -> tuple[list[SeenVm], frozenset[int]]:
        """Look for guests on every node, twice. Returns those found after all, and the VMIDs that hold nothing.

        A list proves no absence: it lags, and a token may not see everything. A VMID that is neither found nor free
        is left out of both.
        """
        found: dict[int, SeenVm] = {}
        for turn in range(2):
            if turn:
                self.wait(SECOND_LOOK_S)
            nodes = [node.name for node in self.proxmox.nodes() if node.is_online]
            looks = [self._look_everywhere(vmid, nodes) for vmid in sorted(missing - found.keys())]
            found |= {vm.vmid: vm for vm in looks if vm is not None}
        absent = {vmid for vmid in missing - found.keys() if self.proxmox.is_vmid_free(vmid)}
        quorate = self.proxmox.is_quorate()  # what was not found while it was lost proves nothing
        return list(found.values()), frozenset(absent) if quorate else frozenset()

    def _look_everywhere(self, vmid: int, nodes: Iterable[str]) -> SeenVm | None:
        return next((vm for node in nodes if (vm := self._look(node, vmid)) is not None), None)

    # --- FulcrumCore ----------------------------------------------------------------------------------------------

    def _foreign(
        self, seen: Sequence[SeenVm], mapped: Sequence[Mapped], services: Sequence[KnownService], agent_id: str
    ) -> frozenset[str]:
        """Return the services of other agents whose VMs live on the same cluster: they are none of our business."""
        ours = {each.service_id for each in mapped} | {service.id for service in services}
        strangers = {marker for vm in seen for marker in vm.markers} - ours
        self._others |= {stranger for stranger in strangers - self._others if self._is_of_another(stranger, agent_id)}
        return frozenset(strangers & self._others)

    def _is_of_another(self, service_id: str, agent_id: str) -> bool:
        try:
            return self.fulcrum.get_service(service_id).agent_id != agent_id
        except FulcrumAuthFailing:
            self.fulcrum.get_self()  # one service's 403 means unknown; on everything it means something else
            return False
        except FulcrumRefused:
            return False


def _may_be_ours(row: VmRow) -> bool:
    return not row.is_template and (TAG in row.tags or bool(OUR_NAME.search(row.name)))


def _known(service: Any) -> KnownService:
    return KnownService(id=service.id, status=service.status or "", instance_id=service.agent_instance_id or "")


# --- the database -------------------------------------------------------------------------------------------------


def _rows(session: Session, cluster: str) -> _Rows:
    rows = session.scalars(select(Mapping).where(Mapping.state != MappingState.DELETED)).all()
    return _Rows(
        mapped=tuple(_mapped(row) for row in rows if row.cluster == cluster),
        unsettled=unsettled(session),
        foreign=frozenset(row.service_id for row in rows if row.cluster != cluster),
    )


def _mapped(row: Mapping) -> Mapped:
    return Mapped(
        id=row.id,
        service_id=row.service_id,
        vmid=row.vmid,
        node=row.node or "",
        name=row.name,
        state=row.state,
        updated_at=row.updated_at,
        kind=row.kind,
    )


def unsettled(session: Session, service_id: str | None = None) -> frozenset[str]:
    """Return the services with a job that is open, or whose outcome FulcrumCore does not know yet.

    One question for each index: an OR of the three would read every row of a long history.
    """
    conditions = (
        Job.status == JobStatus.PENDING,
        Job.status == JobStatus.PROCESSING,
        Job.report_state == ReportState.DUE,
    )
    of_service = Job.service_id.is_not(None) if service_id is None else Job.service_id == service_id
    found = [session.scalars(select(Job.service_id).where(condition, of_service)).all() for condition in conditions]
    return frozenset(each for services in found for each in services if each)


def _changed(before: Sequence[Mapped], after: Sequence[Mapped]) -> frozenset[str]:
    """Return the services whose mapping is not what it was when the look began."""
    return frozenset(each.service_id for each in set(before) ^ set(after))


# --- repairs ------------------------------------------------------------------------------------------------------


def repair(engine: Engine, cluster: str, finding: Finding, *, who: str, reason: str = "") -> bool:
    """Do what the finding proposes, with its entry in the audit; False when things have moved on since the look."""
    with transaction(engine) as session:
        row = session.get(Mapping, finding.mapped.id) if finding.mapped else None
        if finding.repair is None or unsettled(session, finding.service_id) or not _is_as_it_was(row, finding):
            return False
        before = audit.facts_of(row, audit.MAPPING_COLUMNS)
        if not _REPAIRS[finding.repair](session, cluster, finding):
            return False
        session.expire_all()
        row = row if finding.repair is not Repair.ADOPT else mappings.live(session, finding.service_id)
        audit.note(
            session,
            who=who,
            verb=finding.repair.value,
            kind="mapping",
            subject=finding.service_id,
            before=before,
            after=audit.facts_of(row, audit.MAPPING_COLUMNS),
            reason=reason or f"{finding.kind}: {finding.text}",
        )
    return True


def _is_as_it_was(row: Mapping | None, finding: Finding) -> bool:
    return (None if row is None else _mapped(row)) == finding.mapped


def _correct_node(session: Session, _cluster: str, finding: Finding) -> bool:
    assert finding.mapped is not None  # noqa: S101 (the comparison makes this repair for a mapping only)
    mappings.note_node(session, finding.mapped.id, finding.node)
    return True


def _mark_orphaned(session: Session, _cluster: str, finding: Finding) -> bool:
    assert finding.mapped is not None  # noqa: S101 (see above)
    mappings.mark_orphaned(session, finding.mapped.id, finding.text)
    return True


def _forget(session: Session, _cluster: str, finding: Finding) -> bool:
    assert finding.mapped is not None  # noqa: S101 (see above)
    mappings.release(session, finding.mapped.id, finding.text)
    return True


def _adopt(session: Session, cluster: str, finding: Finding) -> bool:
    assert finding.vmid is not None  # noqa: S101 (it was seen)
    return (
        mappings.take_in(
            session,
            service_id=finding.service_id,
            cluster=cluster,
            vmid=finding.vmid,
            name=finding.name,
            node=finding.node,
            kind=finding.guest,
        )
        is not None
    )


_REPAIRS: dict[Repair, Callable[[Session, str, Finding], bool]] = {
    Repair.CORRECT_NODE: _correct_node,
    Repair.MARK_ORPHANED: _mark_orphaned,
    Repair.FORGET: _forget,
    Repair.ADOPT: _adopt,
}
