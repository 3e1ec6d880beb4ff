"""Lists the privileges that the token needs at Proxmox, finds the missing ones, and returns commands that grant them.

The names of privileges differ between Proxmox VE 8 and 9, and `pveum role add` fails for an unknown name. Tests
(tests/security/test_least_privilege.py) revoke one privilege each and expect that the action fails. The commands in
`deploy/` grant the same privileges. To use a resource pool, VM.Allocate on /vms suffices. VM.Snapshot also allows the
rollback to a snapshot.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

#: The first major version of Proxmox VE in which the privileges VM.GuestAgent.* replace VM.Monitor.
GUEST_AGENT_SINCE = 9
#: The privileges on VMs that have the same name in all supported versions of Proxmox VE.
VM_PRIVILEGES = (
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CDROM",
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


@dataclass(frozen=True, kw_only=True)
class Need:
    """Privileges that are needed on one path, and the role that contains them."""

    path: str
    role: str
    privileges: frozenset[str]
    why: str


def needs(
    major: int,
    *,
    storages: Iterable[str],
    bridge: str = "",
    images: Iterable[str] = (),
    backups: str = "",
) -> list[Need]:
    """Return the needed privileges for each path. `major` is the major version of Proxmox VE.

    `storages` are the storages for disks of VMs, `images` those with ISO images and container templates, and `backups`
    is the storage for backups.
    """
    guest_agent = "VM.GuestAgent.Audit" if major >= GUEST_AGENT_SINCE else "VM.Monitor"
    vm_privileges = frozenset({*VM_PRIVILEGES, guest_agent})
    needed = [Need(path="/vms", role="SmithVM", privileges=vm_privileges, why="for every action")]
    disks = frozenset({"Datastore.AllocateSpace", "Datastore.Audit"})
    for storage in sorted(set(storages)):
        needed.append(Need(path=f"/storage/{storage}", role="SmithStore", privileges=disks, why="for the VMs' disks"))
    for storage in sorted(set(images) - set(storages)):
        audit = frozenset({"Datastore.Audit"})
        needed.append(Need(path=f"/storage/{storage}", role="SmithImages", privileges=audit, why="to list its images"))
    if backups:
        needed.append(Need(path="/vms", role="SmithBackup", privileges=frozenset({"VM.Backup"}), why="for backups"))
    if backups and backups not in set(storages):
        needed.append(Need(path=f"/storage/{backups}", role="SmithStore", privileges=disks, why="for backups"))
    if bridge:
        zone = "/sdn/zones/localnetwork"
        needed.append(
            Need(path=zone, role="SmithNet", privileges=frozenset({"SDN.Use"}), why=f"to use bridge {bridge}")
        )
    return needed


def unmet_needs(wanted: Iterable[Need], granted: Mapping[str, frozenset[str]]) -> dict[Need, frozenset[str]]:
    """Return the unmet needs with their missing privileges. `granted` has the token's privileges by path."""
    all_missing = {need: need.privileges - granted.get(need.path, frozenset()) for need in wanted}
    return {need: missing for need, missing in all_missing.items() if missing}


def pveum_lines(
    unmet: Iterable[Need], roles: Mapping[str, frozenset[str]], *, user: str, token_id: str = ""
) -> list[str]:
    """Return the `pveum` commands that grant the missing privileges. `roles` has the privileges of each existing role.

    A token with privilege separation can use a privilege only if its user has it, too. So the commands grant each
    privilege to the user and to the token.
    """
    lines: list[str] = []
    for need in unmet:
        lines += [*_role_lines(need, roles), *_acl_lines(need, user, token_id)]
    return list(dict.fromkeys(lines))


def _role_lines(need: Need, roles: Mapping[str, frozenset[str]]) -> Iterator[str]:
    existing = roles.get(need.role)
    if existing is None:
        yield f"pveum role add {need.role} --privs {','.join(sorted(need.privileges))}"
    elif missing := need.privileges - existing:
        yield f"pveum role modify {need.role} --append 1 --privs {','.join(sorted(missing))}"


def _acl_lines(need: Need, user: str, token_id: str) -> Iterator[str]:
    path = shlex.quote(need.path)
    yield f"pveum acl modify {path} --users {shlex.quote(user)} --roles {need.role}"
    if token_id:
        yield f"pveum acl modify {path} --tokens {shlex.quote(f'{user}!{token_id}')} --roles {need.role}"
