# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_identity`: verifies that a guest belongs to the service, and returns `vm_result`.

It changes nothing. `vm_result` is the result document of an action plugin (docs/custom-actions.md).
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..plugin_utils.vm_action import VmAction


class ActionModule(VmAction):
    """Looks the guest up, verifies its identity and returns its facts.

    A provider's own playbooks use this action plugin. Its argument `known_tasks` contains the UPIDs of the Proxmox
    tasks that existed before the playbook's change; the UPIDs of the guest's later Proxmox tasks are returned. Its
    argument `result` contains members that are added to `vm_result`.
    """

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "may_be_absent": {"type": "bool", "default": False},
        "known_tasks": {"type": "list", "elements": "str"},
        "result": {"type": "dict", "default": {}},
    }

    def execute(self) -> dict[str, Any]:
        earlier_upids = self.arguments["known_tasks"]
        facts = self.identify(may_be_absent=self.arguments["may_be_absent"], known_tasks=earlier_upids)
        self.extra_return_values = {"facts": facts, "changed": False}
        new_upids = {"upids": facts["upids"]} if earlier_upids is not None else {}
        return {**self.build_result_document(facts, **new_upids), **self.arguments["result"]}
