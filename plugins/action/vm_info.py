# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_info`: reads one guest's facts, and can first wait until the guest has the requested state.

It changes nothing.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils.client import REQUEST_ERRORS, LibraryMissing, error_text
from ..plugin_utils.cluster import open_cluster
from ..plugin_utils.failures import action_plugin_failure, proxmox_failure
from ..plugin_utils.login import LoginError, login_from_variables
from ..plugin_utils.look_up import LookUp, Query

#: The values of the argument `wait_for`. `unlocked`: the guest has no lock of a creation, a clone or a deletion; it may
#: have another lock, such as `backup`. The last three values are about new Proxmox tasks of the guest: tasks whose
#: UPIDs are not in the argument `known_tasks`.
#:
#: - `idle`: at least one new Proxmox task exists, and all of them have succeeded
#: - `quiet`: all new Proxmox tasks have ended, with or without success, or none exists
#: - `restarted`: a new Proxmox task has restarted the guest
WAIT_STATES = ("nothing", "unlocked", "running", "stopped", "absent", "idle", "quiet", "restarted")
#: Ansible's argument spec of this action plugin.
ARGUMENTS: dict[str, Any] = {
    "vmid": {"type": "int", "required": True},
    "kind": {"type": "str", "default": "qemu", "choices": ["qemu", "lxc"]},
    "node": {"type": "str", "default": ""},
    # If the guest is not found, state in the fact `absence` whether it is proven that the guest does not exist.
    "prove_absence": {"type": "bool", "default": False},
    "with_snapshots": {"type": "bool", "default": False},
    # List the guest's archives on this storage in the fact `backups`; '' if no archives are to be listed.
    "backup_storage": {"type": "str", "default": ""},
    "wait_for": {"type": "str", "default": "nothing", "choices": list(WAIT_STATES)},
    # The UPIDs of the guest's Proxmox tasks before the playbook's change, from an earlier look-up.
    "known_tasks": {"type": "list", "elements": "str"},
    "timeout_s": {"type": "float", "default": 240},
    # How long to wait for the guest's IP addresses; a negative value: do not read them.
    "address_timeout_s": {"type": "float", "default": -1},
    # The login at Proxmox, as parameters of the modules of community.proxmox.
    "connection": {"type": "dict", "no_log": True},
    "ca_bundle": {"type": "path", "default": ""},
}


class ActionModule(ActionBase):
    """Checks the arguments, looks the guest up, and reports a failure with an error code."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the guest's facts as `vm`."""
        super().run(tmp, task_vars)
        try:
            _result, arguments = self.validate_argument_spec(ARGUMENTS)
        except AnsibleActionFail as exc:
            return {"failed": True, "msg": f"INVALID_REQUEST: {exc}"}
        try:
            login_of_play = login_from_variables(task_vars, self._templar.template)
            arguments["connection"] = arguments["connection"] or login_of_play
            arguments["ca_bundle"] = arguments["ca_bundle"] or login_of_play.get("ca_bundle", "")
            return {"changed": False, "vm": _look_up(arguments)}
        # LibraryMissing means that a Python library for requests to Proxmox is not installed.
        # `action_plugin_failure` keeps an error code at the beginning of the text. `proxmox_failure` always chooses the
        # error code itself: the text may be from Proxmox, and its beginning may look like an error code by chance.
        except (LibraryMissing, LoginError) as exc:
            return {"failed": True, "msg": action_plugin_failure(error_text(exc))}
        except REQUEST_ERRORS as exc:
            return {"failed": True, "msg": proxmox_failure({"msg": error_text(exc)})}


def _look_up(arguments: dict[str, Any]) -> dict[str, Any]:
    """Connect to the Proxmox cluster, look up the guest, and return its facts."""
    cluster, _login = open_cluster(*(arguments.pop(name) for name in ("connection", "ca_bundle", "kind")))
    deadline_monotonic_s = time.monotonic() + arguments.pop("timeout_s")
    return LookUp(cluster, Query(deadline_monotonic_s=deadline_monotonic_s, **arguments), _ignore_poll).run()


def _ignore_poll(_facts: dict[str, Any], _running_upids: list[str]) -> None:
    """Do nothing. `LookUp` calls this after each poll of the guest, but this action plugin writes no progress lines."""
