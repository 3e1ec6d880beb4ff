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
from ..plugin_utils.volume_removal import remove_volumes, rows_of_guest


class ActionModule(VmAction):
    """Stops the guest. Then either marks it for a later deletion, or deletes it with its disks.

    If the request names a storage for a final archive, the guest is backed up before it is deleted.
    """

    archive = ""  #: the volume of the final archive
    volumes_left: Sequence[str] = ()  #: the VM's volumes that still exist after the deletion of the VM
    volumes_of_unknown_owner: Sequence[str] = ()  #: the volumes in `volumes_left` that may belong to another VM

    def execute(self) -> dict[str, Any]:
        archive_storage = str(self.vm.get("final_backup") or "")
        self.refuse(allowed.backup_problem(self.vm, archive_storage))
        facts = self.identify(may_be_absent=True, backup_storage=archive_storage)
        decision = deletion.deletion(facts, self.vm)
        execute_step = {"mark": self._mark, "destroy": self._destroy}.get(decision["step"], self._keep)
        result = execute_step(facts, decision["at"])
        return self.document(
            result.facts,
            delete_at=decision["at"] if decision["step"] in ("mark", "wait") else 0,
            changed=result.is_changed,
            upids=result.upids,
            planned=self._planned(decision) if self.is_check_mode and facts["exists"] else {},
            **({"backup": self.archive} if self.archive else {}),
            **self._report_volumes_left(),
        )

    def _planned(self, decision: dict[str, Any]) -> dict[str, Any]:
        plans = {"destroy": {"status": "absent"}, "mark": {"status": "stopped", "delete_at": decision["at"]}}
        return plans.get(decision["step"], {})

    def _keep(self, facts: Facts, _at: int) -> steps.StepResult:
        """Change nothing: the grace period has not ended, or an operator has cancelled the deletion."""
        return steps.no_change(facts)

    def _mark(self, facts: Facts, at: int) -> steps.StepResult:
        """Stop the guest and mark it for deletion at the time `at`."""
        stop_step = steps.ensure_power(self, facts, "stopped")
        mark_step = steps.ensure_configured(self, stop_step.facts, deletion.deletion_mark_request(self.vm, at))
        return steps.StepResult(facts=mark_step.facts, is_changed=True, upids=stop_step.upids + mark_step.upids)

    def _destroy(self, facts: Facts, _at: int) -> steps.StepResult:
        archive_storage = str(self.vm.get("final_backup") or "")
        self.refuse(deletion.ha_managed_problem(facts, self.vm))
        if facts["exists"] and archive_storage:
            backup.require_backup_possible(self, facts, archive_storage, is_stopped_by_action=True)
        stop_step = steps.ensure_power(self, facts, "stopped")
        archive_step = steps.no_change(stop_step.facts)
        if facts["exists"] and archive_storage:
            archive_step = backup.ensure_backup(self, stop_step.facts, facts, archive_storage)
            self.archive = preconditions.new_archive(archive_step.facts, facts)
        deletion_step = self._delete(archive_step.facts) if facts["exists"] else self._check_earlier_deletion(facts)
        return steps.StepResult(
            facts=deletion_step.facts,
            is_changed=facts["exists"],
            upids=stop_step.upids + archive_step.upids + deletion_step.upids,
        )

    def _delete(self, facts: Facts) -> steps.StepResult:
        """Delete the guest.

        The identity is verified again right before the deletion: the shutdown may have taken minutes, so the guest may
        have changed since the first check.
        """
        self.refuse(identity_problem(facts, self.vm, True), lock_problem(facts))
        self.diff = {"before": {"status": facts["status"]}, "after": {"status": "absent"}}
        if self.is_check_mode:
            return steps.no_change(facts)
        node, vmid = facts["node"], int(self.vm["vmid"])
        settings, in_snapshots = self.cluster.settings(node, vmid), volumes.snapshot_volumes(self.cluster, node, vmid)
        volumes_before = volumes.volumes_in(settings, vmid) | in_snapshots
        used = [(key, value) for key, value in settings if not volumes.UNUSED_KEY.match(key)]
        removable = self._removable_volumes(node, volumes.volumes_in(used, vmid) | in_snapshots)
        self.progress.step("deleting the guest with its disks")
        # `force` is not set, so that the module does not delete a guest that was started after the look-up.
        answer = self.change(
            "proxmox" if kind_of(self.vm) == "lxc" else "proxmox_kvm",
            state="absent",
            vmid=self.vm["vmid"],
            purge=is_yes(self.vm.get("purge", False)),
            timeout=0,
        )
        after = self.look_up_after(facts, "absent", prove_absence=True)
        self.verify(failures.outcome_problem(after, answer, "absent"), identity_problem(after, self.vm, True))
        self._find_volumes_left(node, volumes_before, removable, after["upids"])
        return steps.StepResult(facts=after, is_changed=True, upids=after["upids"])

    def _check_earlier_deletion(self, facts: Facts) -> steps.StepResult:
        """Find what is left of a guest that an earlier, interrupted run has deleted. Changes nothing.

        A warning follows if volumes of the guest still exist, or if this is unknown.
        """
        try:
            is_known = self._find_volumes_of_last_deletion()
        except REQUEST_ERRORS as exc:  # the action succeeds: it is proven that the VM is absent
            self._warn_of_unknown_volumes(error_text(exc))
        else:
            if not is_known:
                self._warn_of_unknown_volumes("a node that may have deleted the VM is offline")
        return steps.no_change(facts)

    def _find_volumes_of_last_deletion(self) -> bool:
        """Find the volumes that the last deletion of the VM has left.

        Return False if no deletion was found and a node that may have deleted the VM is offline. The Proxmox task of
        the deletion is searched for on all nodes, because the VM may have moved to another node than the one that the
        request names.
        """
        vmid, types = int(self.vm["vmid"]), task_types("absent", kind_of(self.vm))
        tasks, is_complete = self.cluster.tasks_on_all_nodes(vmid)
        deletions = [task["upid"] for task in tasks if task["type"] in types]
        if not deletions:
            return is_complete
        of_vm, of_unknown_owner, unreadable = volumes.volumes_left_by_earlier_deletion(self.cluster, vmid, deletions[0])
        self.volumes_left, self.volumes_of_unknown_owner = sorted([*of_vm, *of_unknown_owner]), of_unknown_owner
        self._warn_of_unreadable(unreadable)
        return True

    def _removable_volumes(self, node: str, used: set[str]) -> dict[str, dict[str, Any]]:
        """Return Proxmox's list entries of the volumes that the action may remove if Proxmox does not remove them.

        This is called before the deletion, when it is still known which volumes the guest uses.
        """
        if not is_yes(self.vm.get("remove_volumes_left", False)):
            return {}
        try:
            return rows_of_guest(self.cluster, node, int(self.vm["vmid"]), used)
        except REQUEST_ERRORS as exc:
            text = f"If Proxmox does not remove a volume of VM {self.vm['vmid']}, this action does not remove it either"
            self.warn(f"{text}: {error_text(exc)}")
            return {}

    def _find_volumes_left(
        self, node: str, volumes_before: set[str], removable: dict[str, dict[str, Any]], upids: list[str]
    ) -> None:
        """Find the volumes that Proxmox has not removed, and remove those of them that are in `removable`.

        The guest itself is deleted, so the action succeeds even if a volume still exists or a request fails now.
        """
        try:
            vmid = int(self.vm["vmid"])
            self.volumes_left, unreadable = volumes.volumes_left(self.cluster, node, vmid, volumes_before, upids)
            to_remove = {volume: removable[volume] for volume in self.volumes_left if volume in removable}
            if to_remove:
                remove_volumes(self, node, to_remove)
                removed = to_remove.keys() - volumes.existing(self.cluster, node, vmid, to_remove)
                self.volumes_left = [volume for volume in self.volumes_left if volume not in removed]
            self._warn_of_unreadable(unreadable)
        except REQUEST_ERRORS as exc:
            self._warn_of_unknown_volumes(error_text(exc))

    def _warn_of_unreadable(self, storages: list[str]) -> None:
        if storages:
            self._warn_of_unknown_volumes("; ".join(storages))

    def _warn_of_unknown_volumes(self, reason: str) -> None:
        self.warn(f"It is unknown whether all disks of VM {self.vm['vmid']} are removed: {reason}")

    def _report_volumes_left(self) -> dict[str, list[str]]:
        """Warn of the volumes that still exist, and return the members of the result about them."""
        if not self.volumes_left:
            return {}
        text = volumes.volumes_left_warning(int(self.vm["vmid"]), self.volumes_left, self.volumes_of_unknown_owner)
        self.warn(text)
        return {"volumes_left": list(self.volumes_left), "warnings": [text]}
