# SPDX-License-Identifier: Apache-2.0
"""The steps that several actions have in common: change the power state, configure, back up.

Each step gets the facts of the last look-up and returns those of its own. In check mode a step changes nothing, and
returns the facts that it got.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import cloud_init, cloud_init_drive, configuration, container, disks, preconditions, request
from .creation import request_problem
from .deletion import WITHOUT_TAGS
from .failures import outcome_problem
from .identity import kind_of, lock_problem
from .request_values import is_yes
from .vm_action import Facts, Refused, VmAction

#: How long the module proxmox_disk may wait for one disk.
DISK_TIMEOUT_S = 120
#: How long a guest may need to shut down if the request does not say it.
DEFAULT_SHUTDOWN_S = 60
#: How long a started guest may need to report an address if the request does not say it.
DEFAULT_ADDRESS_TIMEOUT_S = 10
#: What a progress line says about a call of the module proxmox_disk, by the value of its parameter `state`.
DISK_VERBS = {"present": "adding", "moved": "moving", "resized": "growing"}
#: The values of the parameter `state` of proxmox_kvm and proxmox, by the requested state.
MODULE_STATES = {"running": "started", "stopped": "stopped", "restarted": "restarted"}


@dataclass(kw_only=True)
class Step:
    """What a step did."""

    facts: Facts
    is_changed: bool = False
    upids: list[str] = field(default_factory=list)


def unchanged(facts: Facts) -> Step:
    """Return a step that had nothing to do."""
    return Step(facts=facts)


# ---------------------------------------------------------------------- power


def ensure_power(action: VmAction, facts: Facts, state: str) -> Step:
    """Bring the guest into `state`: `running`, `stopped` or `restarted`."""
    is_needed = facts["exists"] and facts["status"] != state
    if not is_needed:
        return Step(facts=_with_addresses(action, facts) if state == "running" else facts)
    action.refuse(preconditions.power_problem(facts, state))
    if action.is_check_mode:
        return Step(facts=facts, is_changed=True)
    if kind_of(action.vm) == "lxc":
        return _container_power(action, facts, state)
    is_forced = is_yes(action.vm.get("force", False))
    shutdown_s = 1 if is_forced else _shutdown_timeout_s(action)
    if state == "stopped":
        action.require_time(shutdown_s, "the guest's shutdown")
    action.progress.step(f"requesting the state {state}")
    # The module does not notice a failed Proxmox task, so it does not wait for a start or a restart. The timeout of a
    # stop is the guest's shutdown timeout, after which Proxmox switches the VM off.
    answer = action.change(
        "proxmox_kvm",
        state=MODULE_STATES[state],
        vmid=action.vm["vmid"],
        force=state == "stopped" or (state == "restarted" and is_forced),
        timeout=shutdown_s if state == "stopped" else 0,
    )
    return _power_verified(action, facts, state, answer)


def _shutdown_timeout_s(action: VmAction) -> int:
    """Return how long the guest may need to shut down: at most half of the action's time, as in the agent's runs."""
    requested = action.vm.get("shutdown_timeout_s")
    requested_s = DEFAULT_SHUTDOWN_S if requested is None else int(requested)
    return min(requested_s, max(1, int(action.timeout_s / 2)))


def _container_power(action: VmAction, facts: Facts, state: str) -> Step:
    """Bring a container into `state`.

    The module restarts by a stop and a start and does not notice when one of them fails, so this function does the two
    itself. Proxmox's shutdown timeout for containers is 60 s; the module cannot change it.
    """
    if state == "restarted":
        is_forced = is_yes(action.vm.get("force", False))
        action.progress.step("requesting the stop of the container")
        answer = _change_container(action, "stopped", is_forced)
        between = action.look_up_after(facts, "stopped")
        action.verify(outcome_problem(between, answer, "stopped"))
    action.progress.step(f"requesting the state {state}")
    answer = _change_container(action, "started" if state == "restarted" else MODULE_STATES[state], state == "stopped")
    return _power_verified(action, facts, state, answer)


def _change_container(action: VmAction, state: str, is_forced: bool) -> dict[str, Any]:
    """Run the module for a container's power state.

    Without `hostname`, the module reads the container's name from Proxmox's list, which lacks it for a new container.
    """
    vm = action.vm
    return action.change("proxmox", state=state, vmid=vm["vmid"], hostname=vm["name"], force=is_forced, timeout=0)


def _power_verified(action: VmAction, before: Facts, state: str, answer: dict[str, Any]) -> Step:
    after = action.look_up_after(before, state, address_timeout_s=_address_timeout_s(action))
    action.verify(outcome_problem(after, answer, state))
    return Step(facts=after, is_changed=True, upids=after["upids"])


def _with_addresses(action: VmAction, facts: Facts) -> Facts:
    """Return the facts of a running guest with its addresses. The guest may report them as late as after a start."""
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


def ensure_configured(action: VmAction, facts: Facts, vm: dict[str, Any], *, is_create: bool = False) -> Step:
    """Give the guest the configuration that `vm` requests: one request for all options, and one for each disk step.

    An update changes the disks first: they are what fails most often, on a full storage, and then the guest keeps its
    former size. A new guest first gets its options, because the marker is among them.

    If cloud-init values of a running VM were changed, one more request generates its cloud-init drive again.
    """
    action.refuse(request_problem(facts, vm, is_create))
    changes, disk_steps = configuration.changes(facts, vm, is_create), configuration.disk_steps(facts, vm)
    removed = cloud_init.removed_keys(facts, vm)
    if not changes and not disk_steps and not removed:
        after = cloud_init_drive.update_drive(action, facts, vm, set())
        return Step(facts=after, is_changed=bool(after["cloud_init_pending"]))
    action.refuse(lock_problem(facts))
    action.diff = configuration.difference(facts, vm, is_create)
    if action.is_check_mode:
        return Step(facts=facts, is_changed=True)
    answers = [] if is_create else _change_disks(action, vm, disk_steps)
    if changes:
        action.progress.step(f"configuring {', '.join(sorted(changes))}")
        vm, answer = change_with_tags(action, vm, lambda request: _configure(action, facts, request, is_create))
        answers.append(answer)
    if removed:
        answers.append(_remove_options(action, facts, removed))
    if is_create:
        answers += _change_disks(action, vm, disk_steps)
    after = action.look_up_after(facts, "quiet", "configured")
    action.verify(configuration.configuration_problem(after, vm, answers))
    after = cloud_init_drive.update_drive(action, after, vm, {*cloud_init.keys_in(changes), *removed})
    return Step(facts=after, is_changed=True, upids=after["upids"])


def change_with_tags(
    action: VmAction, vm: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a change that may set tags; return the request and the answer. If Proxmox refuses a tag, set no tags.

    Proxmox refuses tags if the option `user-tag-access` of the cluster is not `free`, and registered tags. Nothing has
    been changed then. The marker in the description identifies the guest, so the guest needs no tags.
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
    place = {"state": "present", "update": True, "vmid": vm["vmid"], "node": facts["node"]}
    if kind_of(vm) == "lxc":
        console_mode = container.console_mode(facts) or None
        return action.change("proxmox", **place, cmode=console_mode, **{"hostname": vm["name"], **changes})
    return action.change("proxmox_kvm", **place, update_unsafe="net" in changes, **changes)


def _remove_options(action: VmAction, facts: Facts, keys: list[str]) -> dict[str, Any]:
    """Remove options from the configuration. The module proxmox_kvm does this in a request of its own."""
    action.progress.step(f"removing {', '.join(keys)}")
    place = {"vmid": action.vm["vmid"], "node": facts["node"]}
    if kind_of(action.vm) == "lxc":
        mode, name = container.console_mode(facts) or None, action.vm["name"]
        return action.change("proxmox", **place, state="present", update=True, hostname=name, cmode=mode, delete=keys)
    return action.change("proxmox_kvm", **place, state="present", delete=",".join(keys))


def _change_disks(action: VmAction, vm: dict[str, Any], disk_steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add, move or grow disks one by one; return the answers."""
    answers = []
    for step in disk_steps:
        action.progress.step(f"{DISK_VERBS[step['state']]} the disk {step['disk']}: {disks.describe_disk_step(step)}")
        answers.append(_change_disk(action, vm, step))
    return answers


def _change_disk(action: VmAction, vm: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """Add, move or grow one disk. The module waits for the Proxmox task and reports its error."""
    is_moved = step["state"] == "moved"
    return action.change(
        "proxmox_disk",
        state=step["state"],
        vmid=vm["vmid"],
        disk=step["disk"],
        size=step.get("size"),
        storage=step["storage"] if step["state"] == "present" else None,
        target_storage=step["storage"] if is_moved else None,
        delete_moved=True if is_moved else None,
        timeout=action.time_left_s(DISK_TIMEOUT_S),
    )


# ---------------------------------------------------------------------- backup


def ensure_backup(action: VmAction, facts: Facts, before: Facts, storage: str) -> Step:
    """Make a new archive of the guest.

    `before` are the facts before the backup; their `backups` are the archives that existed then.
    """
    action.refuse(preconditions.backup_problem(facts, action.vm, storage))
    if action.is_check_mode:
        return Step(facts=facts, is_changed=True)
    action.progress.step(f"backing up to the storage {storage}")
    # The module proxmox_backup cannot send `remove`. Proxmox would then remove archives of this VMID by the storage's
    # retention, also those of a former guest of another service.
    answer = request.send(
        action,
        "POST",
        f"nodes/{facts['node']}/vzdump",
        vmid=action.vm["vmid"],
        storage=storage,
        mode=action.vm.get("backup_mode") or "snapshot",
        compress="zstd",
        remove=0,
        **{"notes-template": preconditions.backup_notes(action.vm)},
    )
    action.refuse(preconditions.backup_start_problem(facts, answer))
    after = action.look_up_after(facts, "idle", "backed_up", backup_storage=storage)
    action.verify(preconditions.backup_outcome_problem(after, before, answer))
    return Step(facts=after, is_changed=True, upids=after["upids"])
