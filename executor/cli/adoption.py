"""The steps of an adoption: check the mapping, write it, write the marker into the VM."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.cli import ansible_playbook
from executor.cli.arguments import NothingToDo
from executor.cli.mapping_changes import record_change, refuse_while_job_runs
from executor.database import audit, mappings
from executor.database.engine import reading, transaction
from executor.model import GuestKind, MappingState
from executor.settings.settings import Settings

if TYPE_CHECKING:  # only the package database uses SQLAlchemy (import-linter)
    from sqlalchemy import Engine


@dataclass(frozen=True, kw_only=True)
class AdoptedVm:
    """The VM to adopt, as Proxmox describes it."""

    vmid: int
    node: str
    kind: str
    name: str
    tags: tuple[str, ...]
    description: str
    #: The service ids of all our markers in its description.
    markers: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """One VM, one service, and whether the VM has the service's marker."""

    engine: Engine
    settings: Settings
    service_id: str
    vm: AdoptedVm
    is_marked: bool
    #: True with --json: the playbook's output goes to stderr.
    output_on_stderr: bool

    def is_mapped(self) -> bool:
        """Return whether the service is mapped to this VM already.

        Raises NothingToDo when the service has another VM, the VM has another service, or a job of the service runs.
        """
        cluster, vmid = self.settings.smith_cluster, self.vm.vmid
        with reading(self.engine) as session:
            refuse_while_job_runs(session, self.service_id)
            current = mappings.current(session, self.service_id)
            for row in mappings.find(session, str(vmid)):
                is_other = row.service_id != self.service_id and row.cluster == cluster
                if is_other and row.state != MappingState.DELETED:
                    raise NothingToDo(f"VM {vmid} is mapped to service {row.service_id}: forget that mapping first")
        if current is not None and (current.vmid, current.cluster) == (vmid, cluster):
            return True
        if current is not None and current.state != MappingState.VM_LOST:
            raise NothingToDo(f"the service has VM {current.vmid} already ({current.state}): forget that mapping first")
        return False

    def execute(self, reason: str, *, is_mapped: bool) -> None:
        """Map the VM, and mark it if needed. As in a create, the VMID is stored before the VM is marked.

        Raises NothingToDo when the marker cannot be written; the VM is not mapped then.
        """
        if self.is_marked:
            self._map(reason)
        elif is_mapped:
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
            refuse_while_job_runs(session, self.service_id)
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
            record_change(session, "adopt", row, before, reason)

    def _unmap(self, failure: str) -> None:
        """End the mapping that `_map` has written."""
        with transaction(self.engine) as session:
            row = mappings.current(session, self.service_id)
            if row is not None and row.vmid == self.vm.vmid:
                before = audit.facts_of(row, audit.MAPPING_COLUMNS)
                mappings.mark_deleted(session, row.id, failure)
                record_change(session, "forget", row, before, failure)

    def _mark(self) -> None:
        """Write the marker with our playbook `create`: it adopts a VM of this name without a marker, and marks it.

        `update` refuses a VM without the service's marker. A size of 0 keeps the VM's size. Without a template the
        playbook cannot clone, should the VM be deleted in this moment. Raises NothingToDo.
        """
        playbook = ansible_playbook.home() / "playbooks" / "create.yml"
        play = ansible_playbook.Play(action="create", playbook=playbook, vm=self._vm_variable())
        result = ansible_playbook.run(play, self.settings, sys.stderr if self.output_on_stderr else sys.stdout)
        if not result.succeeded:
            raise NothingToDo(f"the marker could not be written, so VM {self.vm.vmid} is not mapped: {result.message}")

    def _vm_variable(self) -> dict[str, Any]:
        vm: dict[str, Any] = {
            "service_id": self.service_id,
            "vmid": self.vm.vmid,
            "name": self.vm.name,
            "node": self.vm.node,
            "cluster": self.settings.smith_cluster,
            "description": self.vm.description,
            "timeout_s": int(self.settings.smith_playbook_timeout_s),
            "cores": 0,
            "memory_mib": 0,
            "disk_gib": 0,
        }
        if self.vm.kind == GuestKind.LXC:  # a container of ours has one tag, which the playbook sets
            return vm | {"kind": self.vm.kind}
        return vm | {"tags": sorted(self.vm.tags)}
