"""Adopts an existing VM as the VM of a service: checks the mappings, maps the VM, and writes the marker into the VM.

The marker is a line in the VM's description that contains the service's id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.cli import ansible_playbook
from executor.cli.ansible_playbook import Output
from executor.cli.arguments import CommandFailed
from executor.cli.mapping_changes import record_change, require_no_running_playbook
from executor.cli.service_lock import ServiceLock, locked_service
from executor.database import audit, mapping_queries, mappings
from executor.database.engine import read_only_session, transaction
from executor.model import GuestKind, MappingState
from executor.runs.actions import collection_folder
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine


@dataclass(frozen=True, kw_only=True)
class VmToAdopt:
    """The VM to adopt, as Proxmox describes it."""

    vmid: int
    node: str
    kind: str  #: a GuestKind: virtual machine or LXC container
    name: str
    tags: tuple[str, ...]
    description: str
    #: The service ids in the markers of the VM's description.
    marked_service_ids: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """The adoption of the VM `vm` as the VM of the service `service_id`."""

    engine: Engine
    settings: Settings
    service_id: str
    vm: VmToAdopt
    #: Whether the VM has the service's marker already.
    has_marker: bool
    #: The stream for the output of the playbook that writes the marker. With --json, this stream is stderr, because
    #: only the JSON document is written to stdout.
    playbook_output: Output

    def check_mappings(self) -> bool:
        """Check that the mappings allow the adoption. Return whether the service is mapped to this VM already.

        Raises CommandFailed when the service is mapped to another VM that still exists, when the VM is mapped to
        another service, or while a job or a command runs a playbook for the service.
        """
        cluster, vmid = self.settings.smith_cluster, self.vm.vmid
        with read_only_session(self.engine) as session:
            require_no_running_playbook(session, self.service_id)
            service_mapping = mappings.find_current_mapping(session, self.service_id)
            for row in mapping_queries.find_mappings_by_vmid(session, vmid):
                maps_vm_to_other_service = row.service_id != self.service_id and row.cluster == cluster
                if maps_vm_to_other_service and row.state != MappingState.DELETED:
                    raise CommandFailed(
                        f"VM {vmid} is mapped to service {row.service_id}: first mark that mapping as deleted "
                        "(`smith mappings forget`)"
                    )
        if service_mapping is None:
            return False
        if (service_mapping.vmid, service_mapping.cluster) == (vmid, cluster):
            return True
        # VM_LOST: the VM of the mapping does not exist any more.
        if service_mapping.state != MappingState.VM_LOST:
            raise CommandFailed(
                f"the service is mapped to VM {service_mapping.vmid} already ({service_mapping.state}): "
                "first mark that mapping as deleted (`smith mappings forget`)"
            )
        return False

    def execute(self, reason: str, *, is_service_mapped_to_vm: bool) -> None:
        """Map the VM, and write the marker if the VM has none. `reason` is stored in the audit log.

        `is_service_mapped_to_vm` is the result of `check_mappings`. If it is False, a new mapping is stored, then the
        marker is written. If it is True, the marker is written, then the VM's name and node are stored in the mapping.
        If the marker cannot be written, the new mapping is marked as deleted, and CommandFailed is raised. While the
        marker is written, no agent runs a job of the service.
        """
        if self.has_marker:
            with transaction(self.engine) as session:
                require_no_running_playbook(session, self.service_id)
            self._store_mapping(reason)
            return
        # `action` is stored with the lock: the action whose playbook writes the marker.
        with locked_service(self.engine, action="create", service_id=self.service_id, vmid=self.vm.vmid) as lock:
            if is_service_mapped_to_vm:
                self._write_marker(lock)
                self._store_mapping(reason)
                return
            self._store_mapping(reason)
            try:
                self._write_marker(lock)
            except CommandFailed as failure:
                self._mark_mapping_deleted(str(failure))
                raise

    def _store_mapping(self, reason: str) -> None:
        """Create or update the mapping, and write the change into the audit log.

        Raises CommandFailed if the VM or the service has another mapping.
        """
        vm, cluster = self.vm, self.settings.smith_cluster
        with transaction(self.engine) as session:
            old_values = audit.column_values(
                mappings.find_current_mapping(session, self.service_id), audit.MAPPING_COLUMNS
            )
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
                raise CommandFailed(
                    f"VM {vm.vmid} or service {self.service_id} got another mapping while this command ran"
                )
            record_change(session, "adopt", row, old_values, reason)

    def _mark_mapping_deleted(self, failure: str) -> None:
        """Mark as deleted the mapping that `_store_mapping` has stored. `failure` is stored as the reason."""
        with transaction(self.engine) as session:
            row = mappings.find_current_mapping(session, self.service_id)
            if row is not None and row.vmid == self.vm.vmid:
                old_values = audit.column_values(row, audit.MAPPING_COLUMNS)
                mappings.mark_mapping_deleted(session, row.id, failure)
                record_change(session, "forget", row, old_values, failure)

    def _write_marker(self, lock: ServiceLock) -> None:
        """Write the marker with the built-in playbook `create`.

        `create` accepts an existing VM without a marker if the VM's name equals `name` in the extra variable `vm`. The
        playbook `update` cannot be used, because it refuses a VM without the service's marker. `create` gets no
        template, so it cannot clone a new VM if this VM is deleted in the meantime. Raises CommandFailed when the
        playbook fails.
        """
        playbook = collection_folder() / "playbooks" / "create.yml"
        vm = self._build_vm_variable()
        request = ansible_playbook.PlaybookRequest(action="create", playbook=playbook, vm=vm)
        result = ansible_playbook.run(request, self.settings, self.playbook_output, lock)
        if not result.succeeded:
            raise CommandFailed(
                f"the marker could not be written into VM {self.vm.vmid}, so the VM was not adopted: {result.message}"
            )

    def _build_vm_variable(self) -> dict[str, Any]:
        """Return the extra variable `vm` for the playbook `create`. A size of 0 means that the VM keeps its size."""
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
        if self.vm.kind == GuestKind.LXC:  # The playbook refuses `tags` for a container.
            return vm | {"kind": self.vm.kind}
        return vm | {"tags": sorted(self.vm.tags)}
