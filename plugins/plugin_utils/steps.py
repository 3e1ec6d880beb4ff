# SPDX-License-Identifier: Apache-2.0
"""Executes the steps that several action plugins share: change the power state, and configure the guest.

A look-up reads the guest from Proxmox and returns its facts, a dictionary. Each step gets the facts of the last
look-up, makes its change, and returns the facts of a new look-up. In check mode, a step changes nothing, and returns
the facts that it got.

`plugin` is the action plugin. `plugin.vm` is the request to it: the identity and the wanted properties of the guest (a
VM or a container), and options such as `force`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import cloud_init, cloud_init_drive, configuration, container, node_limits, preconditions
from .creation import request_problem
from .deletion import TAGS_REFUSED_MEMBER
from .disk_changes import change_disks, move_problem
from .failures import outcome_problem
from .identity import kind_of, lock_problem, suspended_problem
from .request_values import is_yes
from .vm_action import Facts, Refused, VmAction

#: The maximum time of a guest's shutdown if the request contains no limit.
DEFAULT_SHUTDOWN_TIMEOUT_S = 60
#: The maximum time until a started guest reports an address, if the request contains no limit.
DEFAULT_ADDRESS_TIMEOUT_S = 10
#: The values of the parameter `state` of the modules proxmox_kvm and proxmox, by the requested state.
MODULE_STATES = {"running": "started", "stopped": "stopped", "restarted": "restarted"}


@dataclass(kw_only=True)
class StepResult:
    """The facts after a step, and the changes of the step."""

    facts: Facts  #: the facts after the step
    is_changed: bool = False  #: whether the step changed something or, in check mode, would change something
    upids: list[str] = field(default_factory=list)  #: the UPIDs of the step's Proxmox tasks


def result_without_change(facts: Facts) -> StepResult:
    """Return the result of a step that had nothing to do."""
    return StepResult(facts=facts)


# ---------------------------------------------------------------------- power


def ensure_power(plugin: VmAction, facts: Facts, state: str) -> StepResult:
    """Bring the guest into `state`: `running`, `stopped` or `restarted`."""
    is_change_needed = facts["exists"] and facts["status"] != state
    if not is_change_needed:
        return StepResult(facts=_look_up_with_addresses(plugin, facts) if state == "running" else facts)
    plugin.refuse_if(preconditions.power_problem(facts, state))
    if state != "stopped" and kind_of(plugin.vm) == "qemu":
        vcpus = facts["cores"] * facts["sockets"]
        plugin.refuse_if(node_limits.vcpus_problem(plugin.cluster, facts["node"], vcpus))
    if plugin.is_check_mode:
        return StepResult(facts=facts, is_changed=True)
    if kind_of(plugin.vm) == "lxc":
        return _ensure_container_power(plugin, facts, state)
    is_forced = is_yes(plugin.vm.get("force", False))
    shutdown_s = 1 if is_forced else _shutdown_timeout_s(plugin)
    if state == "stopped":
        plugin.require_time(shutdown_s, "the guest's shutdown")
    plugin.progress.write_line(f"requesting the state {state}")
    # After a failed Proxmox task, the module would wait until its timeout. So the module does not wait for a start or a
    # restart (timeout 0); the look-up waits instead. The module's parameter `force` has two meanings. In a stop,
    # Proxmox shuts the guest down, and switches it off if it still runs after `timeout`. In a restart, Proxmox resets
    # the guest.
    answer = plugin.change_with_module(
        "proxmox_kvm",
        state=MODULE_STATES[state],
        vmid=plugin.vm["vmid"],
        force=state == "stopped" or (state == "restarted" and is_forced),
        timeout=shutdown_s if state == "stopped" else 0,
    )
    return _verify_power(plugin, facts, state, answer)


def _shutdown_timeout_s(plugin: VmAction) -> int:
    """Return the maximum time of the guest's shutdown: the requested time, but at most half of `plugin.timeout_s`.

    `plugin.timeout_s` is the maximum duration of the plugin's execution.
    """
    requested_timeout = plugin.vm.get("shutdown_timeout_s")
    requested_s = DEFAULT_SHUTDOWN_TIMEOUT_S if requested_timeout is None else int(requested_timeout)
    return min(requested_s, max(1, int(plugin.timeout_s / 2)))


def _ensure_container_power(plugin: VmAction, facts: Facts, state: str) -> StepResult:
    """Bring a container into `state`.

    To restart a container, the module stops and starts it, and does not notice if the stop or the start fails. So this
    function requests the stop and the start separately. Proxmox's shutdown timeout for containers is 60 s; the module
    cannot change it.
    """
    if state == "restarted":
        is_forced = is_yes(plugin.vm.get("force", False))
        plugin.progress.write_line("requesting the stop of the container")
        answer = _change_container_power(plugin, "stopped", is_killed_after_timeout=is_forced)
        # The second argument of `look_up_after_change` is the state for which the look-up waits.
        after_stop = plugin.look_up_after_change(facts, "stopped")
        plugin.fail_on_outcome_problem(outcome_problem(after_stop, answer, "stopped"))
    requested_state = "running" if state == "restarted" else state
    plugin.progress.write_line(f"requesting the state {requested_state}")
    answer = _change_container_power(
        plugin,
        MODULE_STATES[requested_state],
        is_killed_after_timeout=state == "stopped",
    )
    return _verify_power(plugin, facts, state, answer)


def _change_container_power(plugin: VmAction, state: str, *, is_killed_after_timeout: bool) -> dict[str, Any]:
    """Execute the module that changes a container's power state.

    If `is_killed_after_timeout`, Proxmox kills a container that still runs 60 s after the request to shut down.
    """
    vm = plugin.vm
    # Without `hostname`, the module would read the name from Proxmox's list of guests, which lacks the name of a new
    # container.
    return plugin.change_with_module(
        "proxmox", state=state, vmid=vm["vmid"], hostname=vm["name"], force=is_killed_after_timeout, timeout=0
    )


def _verify_power(plugin: VmAction, before: Facts, state: str, answer: dict[str, Any]) -> StepResult:
    after = plugin.look_up_after_change(before, state, address_timeout_s=_address_timeout_s(plugin))
    plugin.fail_on_outcome_problem(outcome_problem(after, answer, state))
    return StepResult(facts=after, is_changed=True, upids=after["upids"])


def _look_up_with_addresses(plugin: VmAction, facts: Facts) -> Facts:
    """Look up a running guest again, and return its facts with its IP addresses.

    The wait for the addresses is as long as after a start.
    """
    if plugin.is_check_mode or not facts["exists"]:
        return facts
    plugin.progress.write_line("the guest is running, reading its addresses")
    after = plugin.look_up(
        node=facts["node"],
        wait_for="running",
        address_timeout_s=_address_timeout_s(plugin),
    )
    plugin.fail_on_outcome_problem(outcome_problem(after, {}, "running"))
    return after


def _address_timeout_s(plugin: VmAction) -> float:
    requested_timeout = plugin.vm.get("address_timeout_s")
    return DEFAULT_ADDRESS_TIMEOUT_S if requested_timeout is None else float(requested_timeout)


# ---------------------------------------------------------------------- configuration


def ensure_configured(
    plugin: VmAction,
    facts: Facts,
    vm: dict[str, Any],
    *,
    is_create: bool = False,
    were_node_limits_checked: bool = False,
) -> StepResult:
    """Give the guest the configuration that `vm` requests. One change sets all options; each disk has its own change.

    An update changes the disks first. The most frequent failure of an update is a full storage, and the guest then
    keeps its old cores and memory. A create (`is_create`) sets the options first, because the marker is among them.
    Only values that differ from the guest's values are set. So a create can continue with a guest that an earlier,
    interrupted run has created.

    At the end, the cloud-init drive of a running VM is generated again if it lacks requested values.
    `vm` is `plugin.vm`, or another request for the same guest, such as a request that only marks the guest for
    deletion. `were_node_limits_checked` is true if the limits of the node were checked before the guest was created.
    """
    plugin.refuse_if(request_problem(facts, vm, is_create))
    if not were_node_limits_checked:
        # `is_new` is True only in a check before the guest is created. Here the guest exists.
        plugin.refuse_if(node_limits.request_problem(plugin.cluster, facts["node"], facts, vm, is_new=False))
    changes = configuration.differing_parameters(facts, vm, is_create)
    # The parameters of each call of the module proxmox_disk. A call adds, moves or grows one disk.
    disk_module_parameters = configuration.disk_module_parameters(facts, vm)
    keys_to_remove = cloud_init.keys_to_remove(facts, vm)
    if not changes and not disk_module_parameters and not keys_to_remove:
        after = cloud_init_drive.update_drive(plugin, facts, vm, changed_keys=set())
        # With no changed keys, `update_drive` asks Proxmox which values the drive lacks. It stores their keys in
        # `cloud_init_pending`. If values were missing, it has requested a new drive (in check mode: would request one).
        return StepResult(facts=after, is_changed=bool(after["cloud_init_pending"]))
    plugin.refuse_if(lock_problem(facts), suspended_problem(facts), move_problem(plugin, facts, disk_module_parameters))
    plugin.diff = configuration.values_before_and_after(facts, vm, is_create)
    if plugin.is_check_mode:
        return StepResult(facts=facts, is_changed=True)
    answers = [] if is_create else change_disks(plugin, facts, disk_module_parameters)
    if changes:
        plugin.progress.write_line(f"configuring {', '.join(sorted(changes))}")
        vm, answer = change_or_repeat_without_tags(
            plugin, vm, lambda request: _configure(plugin, facts, request, is_create)
        )
        answers.append(answer)
    if keys_to_remove:
        answers.append(_remove_options(plugin, facts, keys_to_remove))
    if is_create:
        answers += change_disks(plugin, facts, disk_module_parameters)
    # `quiet`: wait until the Proxmox tasks of the change have ended, successfully or not. If an answer lacks a UPID,
    # the look-up finds the Proxmox tasks by type. `configured` selects the types qmconfig, qmmove and resize (of a VM).
    after = plugin.look_up_after_change(facts, "quiet", "configured")
    plugin.fail_on_outcome_problem(configuration.configuration_problem(after, vm, answers))
    # `hotplug_problem` finds Proxmox's text about values that a running guest has not applied.
    for text in filter(None, map(configuration.hotplug_problem, answers)):
        plugin.warn(f"The running guest {facts['vmid']} applies some values only after a reboot ({text}).")
    after = cloud_init_drive.update_drive(plugin, after, vm, {*cloud_init.config_keys_of(changes), *keys_to_remove})
    return StepResult(facts=after, is_changed=True, upids=after["upids"])


def change_or_repeat_without_tags(
    plugin: VmAction, vm: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a change that may set tags. If Proxmox refuses a tag, repeat the change without tags.

    Return the request of the last change, and the answer to this change. The request of a repeated change is `vm` with
    the additional member TAGS_REFUSED_MEMBER. With this member, a change keeps the guest's tags.

    Proxmox refuses registered tags, and tags that the option `user-tag-access` of the cluster does not allow. A
    refused change has changed nothing. A guest needs no tags, because the marker in its description identifies it.
    """
    try:
        return vm, change(vm)
    except Refused as exc:
        if "Sys.Modify for modifying tag" not in str(exc) or vm.get(TAGS_REFUSED_MEMBER):
            raise
    cause = "option user-tag-access of the cluster, or a registered tag"
    plugin.warn(f"The tags of VM {vm['vmid']} were not changed, because Proxmox does not allow them ({cause}).")
    vm = {**vm, TAGS_REFUSED_MEMBER: True}
    return vm, change(vm)


def _configure(plugin: VmAction, facts: Facts, vm: dict[str, Any], is_create: bool) -> dict[str, Any]:
    """Set all options with one call of the module, so that a guest is never configured without its marker."""
    changes = configuration.differing_parameters(facts, vm, is_create)
    if not changes:
        return {}
    guest_parameters = {"state": "present", "update": True, "vmid": vm["vmid"], "node": facts["node"]}
    if kind_of(vm) == "lxc":
        # Without `cmode`, community.proxmox 2.0 sends the console mode `default`, which Proxmox refuses.
        # `console_mode` returns '' if the installed collection has no `cmode`. With None, the parameter is not sent.
        console_mode = container.console_mode(facts) or None
        return plugin.change_with_module(
            "proxmox", **guest_parameters, cmode=console_mode, **{"hostname": vm["name"], **changes}
        )
    # Without `update_unsafe`, the module does not change the NICs of an existing VM.
    return plugin.change_with_module("proxmox_kvm", **guest_parameters, update_unsafe="net" in changes, **changes)


def _remove_options(plugin: VmAction, facts: Facts, keys: list[str]) -> dict[str, Any]:
    """Remove options from the configuration with one call of the module."""
    plugin.progress.write_line(f"removing {', '.join(keys)}")
    guest_parameters = {"vmid": plugin.vm["vmid"], "node": facts["node"]}
    if kind_of(plugin.vm) == "lxc":
        mode, name = container.console_mode(facts) or None, plugin.vm["name"]
        return plugin.change_with_module(
            "proxmox", **guest_parameters, state="present", update=True, hostname=name, cmode=mode, delete=keys
        )
    return plugin.change_with_module("proxmox_kvm", **guest_parameters, state="present", delete=",".join(keys))
