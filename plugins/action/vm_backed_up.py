# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_backed_up`: backs up a service's guest to a new archive."""

from __future__ import annotations

from typing import Any

from ..plugin_utils import preconditions
from ..plugin_utils.backup import make_backup
from ..plugin_utils.vm_action import VmAction


class ActionModule(VmAction):
    """Verifies the guest's identity (`identify`), backs it up, and verifies that the storage has a new archive.

    `self.vm` is the argument `vm`: which guest, and the requested change.
    """

    def execute(self) -> dict[str, Any]:
        storage = str(self.vm.get("backup_storage") or "")
        # With `backup_storage`, the facts list the guest's archives on this storage.
        facts = self.identify(backup_storage=storage)
        step = make_backup(self, facts, facts_before=facts, storage=storage)
        self.diff = {"before": {}, "after": {"backup": storage}}
        return self.build_result_document(
            step.facts,
            changed=True,
            # `new_archive` returns the archive that the storage lists now and did not list before the backup.
            backup=preconditions.new_archive(step.facts, facts),
            upids=step.upids,
            planned={"backup": storage} if self.is_check_mode else {},
        )
