# SPDX-License-Identifier: Apache-2.0
"""The action `vm_absent`: a service's guest does not exist any more, or it is marked for a later deletion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plugin_utils import deletion, failures, preconditions, steps
from ..plugin_utils.identity import identity_problem, kind_of, lock_problem
from ..plugin_utils.proxmox_tasks import volumes_left_in
from ..plugin_utils.request_values import is_yes
from ..plugin_utils.vm_action import Facts, VmAction


class ActionModule(VmAction):
    """Stops the guest; then marks it for a later deletion, or makes a final archive and deletes it with its disks."""

    archive = ""  #: the volume of the final archive
    volumes_left: Sequence[str] = ()  #: the volumes of the deleted VM that Proxmox could not remove

    def execute(self) -> dict[str, Any]:
        final_backup = str(self.vm.get("final_backup") or "")
        facts = self.identify(may_be_absent=True, backup_storage=final_backup)
        decision = deletion.deletion(facts, self.vm)
        done = {"mark": self._mark, "destroy": self._destroy}.get(decision["step"], self._keep)(facts, decision["at"])
        return self.document(
            done.facts,
            delete_at=decision["at"] if decision["step"] in ("mark", "wait") else 0,
            changed=done.is_changed,
            upids=done.upids,
            planned=self._planned(decision) if self.is_check_mode and facts["exists"] else {},
            **({"backup": self.archive} if self.archive else {}),
            **({"volumes_left": self.volumes_left} if self.volumes_left else {}),
        )

    def _planned(self, decision: dict[str, Any]) -> dict[str, Any]:
        plans = {"destroy": {"status": "absent"}, "mark": {"status": "stopped", "delete_at": decision["at"]}}
        return plans.get(decision["step"], {})

    def _keep(self, facts: Facts, _at: int) -> steps.Step:
        """Change nothing: the grace period has not ended, or an operator has cancelled the deletion."""
        return steps.unchanged(facts)

    def _mark(self, facts: Facts, at: int) -> steps.Step:
        """Stop the guest and mark it for deletion at the time `at`."""
        stopped = steps.ensure_power(self, facts, "stopped")
        marked = steps.ensure_configured(self, stopped.facts, deletion.deletion_mark(self.vm, at))
        return steps.Step(facts=marked.facts, is_changed=True, upids=stopped.upids + marked.upids)

    def _destroy(self, facts: Facts, _at: int) -> steps.Step:
        stopped = steps.ensure_power(self, facts, "stopped")
        storage = str(self.vm.get("final_backup") or "")
        archived = steps.unchanged(stopped.facts)
        if facts["exists"] and storage:
            archived = steps.ensure_backup(self, stopped.facts, facts, storage)
            self.archive = preconditions.backup_made(archived.facts, facts)
        deleted = self._delete(archived.facts) if facts["exists"] else steps.unchanged(facts)
        return steps.Step(
            facts=deleted.facts,
            is_changed=facts["exists"],
            upids=stopped.upids + archived.upids + deleted.upids,
        )

    def _delete(self, facts: Facts) -> steps.Step:
        """Delete the guest.

        The identity is verified again before the deletion, because the shutdown may have taken minutes.
        """
        self.refuse(identity_problem(facts, self.vm, True), lock_problem(facts))
        self.diff = {"before": {"status": facts["status"]}, "after": {"status": "absent"}}
        if self.is_check_mode:
            return steps.unchanged(facts)
        self.progress.step("deleting it with its disks")
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
        self._find_volumes_left(after["upids"])
        return steps.Step(facts=after, is_changed=True, upids=after["upids"])

    def _find_volumes_left(self, upids: list[str]) -> None:
        """Warn of disks that Proxmox could not remove. The deletion succeeds, because no later run could remove them.

        Proxmox deletes a VM also if it cannot remove a disk, and states that only in the log of the Proxmox task.
        """
        self.volumes_left = volumes_left_in([line for upid in upids for line in self.cluster.log(upid)])
        if self.volumes_left:
            volumes = ", ".join(self.volumes_left)
            self.warn(f"VM {self.vm['vmid']} is deleted, but Proxmox could not remove {volumes}: remove it by hand")
