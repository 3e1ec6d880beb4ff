# SPDX-License-Identifier: Apache-2.0
"""Decides for the roles what a playbook must do, from the VM's facts and the request.

Most functions are Ansible filters (`FilterModule` lists them). Their parameter `vm` is the request: the extra var that
every playbook gets (docs/actions.md). Their parameter `found` contains the VM's facts: the result of the action plugin
`smith_vm_facts`. `is_create` is true for the action `create`. A function whose name ends in `_problem` returns
`CODE: reason`, or an empty text if there is no problem. No function sends a request to Proxmox.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

try:
    from executor.proxmox.error_rules import Reaction, classify_failure
except ImportError:  # an operator runs the playbook with an Ansible that does not have our package
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from executor.proxmox.error_rules import Reaction, classify_failure

# Ansible loads each filter file without its folder on the import path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import smith_container
import smith_hardware
from smith_hardware import is_yes

#: The tag of every VM that serves a service.
TAG = "smith"
#: The tag of a VM whose protection flag was requested by its service, not set by an operator.
PROTECTED_TAG = "smith-protected"
#: The deletion mark states when a guest may be destroyed, in seconds since 1970. For a VM the mark is a tag. A
#: container can have only one tag, so its mark is a line of its description.
DELETION_TAG = re.compile(r"smith-delete-(\d{1,12})")
DELETION_LINE = re.compile(r"^smith-delete=(\d{1,12})\s*?$", re.MULTILINE)
#: The lines of a description that only our playbooks write: the marker and the deletion mark.
OUR_LINES = re.compile(r"^smith-(?:uid|delete)=.*$", re.MULTILINE | re.IGNORECASE)
#: The login parameters of community.proxmox's modules, and the environment variable for each. The variables are used
#: only if there is no credentials file.
CONNECTION = {
    "api_host": "PROXMOX_HOST",
    "api_port": "PROXMOX_PORT",
    "api_user": "PROXMOX_USER",
    "api_token_id": "PROXMOX_TOKEN_ID",
    "api_token_secret": "PROXMOX_TOKEN_SECRET",
    "api_password": "PROXMOX_PASSWORD",
    "validate_certs": "PROXMOX_VALIDATE_CERTS",
}
#: The values of `validate_certs` that mean false.
NO = ("0", "false", "no", "off")
#: Locks that Proxmox removes at the end of the Proxmox task that has set them.
UNFINISHED = ("clone", "create")
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")
#: Text in a service's description that imitates a line of OUR_LINES.
FORGED_LINE = re.compile(r"smith-(uid|delete)=", re.IGNORECASE)


# ---------------------------------------------------------------------- the connection


def connection(credentials_file: str) -> dict[str, Any]:
    """Return the modules' login from the credentials file, or from the variables `PROXMOX_*` if no file is given.

    Empty values are left out, because the modules refuse an empty port. `validate_certs` is always contained, because
    the default of the modules differs between their versions. It is true if it is not set.
    """
    values = _read_file(credentials_file) if credentials_file else _read_environment()
    found = {key: values[key] for key in CONNECTION if values.get(key) not in (None, "")}
    found["validate_certs"] = str(found.get("validate_certs", "true")).strip().lower() not in NO
    return found


def ca_bundle(credentials_file: str) -> str:
    """Return the path of the file with the cluster's CA, or an empty text if the CAs of the system are used."""
    named = _read_file(credentials_file).get("ca_bundle", "") if credentials_file else ""
    return str(named or os.environ.get("PROXMOX_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or "")


def module_environment(bundle: str) -> dict[str, str]:
    """Return the environment of module processes.

    community.proxmox 1.4 reads the path of the CA file only from environment variables. The API timeout, which the
    collection reads since version 1.6, is 30 s. The default of 5 s is too short, because a request that changes a
    configuration may wait 10 s for Proxmox's lock.
    """
    environment = {"PROXMOX_API_TIMEOUT": "30"}
    return environment | ({"REQUESTS_CA_BUNDLE": bundle, "PROXMOX_CA_PATH": bundle} if bundle else {})


def _read_file(path: str) -> dict[str, Any]:
    # CSafeLoader is as safe as SafeLoader and ten times as fast. The speed matters, because every Ansible task calls
    # this function.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(Path(path).read_text(encoding="utf-8"))
    try:
        content = loader.get_single_data()
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no YAML mapping")
    return content


def _read_environment() -> dict[str, Any]:
    return {key: os.environ.get(variable, "") for key, variable in CONNECTION.items()}


# ---------------------------------------------------------------------- failures


def failure(result: dict[str, Any]) -> str:
    """Return the error of a failed Ansible task as `CODE: text`. `result` is the value that Ansible registers."""
    failed = [item for item in result.get("results") or [] if item.get("failed")]
    result = failed[0] if failed else result  # a loop's own message does not contain the item's error
    classified = classify_failure(str(result.get("msg") or result.get("module_stderr") or result.get("stdout") or ""))
    return f"{classified.code}: {classified.text}"


def is_outcome_unknown(result: dict[str, Any]) -> bool:
    """Return True if a failed module may have made its change. The role must then read the VM's state again."""
    text = str(result.get("msg", ""))
    if "Reached timeout" in text or "deserialization failed" in text:
        # "deserialization failed" means that the module was killed, or that proxmox_snap ended without a result.
        return True
    classified = classify_failure(text)
    return classified.reaction is Reaction.CHECK or classified.code in ("PVE_UNREACHABLE", "VM_ID_TAKEN")


def outcome_problem(found: dict[str, Any], change: dict[str, Any], wanted: str) -> str:
    """Return why the VM is not in the state `wanted` after a change.

    `change` is the result of the module that made the change. The reason is the error of the Proxmox task. If there is
    none, it is the error of the module, the VM's lock, or the VM's status.
    """
    if found.get("reached"):
        return ""
    text = found.get("task_error") or (change.get("msg", "") if is_outcome_unknown(change) else "")
    if text:
        code, reason = classify_failure(text).code, classify_failure(text).text
        return f"{'TASK_FAILED' if code == 'PLAYBOOK_FAILED' else code}: {reason}"
    if found.get("lock"):
        return f"VM_LOCKED: VM is locked ({found['lock']}) and not {wanted} in time"
    return f"TASK_FAILED: VM {found['vmid']} is {found['status']}, not {wanted}, although Proxmox reported no error"


# ---------------------------------------------------------------------- identity


def identity_problem(found: dict[str, Any], vm: dict[str, Any], may_be_absent: bool = False) -> str:
    """Return why this VM must not be changed; empty only for an unprotected VM that belongs to the service.

    `may_be_absent` is true for a deletion: then a VM that does not exist is no problem.
    """
    vmid, is_same_kind = vm["vmid"], found["exists"] and found["kind"] == kind_of(vm)
    is_ours = found["exists"] and (is_marked(found, vm) or (may_be_absent and is_partial_clone(found, vm)))
    if not UUID.fullmatch(str(vm["service_id"])):
        return "INVALID_REQUEST: service_id is not a UUID"
    if not found["exists"]:
        return absence_problem(found, vmid, may_be_absent)
    problems = (
        (not is_same_kind, f"VM_IDENTITY_MISMATCH: {vmid} is of kind {found['kind']}, not {kind_of(vm)}"),
        (not is_ours, f"VM_IDENTITY_MISMATCH: VM {vmid} ({found['name']}) {_owner_text(found)}"),
        (found["name"] != vm["name"], f"VM_IDENTITY_MISMATCH: VM {vmid} is called {found['name']}, not {vm['name']}"),
        (found["is_template"], f"VM_PROTECTED: VM {vmid} is a template"),
        (is_protected_from_us(found, may_be_absent), f"VM_PROTECTED: VM {vmid} has Proxmox's protection flag"),
    )
    return next((text for is_problem, text in problems if is_problem), "")


def kind_of(vm: dict[str, Any]) -> str:
    """Return the requested kind of guest: `qemu` (virtual machine) or `lxc` (container)."""
    return str(vm.get("kind") or "qemu")


def is_marked(found: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the VM has the service's marker and no other marker."""
    return bool(found["markers"] == [str(vm["service_id"]).lower()])


def is_partial_clone(found: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the VM is a partial clone: a `create` has made the VM, but has not yet set its marker.

    Only a `delete` with `half_made` in its request can find a partial clone. `half_made` states that the VMID is
    reserved, but that its `create` has not succeeded. The VM has no marker, so its name identifies it: the name was
    reserved for this service alone.
    """
    return is_yes(vm.get("half_made", False)) and not found["markers"] and found["name"] == vm["name"]


def is_protected_from_us(found: dict[str, Any], is_deletion: bool) -> bool:
    """Return True if Proxmox's protection flag of the VM forbids this action.

    A flag that an operator has set forbids every change. A flag that the service has requested, which PROTECTED_TAG
    states, forbids only the deletion. So an update can remove the flag.
    """
    return bool(found["is_protected"] and (is_deletion or PROTECTED_TAG not in found["tags"]))


def absence_problem(found: dict[str, Any], vmid: int, may_be_absent: bool) -> str:
    """Return why the absence of the VM is a problem: the absence is not proven, or the action needs the VM."""
    absence = found["absence"]
    if not absence["is_proven"]:
        return f"{absence['code'] or 'PVE_PERMISSION'}: {absence['text'] or f'VM {vmid} cannot be seen'}"
    return "" if may_be_absent else f"VM_NOT_FOUND: VM {vmid} does not exist"


def reservation_problem(found: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return why a `create` must not use this VMID: it belongs to another guest than the service's VM or partial clone.

    A clone has the description of the template until its first configuration, so a partial clone has no marker. Its
    name identifies it, because the name was reserved for this service alone.
    """
    if not UUID.fullmatch(str(vm["service_id"])):
        return "INVALID_REQUEST: service_id is not a UUID"
    if not found["exists"]:
        return ""
    taken = f"VM_ID_TAKEN: VMID {vm['vmid']} is held by {found['name'] or 'a guest'} on {found['node']}"
    if found["kind"] != kind_of(vm) or found["is_template"]:
        return taken
    if is_marked(found, vm):
        return (
            f"VM_PROTECTED: VM {vm['vmid']} has Proxmox's protection flag" if is_protected_from_us(found, False) else ""
        )
    return taken if found["markers"] or found["name"] != vm["name"] else ""


def lock_problem(found: dict[str, Any]) -> str:
    """Return why a change must wait: the VM is locked. The lock of a suspended VM is no reason to wait."""
    if found.get("lock") and found["lock"] != "suspended":
        return f"VM_LOCKED: VM is locked ({found['lock']})"
    return ""


def _owner_text(found: dict[str, Any]) -> str:
    if not found["markers"]:
        return "has no marker of Agent Smith"
    return f"belongs to {' and '.join(found['markers'])}"


# ---------------------------------------------------------------------- validation of the request


def request_problem(found: dict[str, Any], vm: dict[str, Any], is_create: bool = True) -> str:
    """Return why a `create` or an `update` is impossible. The roles call this filter before the first change."""
    if kind_of(vm) == "lxc":
        return smith_container.problem(found, vm, is_create)
    if not found["exists"] and is_blank(vm):
        return _blank_problem(vm) or smith_hardware.problem(found, vm, is_blank=True)
    source = found if found["exists"] else found["template"]
    if not found["exists"] and source.get("problem"):
        return str(source["problem"])
    if not found["exists"] and not source:
        return "INVALID_REQUEST: a create needs template_vmid or template, or iso, or blank"
    if not found["exists"] and not source["is_template"]:
        return f"NOT_FOUND: VM {source['vmid']} is not a template"
    return smith_hardware.problem(source, vm)


def is_blank(vm: dict[str, Any]) -> bool:
    """Return True if the VM is created without a template. Its disks are then empty."""
    return bool(vm.get("iso") or is_yes(vm.get("blank", False)))


def _blank_problem(vm: dict[str, Any]) -> str:
    if vm.get("template_vmid") or vm.get("template"):
        return "INVALID_REQUEST: template excludes iso and blank"
    if not vm.get("node"):
        return "INVALID_REQUEST: a VM without a template needs node"
    if vm.get("iso") and not smith_hardware.VOLUME.fullmatch(str(vm["iso"])):
        return "INVALID_REQUEST: iso is not of the form storage:iso/file"
    return ""


# ---------------------------------------------------------------------- differences


def changes(found: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return the requested parameters of proxmox_kvm that differ from the VM's configuration; empty if none differs.

    For a container they are the parameters of the module `proxmox`. The role sends them in one request. The first
    request after a clone includes the description with the marker, so a VM is never configured without its marker.
    """
    if kind_of(vm) == "lxc":
        wanted = {**_identity(found, vm), **smith_container.wanted(found, vm)}
        wanted["hostname"] = wanted.pop("name")
        differing = {key: _differing(found, key, value) for key, value in wanted.items() if value is not None}
        return {key: value for key, value in differing.items() if value is not None}
    login = smith_hardware.login(found, vm) | {"cipassword": _password(found, vm, is_create)}
    wanted = {**_identity(found, vm), **smith_hardware.wanted(found, vm), **login}
    differing = {key: _differing(found, key, value) for key, value in wanted.items() if value is not None}
    return {key: value for key, value in differing.items() if value is not None}


def planned(found: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return what a run would change, for operators. It is the result of `changes`, and a text for each disk.

    The password is replaced by `(set)`.
    """
    plan = changes(found, vm, is_create)
    if "cipassword" in plan:
        plan["cipassword"] = "(set)"
    for step in disk_steps(found, vm):
        text = smith_hardware.described(step)
        plan[step["disk"]] = f"{plan[step['disk']]}, {text}" if step["disk"] in plan else text
    return plan


def blank(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of proxmox_kvm that create a VM without a template, including its marker and its disks.

    The VM boots from its first disk. While this disk is empty, it boots from the ISO image.
    """
    if kind_of(vm) == "lxc":
        return changes(found, vm, True)
    disks_to_add = smith_hardware.disk_steps(found, vm)
    drives: dict[str, dict[str, str]] = {bus: {} for bus in ("scsi", "virtio", "sata", "ide")}
    for step in disks_to_add:
        drives[step["disk"].rstrip("0123456789")][step["disk"]] = f"{step['storage']}:{step['size']}"
    order = [disks_to_add[0]["disk"]] if disks_to_add else []
    if vm.get("iso"):
        drives["ide"][smith_hardware.CDROM] = f"{vm['iso']},media=cdrom"
        order.append(smith_hardware.CDROM)
    boot = {"boot": "order=" + ";".join(order)} if order else {}
    return {**boot, **changes(found, vm, True), **{bus: disks for bus, disks in drives.items() if disks}}


def disk_steps(found: dict[str, Any], vm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each call of the module proxmox_disk that is still needed; none for a container.

    The module does not support containers.
    """
    return [] if kind_of(vm) == "lxc" else smith_hardware.disk_steps(found, vm)


def is_restart_needed(found: dict[str, Any]) -> bool:
    """Return True if the VM is running and some values of its configuration take effect only after a restart."""
    return bool(found["pending"]) and found["status"] == "running"


def description(vm: dict[str, Any]) -> str:
    """Return the guest's description: the service's text, then our lines.

    A part of the service's text that imitates one of our lines is altered.
    """
    text = FORGED_LINE.sub(r"smith-\1: ", str(vm.get("description") or "")).strip()
    deletion_line = f"smith-delete={vm['delete_at']}\n" if kind_of(vm) == "lxc" and vm.get("delete_at") else ""
    our_lines = f"{deletion_line}smith-uid={str(vm['service_id']).lower()}"
    return f"{text}\n\n{our_lines}" if text else our_lines


def _identity(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that identify the VM: name, description with the marker, and tags."""
    has_marker = is_marked(found, vm)
    text = _description(found, vm, has_marker)
    return {"name": str(vm["name"]), "description": text, "tags": _tags(found, vm, has_marker)}


def _description(found: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> str | None:
    """Return the whole new description, or None if the description need not change."""
    if "description" in vm or not has_marker:
        return description(vm)
    if kind_of(vm) == "lxc" and (vm.get("delete_at") or _is_deletion_cancelled(found, vm)):
        return description({**vm, "description": OUR_LINES.sub("", str(found["config"].get("description") or ""))})
    return None


def _tags(found: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> list[str] | None:
    """Return all new tags, or None if the tags need not change."""
    is_requested, protection = "tags" in vm, vm.get("protection")
    delete_at = vm.get("delete_at") if kind_of(vm) == "qemu" else None
    is_deletion_cancelled = kind_of(vm) == "qemu" and _is_deletion_cancelled(found, vm)
    if not is_requested and has_marker and protection is None and not delete_at and not is_deletion_cancelled:
        return None
    given = {str(tag).lower() for tag in vm.get("tags") or []}
    ours = {tag for tag in given if tag.startswith(f"{TAG}-")}  # a service must not set tags with our prefix
    tags = {TAG, *(given - ours if is_requested or not has_marker else found["tags"])} - {PROTECTED_TAG}
    if delete_at or is_deletion_cancelled:
        tags = {tag for tag in tags if not DELETION_TAG.fullmatch(tag)}
    if delete_at:
        tags |= {f"{TAG}-delete-{delete_at}"}
    keeps_protection = PROTECTED_TAG in found["tags"] and has_marker
    is_protected = keeps_protection if protection is None else is_yes(protection)
    return sorted(tags | ({PROTECTED_TAG} if is_protected else set()))


def _is_deletion_cancelled(found: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the request cancels a deletion for which the VM is marked."""
    return is_yes(vm.get("cancel_deletion", False)) and bool(deletion_due_at(found))


def _password(found: dict[str, Any], vm: dict[str, Any], is_create: bool) -> str | None:
    # Proxmox does not return the password itself, so the password cannot be compared. A `create` sets it once. An
    # `update` sets it whenever the request contains a password. A VM without our marker has the password of its
    # template.
    if is_create and found.get("has_password") and is_marked(found, vm):
        return None
    return (vm.get("cloud_init") or {}).get("password") or None


def _differing(found: dict[str, Any], key: str, value: Any) -> Any:
    """Return the requested value of a parameter if it differs from the VM's configuration, else None.

    A dict, such as the values of all NICs, is reduced to the members that differ.
    """
    config = found["config"]
    if isinstance(value, dict):
        return {name: text for name, text in value.items() if _parts(config.get(name)) != _parts(text)} or None
    current = {
        "cores": found["cores"],
        "sockets": found["sockets"],
        "memory": found["memory_mib"],
        "tags": found["tags"],
        "onboot": is_yes(config.get("onboot", 0)),
        "protection": is_yes(config.get("protection", 0)),
        "description": str(config.get("description", "")).strip(),
        "sshkeys": "\n".join(smith_hardware.ssh_keys(found["ssh_public_keys"])),
        "nameservers": str(config.get("nameserver", "")).split(),
        "searchdomains": str(config.get("searchdomain", "")).split(),
    }
    is_same = current.get(key, str(config.get(key, ""))) == (str(value) if key in ("balloon", "swap") else value)
    return None if is_same else value


def _parts(text: Any) -> set[str]:
    """Return the options in a value of Proxmox's configuration. Their order has no meaning."""
    return set(str(text or "").split(","))


def configuration_problem(after: dict[str, Any], vm: dict[str, Any], changes_made: list[dict[str, Any]]) -> str:
    """Return what still differs from the request after a configuration, or the error that Proxmox or a module reported.

    `after` contains the facts after the configuration, `changes_made` the results of the modules that made it.
    """
    differing = sorted(set(changes(after, vm, is_create=True)) - {"cipassword"})
    differing += [f"{step['disk']} ({smith_hardware.described(step)})" for step in disk_steps(after, vm)]
    if not differing:
        return ""
    if after.get("task_error"):
        return failure({"msg": after["task_error"]})
    results = [result for change in changes_made for result in change.get("results", [change])]
    unknown = next((failure(result) for result in results if is_outcome_unknown(result)), "")
    return unknown or f"TASK_FAILED: VM {vm['vmid']} did not apply {', '.join(differing)}"


# ---------------------------------------------------------------------- snapshots


def snapshot_name(found: dict[str, Any], asked: str, state: str) -> str:
    """Return the name of the snapshot to create or to roll back to. `asked` is the requested name.

    `state` is `rolled_back` for a rollback. If no name is requested, a rollback uses the newest snapshot, and a
    creation uses the first free name of `smith-1`, `smith-2` and so on. So a run that is repeated before the snapshot
    exists uses the same name.
    """
    names = [snapshot["name"] for snapshot in found.get("snapshots") or []]
    if asked:
        return str(asked)
    if state == "rolled_back":
        return str(names[-1]) if names else ""
    return next(name for number in range(1, len(names) + 2) if (name := f"{TAG}-{number}") not in names)


def snapshot_problem(found: dict[str, Any], name: str, state: str) -> str:
    """Return why a snapshot cannot be created or rolled back to.

    Old versions of the module report success for a rollback to a snapshot that does not exist.
    """
    names = [snapshot["name"] for snapshot in found.get("snapshots") or []]
    if state == "rolled_back":
        return "" if name and name in names else f"NOT_FOUND: VM {found['vmid']} has no snapshot {name}".rstrip()
    if not SNAPSHOT_NAME.fullmatch(name):
        return "INVALID_REQUEST: a snapshot's name starts with a letter and has 2 to 40 letters, digits, - and _"
    return ""


# ---------------------------------------------------------------------- deletion, backup, migration


def deletion(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the next step of a deletion, and `at`: when the VM may be destroyed.

    Without a grace period the step is `destroy`. With a grace period it is first `mark`, then `wait` until the time
    `at` has come, then `destroy`. The time is stored in the VM's deletion mark. There operators can see it, and it is
    not lost with the agent's database. An operator cancels the deletion by removing the mark. A later `delete` with
    `only_when_due` then has the step `keep`.
    """
    at = deletion_due_at(found) if found["exists"] else 0
    is_due = 0 < at <= found.get("looked_at", 0)
    if found["exists"] and is_yes(vm.get("only_when_due", False)):
        return {"step": "destroy" if is_due else "wait" if at else "keep", "at": at}
    if not found["exists"] or not int(vm.get("grace_s") or 0):
        return {"step": "destroy", "at": 0}
    if not at:
        return {"step": "mark", "at": found["looked_at"] + int(vm["grace_s"])}
    return {"step": "destroy" if is_due else "wait", "at": at}


def deletion_due_at(found: dict[str, Any]) -> int:
    """Return when the VM may be destroyed, in seconds since 1970; 0 if it is not marked for deletion."""
    if found["kind"] == "lxc":
        matches = DELETION_LINE.finditer(str(found["config"].get("description") or ""))
    else:
        matches = filter(None, map(DELETION_TAG.fullmatch, found["tags"]))
    return max((int(match.group(1)) for match in matches), default=0)


def deletion_mark(vm: dict[str, Any], at: int) -> dict[str, Any]:
    """Return a request that only marks the VM for deletion at the time `at`."""
    return {**_only_identity(vm), "delete_at": at}


def growth_only(vm: dict[str, Any]) -> dict[str, Any]:
    """Return the request `vm` reduced to the growth of the VM's disks."""
    sizes = {key: vm[key] for key in ("disk_gib", "disks") if vm.get(key)}
    return {**_only_identity(vm), **sizes, "only_grows": True}


def _only_identity(vm: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a request that identify the VM."""
    return {key: vm[key] for key in ("service_id", "vmid", "name", "kind") if key in vm}


def power_problem(found: dict[str, Any], state: str) -> str:
    """Return why the VM cannot be brought into `state` now: `running`, `stopped` or `restarted`."""
    if state == "restarted" and found["status"] != "running":
        return f"VM_NOT_RUNNING: VM {found['vmid']} is {found['status']}"
    if state == "running" and deletion_due_at(found):
        return f"VM_STATE: VM {found['vmid']} is marked for deletion; an update with cancel_deletion removes the mark"
    return lock_problem(found)


def backup_problem(found: dict[str, Any], vm: dict[str, Any], storage: str) -> str:
    """Return why a backup is impossible."""
    if not storage:
        return "INVALID_REQUEST: a backup needs backup_storage"
    if vm.get("backup_mode") and vm["backup_mode"] not in ("snapshot", "suspend", "stop"):
        return "INVALID_REQUEST: backup_mode is one of snapshot, suspend, stop"
    return lock_problem(found)


def backup_made(after: dict[str, Any], before: dict[str, Any]) -> str:
    """Return the archive that is new in the facts `after` a backup; an empty text if no archive is new."""
    known = before.get("backups") or []
    return next((str(volume) for volume in reversed(after.get("backups") or []) if volume not in known), "")


def backup_outcome_problem(after: dict[str, Any], before: dict[str, Any], change: dict[str, Any]) -> str:
    """Return why there is no new archive after a backup. `change` is the result of the backup module."""
    if not after.get("reached"):
        return outcome_problem(after, change, "backed up")
    return "" if backup_made(after, before) else "TASK_FAILED: Proxmox reported no error, but there is no new archive"


def migration_problem(found: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return why a migration is impossible. If the VM is already on the target node, there is no problem."""
    target = str(vm.get("target_node") or "")
    if kind_of(vm) == "lxc":
        return "INVALID_REQUEST: no module of community.proxmox migrates a container"
    if not target or found["node"] == target:
        return "" if target else "INVALID_REQUEST: a migration needs target_node"
    is_forbidden = found["status"] == "running" and not is_yes(vm.get("online", True))
    problems = (
        (not found["target"]["exists"], f"NOT_FOUND: no such cluster node '{target}'"),
        (not found["target"]["is_online"], f"NODE_DOWN: node {target} is offline"),
        (is_forbidden, f"VM_STATE: VM {found['vmid']} is running: stop it first, or migrate it online"),
    )
    return next((text for is_problem, text in problems if is_problem), "") or lock_problem(found)


# ---------------------------------------------------------------------- the result


def result(found: dict[str, Any], vm: dict[str, Any], known: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    """Return the result document of a playbook.

    `known` contains the IP addresses that the guest reported earlier. They are used if the guest reports none now.
    `more` contains members that the playbook sets itself: `changed`, `adopted`, `upids` and `planned`.
    """
    exists = found["exists"]
    if not more.get("planned"):
        more.pop("planned", None)
    return {
        "vmid": int(vm["vmid"]),
        "node": str(found["node"] or vm.get("node") or ""),
        "name": str(found["name"] or vm["name"]),
        "status": found["status"] if found["status"] in ("running", "absent") else "stopped",
        "mac_address": found["mac_address"],
        "ip_addresses": found["ip_addresses"] or (list(known) if exists else []),
        "cores": found["cores"] * found["sockets"] if exists else 0,
        "memory_mib": found["memory_mib"] if exists else 0,
        "disk_gib": found["disk_gib"] if exists else 0,
        "tags": found["tags"],
        "changed": False,
        "adopted": False,
        "delete_at": deletion_due_at(found),
        "reboot_required": is_restart_needed(found),
        "upids": [],
        **more,
    }


class FilterModule:
    """Registers the filters of this file for Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by the names that the roles use."""
        return {
            "smith_connection": connection,
            "smith_ca_bundle": ca_bundle,
            "smith_module_environment": module_environment,
            "smith_failure": failure,
            "smith_outcome_unknown": is_outcome_unknown,
            "smith_outcome_problem": outcome_problem,
            "smith_identity_problem": identity_problem,
            "smith_reservation_problem": reservation_problem,
            "smith_lock_problem": lock_problem,
            "smith_request_problem": request_problem,
            "smith_kind": kind_of,
            "smith_console_mode": smith_container.console_mode,
            "smith_ssh_keys": lambda keys: "\n".join(smith_hardware.ssh_keys(keys)),
            "smith_disk_steps": disk_steps,
            "smith_is_blank": is_blank,
            "smith_blank": blank,
            "smith_deletion": deletion,
            "smith_deletion_mark": deletion_mark,
            "smith_growth_only": growth_only,
            "smith_power_problem": power_problem,
            "smith_backup_problem": backup_problem,
            "smith_backup_made": backup_made,
            "smith_backup_outcome_problem": backup_outcome_problem,
            "smith_migration_problem": migration_problem,
            "smith_restart_needed": is_restart_needed,
            "smith_changes": changes,
            "smith_planned": planned,
            "smith_configuration_problem": configuration_problem,
            "smith_snapshot_name": snapshot_name,
            "smith_snapshot_problem": snapshot_problem,
            "smith_result": result,
        }
