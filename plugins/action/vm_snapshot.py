# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_snapshot`: creates a snapshot of a service's guest, or rolls the guest back to a snapshot."""

from __future__ import annotations

from typing import Any, ClassVar

from ..plugin_utils.failures import outcome_problem
from ..plugin_utils.identity import lock_problem, suspended_problem
from ..plugin_utils.preconditions import (
    complete_snapshots,
    snapshot_name,
    snapshot_problem,
    snapshots_unsupported_error,
)
from ..plugin_utils.rollback import rollback_problem
from ..plugin_utils.vm_action import Facts, VmAction


class ActionModule(VmAction):
    """Verifies the guest's identity (`identify`), creates a snapshot or rolls back to one, and verifies the outcome.

    A snapshot is complete if Proxmox is neither creating nor deleting it. `self.vm` is the argument `vm`: which guest,
    and the requested change.
    """

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "state": {"type": "str", "default": "present", "choices": ["present", "rolled_back"]},
        "description": {"type": "str", "default": "Taken by Agent Smith"},
    }

    def execute(self) -> dict[str, Any]:
        state = self.arguments["state"]
        facts = self.identify(with_snapshots=True)
        name = snapshot_name(facts, str(self.vm.get("snapshot") or ""), state)
        is_rollback = state == "rolled_back"
        is_change_needed = is_rollback or name not in complete_snapshots(facts)
        if is_change_needed:
            self.refuse_if(lock_problem(facts), snapshot_problem(facts, name, state), suspended_problem(facts))
        is_creation = is_change_needed and not is_rollback
        if is_creation and not self.cluster.has_feature(facts["node"], facts["vmid"], "snapshot"):
            self.refuse_if(snapshots_unsupported_error(facts))
        if is_rollback:
            self.refuse_if(rollback_problem(self.cluster, facts, name))
        plan = {"rolled_back_to" if is_rollback else "snapshot": name} if is_change_needed else {}
        self.diff = {"before": {}, "after": plan} if plan else {}
        after = self._create_or_roll_back(facts, name, state) if is_change_needed and not self.is_check_mode else facts
        return self.build_result_document(
            after,
            changed=is_change_needed,
            snapshot=name,
            upids=[] if after is facts else after["upids"],
            planned=plan if self.is_check_mode else {},
        )

    def _create_or_roll_back(self, facts: Facts, name: str, state: str) -> Facts:
        """Create the snapshot or roll back to it.

        The module proxmox_snap does not notice a failed Proxmox task. So `look_up_after_change` waits for the Proxmox
        task and reads its result, and the module waits only 2 s (`timeout=2`).
        """
        self.progress.write_line(
            f"rolling back to {name}" if state == "rolled_back" else f"creating the snapshot {name}"
        )
        answer = self.change_with_module(
            "proxmox_snap",
            state="rollback" if state == "rolled_back" else "present",
            vmid=self.vm["vmid"],
            snapname=name,
            description=self.arguments["description"],
            timeout=2,
        )
        # `idle`: wait until the Proxmox tasks of the change have ended. If the module has returned no UPID, the look-up
        # finds these Proxmox tasks by type. The argument `change_result` selects the types.
        after = self.look_up_after_change(
            facts, "idle", change_result="rolled_back" if state == "rolled_back" else "snapshot", with_snapshots=True
        )
        # `wanted_state` is used only in the error text. With "rolled_back", `snapshot_problem` checks that the snapshot
        # exists and is complete. The same check applies after a creation.
        self.fail_on_outcome_problem(
            outcome_problem(after, answer, wanted_state="rolled back" if state == "rolled_back" else "snapshotted"),
            snapshot_problem(after, name, "rolled_back"),
        )
        return after
