"""`smith mappings recall`: cancels the scheduled deletion of a VM.

In this file, "VM" also means a container. A VM or container whose deletion is scheduled has a deletion mark in Proxmox,
which contains the time at which the deletion is due. The mark of a VM is a tag. The mark of a container is a line in
the container's description.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli import ansible_playbook
from executor.cli.arguments import AsJson, CommandFailed, MappingReference
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.mapping_changes import find_mapping, record_change
from executor.cli.output import show_outcome
from executor.cli.service_lock import locked_service
from executor.cli.store import open_database
from executor.database import audit, job_queue, mappings, queries
from executor.database.engine import read_only_session, transaction
from executor.model import GuestKind, JobResult, JobStatus, MappingState
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.runs.actions import collection_folder
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

    from executor.database.tables.mappings import Mapping

#: The beginning of every deletion mark: of the tag of a VM, and of the line in a container's description.
DELETION_MARK_PREFIX = "smith-delete"


@examples(
    "smith mappings list --state pending_deletion     the VMs with a scheduled deletion, and when it is due",
    "smith mappings recall 100123                     a VMID, a VM's name, or the beginning of a service's id",
    "smith mappings recall web-1-8f2c0a11 --reason 'deleted by mistake'",
)
def recall(
    reference: MappingReference,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Cancel the scheduled deletion of a VM.

    The VM's deletion mark in Proxmox is removed. The VM stays stopped. FulcrumCore has deleted the service,
    and sends no more jobs for the VM.
    """
    settings = open_settings()
    settings.require_proxmox_settings()
    with open_database(settings) as engine:
        with read_only_session(engine) as session:
            mapping = find_mapping(session, reference.strip())
        if mapping.state == MappingState.ACTIVE and not _may_have_deletion_mark(mapping, settings):
            outcome_text = f"VM {mapping.vmid} ({mapping.name}) is not marked for deletion, so nothing was changed"
            # The playbook has not run, so `vm`, its result, is empty.
            show_outcome(outcome_text, as_json=as_json, service_id=mapping.service_id, vmid=mapping.vmid, vm={})
            return
        playbook_output = sys.stderr if as_json else sys.stdout
        # `locked_service` stores the playbook run in the table `manual_runs`, which contains no jobs. Until the `with`
        # block ends, no agent claims a job of the service. `lock` is the record of this run: `ansible_playbook.run`
        # adds the run's output and result, and the end of the block stores both. The action is `update`, because the
        # playbook `update` removes the deletion mark.
        with locked_service(engine, action="update", service_id=mapping.service_id, vmid=mapping.vmid) as lock:
            _cancel_deletion(engine, mapping, reason)
            result = ansible_playbook.run(_build_update_request(mapping, settings), settings, playbook_output, lock)
            _store_result(engine, mapping, result)
    outcome_text = f"VM {mapping.vmid} ({mapping.name}) is kept; `smith play start --service {mapping.vmid}` starts it"
    show_outcome(outcome_text, as_json=as_json, service_id=mapping.service_id, vmid=mapping.vmid, vm=result.vm)


def _may_have_deletion_mark(mapping: Mapping, settings: Settings) -> bool:
    """Return whether the VM's configuration in Proxmox contains the beginning of a deletion mark.

    The VM of an active mapping has a mark only if an earlier recall set the mapping to active, and then failed.
    If Proxmox does not list the VM, return True: then the playbook runs, and reports why the VM is missing.
    """
    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    vm_row = next((row for row in reader.vms() if row.vmid == mapping.vmid), None)
    if vm_row is None:
        return True
    config = reader.vm_config(vm_row.node, vm_row.vmid, kind=vm_row.kind)
    return any(DELETION_MARK_PREFIX in str(config.get(name) or "").lower() for name in ("tags", "description"))


def _cancel_deletion(engine: Engine, mapping: Mapping, reason: str) -> None:
    """Set the mapping to active, and cancel a pending delete job of the service.

    The agent creates this delete job when the deletion is due.

    Called before the playbook removes the deletion mark in Proxmox. If the deletion becomes due while the playbook
    runs, the VM is not deleted, because the mapping is active already. Raises CommandFailed if the state of
    the mapping is neither PENDING_DELETION nor ACTIVE.
    """
    with transaction(engine) as session:
        mapping_to_change = mappings.get_one(session, mapping.id)
        is_deletion_scheduled = mapping_to_change.state == MappingState.PENDING_DELETION
        # An active mapping is accepted: an earlier recall may have set it to active, and failed after that.
        if not is_deletion_scheduled and mapping_to_change.state != MappingState.ACTIVE:
            raise CommandFailed(
                f"the mapping of VM {mapping_to_change.vmid} has the state {mapping_to_change.state}: no deletion is "
                "scheduled"
            )
        columns_before = audit.column_values(mapping_to_change, audit.MAPPING_COLUMNS)
        open_delete_job = queries.find_open_job(session, mapping_to_change.service_id)
        # An open job is pending or processing. FulcrumCore sends no more jobs of the deleted service, so an open job is
        # the delete job.
        if is_deletion_scheduled and open_delete_job is not None and open_delete_job.status == JobStatus.PENDING:
            job_queue.cancel_or_request_cancel(session, open_delete_job.id)
        mappings.mark_mapping_active(session, mapping.id)
        if is_deletion_scheduled:
            record_change(session, "recall", mapping_to_change, columns_before, reason)


def _build_update_request(mapping: Mapping, settings: Settings) -> ansible_playbook.PlaybookRequest:
    """Return the request for a run of the built-in playbook `update` that removes the VM's deletion mark in Proxmox."""
    vm: dict[str, Any] = {
        "service_id": mapping.service_id,
        "vmid": mapping.vmid,
        "name": mapping.name,
        "node": mapping.node or "",
        "cluster": mapping.cluster,
        "timeout_s": int(settings.smith_playbook_timeout_s),
        "cancel_deletion": True,
    }
    if mapping.kind != GuestKind.QEMU:  # Without the key `kind`, the Ansible roles assume a QEMU VM.
        vm["kind"] = mapping.kind
    playbook = collection_folder() / "playbooks" / "update.yml"
    return ansible_playbook.PlaybookRequest(action="update", playbook=playbook, vm=vm)


def _store_result(engine: Engine, mapping: Mapping, result: JobResult) -> None:
    """Store the playbook's result in the mapping. Raises CommandFailed if the playbook failed."""
    if not result.succeeded:
        raise CommandFailed(
            f"the deletion of VM {mapping.vmid} is cancelled, but its deletion mark in Proxmox could not be removed "
            f"({result.message}): run this command again"
        )
    with transaction(engine) as session:
        mappings.apply_result(session, mapping.id, result.vm)
