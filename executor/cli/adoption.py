"""Adopts a VM for a service: checks the current mappings, maps the VM, and writes the service's marker into the VM.

The marker is a line in the VM's description that contains the service's id.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.cli import ansible_playbook
from executor.cli.arguments import CommandFailed
from executor.cli.mapping_changes import record_change, refuse_while_job_runs
from executor.database import audit, mappings
from executor.database.engine import reading, transaction
from executor.model import GuestKind, MappingState
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine


@dataclass(frozen=True, kw_only=True)
class AdoptedVm:
    """The VM to adopt, with the values that Proxmox has for it."""

    vmid: int
    node: str
    kind: str
    name: str
    tags: tuple[str, ...]
    description: str
    #: The service ids of all markers in the VM's description.
    markers: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """The adoption of one VM by one service."""

    engine: Engine
    settings: Settings
    service_id: str
    vm: AdoptedVm
    #: Whether the VM has the service's marker already.
    is_marked: bool
    #: Whether the playbook's output goes to stderr. It does with --json, because stdout then has the JSON document.
    output_on_stderr: bool

    def check_mappings(self) -> bool:
        """Check that the adoption is possible, and return whether the service is mapped to this VM already.

        Raises CommandFailed when the service is mapped to another VM that still exists, when the VM is mapped to
        another service, or when a job of the service is running.
        """
        cluster, vmid = self.settings.smith_cluster, self.vm.vmid
        with reading(self.engine) as session:
            refuse_while_job_runs(session, self.service_id)
            current = mappings.current(session, self.service_id)
            for row in mappings.find(session, str(vmid)):
                is_other = row.service_id != self.service_id and row.cluster == cluster
                if is_other and row.state != MappingState.DELETED:
                    raise CommandFailed(f"VM {vmid} is mapped to service {row.service_id}: forget that mapping first")
        if current is not None and (current.vmid, current.cluster) == (vmid, cluster):
            return True
        if current is not None and current.state != MappingState.VM_LOST:
            raise CommandFailed(
                f"the service has VM {current.vmid} already ({current.state}): forget that mapping first"
            )
        return False

    def execute(self, reason: str, *, is_mapped: bool) -> None:
        """Map the VM, and write the marker if the VM has none.

        `is_mapped` is the result of `check_mappings`. A new mapping is stored before the marker is written, as in a
        create job. If the marker cannot be written, a mapping that this call has created is ended, and CommandFailed is
        raised. `reason` is stored in the audit.
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
            except CommandFailed as failure:
                self._unmap(str(failure))
                raise

    def _map(self, reason: str) -> None:
        """Store the mapping and an audit entry. Raises CommandFailed if the VM or the service has another mapping."""
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
                raise CommandFailed(f"VM {vm.vmid} or the service was mapped in the meantime")
            record_change(session, "adopt", row, before, reason)

    def _unmap(self, failure: str) -> None:
        """End the mapping that `_map` has stored. `failure` is stored as the reason."""
        with transaction(self.engine) as session:
            row = mappings.current(session, self.service_id)
            if row is not None and row.vmid == self.vm.vmid:
                before = audit.facts_of(row, audit.MAPPING_COLUMNS)
                mappings.mark_deleted(session, row.id, failure)
                record_change(session, "forget", row, before, failure)

    def _mark(self) -> None:
        """Write the marker with the built-in playbook `create`, which adopts a VM of the given name without a marker.

        The playbook `update` cannot be used: it refuses a VM without the service's marker. `create` gets no template,
        so that it cannot clone a new VM if this VM is deleted in the meantime. Raises CommandFailed when the playbook
        fails.
        """
        playbook = ansible_playbook.home() / "playbooks" / "create.yml"
        manual_run = ansible_playbook.ManualRun(action="create", playbook=playbook, vm=self._vm_variable())
        result = ansible_playbook.run(manual_run, self.settings, sys.stderr if self.output_on_stderr else sys.stdout)
        if not result.succeeded:
            raise CommandFailed(
                f"the marker could not be written, so VM {self.vm.vmid} is not mapped: {result.message}"
            )

    def _vm_variable(self) -> dict[str, Any]:
        """Return the extra variable `vm` for the playbook `create`. A size of 0 means: keep the VM's size."""
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
        if self.vm.kind == GuestKind.LXC:  # The playbook itself sets a container's tags.
            return vm | {"kind": self.vm.kind}
        return vm | {"tags": sorted(self.vm.tags)}
