# SPDX-License-Identifier: Apache-2.0
"""Compares the requested configuration with a guest's configuration.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` contains the status, the configuration
and other data of a guest, as read from Proxmox. All functions are pure.
"""

from __future__ import annotations

import re
from typing import Any

from . import allowed, cloud_init, container, disks, hardware
from .deletion import DELETION_TAG, TAGS_REFUSED_MEMBER
from .failures import HOTPLUG_PROBLEM, error_of_change_not_made, is_outcome_unknown, proxmox_task_failure
from .identity import PROTECTED_TAG, SMITH_TAG, identity_members, is_marked, kind_of
from .notes import description_to_set, is_deletion_cancelled
from .request_values import is_yes


def differing_parameters(facts: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return the requested parameters of proxmox_kvm that differ from the VM's configuration; empty if none differs.

    For a container, they are parameters of the module `proxmox`. One call of the module sets all returned parameters.
    After a clone, the description with the marker is among them, so a VM is never configured without its marker.
    `is_create` is true for the action `create`, and false for the other actions.
    """
    if kind_of(vm) == "lxc":
        requested_parameters = {**_identity_parameters(facts, vm), **container.requested_parameters(facts, vm)}
        requested_parameters["hostname"] = requested_parameters.pop("name")
        differing_values = {
            key: _value_if_different(facts, key, value)
            for key, value in requested_parameters.items()
            if value is not None
        }
        return {key: value for key, value in differing_values.items() if value is not None}
    requested_parameters = {
        **_identity_parameters(facts, vm),
        **hardware.requested_parameters(facts, vm),
        **cloud_init.login_parameters(facts, vm),
        "cipassword": _password_to_set(facts, vm, is_create),
    }
    differing_values = {
        key: _value_if_different(facts, key, value) for key, value in requested_parameters.items() if value is not None
    }
    return {key: value for key, value in differing_values.items() if value is not None}


def planned_values(facts: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return the values that an action plugin would set, in a form for operators. The keys are parameters and disks.

    The values are the result of `differing_parameters`, a text for each disk that would change, and an empty text for
    `nameserver` or `searchdomain` if this key would be removed. The password is replaced by `(set)`.
    """
    plan = differing_parameters(facts, vm, is_create)
    if "cipassword" in plan:
        plan["cipassword"] = "(set)"
    plan |= dict.fromkeys(cloud_init.keys_to_remove(facts, vm), "")
    for step in disk_module_parameters(facts, vm):
        text = disks.describe_disk_step(step)
        plan[step["disk"]] = f"{plan[step['disk']]}, {text}" if step["disk"] in plan else text
    return plan


def values_before_and_after(facts: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return the values that an action plugin would change: `before` and `after` the change, for Ansible's `--diff`."""
    after = planned_values(facts, vm, is_create)
    return {"before": {key: _value_before(facts, key, value) for key, value in after.items()}, "after": after}


def _value_before(facts: dict[str, Any], key: str, after: Any) -> Any:
    """Return the current value of a parameter or of a disk, in the same form as `after`, the value after the change."""
    if key == "cipassword":
        return "(set)" if facts["has_password"] else ""
    if key in facts["disks"]:
        return disks.describe_disk(facts["disks"][key])
    if isinstance(after, dict):
        return {name: str(facts["config"].get(name, "")) for name in after}
    return _current_value(facts, key)


def disk_module_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each necessary call of the module proxmox_disk; none for a container.

    The module does not support containers.
    """
    return [] if kind_of(vm) == "lxc" else disks.disk_module_parameters(facts, vm)


def is_restart_needed(facts: dict[str, Any]) -> bool:
    """Return True if the VM is running and some values of its configuration take effect only after a restart."""
    return bool(facts["pending"] or facts["cloud_init_pending"]) and facts["status"] == "running"


def _identity_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that identify the VM: name, description with the marker, and tags."""
    has_marker = is_marked(facts, vm)
    description = description_to_set(facts, vm, has_marker)
    return {"name": str(vm["name"]), "description": description, "tags": _tags_to_set(facts, vm, has_marker)}


def _tags_to_set(facts: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> list[str] | None:
    """Return all tags that the guest must have; None if its tags are not changed.

    The module for containers can set only one tag. So if a container already has tags, its tags are not changed. A VM
    without the service's marker keeps none of its tags. For a VM with the marker, only tags of the service and tags of
    Agent Smith are added or removed: tags that an operator has set are kept. Members of `vm`:

    - `tags`: the requested tags of the service
    - `previous_tags`: the service's tags before an update. A previous tag that is not in `tags` is removed. If `vm` has
      the member `allowed`, only previous tags that `allowed` lists are removed.
    - `delete_at`: the time from which the VM may be destroyed. A tag with this time, the deletion tag, is added, and an
      earlier deletion tag is removed. DELETION_TAG matches a deletion tag.
    - `cancel_deletion`: the deletion tag is removed. A request with `tags` removes it even without `cancel_deletion`.
    - `protection`: if true, PROTECTED_TAG is added; if false, it is removed.
    - TAGS_REFUSED_MEMBER: the tags are not changed, because Proxmox has refused to set one of them.
    """
    is_container_with_tags = kind_of(vm) == "lxc" and _tags_in_configuration(facts)
    if vm.get(TAGS_REFUSED_MEMBER) or is_container_with_tags:
        return None
    are_tags_requested, protection = "tags" in vm, vm.get("protection")
    delete_at = vm.get("delete_at") if kind_of(vm) == "qemu" else None
    cancels_deletion = kind_of(vm) == "qemu" and is_deletion_cancelled(facts, vm)
    if not are_tags_requested and has_marker and protection is None and not delete_at and not cancels_deletion:
        return None
    added_tags = {SMITH_TAG, *_tags_of_service(vm, "tags")}
    previous_tags = {tag for tag in _tags_of_service(vm, "previous_tags") if allowed.may_change_tag(vm, tag)}
    removed_tags = (previous_tags if are_tags_requested else set()) - added_tags
    if delete_at or cancels_deletion or are_tags_requested:
        removed_tags |= {tag for tag in facts["tags"] if DELETION_TAG.fullmatch(tag)}
    if delete_at:
        added_tags |= {f"{SMITH_TAG}-delete-{delete_at}"}
    if protection is not None:
        (added_tags if is_yes(protection) else removed_tags).add(PROTECTED_TAG)
    # A kept tag is not converted to lower case, because the cluster may distinguish upper and lower case.
    kept_tags = [tag for tag in _tags_in_configuration(facts) if tag.lower() not in removed_tags] if has_marker else []
    return sorted([*kept_tags, *(added_tags - {tag.lower() for tag in kept_tags})], key=str.lower)


def _tags_of_service(vm: dict[str, Any], member: str) -> set[str]:
    """Return the tags in the member `tags` or `previous_tags` of the request.

    The tag `smith` and tags that begin with `smith-` are left out, because a service must not change them.
    """
    tags = {str(tag).lower() for tag in vm.get(member) or []}
    return {tag for tag in tags if tag != SMITH_TAG and not tag.startswith(f"{SMITH_TAG}-")}


def _tags_in_configuration(facts: dict[str, Any]) -> list[str]:
    """Return the guest's tags as its configuration contains them, without conversion to lower case."""
    return sorted(filter(None, re.split(r"[,; ]+", str(facts["config"].get("tags") or ""))), key=str.lower)


def _password_to_set(facts: dict[str, Any], vm: dict[str, Any], is_create: bool) -> str | None:
    # Proxmox does not return the password itself, so the password cannot be compared. A `create` sets it once. An
    # `update` sets it whenever the request contains a password. A VM without the service's marker still has its
    # template's password, so a `create` sets the requested password.
    if is_create and facts.get("has_password") and is_marked(facts, vm):
        return None
    return (vm.get("cloud_init") or {}).get("password") or None


def _value_if_different(facts: dict[str, Any], key: str, value: Any) -> Any:
    """Return the requested value of a parameter if it differs from the VM's configuration, else None.

    If the value is a dict, such as the values of all NICs, only its members that differ are returned.
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
    current_values = {
        "cores": facts["cores"],
        "sockets": facts["sockets"],
        "memory": facts["memory_mib"],
        "tags": _tags_in_configuration(facts),
        "onboot": is_yes(config.get("onboot", 0)),
        "protection": is_yes(config.get("protection", 0)),
        "description": str(config.get("description", "")).strip(),
        "sshkeys": "\n".join(cloud_init.ssh_keys(facts["ssh_public_keys"])),
        "nameservers": str(config.get("nameserver", "")).split(),
        "searchdomains": str(config.get("searchdomain", "")).split(),
    }
    return current_values.get(key, str(config.get(key, "")))


def _options_in(text: Any) -> set[str]:
    """Return the options in a value of Proxmox's configuration. Their order has no meaning."""
    return set(str(text or "").split(","))


def configuration_problem(after: dict[str, Any], vm: dict[str, Any], answers: list[dict[str, Any]]) -> str:
    """Return a problem if the guest, after it was configured, differs from the request; '' if not.

    The problem is the error that Proxmox or a module reported, or else a list of the values that differ. `after`
    contains the facts after the configuration, and `answers` the answers of the modules that changed the guest. The
    fact `task_error` is the error of a Proxmox task that the modules started.
    """
    # Proxmox does not return the password (`cipassword`), so it cannot be compared.
    differing_names = sorted({*differing_parameters(after, vm), *cloud_init.keys_to_remove(after, vm)} - {"cipassword"})
    differing_names += [
        f"{step['disk']} ({disks.describe_disk_step(step)})" for step in disk_module_parameters(after, vm)
    ]
    if not differing_names:
        return ""
    if after.get("task_error"):
        return proxmox_task_failure(after["task_error"])
    results = [result for answer in answers for result in answer.get("results", [answer])]
    # The outcome of a failed result is unknown if its change may have been made. If a change was certainly not made,
    # the action plugin has raised Refused, so `answers` does not contain its result.
    # A result with a hotplug problem is left out, because it does not explain why the configuration differs: Proxmox
    # has stored the new values, and only the running guest has not applied them.
    results_with_unknown_outcome = [
        result for result in results if is_outcome_unknown(result) and not hotplug_problem(result)
    ]
    # `after` shows that the guest differs from the request: a change whose outcome was unknown was not made.
    failure = next(map(error_of_change_not_made, results_with_unknown_outcome), "")
    return failure or f"TASK_FAILED: VM {vm['vmid']} does not have the requested values of {', '.join(differing_names)}"


def hotplug_problem(answer: dict[str, Any]) -> str:
    """Return Proxmox's text about new values that the running guest did not apply; '' if the answer has none."""
    text = str(answer.get("msg") or "") if answer.get("failed") else ""
    found = HOTPLUG_PROBLEM.search(text)
    return text[found.start() :] if found else ""


def disk_growth_request(vm: dict[str, Any]) -> dict[str, Any]:
    """Return a request that only grows disks: it has the members of `vm` that identify the guest or request disks.

    Its member `only_grows` means that a request to add or move a disk is refused.
    """
    disk_members = {key: vm[key] for key in ("disk_gib", "disks") if vm.get(key)}
    return {**identity_members(vm), **disk_members, "only_grows": True}
