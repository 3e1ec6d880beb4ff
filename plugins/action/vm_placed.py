# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_placed`: migrates a service's VM to its target node, unless the VM is there."""

from __future__ import annotations

from typing import Any

from ..plugin_utils.failures import outcome_problem
from ..plugin_utils.identity import identity_problem
from ..plugin_utils.node_limits import vcpus_problem
from ..plugin_utils.preconditions import migration_problem
from ..plugin_utils.request_values import is_yes
from ..plugin_utils.vm_action import Facts, VmAction


class ActionModule(VmAction):
    """Migrates the VM and verifies its node and its power state."""

    def execute(self) -> dict[str, Any]:
        target = str(self.vm.get("target_node") or "")
        facts = self.identify(target_node=target)
        self.refuse(migration_problem(facts, self.vm))
        is_needed = facts["node"] != target
        if is_needed and facts["status"] == "running":
            self.refuse(vcpus_problem(self.cluster, target, facts["cores"] * facts["sockets"]))
        if is_needed:
            self.diff = {"before": {"node": facts["node"]}, "after": {"node": target}}
        after = self._migrate(facts, target) if is_needed and not self.is_check_mode else facts
        return self.document(
            after,
            changed=is_needed,
            upids=[] if after is facts else after["upids"],
            planned={"node": target} if self.is_check_mode and is_needed else {},
        )

    def _migrate(self, facts: Facts, target: str) -> Facts:
        """Migrate the VM.

        The module does not notice that a migration fails. So the look-up below waits until the migration has ended.
        """
        self.progress.step(f"migrating from {facts['node']} to {target}")
        answer = self.change(
            "proxmox_kvm",
            migrate=True,
            vmid=self.vm["vmid"],
            node=target,
            with_local_disks=True if is_yes(self.vm.get("with_local_disks", False)) else None,
            timeout=0,
        )
        after = self.look_up_after(facts, "migrated", target_node=target)
        is_same_state = after["status"] == facts["status"]
        self.verify(
            outcome_problem(after, answer, f"on {target}"),
            identity_problem(after, self.vm),
            "" if is_same_state else f"TASK_FAILED: VM {self.vm['vmid']} is {after['status']} after its migration",
        )
        return after
