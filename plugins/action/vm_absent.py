# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_absent`: deletes a service's guest, or marks it for a later deletion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plugin_utils import allowed, backup, deletion, failures, preconditions, steps, volumes
from ..plugin_utils.client import REQUEST_ERRORS, error_text
from ..plugin_utils.identity import identity_problem, kind_of, lock_problem
from ..plugin_utils.proxmox_tasks import task_types
from ..plugin_utils.request_values import is_yes
from ..plugin_utils.vm_action import Facts, VmAction
from ..plugin_utils.volume_removal import remove_volumes, volume_rows_of_guest


class ActionModule(VmAction):
    """Stops the guest. Then either marks it for a later deletion, or deletes it with its disks.

    If the argument `vm`, the request, names a storage for a final archive, the guest is backed up before it is deleted.
    """

    archive = ""  #: the volume id of the final archive; '' if none was made
    volumes_left: Sequence[str] = ()  #: the guest's volumes that still exist after its deletion
    volumes_of_unknown_owner: Sequence[str] = ()  #: the volumes in `volumes_left` that may belong to another guest

    def execute(self) -> dict[str, Any]:
        archive_storage = str(self.vm.get("final_backup") or "")
        # Refuse a storage that the member `allowed` of `vm` does not allow for backups.
        self.refuse_if(allowed.backup_problem(self.vm, archive_storage))
        # `identify` looks the guest up and verifies that it belongs to the service. With `backup_storage`, the facts
        # list the guest's archives on this storage.
        facts = self.identify(may_be_absent=True, backup_storage=archive_storage)
        # The step is `mark`, `destroy`, `wait` (the grace period still runs), or `keep` (an operator has cancelled the
        # deletion). `delete_at` is the time of a later deletion in seconds since 1970; 0 if none is planned.
        decision = deletion.next_deletion_step(facts, self.vm)
        execute_step = {"mark": self._mark, "destroy": self._destroy}.get(decision["step"], self._keep_unchanged)
        result = execute_step(facts, decision["delete_at"])
        return self.build_result_document(
            result.facts,
            delete_at=decision["delete_at"] if decision["step"] in ("mark", "wait") else 0,
            changed=result.is_changed,
            upids=result.upids,
            planned=self._planned_values(decision) if self.is_check_mode and facts["exists"] else {},
            **({"backup": self.archive} if self.archive else {}),
            **self._warn_and_return_volumes_left(),
        )

    def _planned_values(self, decision: dict[str, Any]) -> dict[str, Any]:
        """Return the values that the guest would have after the step in `decision`, for check mode."""
        plans = {"destroy": {"status": "absent"}, "mark": {"status": "stopped", "delete_at": decision["delete_at"]}}
        return plans.get(decision["step"], {})

    def _keep_unchanged(self, facts: Facts, _delete_at: int) -> steps.StepResult:
        """Change nothing, for the steps `wait` and `keep`."""
        return steps.result_without_change(facts)

    def _mark(self, facts: Facts, delete_at: int) -> steps.StepResult:
        """Stop the guest and mark it for deletion at the time `delete_at`."""
        stop_step = steps.ensure_power(self, facts, "stopped")
        mark_step = steps.ensure_configured(self, stop_step.facts, deletion.deletion_mark_request(self.vm, delete_at))
        return steps.StepResult(facts=mark_step.facts, is_changed=True, upids=stop_step.upids + mark_step.upids)

    def _destroy(self, facts: Facts, _delete_at: int) -> steps.StepResult:
        """Stop the guest, make the final archive if `vm` names a storage for it, and delete the guest.

        If the guest does not exist, only find the volumes that remain of it.
        """
        archive_storage = str(self.vm.get("final_backup") or "")
        # Proxmox refuses to delete a guest that its HA manager manages, unless `vm` sets `purge`.
        self.refuse_if(deletion.ha_managed_problem(facts, self.vm))
        if facts["exists"] and archive_storage:
            # The plugin stops the guest before the backup (`is_stopped_by_plugin`). To back up a stopped VM, Proxmox
            # starts it. Proxmox cannot start a VM with more CPUs than its node has, so such a VM is refused.
            backup.require_backup_possible(self, facts, archive_storage, is_stopped_by_plugin=True)
        stop_step = steps.ensure_power(self, facts, "stopped")
        archive_step = steps.result_without_change(stop_step.facts)
        if facts["exists"] and archive_storage:
            archive_step = backup.make_backup(self, stop_step.facts, facts_before=facts, storage=archive_storage)
            # `new_archive` returns the archive that the storage lists now and did not list before the backup.
            self.archive = preconditions.new_archive(archive_step.facts, facts)
        deletion_step = self._delete(archive_step.facts) if facts["exists"] else self._find_volumes_left_earlier(facts)
        return steps.StepResult(
            facts=deletion_step.facts,
            is_changed=facts["exists"],
            upids=stop_step.upids + archive_step.upids + deletion_step.upids,
        )

    def _delete(self, facts: Facts) -> steps.StepResult:
        """Delete the guest, and find its volumes that still exist.

        The guest's identity is verified again right before the deletion. The guest may have changed since the first
        check, because its shutdown and its final backup in `_destroy` may have taken minutes.
        """
        self.refuse_if(identity_problem(facts, self.vm, may_be_absent=True), lock_problem(facts))
        self.diff = {"before": {"status": facts["status"]}, "after": {"status": "absent"}}
        if self.is_check_mode:
            return steps.result_without_change(facts)
        node, vmid = facts["node"], int(self.vm["vmid"])
        configuration_items = self.cluster.configuration_items(node, vmid)
        snapshot_volumes = volumes.snapshot_volumes(self.cluster, node, vmid)
        volumes_before = volumes.volumes_in(configuration_items, vmid) | snapshot_volumes
        # The plugin itself removes no volume under a key such as `unused0`: another cluster on the same storage may use
        # this volume.
        used_items = [(key, value) for key, value in configuration_items if not volumes.UNUSED_KEY.match(key)]
        removable_volumes = self._removable_volumes(node, volumes.volumes_in(used_items, vmid) | snapshot_volumes)
        self.progress.write_line("deleting the guest with its disks")
        # Without the option `force`, the community.proxmox module refuses to delete a running guest. With `timeout=0`,
        # the module does not wait for the Proxmox task of the deletion.
        answer = self.change_with_module(
            "proxmox" if kind_of(self.vm) == "lxc" else "proxmox_kvm",
            state="absent",
            vmid=self.vm["vmid"],
            purge=is_yes(self.vm.get("purge", False)),
            timeout=0,
        )
        # `absent`: wait until the guest is not found. `prove_absence`: then check whether the guest may exist, for
        # example on an offline node. If it may exist, `identity_problem` returns a problem.
        after = self.look_up_after_change(facts, "absent", prove_absence=True)
        self.fail_on_outcome_problem(
            failures.outcome_problem(after, answer, wanted_state="absent"),
            identity_problem(after, self.vm, may_be_absent=True),
        )
        self._find_volumes_left(node, volumes_before, removable_volumes, after["upids"])
        return steps.StepResult(facts=after, is_changed=True, upids=after["upids"])

    def _find_volumes_left_earlier(self, facts: Facts) -> steps.StepResult:
        """Find the volumes that remain of a guest that an earlier, interrupted run has deleted. Change nothing.

        The action plugin warns if such volumes exist, or if it is unknown whether they exist.
        """
        try:
            is_search_complete = self._find_volumes_of_last_deletion()
        except REQUEST_ERRORS as exc:  # the action plugin succeeds: it is proven that the VM is absent
            self._warn_of_unknown_volumes(error_text(exc))
        else:
            if not is_search_complete:
                self._warn_of_unknown_volumes("a node that may have deleted the VM is offline")
        return steps.result_without_change(facts)

    def _find_volumes_of_last_deletion(self) -> bool:
        """Find the volumes that remain after the last deletion of the VM.

        Return False if no deletion was found and a node that may have deleted the VM is offline. The Proxmox task of
        the deletion is searched for on all nodes, because the VM may have moved away from the node that the request
        names.
        """
        # `absent` selects the types of the Proxmox tasks that delete a guest.
        vmid, deletion_task_types = int(self.vm["vmid"]), task_types("absent", kind_of(self.vm))
        tasks_newest_first, are_all_nodes_online = self.cluster.tasks_on_all_nodes(vmid)
        deletion_upids = [task["upid"] for task in tasks_newest_first if task["type"] in deletion_task_types]
        if not deletion_upids:
            return are_all_nodes_online
        volumes_of_vm, self.volumes_of_unknown_owner, storage_errors = volumes.find_volumes_left_by_earlier_deletion(
            self.cluster, vmid, deletion_upids[0]
        )
        self.volumes_left = sorted([*volumes_of_vm, *self.volumes_of_unknown_owner])
        self._warn_of_unreadable_storages(storage_errors)
        return True

    def _removable_volumes(self, node: str, used_volumes: set[str]) -> dict[str, dict[str, Any]]:
        """Return the volumes that the action plugin may remove if Proxmox does not remove them, each with its row.

        A row is an entry of Proxmox's list of a storage's volumes. This method is called before the deletion, while
        Proxmox still knows which volumes the guest uses.
        """
        if not is_yes(self.vm.get("remove_volumes_left", False)):
            return {}
        try:
            return volume_rows_of_guest(self.cluster, node, int(self.vm["vmid"]), used_volumes)
        except REQUEST_ERRORS as exc:
            text = f"Agent Smith cannot read which volumes VM {self.vm['vmid']} has"
            self.warn(f"{text}, so it will not remove a volume that Proxmox leaves: {error_text(exc)}")
            return {}

    def _find_volumes_left(
        self, node: str, volumes_before: set[str], removable_volumes: dict[str, dict[str, Any]], upids: list[str]
    ) -> None:
        """Find the volumes that Proxmox has not removed. Remove each such volume that is in `removable_volumes`.

        The guest itself is already deleted, so the action plugin succeeds even if a volume remains or a request fails.
        """
        try:
            vmid = int(self.vm["vmid"])
            self.volumes_left, storage_errors = volumes.find_volumes_left(
                self.cluster, node, vmid, volumes_before, upids
            )
            rows = {volume: removable_volumes[volume] for volume in self.volumes_left if volume in removable_volumes}
            if rows:
                remove_volumes(self, node, rows)
                removed_volumes = rows.keys() - volumes.existing_or_unreadable_volumes(self.cluster, node, vmid, rows)
                self.volumes_left = [volume for volume in self.volumes_left if volume not in removed_volumes]
            self._warn_of_unreadable_storages(storage_errors)
        except REQUEST_ERRORS as exc:
            self._warn_of_unknown_volumes(error_text(exc))

    def _warn_of_unreadable_storages(self, storage_errors: list[str]) -> None:
        if storage_errors:
            self._warn_of_unknown_volumes("; ".join(storage_errors))

    def _warn_of_unknown_volumes(self, reason: str) -> None:
        self.warn(f"It is unknown whether all disks of VM {self.vm['vmid']} are removed: {reason}")

    def _warn_and_return_volumes_left(self) -> dict[str, list[str]]:
        """Warn of the volumes that still exist, and return the members of the result document about these volumes."""
        if not self.volumes_left:
            return {}
        text = volumes.volumes_left_warning(int(self.vm["vmid"]), self.volumes_left, self.volumes_of_unknown_owner)
        self.warn(text)
        return {"volumes_left": list(self.volumes_left), "warnings": [text]}
