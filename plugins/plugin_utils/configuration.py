# SPDX-License-Identifier: Apache-2.0
"""Compares the requested configuration with a guest's configuration.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` are a guest's facts, as `LookUp.run`
returns them. All functions are pure.
"""

from __future__ import annotations

import re
from typing import Any

from . import allowed, cloud_init, container, disks, hardware
from .deletion import DELETION_TAG, WITHOUT_TAGS
from .failures import HOTPLUG_PROBLEM, failure_after_look_up, is_outcome_unknown, task_failure
from .identity import PROTECTED_TAG, SMITH_TAG, identity_members, is_marked, kind_of
from .notes import changed_description, is_deletion_cancelled
from .request_values import is_yes


def changes(facts: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return the requested parameters of proxmox_kvm that differ from the VM's configuration; empty if none differs.

    For a container they are the parameters of the module `proxmox`. The action sends them in one request. The first
    request after a clone includes the description with the marker, so a VM is never configured without its marker.
    """
    if kind_of(vm) == "lxc":
        requested = {**_identity(facts, vm), **container.requested_parameters(facts, vm)}
        requested["hostname"] = requested.pop("name")
        differing = {key: _differing(facts, key, value) for key, value in requested.items() if value is not None}
        return {key: value for key, value in differing.items() if value is not None}
    login = cloud_init.login_parameters(facts, vm) | {"cipassword": _password(facts, vm, is_create)}
    requested = {**_identity(facts, vm), **hardware.requested_parameters(facts, vm), **login}
    differing = {key: _differing(facts, key, value) for key, value in requested.items() if value is not None}
    return {key: value for key, value in differing.items() if value is not None}


def planned(facts: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return what a run would change, in a form for operators.

    This is the result of `changes`, a text for each disk that would change, and an empty text for each key that would
    be removed. The password is replaced by `(set)`.
    """
    plan = changes(facts, vm, is_create)
    if "cipassword" in plan:
        plan["cipassword"] = "(set)"
    plan |= dict.fromkeys(cloud_init.removed_keys(facts, vm), "")
    for step in disk_steps(facts, vm):
        text = disks.describe_disk_step(step)
        plan[step["disk"]] = f"{plan[step['disk']]}, {text}" if step["disk"] in plan else text
    return plan


def difference(facts: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return the values that a run would change, before and after, in the form that Ansible's `--diff` shows."""
    after = planned(facts, vm, is_create)
    return {"before": {key: _value_before(facts, key, value) for key, value in after.items()}, "after": after}


def _value_before(facts: dict[str, Any], key: str, after: Any) -> Any:
    """Return the current value of a parameter or of a disk, in the same form as the value `after` the change."""
    if key == "cipassword":
        return "(set)" if facts["has_password"] else ""
    if key in facts["disks"]:
        return disks.describe_disk(facts["disks"][key])
    if isinstance(after, dict):
        return {name: str(facts["config"].get(name, "")) for name in after}
    return _current_value(facts, key)


def disk_steps(facts: dict[str, Any], vm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each call of the module proxmox_disk that is still needed; none for a container.

    The module does not support containers.
    """
    return [] if kind_of(vm) == "lxc" else disks.disk_steps(facts, vm)


def is_restart_needed(facts: dict[str, Any]) -> bool:
    """Return True if the VM is running and some values of its configuration take effect only after a restart."""
    return bool(facts["pending"] or facts["cloud_init_pending"]) and facts["status"] == "running"


def _identity(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that identify the VM: name, description with the marker, and tags."""
    has_marker = is_marked(facts, vm)
    text = changed_description(facts, vm, has_marker)
    return {"name": str(vm["name"]), "description": text, "tags": _tags(facts, vm, has_marker)}


def _tags(facts: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> list[str] | None:
    """Return all tags that the guest is to have; None if the request changes no tags or Proxmox refuses them.

    Only tags of the service and tags of Agent Smith are added or removed. Tags that an operator has set stay. The
    module for containers can set one tag only. So if a container has tags already, its tags are not changed.
    """
    is_container_with_tags = kind_of(vm) == "lxc" and _written_tags(facts)
    if vm.get(WITHOUT_TAGS) or is_container_with_tags:
        return None
    is_requested, protection = "tags" in vm, vm.get("protection")
    delete_at = vm.get("delete_at") if kind_of(vm) == "qemu" else None
    is_cancelled = kind_of(vm) == "qemu" and is_deletion_cancelled(facts, vm)
    if not is_requested and has_marker and protection is None and not delete_at and not is_cancelled:
        return None
    added = {SMITH_TAG, *_tags_of_service(vm, "tags")}
    previous = {tag for tag in _tags_of_service(vm, "previous_tags") if allowed.may_change_tag(vm, tag)}
    removed = (previous if is_requested else set()) - added
    if delete_at or is_cancelled or is_requested:
        removed |= {tag for tag in facts["tags"] if DELETION_TAG.fullmatch(tag)}
    if delete_at:
        added |= {f"{SMITH_TAG}-delete-{delete_at}"}
    if protection is not None:
        (added if is_yes(protection) else removed).add(PROTECTED_TAG)
    # Upper and lower case of a tag that another author has set are kept: the cluster may distinguish them.
    kept = [tag for tag in _written_tags(facts) if tag.lower() not in removed] if has_marker else []
    return sorted([*kept, *(added - {tag.lower() for tag in kept})], key=str.lower)


def _tags_of_service(vm: dict[str, Any], member: str) -> set[str]:
    """Return the tags in the member `tags` or `previous_tags` of the request.

    The tag `smith` and tags that begin with `smith-` are left out, because a service must not change them.
    """
    tags = {str(tag).lower() for tag in vm.get(member) or []}
    return {tag for tag in tags if tag != SMITH_TAG and not tag.startswith(f"{SMITH_TAG}-")}


def _written_tags(facts: dict[str, Any]) -> list[str]:
    """Return the guest's tags as they are written in its configuration. Upper and lower case are kept."""
    return sorted(filter(None, re.split(r"[,; ]+", str(facts["config"].get("tags") or ""))), key=str.lower)


def _password(facts: dict[str, Any], vm: dict[str, Any], is_create: bool) -> str | None:
    # Proxmox does not return the password itself, so the password cannot be compared. A `create` sets it once. An
    # `update` sets it whenever the request contains a password. A VM without our marker has the password of its
    # template.
    if is_create and facts.get("has_password") and is_marked(facts, vm):
        return None
    return (vm.get("cloud_init") or {}).get("password") or None


def _differing(facts: dict[str, Any], key: str, value: Any) -> Any:
    """Return the requested value of a parameter if it differs from the VM's configuration, else None.

    A dict, such as the values of all NICs, is reduced to the members that differ.
    """
    config = facts["config"]
    if isinstance(value, dict):
        return {
            name: text for name, text in value.items() if _options_in(config.get(name)) != _options_in(text)
        } or None
    is_same = _current_value(facts, key) == (str(value) if key in ("balloon", "swap") else value)
    return None if is_same else value


def _current_value(facts: dict[str, Any], key: str) -> Any:
    """Return the current value of a module's parameter, in the form in which the parameter is requested."""
    config = facts["config"]
    current = {
        "cores": facts["cores"],
        "sockets": facts["sockets"],
        "memory": facts["memory_mib"],
        "tags": _written_tags(facts),
        "onboot": is_yes(config.get("onboot", 0)),
        "protection": is_yes(config.get("protection", 0)),
        "description": str(config.get("description", "")).strip(),
        "sshkeys": "\n".join(cloud_init.ssh_keys(facts["ssh_public_keys"])),
        "nameservers": str(config.get("nameserver", "")).split(),
        "searchdomains": str(config.get("searchdomain", "")).split(),
    }
    return current.get(key, str(config.get(key, "")))


def _options_in(text: Any) -> set[str]:
    """Return the options in a value of Proxmox's configuration. Their order has no meaning."""
    return set(str(text or "").split(","))


def configuration_problem(after: dict[str, Any], vm: dict[str, Any], answers: list[dict[str, Any]]) -> str:
    """Return what still differs from the request after a configuration, or the error that Proxmox or a module reported.

    `after` contains the facts after the configuration, and `answers` those of the modules that changed the
    guest. The text is empty if nothing differs.
    """
    differing = sorted({*changes(after, vm, is_create=True), *cloud_init.removed_keys(after, vm)} - {"cipassword"})
    differing += [f"{step['disk']} ({disks.describe_disk_step(step)})" for step in disk_steps(after, vm)]
    if not differing:
        return ""
    if after.get("task_error"):
        return task_failure(after["task_error"])
    results = [result for answer in answers for result in answer.get("results", [answer])]
    unconfirmed = [result for result in results if is_outcome_unknown(result) and not hotplug_problem(result)]
    failure = next(map(failure_after_look_up, unconfirmed), "")
    return failure or f"TASK_FAILED: VM {vm['vmid']} does not have the requested values of {', '.join(differing)}"


def hotplug_problem(answer: dict[str, Any]) -> str:
    """Return Proxmox's text about values that are pending because the running guest did not apply them; or ''."""
    text = str(answer.get("msg") or "") if answer.get("failed") else ""
    found = HOTPLUG_PROBLEM.search(text)
    return text[found.start() :] if found else ""


def only_disk_growth(vm: dict[str, Any]) -> dict[str, Any]:
    """Return a request that only grows disks: it has the identity and the disk sizes of the request `vm`."""
    sizes = {key: vm[key] for key in ("disk_gib", "disks") if vm.get(key)}
    return {**identity_members(vm), **sizes, "only_grows": True}
