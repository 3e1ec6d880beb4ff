# SPDX-License-Identifier: Apache-2.0
"""Decides whether a request names only bridges, VLANs, storages and tags that the provider offers.

`vm` is the request (docs/actions.md). Its member `allowed` lists the values that the request may name. Without this
member, the request may name every value. `facts` are the facts of the guest. Before a clone, they are the facts of the
template. Before a creation without a template, they contain no disks and no configuration.
A value that the guest already has is not checked: the provider may have removed this value from the list, and updates
of the guest must still be possible. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from .disks import default_storage, requested_disks
from .nics import requested_nics

#: The entry of a list in `allowed` that allows every value. At the end of an entry for tags, it stands for any text.
ANY_VALUE = "*"


def request_problem(facts: dict[str, Any], vm: dict[str, Any], *, is_new: bool) -> str:
    """Return why the request is not allowed, as `CODE: reason`; an empty text if it is allowed.

    `is_new` is true if the guest does not exist yet.
    """
    return next(filter(None, _problems(facts, vm, is_new)), "")


def backup_problem(vm: dict[str, Any], storage: str) -> str:
    """Return why no backup may be made to this storage; an empty text if a backup is allowed."""
    return _storage_problem(vm, storage, "backup_storages")


def may_change_tag(vm: dict[str, Any], tag: str) -> bool:
    """Return whether the request may set or remove this tag. Without the member `allowed`, every change is allowed."""
    return "allowed" not in vm or any(_is_allowed_tag(tag, entry) for entry in vm["allowed"].get("tags") or ())


def _problems(facts: dict[str, Any], vm: dict[str, Any], is_new: bool) -> Iterator[str]:
    if "allowed" not in vm:
        return
    facts = {"disks": {}, "config": {}, **facts}
    config = facts["config"]
    yield _tag_problem(facts, vm, is_new)
    for number, nic in requested_nics(vm).items():
        yield from _nic_problems(vm, nic, str(config.get(f"net{number}", "")))
    yield from _disk_problems(facts, vm)
    # For an empty request, `default_storage` returns the storage of the guest's first disk. An existing guest may keep
    # this storage.
    if is_new or vm.get("storage") != default_storage(facts, {}):
        yield _storage_problem(vm, str(vm.get("storage") or ""))
    if is_new:
        yield _storage_problem(vm, _storage_of(vm.get("iso")))
    snippet = (vm.get("cloud_init") or {}).get("vendor_snippet")
    if f"vendor={snippet}" not in str(config.get("cicustom", "")).split(","):
        yield _storage_problem(vm, _storage_of(snippet))


def _tag_problem(facts: dict[str, Any], vm: dict[str, Any], is_new: bool) -> str:
    """Return a problem if the provider does not offer a requested tag; '' if there is none.

    A requested tag that the guest already has is not checked. But if `markers` (the service ids in the guest's
    description) is empty, all requested tags are checked: the guest may be an unfinished clone, whose tags are those of
    its template.
    """
    current_tags = set() if is_new or not facts.get("markers") else set(facts.get("tags") or ())
    for tag in {str(tag).lower() for tag in vm.get("tags") or []} - current_tags:
        if not may_change_tag(vm, tag):
            return f"INVALID_REQUEST: the tag {tag} is not offered by the provider"
    return ""


def _is_allowed_tag(tag: str, entry: str) -> bool:
    """Return whether an entry, which is a tag or the beginning of tags such as `customer-*`, allows the tag."""
    return tag.startswith(entry.removesuffix(ANY_VALUE)) if entry.endswith(ANY_VALUE) else tag == entry


def _nic_problems(vm: dict[str, Any], nic: dict[str, Any], current_value: str) -> Iterator[str]:
    """Yield the problems of one requested NIC. `current_value` is the value of `netN` in the configuration."""
    options = dict(part.partition("=")[::2] for part in current_value.split(","))
    bridge, current_bridge, current_vlan = str(nic.get("bridge") or ""), options.get("bridge", ""), options.get("tag")
    is_on_new_bridge = bridge not in ("", current_bridge)
    if is_on_new_bridge and not _is_allowed(bridge, vm["allowed"].get("bridges")):
        yield f"INVALID_REQUEST: the bridge {bridge} is not offered by the provider"
    # A VLAN is checked together with its bridge: on another bridge, the same VLAN number means another network.
    # A request without `vlan` keeps the current VLAN. 0 means no VLAN, which is always allowed.
    vlan = int(current_vlan or 0) if nic.get("vlan") is None else int(nic["vlan"])
    is_same_network = not is_on_new_bridge and str(vlan) == current_vlan
    if vlan and not is_same_network and not _is_allowed_vlan(vlan, vm["allowed"].get("vlans")):
        yield f"INVALID_REQUEST: the VLAN {vlan} is not offered by the provider"


def _disk_problems(facts: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    for name, requested_disk in requested_disks(facts, vm).items():
        current_storage = facts["disks"].get(name, {}).get("storage", "")
        # The default storage is `vm["storage"]`, which `_problems` checks, or else the storage of the first disk.
        if requested_disk["storage"] not in (current_storage, default_storage(facts, vm)):
            yield _storage_problem(vm, requested_disk["storage"])


def _storage_problem(vm: dict[str, Any], storage: str, list_name: str = "storages") -> str:
    if not storage or "allowed" not in vm or _is_allowed(storage, vm["allowed"].get(list_name)):
        return ""
    return f"INVALID_REQUEST: the storage {storage} is not offered by the provider"


def _storage_of(volume: Any) -> str:
    """Return the storage of a volume such as `local:iso/debian.iso`; an empty text if there is no volume."""
    return str(volume or "").partition(":")[0]


def _is_allowed(name: str, allowed: Collection[str] | None) -> bool:
    return name in (allowed or ()) or ANY_VALUE in (allowed or ())


def _is_allowed_vlan(vlan: int, allowed: Collection[str] | None) -> bool:
    """Return whether the list, which contains VLANs and ranges such as 100-199, contains the VLAN."""
    for entry in allowed or ():
        first, _, last = str(entry).partition("-")
        if first == ANY_VALUE or int(first) <= vlan <= int(last or first):
            return True
    return False
