# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_configured`: gives a service's guest the requested configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from ..plugin_utils import configuration, steps
from ..plugin_utils.request_values import is_yes
from ..plugin_utils.vm_action import VmAction


class ActionModule(VmAction):
    """Verifies the guest's identity (`identify`), and configures the guest.

    Restarts it if new values need a restart and the argument `vm`, the request, allows a restart. With the argument
    `only_grows`, it only grows the guest's disks.
    """

    ARGUMENTS: ClassVar[dict[str, Any]] = {"only_grows": {"type": "bool", "default": False}}

    def execute(self) -> dict[str, Any]:
        facts = self.identify()
        only_grows = self.arguments["only_grows"]
        request = configuration.disk_growth_request(self.vm) if only_grows else self.vm
        configuration_step = steps.ensure_configured(self, facts, request)
        may_restart = not only_grows and is_yes(self.vm.get("allow_reboot", False))
        restart_step = steps.result_without_change(configuration_step.facts)
        if may_restart and configuration.is_restart_needed(configuration_step.facts):
            restart_step = steps.ensure_power(self, configuration_step.facts, "restarted")
        return self.build_result_document(
            restart_step.facts,
            changed=configuration_step.is_changed or restart_step.is_changed,
            upids=configuration_step.upids + restart_step.upids,
            planned=configuration.planned_values(facts, request) if self.is_check_mode else {},
        )
