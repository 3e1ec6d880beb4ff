# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_placed`: migrates a service's VM to the requested node, unless the VM is already there."""

from __future__ import annotations

from typing import Any

from ..plugin_utils.failures import outcome_problem
from ..plugin_utils.identity import identity_problem
from ..plugin_utils.node_limits import vcpus_problem
from ..plugin_utils.preconditions import migration_problem
from ..plugin_utils.request_values import is_yes
from ..plugin_utils.vm_action import Facts, VmAction


class ActionModule(VmAction):
    """Verifies the VM's identity (`identify`), migrates the VM, and verifies its node and its power state.

    `self.vm` is the argument `vm`: which guest, and the requested change.
    """

    def execute(self) -> dict[str, Any]:
        target_node = str(self.vm.get("target_node") or "")
        # With `target_node`, the facts state whether this node exists and is online.
        facts = self.identify(target_node=target_node)
        self.refuse_if(migration_problem(facts, self.vm))
        is_migration_needed = facts["node"] != target_node
        if is_migration_needed and facts["status"] == "running":
            # A node cannot run a VM that has more vCPUs than the node has CPUs.
            self.refuse_if(vcpus_problem(self.cluster, target_node, facts["cores"] * facts["sockets"]))
        if is_migration_needed:
            self.diff = {"before": {"node": facts["node"]}, "after": {"node": target_node}}
        after = self._migrate(facts, target_node) if is_migration_needed and not self.is_check_mode else facts
        return self.build_result_document(
            after,
            changed=is_migration_needed,
            upids=[] if after is facts else after["upids"],
            planned={"node": target_node} if self.is_check_mode and is_migration_needed else {},
        )

    def _migrate(self, facts: Facts, target_node: str) -> Facts:
        """Migrate the VM.

        The module proxmox_kvm does not notice a failed migration. So the module does not wait for it (`timeout=0`), and
        `look_up_after_change` waits until it has ended.
        """
        self.progress.write_line(f"migrating from {facts['node']} to {target_node}")
        answer = self.change_with_module(
            "proxmox_kvm",
            migrate=True,
            vmid=self.vm["vmid"],
            node=target_node,
            with_local_disks=True if is_yes(self.vm.get("with_local_disks", False)) else None,  # None: option not set
            timeout=0,
        )
        after = self.look_up_after_change(facts, "migrated", target_node=target_node)
        is_same_state = after["status"] == facts["status"]
        self.fail_on_outcome_problem(
            outcome_problem(after, answer, wanted_state=f"on {target_node}"),
            identity_problem(after, self.vm),
            "" if is_same_state else f"TASK_FAILED: VM {self.vm['vmid']} is {after['status']} after its migration",
        )
        return after
