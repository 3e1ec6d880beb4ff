"""Lists the privileges that the token needs at Proxmox, finds the missing ones, and returns commands that grant them.

Some privileges have different names in Proxmox VE 8 and 9, and `pveum role add` fails for an unknown name. The script
`deploy/pveum-role.sh` grants the same privileges. `tests/security/test_least_privilege.py` checks that all of them are
necessary. The list omits three kinds of privileges that seem necessary: privileges on resource pools (VM.Allocate on
/vms suffices), VM.Snapshot.Rollback (VM.Snapshot suffices), and VM.Config.CDROM (needed only to change an existing CD
drive).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from executor.shared.sdn_zones import LOCAL_ZONE

#: The first major version of Proxmox VE in which the privileges VM.GuestAgent.* replace VM.Monitor.
GUEST_AGENT_PRIVILEGES_SINCE_MAJOR = 9
#: The needed privileges on VMs, except the privilege whose name depends on the version of Proxmox VE.
VM_PRIVILEGES = (
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Snapshot",
)
#: The needed privileges on a storage to which the agent writes disks or backups.
STORAGE_WRITE_PRIVILEGES = frozenset({"Datastore.AllocateSpace", "Datastore.Audit"})
#: The needed privileges on a storage from which the agent only reads.
STORAGE_READ_PRIVILEGES = frozenset({"Datastore.Audit"})


@dataclass(frozen=True, kw_only=True)
class PrivilegeNeed:
    """One need: privileges that the token must have on a path, and the role that contains them."""

    path: str  #: such as `/storage/local-lvm`
    role: str
    privileges: frozenset[str]
    purpose: str  #: why the privileges are needed, as the end of a sentence, such as `for the VMs' disks`


#: An optional need. With this privilege, the agent places each new VM on the node with the most free memory. Without
#: this privilege, it places the VM on the node of its template.
PLACEMENT_NEED = PrivilegeNeed(
    path="/nodes", role="SmithNodes", privileges=frozenset({"Sys.Audit"}), purpose="to read the load of the nodes"
)


def list_privilege_needs(
    major_version: int,
    *,
    disk_storages: Iterable[str],
    bridges: Mapping[str, str] | None = None,
    iso_and_vztmpl_storages: Iterable[str] = (),
    backup_storage: str = "",
) -> list[PrivilegeNeed]:
    """Return the needed privileges for each path. `major_version` is the major version of Proxmox VE.

    `disk_storages` are the storages for the disks of VMs. `iso_and_vztmpl_storages` are the storages for ISO images and
    container templates. `backup_storage` is the storage for backups; '' if the agent makes no backups. `bridges` maps
    each bridge or VNet to its SDN zone.
    """
    guest_agent_privilege = (
        "VM.GuestAgent.Audit" if major_version >= GUEST_AGENT_PRIVILEGES_SINCE_MAJOR else "VM.Monitor"
    )
    vm_privileges = frozenset({*VM_PRIVILEGES, guest_agent_privilege})
    needs = [PrivilegeNeed(path="/vms", role="SmithVM", privileges=vm_privileges, purpose="for every action")]
    writable_storages = frozenset(disk_storages)
    for storage in sorted(writable_storages):
        needs.append(_storage_need(storage, "SmithStore", STORAGE_WRITE_PRIVILEGES, "for the VMs' disks"))
    for storage in sorted(set(iso_and_vztmpl_storages) - writable_storages):
        needs.append(
            _storage_need(storage, "SmithImages", STORAGE_READ_PRIVILEGES, "to list the images on this storage")
        )
    if backup_storage:
        backup_privileges = frozenset({"VM.Backup"})
        needs.append(
            PrivilegeNeed(path="/vms", role="SmithBackup", privileges=backup_privileges, purpose="for backups")
        )
    if backup_storage and backup_storage not in writable_storages:
        needs.append(_storage_need(backup_storage, "SmithStore", STORAGE_WRITE_PRIVILEGES, "for backups"))
    return needs + [privilege_need_for_bridge(bridge, zone) for bridge, zone in (bridges or {}).items()]


def privilege_need_for_bridge(bridge: str, zone: str = LOCAL_ZONE) -> PrivilegeNeed:
    """Return the privilege need of a NIC on this bridge or VNet.

    The default of `zone` is the zone of ordinary bridges. A role on the path of the zone suffices, too, because Proxmox
    passes privileges on to the paths below.
    """
    path, privileges = f"/sdn/zones/{zone}/{bridge}", frozenset({"SDN.Use"})
    return PrivilegeNeed(path=path, role="SmithNet", privileges=privileges, purpose=f"to use bridge {bridge}")


def _storage_need(storage: str, role: str, privileges: frozenset[str], purpose: str) -> PrivilegeNeed:
    return PrivilegeNeed(path=f"/storage/{storage}", role=role, privileges=privileges, purpose=purpose)


def find_unmet_needs(
    needs: Iterable[PrivilegeNeed], granted_privileges: Mapping[str, frozenset[str]]
) -> dict[PrivilegeNeed, frozenset[str]]:
    """Return the unmet needs with their missing privileges.

    `granted_privileges` contains the token's privileges on each path, including inherited ones. The keys are the paths.
    """
    missing_privileges = {need: need.privileges - granted_privileges.get(need.path, frozenset()) for need in needs}
    return {need: missing for need, missing in missing_privileges.items() if missing}


def make_pveum_commands(
    needs: Iterable[PrivilegeNeed], roles: Mapping[str, frozenset[str]], *, user: str, token_id: str = ""
) -> list[str]:
    """Return the `pveum` commands that grant the needed privileges.

    `roles` contains the privileges of each existing role. A token with privilege separation can use a privilege only if
    its user also has the privilege. So the commands grant each privilege to the user and to the token. If `token_id` is
    '', they grant it only to the user.
    """
    commands: list[str] = []
    for need in needs:
        commands += [*_role_commands(need, roles), *_acl_commands(need, user, token_id)]
    return list(dict.fromkeys(commands))  # without duplicates


def _role_commands(need: PrivilegeNeed, roles: Mapping[str, frozenset[str]]) -> Iterator[str]:
    existing_privileges = roles.get(need.role)
    if existing_privileges is None:
        yield f"pveum role add {need.role} --privs {','.join(sorted(need.privileges))}"
    elif missing := need.privileges - existing_privileges:
        yield f"pveum role modify {need.role} --append 1 --privs {','.join(sorted(missing))}"


def _acl_commands(need: PrivilegeNeed, user: str, token_id: str) -> Iterator[str]:
    path = shlex.quote(need.path)
    yield f"pveum acl modify {path} --users {shlex.quote(user)} --roles {need.role}"
    if token_id:
        yield f"pveum acl modify {path} --tokens {shlex.quote(f'{user}!{token_id}')} --roles {need.role}"


def are_tags_restricted(
    options: Mapping[str, Any], needed_tags: Collection[str], visible_tags: Collection[str]
) -> bool:
    """Return whether Proxmox forbids some tags to a token without Sys.Modify on `/`.

    `options` are the options of the cluster, `needed_tags` the tags that the agent sets, and `visible_tags` the tags of
    all VMs that the token may see. Some tags are forbidden in any of three cases:

    1. The option `user-tag-access` does not allow every tag.
    2. The option `registered-tags` lists a needed tag. To set a registered tag, a token needs Sys.Modify on `/`.
    3. A visible tag is missing in `allowed-tags`, a list that Proxmox computes for the token that reads the options. If
       no tag is forbidden, it contains every visible tag.

    A token without Sys.Audit on `/` can read only `allowed-tags`. For this token, only case 3 can be detected.
    """
    access = options.get("user-tag-access")
    user_allow = access.get("user-allow", "free") if isinstance(access, Mapping) else "free"
    is_any_tag_registered = not set(needed_tags).isdisjoint(options.get("registered-tags") or ())
    return (
        user_allow != "free" or is_any_tag_registered or not set(visible_tags) <= set(options.get("allowed-tags") or ())
    )
