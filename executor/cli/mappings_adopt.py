"""`smith mappings adopt` and `forget`: a person says which VM is a service's, or that none is. No VM is destroyed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli import ansible_playbook as by_hand
from executor.cli.arguments import AsJson, NothingToDo, UnknownReference, confirm
from executor.cli.clients import Reach, reach
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import say, show_json, tell
from executor.cli.store import opened
from executor.cli.tables import show_facts
from executor.database import audit, mappings, queries
from executor.database.engine import reading, transaction
from executor.database.tables import Mapping
from executor.errors import FulcrumAuthFailing, FulcrumRefused
from executor.model import GuestKind, JobStatus, MappingState
from executor.proxmox.client import MARKER_LINE
from executor.settings.settings import Settings

if TYPE_CHECKING:  # only the package database uses SQLAlchemy (import-linter)
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session


#: FulcrumCore's word for a service that nobody will ask for again.
ENDED = "Deleted"


@dataclass(frozen=True, kw_only=True)
class _Vm:
    """The VM that is to be adopted, as Proxmox has it."""

    vmid: int
    node: str
    kind: str
    name: str
    tags: tuple[str, ...]
    description: str
    markers: frozenset[str]


@examples(
    "smith mappings adopt --service 8f2c0a11-… --vmid 100123 --dry-run",
    "smith mappings adopt --service 8f2c0a11-… --vmid 100123 --yes",
    "smith mappings adopt --service 8f2c0a11-… --vmid 4711 --set-marker    a VM that was never ours",
)
def adopt(  # noqa: PLR0913, PLR0917 (one option each; typer passes them by name)
    service: Annotated[str, typer.Option("--service", metavar="ID", help="The service's whole id.")],
    vmid: Annotated[int, typer.Option("--vmid", metavar="N", min=100, max=999_999_999, help="The VM's id.")],
    set_marker: Annotated[
        bool, typer.Option("--set-marker", help="Write the service's marker into the VM's description first.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at everything, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept in the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Map an existing VM to a service: it must be no template, and carry that service's marker and no other.

    FulcrumCore hears of it with the next job: repeat create there, which finds the VM.
    """
    both = reach()
    service = _service(both, service)
    vm = _vm(both, vmid)
    is_marked = _is_marked(vm, service, set_marker=set_marker)
    with opened(both.settings) as engine:
        adoption = _Adoption(
            engine=engine, settings=both.settings, service_id=service, vm=vm, is_marked=is_marked, is_quiet=as_json
        )
        is_held = adoption.check()
        if not dry_run:
            marking = "" if is_marked else ", after its marker is written into it"
            confirm(f"Map VM {vm.vmid} ({vm.name} on {vm.node}) to service {service}{marking}?", yes=yes)
            adoption.carry_out(reason, is_held=is_held)
    _tell(adoption, dry_run=dry_run, as_json=as_json)


@examples(
    "smith mappings forget 100123 --yes                a VMID, a VM's name, a service's id or its beginning",
    "smith mappings forget web-1-8f2c0a11 --yes --reason 'moved to another cluster'",
)
def forget(
    reference: Annotated[str, typer.Argument(metavar="REF", help="VMID, VM name, service id or its beginning.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Kept with the mapping and in the audit.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """End a mapping. The VM stays as it is; a VM with our marker is an `unmapped_vm` of `smith drift` from then on."""
    settings = open_settings()
    with opened(settings) as engine:
        with reading(engine) as session:
            row = one_mapping(session, reference.strip())
        confirm(f"Forget that VM {row.vmid} ({row.name}) serves {row.service_id}? The VM stays.", yes=yes)
        with transaction(engine) as session:  # no transaction was open while a person thought
            refuse_at_work(session, row.service_id)
            before = session.get_one(Mapping, row.id)
            if before.state == MappingState.DELETED:
                raise NothingToDo(f"the mapping of VM {row.vmid} has ended in the meantime")
            was = audit.facts_of(before, audit.MAPPING_COLUMNS)
            mappings.mark_deleted(session, row.id, f"forgotten by {audit.operator()}{f': {reason}' if reason else ''}")
            note_mapping(session, "forget", before, was, reason)
    text = f"VM {row.vmid} ({row.name}) is mapped no more; Proxmox was not asked to do anything"
    tell(text, as_json=as_json, vmid=row.vmid, name=row.name, service_id=row.service_id)


# --- what is asked for ------------------------------------------------------------------------------------------


def _service(both: Reach, service_id: str) -> str:
    """Return the service's id as FulcrumCore writes it. Raises UnknownReference unless it is a living one of ours."""
    try:
        found = both.fulcrum.get_service(service_id.strip())
    except FulcrumAuthFailing:
        both.fulcrum.get_self()  # one service's 403 means unknown; on everything it means something else
        raise UnknownReference(f"FulcrumCore knows no service {service_id}") from None
    except FulcrumRefused as error:
        raise UnknownReference(f"{service_id} names no service: {error}") from None
    if found.agent_id != both.agent_id:
        raise UnknownReference(f"service {service_id} belongs to another agent")
    if found.status == ENDED:
        raise NothingToDo(f"service {service_id} is {ENDED} in FulcrumCore: nothing will ever ask for its VM")
    return found.id


def _vm(both: Reach, vmid: int) -> _Vm:
    """Return the VM. Raises UnknownReference unless it is one that could be a service's."""
    row = next((row for row in both.proxmox.vms() if row.vmid == vmid), None)
    if row is None:
        raise UnknownReference(f"the token sees no VM {vmid}")
    if row.is_template:
        raise UnknownReference(f"{vmid} ({row.name}) is a template, which serves nobody")
    config = both.proxmox.vm_config(row.node, vmid, kind=row.kind)
    description = str(config.get("description") or "")
    return _Vm(
        vmid=vmid,
        node=row.node,
        kind=row.kind,
        name=str(config.get("name") or config.get("hostname") or row.name),
        tags=row.tags,
        description=description,
        markers=frozenset(uid.lower() for uid in MARKER_LINE.findall(description)),
    )


def _is_marked(vm: _Vm, service_id: str, *, set_marker: bool) -> bool:
    """True when the marker is there, False when it is to be written. Another service's is never taken from it."""
    if vm.markers == {service_id}:
        return True
    if vm.markers:
        raise UnknownReference(
            f"VM {vm.vmid} ({vm.name}) belongs to {' and '.join(sorted(vm.markers))}: take that first"
        )
    if not set_marker:
        raise UnknownReference(f"VM {vm.vmid} ({vm.name}) carries no marker: --set-marker writes it")
    return False


def refuse_at_work(session: Session, service_id: str) -> None:
    jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_id=service_id, limit=1)
    if jobs:
        raise NothingToDo(f"an agent is at work on this service (job {jobs[0].id}): wait, or cancel it first")


def one_mapping(session: Session, reference: str) -> Mapping:
    found = [row for row in mappings.find(session, reference) if row.state != MappingState.DELETED]
    if not found:
        raise UnknownReference(f"no VM is mapped for {reference}: `smith mappings list` shows them")
    if len(found) > 1:
        raise UnknownReference(f"more than one fits {reference}: {', '.join(row.name for row in found)}")
    return found[0]


# --- what is done -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Adoption:
    """One VM for one service, both looked at."""

    engine: Engine
    settings: Settings
    service_id: str
    vm: _Vm
    is_marked: bool
    is_quiet: bool  #: stdout is for JSON: what the playbook prints goes to stderr

    def check(self) -> bool:
        """Return whether the service is mapped to this very VM already.

        Raises NothingToDo when the service has another VM, the VM another service, or an agent is at work on it.
        """
        cluster, vmid = self.settings.smith_cluster, self.vm.vmid
        with reading(self.engine) as session:
            refuse_at_work(session, self.service_id)
            held = mappings.current(session, self.service_id)
            for row in mappings.find(session, str(vmid)):
                is_other = row.service_id != self.service_id and row.cluster == cluster
                if is_other and row.state != MappingState.DELETED:
                    raise NothingToDo(f"VM {vmid} is mapped to service {row.service_id}: forget that first")
        if held is not None and (held.vmid, held.cluster) == (vmid, cluster):
            return True
        if held is not None and held.state != MappingState.VM_LOST:
            raise NothingToDo(f"the service has VM {held.vmid} already ({held.state}): forget that first")
        return False

    def carry_out(self, reason: str, *, is_held: bool) -> None:
        """Map the VM. Its VMID is written down before it is marked, as in a create. Raises NothingToDo."""
        if self.is_marked:
            self._map(reason)
        elif is_held:
            self._mark()
            self._map(reason)
        else:
            self._map(reason)
            try:
                self._mark()
            except NothingToDo as failure:
                self._unmap(str(failure))
                raise

    def _map(self, reason: str) -> None:
        vm, cluster = self.vm, self.settings.smith_cluster
        with transaction(self.engine) as session:
            refuse_at_work(session, self.service_id)
            before = audit.facts_of(mappings.current(session, self.service_id), audit.MAPPING_COLUMNS)
            row = mappings.adopt(
                session,
                service_id=self.service_id,
                cluster=cluster,
                vmid=vm.vmid,
                name=vm.name,
                node=vm.node,
                kind=vm.kind,
            )
            if row is None:
                raise NothingToDo(f"VM {vm.vmid} or the service was mapped in the meantime")
            note_mapping(session, "adopt", row, before, reason)

    def _unmap(self, failure: str) -> None:
        """The VM is nobody's, as before."""
        with transaction(self.engine) as session:
            row = mappings.current(session, self.service_id)
            if row is not None and row.vmid == self.vm.vmid:
                before = audit.facts_of(row, audit.MAPPING_COLUMNS)
                mappings.mark_deleted(session, row.id, failure)
                note_mapping(session, "forget", row, before, failure)

    def _mark(self) -> None:
        """Run our own `create` on the VM: it adopts one of this very name without a marker, and marks it.

        `update` refuses a VM without the service's marker, as it should. A size of 0 leaves what is there, and without
        a template nothing could be cloned if the VM vanished now. Raises NothingToDo.
        """
        values = {
            "service_id": self.service_id,
            "vmid": self.vm.vmid,
            "name": self.vm.name,
            "node": self.vm.node,
            "cluster": self.settings.smith_cluster,
            "tags": sorted(self.vm.tags),
            "description": self.vm.description,
            "timeout_s": int(self.settings.smith_playbook_timeout_s),
        }
        sizes = {"cores": 0, "memory_mib": 0, "disk_gib": 0}
        if self.vm.kind == GuestKind.LXC:  # it has one tag at most, and the marking sets that
            values = {name: value for name, value in values.items() if name != "tags"} | {"kind": self.vm.kind}
        playbook = by_hand.home() / "playbooks" / "create.yml"
        play = by_hand.Play(action="create", playbook=playbook, vm=values | sizes)
        result = by_hand.run(play, self.settings, sys.stderr if self.is_quiet else sys.stdout)
        if not result.succeeded:
            raise NothingToDo(f"the marker could not be written, so VM {self.vm.vmid} is not mapped: {result.message}")


def note_mapping(session: Session, verb: str, row: Mapping, before: dict[str, Any] | None, reason: str) -> None:
    """Write what became of a mapping into the audit."""
    session.flush()
    session.refresh(row)
    after = audit.facts_of(row, audit.MAPPING_COLUMNS)
    who, subject = audit.operator(), row.service_id
    audit.record(
        session, who=who, verb=verb, kind="mapping", subject=subject, before=before, after=after, reason=reason
    )


def _tell(adoption: _Adoption, *, dry_run: bool, as_json: bool) -> None:
    vm, is_marked = adoption.vm, adoption.is_marked
    told = {"service_id": adoption.service_id, "vmid": vm.vmid, "name": vm.name, "node": vm.node}
    if as_json:
        show_json(told | {"adopted": not dry_run, "marker_written": not (is_marked or dry_run)})
        return
    show_facts(told | {"marker": "there" if is_marked else "to be written" if dry_run else "written"})
    say(
        "nothing was changed" if dry_run else "mapped; repeat create in FulcrumCore if it has no instance id for it yet"
    )
