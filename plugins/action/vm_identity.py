# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_identity`: verifies that a guest belongs to the service, and publishes a result.

It changes nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..plugin_utils.vm_action import VmAction


class ActionModule(VmAction):
    """Looks the guest up, verifies its identity and returns its facts. A provider's own playbooks use this action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "may_be_absent": {"type": "bool", "default": False},
        "known_tasks": {"type": "list", "elements": "str"},
        "result": {"type": "dict", "default": {}},
    }

    def execute(self) -> dict[str, Any]:
        known_tasks = self.arguments["known_tasks"]
        facts = self.identify(may_be_absent=self.arguments["may_be_absent"], known_tasks=known_tasks)
        self.extra_return_values = {"facts": facts, "changed": False}
        upids = {"upids": facts["upids"]} if known_tasks is not None else {}
        return {**self.document(facts, **upids), **self.arguments["result"]}
