# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_power`: starts, stops or restarts a service's guest."""

from __future__ import annotations

from typing import Any, ClassVar

from ..plugin_utils import steps
from ..plugin_utils.vm_action import VmAction


class ActionModule(VmAction):
    """Verifies the guest's identity (`identify`), changes its power state and verifies the new state."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "state": {"type": "str", "required": True, "choices": ["running", "stopped", "restarted"]}
    }

    def execute(self) -> dict[str, Any]:
        state = self.arguments["state"]
        facts = self.identify()
        step = steps.ensure_power(self, facts, state)
        is_planned = self.is_check_mode and step.is_changed
        if step.is_changed:
            self.diff = {"before": {"status": facts["status"]}, "after": {"status": state}}
        planned = {"status": state} if is_planned else {}
        return self.build_result_document(step.facts, changed=step.is_changed, upids=step.upids, planned=planned)
