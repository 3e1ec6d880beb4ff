# SPDX-License-Identifier: Apache-2.0
"""The steps that several actions have in common: change the power state, and configure the guest.

Each step gets the facts of the last look-up and returns those of its own look-up. In check mode a step changes nothing,
and returns the facts that it got.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import cloud_init, cloud_init_drive, configuration, container, node_limits, preconditions
from .creation import request_problem
from .deletion import WITHOUT_TAGS
from .disk_changes import change_disks, move_problem
from .failures import outcome_problem
from .identity import kind_of, lock_problem, suspended_problem
from .request_values import is_yes
from .vm_action import Facts, Refused, VmAction

#: How long a guest may need to shut down if the request contains no limit.
DEFAULT_SHUTDOWN_S = 60
#: How long a started guest may need to report an address if the request contains no limit.
DEFAULT_ADDRESS_TIMEOUT_S = 10
#: The values of the parameter `state` of proxmox_kvm and proxmox, by the requested state.
MODULE_STATES = {"running": "started", "stopped": "stopped", "restarted": "restarted"}


@dataclass(kw_only=True)
class StepResult:
    """What a step did, and the facts after it."""

    facts: Facts  #: the facts after the step
    is_changed: bool = False  #: in check mode: whether the step would change something
    upids: list[str] = field(default_factory=list)  #: the Proxmox tasks of the step


def no_change(facts: Facts) -> StepResult:
    """Return the result of a step that had nothing to do."""
    return StepResult(facts=facts)


# ---------------------------------------------------------------------- power


def ensure_power(action: VmAction, facts: Facts, state: str) -> StepResult:
    """Bring the guest into `state`: `running`, `stopped` or `restarted`."""
    is_needed = facts["exists"] and facts["status"] != state
    if not is_needed:
        return StepResult(facts=_with_addresses(action, facts) if state == "running" else facts)
    action.refuse(preconditions.power_problem(facts, state))
    if state != "stopped" and kind_of(action.vm) == "qemu":
        vcpus = facts["cores"] * facts["sockets"]
        action.refuse(node_limits.vcpus_problem(action.cluster, facts["node"], vcpus))
    if action.is_check_mode:
        return StepResult(facts=facts, is_changed=True)
    if kind_of(action.vm) == "lxc":
        return _container_power(action, facts, state)
    is_forced = is_yes(action.vm.get("force", False))
    shutdown_s = 1 if is_forced else _shutdown_timeout_s(action)
    if state == "stopped":
        action.require_time(shutdown_s, "the guest's shutdown")
    action.progress.step(f"requesting the state {state}")
    # The module does not notice a failed Proxmox task, so it is given no time to wait for a start or a restart: the
    # look-up waits. The timeout of a stop is the guest's shutdown timeout, after which Proxmox switches the VM off.
    answer = action.change(
        "proxmox_kvm",
        state=MODULE_STATES[state],
        vmid=action.vm["vmid"],
        force=state == "stopped" or (state == "restarted" and is_forced),
        timeout=shutdown_s if state == "stopped" else 0,
    )
    return _verify_power(action, facts, state, answer)


def _shutdown_timeout_s(action: VmAction) -> int:
    """Return how long the guest may need to shut down. It is at most half of the action's time.

    The agent limits the time in the same way (`executor/runs/plan.py`).
    """
    requested = action.vm.get("shutdown_timeout_s")
    requested_s = DEFAULT_SHUTDOWN_S if requested is None else int(requested)
    return min(requested_s, max(1, int(action.timeout_s / 2)))


def _container_power(action: VmAction, facts: Facts, state: str) -> StepResult:
    """Bring a container into `state`.

    The module restarts by a stop and a start and does not notice when one of them fails. So this function makes the
    stop and the start itself. Proxmox's shutdown timeout for containers is 60 s; the module cannot change it.
    """
    if state == "restarted":
        is_forced = is_yes(action.vm.get("force", False))
        action.progress.step("requesting the stop of the container")
        answer = _change_container(action, "stopped", is_forced)
        after_stop = action.look_up_after(facts, "stopped")
        action.verify(outcome_problem(after_stop, answer, "stopped"))
    action.progress.step(f"requesting the state {state}")
    answer = _change_container(action, "started" if state == "restarted" else MODULE_STATES[state], state == "stopped")
    return _verify_power(action, facts, state, answer)


def _change_container(action: VmAction, state: str, is_forced: bool) -> dict[str, Any]:
    """Run the module for a container's power state.

    Without `hostname`, the module would read the container's name from Proxmox's list, but this list lacks the name of
    a new container.
    """
    vm = action.vm
    return action.change("proxmox", state=state, vmid=vm["vmid"], hostname=vm["name"], force=is_forced, timeout=0)


def _verify_power(action: VmAction, before: Facts, state: str, answer: dict[str, Any]) -> StepResult:
    after = action.look_up_after(before, state, address_timeout_s=_address_timeout_s(action))
    action.verify(outcome_problem(after, answer, state))
    return StepResult(facts=after, is_changed=True, upids=after["upids"])


def _with_addresses(action: VmAction, facts: Facts) -> Facts:
    """Return the facts of a running guest with its addresses.

    The guest gets as much time to report them as after a start.
    """
    if action.is_check_mode or not facts["exists"]:
        return facts
    action.progress.step("the guest is running, reading its addresses")
    after = action.look_up(
        node=facts["node"],
        wait_for="running",
        address_timeout_s=_address_timeout_s(action),
    )
    action.verify(outcome_problem(after, {}, "running"))
    return after


def _address_timeout_s(action: VmAction) -> float:
    requested = action.vm.get("address_timeout_s")
    return DEFAULT_ADDRESS_TIMEOUT_S if requested is None else float(requested)


# ---------------------------------------------------------------------- configuration


def ensure_configured(
    action: VmAction,
    facts: Facts,
    vm: dict[str, Any],
    *,
    is_create: bool = False,
    are_node_limits_checked: bool = False,
) -> StepResult:
    """Give the guest the configuration that `vm` requests: one request for all options, and one for each disk step.

    An update changes the disks first, because a full storage is the most frequent failure; the guest then keeps its
    former cores and memory. A new guest first gets its options, because the marker is among them.

    If cloud-init values of a running VM were changed, one more request generates its cloud-init drive again.
    `are_node_limits_checked` says that the limits of the node were checked before the guest was created.
    """
    action.refuse(request_problem(facts, vm, is_create))
    if not are_node_limits_checked:
        action.refuse(node_limits.request_problem(action.cluster, facts["node"], facts, vm, is_new=False))
    changes, disk_steps = configuration.changes(facts, vm, is_create), configuration.disk_steps(facts, vm)
    removed = cloud_init.removed_keys(facts, vm)
    if not changes and not disk_steps and not removed:
        after = cloud_init_drive.update_drive(action, facts, vm, set())
        return StepResult(facts=after, is_changed=bool(after["cloud_init_pending"]))
    action.refuse(lock_problem(facts), suspended_problem(facts), move_problem(action, facts, disk_steps))
    action.diff = configuration.difference(facts, vm, is_create)
    if action.is_check_mode:
        return StepResult(facts=facts, is_changed=True)
    answers = [] if is_create else change_disks(action, facts, disk_steps)
    if changes:
        action.progress.step(f"configuring {', '.join(sorted(changes))}")
        vm, answer = change_with_tags(action, vm, lambda request: _configure(action, facts, request, is_create))
        answers.append(answer)
    if removed:
        answers.append(_remove_options(action, facts, removed))
    if is_create:
        answers += change_disks(action, facts, disk_steps)
    after = action.look_up_after(facts, "quiet", "configured")
    action.verify(configuration.configuration_problem(after, vm, answers))
    for text in filter(None, map(configuration.hotplug_problem, answers)):
        action.warn(f"The running guest {facts['vmid']} applies some values only after a reboot ({text}).")
    after = cloud_init_drive.update_drive(action, after, vm, {*cloud_init.keys_in(changes), *removed})
    return StepResult(facts=after, is_changed=True, upids=after["upids"])


def change_with_tags(
    action: VmAction, vm: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a change that may set tags; without tags if Proxmox refuses one. Return the request and the answer.

    Proxmox refuses registered tags, and any tag if the option `user-tag-access` of the cluster is not `free`. A refused
    request has changed nothing. A guest needs no tags, because the marker in its description identifies it.
    """
    try:
        return vm, change(vm)
    except Refused as exc:
        if "Sys.Modify for modifying tag" not in str(exc) or vm.get(WITHOUT_TAGS):
            raise
    cause = "option user-tag-access of the cluster, or a registered tag"
    action.warn(f"The tags of VM {vm['vmid']} were not changed, because Proxmox does not allow them ({cause}).")
    vm = {**vm, WITHOUT_TAGS: True}
    return vm, change(vm)


def _configure(action: VmAction, facts: Facts, vm: dict[str, Any], is_create: bool) -> dict[str, Any]:
    """Set all options in one request, so that a guest is never configured without its marker."""
    changes = configuration.changes(facts, vm, is_create)
    if not changes:
        return {}
    guest_parameters = {"state": "present", "update": True, "vmid": vm["vmid"], "node": facts["node"]}
    if kind_of(vm) == "lxc":
        console_mode = container.console_mode(facts) or None
        return action.change("proxmox", **guest_parameters, cmode=console_mode, **{"hostname": vm["name"], **changes})
    return action.change("proxmox_kvm", **guest_parameters, update_unsafe="net" in changes, **changes)


def _remove_options(action: VmAction, facts: Facts, keys: list[str]) -> dict[str, Any]:
    """Remove options from the configuration. The module proxmox_kvm does this in a request of its own."""
    action.progress.step(f"removing {', '.join(keys)}")
    guest_parameters = {"vmid": action.vm["vmid"], "node": facts["node"]}
    if kind_of(action.vm) == "lxc":
        mode, name = container.console_mode(facts) or None, action.vm["name"]
        return action.change(
            "proxmox", **guest_parameters, state="present", update=True, hostname=name, cmode=mode, delete=keys
        )
    return action.change("proxmox_kvm", **guest_parameters, state="present", delete=",".join(keys))
