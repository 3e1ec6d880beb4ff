# SPDX-License-Identifier: Apache-2.0
"""What the roles decide: pure functions from what Proxmox says and what is asked for to what is to be done.

`vm` is the extra var of every playbook (docs/actions.md), `found` is what `smith_vm_facts` answered. A problem is a
text `CODE: why`, or an empty one. Nothing here asks Proxmox, so every decision is a table of cases in a test.
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
    from executor.proxmox.error_rules import Reaction, classify
except ImportError:  # by hand: an ansible that does not have our package
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from executor.proxmox.error_rules import Reaction, classify

sys.path.insert(0, str(Path(__file__).resolve().parent))  # Ansible loads each file by itself
import smith_container
import smith_hardware
from smith_hardware import is_yes

TAG = "smith"
#: Says that Proxmox's protection flag is the service's own wish, and not an operator's.
PROTECTED_TAG = "smith-protected"
#: Says when the VM is to be destroyed, in seconds since 1970. A container takes one tag only, so it has a line.
DOOMED_TAG = re.compile(r"smith-delete-(\d{1,12})")
DOOMED_LINE = re.compile(r"^smith-delete=(\d{1,12})\s*?$", re.MULTILINE)
#: Lines of a description that are for us to write.
OUR_LINES = re.compile(r"^smith-(?:uid|delete)=.*$", re.MULTILINE | re.IGNORECASE)
#: The modules' parameter, and the variable that it comes from without a credentials file.
CONNECTION = {
    "api_host": "PROXMOX_HOST",
    "api_port": "PROXMOX_PORT",
    "api_user": "PROXMOX_USER",
    "api_token_id": "PROXMOX_TOKEN_ID",
    "api_token_secret": "PROXMOX_TOKEN_SECRET",
    "api_password": "PROXMOX_PASSWORD",
    "validate_certs": "PROXMOX_VALIDATE_CERTS",
}
NO = ("0", "false", "no", "off")
#: Locks that end by themselves when Proxmox has finished what it is doing.
UNFINISHED = ("clone", "create")
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")
FORGED_LINE = re.compile(r"smith-(uid|delete)=", re.IGNORECASE)


# ---------------------------------------------------------------------- the connection


def connection(credentials_file: str) -> dict[str, Any]:
    """Return the modules' login from the credentials file, or from `PROXMOX_*` when there is none.

    Empty values are left out (an empty port is an error to the modules), and the certificate is always verified
    unless somebody says otherwise: the modules' own default differs from version to version.
    """
    values = _read_file(credentials_file) if credentials_file else _read_environment()
    found = {key: values[key] for key in CONNECTION if values.get(key) not in (None, "")}
    found["validate_certs"] = str(found.get("validate_certs", "true")).strip().lower() not in NO
    return found


def ca_bundle(credentials_file: str) -> str:
    """Return the file with the cluster's CA, or nothing when the system's own are to be used."""
    named = _read_file(credentials_file).get("ca_bundle", "") if credentials_file else ""
    return str(named or os.environ.get("PROXMOX_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or "")


def module_environment(bundle: str) -> dict[str, str]:
    """Return what the modules' processes need: community.proxmox 1.4 takes its CA from the environment only.

    A configuration write waits up to 10 s for Proxmox's lock, so the modules' own 5 s are too short where they can
    be told so (since 1.6).
    """
    environment = {"PROXMOX_API_TIMEOUT": "30"}
    return environment | ({"REQUESTS_CA_BUNDLE": bundle, "PROXMOX_CA_PATH": bundle} if bundle else {})


def _read_file(path: str) -> dict[str, Any]:
    # As safe as the other, and ten times as fast: every task asks.
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
    """Turn a failed task's result into `CODE: text`."""
    failed = [item for item in result.get("results") or [] if item.get("failed")]
    result = failed[0] if failed else result  # a loop itself says only that some item failed
    found = classify(str(result.get("msg") or result.get("module_stderr") or result.get("stdout") or ""))
    return f"{found.code}: {found.text}"


def is_outcome_unknown(result: dict[str, Any]) -> bool:
    """Tell whether a change may have happened although its module failed: who asks must look, not give up."""
    text = str(result.get("msg", ""))
    if "Reached timeout" in text or "deserialization failed" in text:
        return True  # the second: the module was killed, or proxmox_snap left without an answer
    found = classify(text)
    return found.reaction is Reaction.LOOK or found.code in ("PVE_UNREACHABLE", "VM_ID_TAKEN")


def outcome_problem(found: dict[str, Any], change: dict[str, Any], wanted: str) -> str:
    """Say why a VM is not as it should be after a change: the Proxmox task's own words before the module's."""
    if found.get("reached"):
        return ""
    text = found.get("task_error") or (change.get("msg", "") if is_outcome_unknown(change) else "")
    if text:
        code, words = classify(text).code, classify(text).text
        return f"{'TASK_FAILED' if code == 'PLAYBOOK_FAILED' else code}: {words}"
    if found.get("lock"):
        return f"VM_LOCKED: VM is locked ({found['lock']}) and not {wanted} in time"
    return f"TASK_FAILED: VM {found['vmid']} is {found['status']}, not {wanted}, although Proxmox reported no error"


# ---------------------------------------------------------------------- whose VM is it


def identity_problem(found: dict[str, Any], vm: dict[str, Any], may_be_absent: bool = False) -> str:
    """Say why this VM must not be touched. Nothing but the service's own, live, unprotected VM passes."""
    vmid, is_live = vm["vmid"], found["exists"] and found["kind"] == kind_of(vm)
    is_ours = found["exists"] and (is_marked(found, vm) or (may_be_absent and is_half_made(found, vm)))
    if not UUID.fullmatch(str(vm["service_id"])):
        return "INVALID_REQUEST: service_id is not a UUID"
    if not found["exists"]:
        return absence_problem(found, vmid, may_be_absent)
    problems = (
        (not is_live, f"VM_IDENTITY_MISMATCH: {vmid} is of kind {found['kind']}, not {kind_of(vm)}"),
        (not is_ours, f"VM_IDENTITY_MISMATCH: VM {vmid} ({found['name']}) {_whose(found)}"),
        (found["name"] != vm["name"], f"VM_IDENTITY_MISMATCH: VM {vmid} is called {found['name']}, not {vm['name']}"),
        (found["is_template"], f"VM_PROTECTED: VM {vmid} is a template"),
        (is_guarded(found, may_be_absent), f"VM_PROTECTED: VM {vmid} has Proxmox's protection flag"),
    )
    return next((text for is_problem, text in problems if is_problem), "")


def kind_of(vm: dict[str, Any]) -> str:
    """Return what is asked for: `qemu`, a virtual machine, or `lxc`, a container."""
    return str(vm.get("kind") or "qemu")


def is_marked(found: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Tell whether the VM carries the service's marker, and no other."""
    return bool(found["markers"] == [str(vm["service_id"]).lower()])


def is_half_made(found: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Tell whether this is a clone of ours that a create has left without its marker.

    Asked of a deletion only, and only when who asks knows that the VMID is still no more than reserved. The name then
    proves as much as it does to a create, which would finish such a clone: it was reserved for this service alone.
    """
    return is_yes(vm.get("half_made", False)) and not found["markers"] and found["name"] == vm["name"]


def is_guarded(found: dict[str, Any], is_deletion: bool) -> bool:
    """Tell whether the protection flag keeps us off.

    An operator's flag keeps us off the VM altogether. One that the service asked for, which a tag says, keeps us from
    deleting it, as Proxmox means it: an update must be able to take it away again.
    """
    return bool(found["is_protected"] and (is_deletion or PROTECTED_TAG not in found["tags"]))


def absence_problem(found: dict[str, Any], vmid: int, may_be_absent: bool) -> str:
    """Say why "not there" is no success: it is not wanted, or not proven."""
    absence = found["absence"]
    if not absence["is_proven"]:
        return f"{absence['code'] or 'PVE_PERMISSION'}: {absence['text'] or f'VM {vmid} cannot be seen'}"
    return "" if may_be_absent else f"VM_NOT_FOUND: VM {vmid} does not exist"


def reservation_problem(found: dict[str, Any], vm: dict[str, Any]) -> str:
    """Say why a create must not use this VMID: it is neither free nor held by the service's own half-made VM.

    A clone carries the template's description until the first configuration, so "no marker" proves nothing; the name
    was reserved for this service alone.
    """
    if not UUID.fullmatch(str(vm["service_id"])):
        return "INVALID_REQUEST: service_id is not a UUID"
    if not found["exists"]:
        return ""
    taken = f"VM_ID_TAKEN: VMID {vm['vmid']} is held by {found['name'] or 'a guest'} on {found['node']}"
    if found["kind"] != kind_of(vm) or found["is_template"]:
        return taken
    if is_marked(found, vm):
        return f"VM_PROTECTED: VM {vm['vmid']} has Proxmox's protection flag" if is_guarded(found, False) else ""
    return taken if found["markers"] or found["name"] != vm["name"] else ""


def lock_problem(found: dict[str, Any]) -> str:
    """Say why a change has to wait."""
    if found.get("lock") and found["lock"] != "suspended":
        return f"VM_LOCKED: VM is locked ({found['lock']})"
    return ""


def _whose(found: dict[str, Any]) -> str:
    if not found["markers"]:
        return "carries no marker of ours"
    return f"belongs to {' and '.join(found['markers'])}"


# ---------------------------------------------------------------------- is the request possible


def request_problem(found: dict[str, Any], vm: dict[str, Any], is_create: bool = True) -> str:
    """Say why a create or an update cannot be carried out. Asked before anything is changed."""
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
        return f"NOT_FOUND: VM {source['vmid']} is no template"
    return smith_hardware.problem(source, vm)


def is_blank(vm: dict[str, Any]) -> bool:
    """Tell whether the VM is to be made without a template: its disks are empty."""
    return bool(vm.get("iso") or is_yes(vm.get("blank", False)))


def _blank_problem(vm: dict[str, Any]) -> str:
    if vm.get("template_vmid") or vm.get("template"):
        return "INVALID_REQUEST: a VM is made from a template, or from iso or blank, not from both"
    if not vm.get("node"):
        return "INVALID_REQUEST: a VM without a template needs node"
    if vm.get("iso") and not smith_hardware.VOLUME.fullmatch(str(vm["iso"])):
        return "INVALID_REQUEST: iso is not of the form storage:iso/file"
    return ""


# ---------------------------------------------------------------------- what differs


def changes(found: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return the parameters of proxmox_kvm that differ from what Proxmox has; empty when nothing does.

    All of them go in one request. The first one after a clone carries the marker with it, so there is no moment at
    which a VM of ours is configured but unmarked.
    """
    if kind_of(vm) == "lxc":
        asked = {**_identity(found, vm), **smith_container.wanted(found, vm)}
        asked["hostname"] = asked.pop("name")
        left = {key: _differing(found, key, value) for key, value in asked.items() if value is not None}
        return {key: value for key, value in left.items() if value is not None}
    login = smith_hardware.login(found, vm) | {"cipassword": _password(found, vm, is_create)}
    wanted = {**_identity(found, vm), **smith_hardware.wanted(found, vm), **login}
    left = {key: _differing(found, key, value) for key, value in wanted.items() if value is not None}
    return {key: value for key, value in left.items() if value is not None}


def planned(found: dict[str, Any], vm: dict[str, Any], is_create: bool = False) -> dict[str, Any]:
    """Return what a run would change, for people: the same as `changes`, without the password, and the disks."""
    plan = changes(found, vm, is_create)
    if "cipassword" in plan:
        plan["cipassword"] = "(set)"
    for step in disk_steps(found, vm):
        said = smith_hardware.described(step)
        plan[step["disk"]] = f"{plan[step['disk']]}, {said}" if step["disk"] in plan else said
    return plan


def blank(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of proxmox_kvm for a VM without a template, marker and disks included.

    It boots from its first disk, and from the ISO as long as that one is empty.
    """
    if kind_of(vm) == "lxc":
        return changes(found, vm, True)
    asked = smith_hardware.disk_steps(found, vm)
    drives: dict[str, dict[str, str]] = {bus: {} for bus in ("scsi", "virtio", "sata", "ide")}
    for step in asked:
        drives[step["disk"].rstrip("0123456789")][step["disk"]] = f"{step['storage']}:{step['size']}"
    order = [asked[0]["disk"]] if asked else []
    if vm.get("iso"):
        drives["ide"][smith_hardware.CDROM] = f"{vm['iso']},media=cdrom"
        order.append(smith_hardware.CDROM)
    boot = {"boot": "order=" + ";".join(order)} if order else {}
    return {**boot, **changes(found, vm, True), **{bus: disks for bus, disks in drives.items() if disks}}


def disk_steps(found: dict[str, Any], vm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of proxmox_disk that are left. It knows no containers."""
    return [] if kind_of(vm) == "lxc" else smith_hardware.disk_steps(found, vm)


def is_restart_needed(found: dict[str, Any]) -> bool:
    """Tell whether values wait for the next start."""
    return bool(found["pending"]) and found["status"] == "running"


def description(vm: dict[str, Any]) -> str:
    """Return the description with our lines as its last ones. What the service says must not forge another."""
    said = FORGED_LINE.sub(r"smith-\1: ", str(vm.get("description") or "")).strip()
    doom = f"smith-delete={vm['delete_at']}\n" if kind_of(vm) == "lxc" and vm.get("delete_at") else ""
    ours = f"{doom}smith-uid={str(vm['service_id']).lower()}"
    return f"{said}\n\n{ours}" if said else ours


def _identity(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    has_marker = is_marked(found, vm)
    said = _description(found, vm, has_marker)
    return {"name": str(vm["name"]), "description": said, "tags": _tags(found, vm, has_marker)}


def _description(found: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> str | None:
    """Return the whole description, or None when nobody asks for another one."""
    if "description" in vm or not has_marker:
        return description(vm)
    if kind_of(vm) == "lxc" and (vm.get("delete_at") or _is_called_back(found, vm)):
        return description({**vm, "description": OUR_LINES.sub("", str(found["config"].get("description") or ""))})
    return None


def _tags(found: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> list[str] | None:
    """Return the whole set of tags, or None when nobody asks for another one."""
    is_asked, protection = "tags" in vm, vm.get("protection")
    delete_at = vm.get("delete_at") if kind_of(vm) == "qemu" else None
    is_called_back = kind_of(vm) == "qemu" and _is_called_back(found, vm)
    if not is_asked and has_marker and protection is None and not delete_at and not is_called_back:
        return None
    given = {str(tag).lower() for tag in vm.get("tags") or []}
    ours = {tag for tag in given if tag.startswith(f"{TAG}-")}  # these are for us to set
    asked = {TAG, *(given - ours if is_asked or not has_marker else found["tags"])} - {PROTECTED_TAG}
    if delete_at or is_called_back:
        asked = {tag for tag in asked if not DOOMED_TAG.fullmatch(tag)}
    if delete_at:
        asked |= {f"{TAG}-delete-{delete_at}"}
    is_guarded = PROTECTED_TAG in found["tags"] and has_marker if protection is None else is_yes(protection)
    return sorted(asked | ({PROTECTED_TAG} if is_guarded else set()))


def _is_called_back(found: dict[str, Any], vm: dict[str, Any]) -> bool:
    return is_yes(vm.get("cancel_deletion", False)) and bool(doomed_at(found))


def _password(found: dict[str, Any], vm: dict[str, Any], is_create: bool) -> str | None:
    # Proxmox shows stars, so a password cannot be compared: a create sets it once, an update whenever it is given.
    # A password without our marker is the template's.
    if is_create and found.get("has_password") and is_marked(found, vm):
        return None
    return (vm.get("cloud_init") or {}).get("password") or None


def _differing(found: dict[str, Any], key: str, value: Any) -> Any:
    """Return what of a parameter differs from what Proxmox has, or None."""
    config = found["config"]
    if isinstance(value, dict):
        return {name: text for name, text in value.items() if _parts(config.get(name)) != _parts(text)} or None
    in_force = {
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
    is_same = in_force.get(key, str(config.get(key, ""))) == (str(value) if key in ("balloon", "swap") else value)
    return None if is_same else value


def _parts(text: Any) -> set[str]:
    return set(str(text or "").split(","))


def configuration_problem(after: dict[str, Any], vm: dict[str, Any], changes_made: list[dict[str, Any]]) -> str:
    """Say what Proxmox still has differently after a configuration, and why, as far as anybody said."""
    left = sorted(set(changes(after, vm, is_create=True)) - {"cipassword"})
    left += [f"{step['disk']} ({smith_hardware.described(step)})" for step in disk_steps(after, vm)]
    if not left:
        return ""
    if after.get("task_error"):
        return failure({"msg": after["task_error"]})
    made = [one for change in changes_made for one in change.get("results", [change])]
    unsure = next((failure(change) for change in made if is_outcome_unknown(change)), "")
    return unsure or f"TASK_FAILED: VM {vm['vmid']} has not taken {', '.join(left)}"


# ---------------------------------------------------------------------- snapshots


def snapshot_name(found: dict[str, Any], asked: str, state: str) -> str:
    """Return the snapshot that is meant: the one asked for, or the newest, or a name for a new one.

    A new name counts the snapshots that there are, so that a run that is repeated before Proxmox took the snapshot
    takes the same name.
    """
    names = [snapshot["name"] for snapshot in found.get("snapshots") or []]
    if asked:
        return str(asked)
    if state == "rolled_back":
        return str(names[-1]) if names else ""
    return next(name for number in range(1, len(names) + 2) if (name := f"{TAG}-{number}") not in names)


def snapshot_problem(found: dict[str, Any], name: str, state: str) -> str:
    """Say why a snapshot cannot be taken, or rolled back to. The old modules say "ok" when it is missing."""
    names = [snapshot["name"] for snapshot in found.get("snapshots") or []]
    if state == "rolled_back":
        return "" if name and name in names else f"NOT_FOUND: VM {found['vmid']} has no snapshot {name}".rstrip()
    if not SNAPSHOT_NAME.fullmatch(name):
        return "INVALID_REQUEST: a snapshot's name starts with a letter and has 2 to 40 letters, digits, - and _"
    return ""


# ---------------------------------------------------------------------- deletion, backup, migration


def deletion(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return what a delete does now: `destroy`; with a time of grace `mark`, then `wait`, then `destroy`; and when.

    The time is on the VM itself, so whoever looks at Proxmox sees it, and no memory of ours can lose it. Whoever takes
    it off calls the deletion back: `only_when_due` destroys nothing then, it says `spare`.
    """
    at = doomed_at(found) if found["exists"] else 0
    is_due = 0 < at <= found.get("looked_at", 0)
    if found["exists"] and is_yes(vm.get("only_when_due", False)):
        return {"step": "destroy" if is_due else "wait" if at else "spare", "at": at}
    if not found["exists"] or not int(vm.get("grace_s") or 0):
        return {"step": "destroy", "at": 0}
    if not at:
        return {"step": "mark", "at": found["looked_at"] + int(vm["grace_s"])}
    return {"step": "destroy" if is_due else "wait", "at": at}


def doomed_at(found: dict[str, Any]) -> int:
    """Return when the VM is to be destroyed, in seconds since 1970; 0 when it is not."""
    if found["kind"] == "lxc":
        matches = DOOMED_LINE.finditer(str(found["config"].get("description") or ""))
    else:
        matches = filter(None, map(DOOMED_TAG.fullmatch, found["tags"]))
    return max((int(match.group(1)) for match in matches), default=0)


def doomed(vm: dict[str, Any], at: int) -> dict[str, Any]:
    """Return the wish to have the VM marked for deletion, and nothing else of what is asked for."""
    return {**_only_identity(vm), "delete_at": at}


def growing(vm: dict[str, Any]) -> dict[str, Any]:
    """Return the wish to have the VM's disks grown, and nothing else of what is asked for."""
    asked = {key: vm[key] for key in ("disk_gib", "disks") if vm.get(key)}
    return {**_only_identity(vm), **asked, "only_grows": True}


def _only_identity(vm: dict[str, Any]) -> dict[str, Any]:
    return {key: vm[key] for key in ("service_id", "vmid", "name", "kind") if key in vm}


def power_problem(found: dict[str, Any], state: str) -> str:
    """Say why the VM must not be started, stopped or restarted now."""
    if state == "restarted" and found["status"] != "running":
        return f"VM_NOT_RUNNING: VM {found['vmid']} is {found['status']}"
    if state == "running" and doomed_at(found):
        return (
            f"VM_STATE: VM {found['vmid']} is marked for deletion; an update with cancel_deletion takes the mark away"
        )
    return lock_problem(found)


def backup_problem(found: dict[str, Any], vm: dict[str, Any], storage: str) -> str:
    """Say why no backup can be made."""
    if not storage:
        return "INVALID_REQUEST: a backup needs backup_storage"
    if vm.get("backup_mode") and vm["backup_mode"] not in ("snapshot", "suspend", "stop"):
        return "INVALID_REQUEST: backup_mode is one of snapshot, suspend, stop"
    return lock_problem(found)


def backup_made(after: dict[str, Any], before: dict[str, Any]) -> str:
    """Return the archive that was not there before, or nothing."""
    known = before.get("backups") or []
    return next((str(volume) for volume in reversed(after.get("backups") or []) if volume not in known), "")


def backup_outcome_problem(after: dict[str, Any], before: dict[str, Any], change: dict[str, Any]) -> str:
    """Say why there is no new archive after a backup."""
    if not after.get("reached"):
        return outcome_problem(after, change, "backed up")
    return "" if backup_made(after, before) else "TASK_FAILED: Proxmox reported no error, but there is no new archive"


def migration_problem(found: dict[str, Any], vm: dict[str, Any]) -> str:
    """Say why the VM cannot go where it is wanted. Empty too when it is there."""
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
    """Return the document that every playbook ends with; `more` adds changed, adopted, upids, planned.

    `known` are addresses that the guest told before: they count when nothing newer is known.
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
        "delete_at": doomed_at(found),
        "reboot_required": is_restart_needed(found),
        "upids": [],
        **more,
    }


class FilterModule:
    """Ansible's door: every decision is a filter named after it."""

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
            "smith_doomed": doomed,
            "smith_growing": growing,
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
