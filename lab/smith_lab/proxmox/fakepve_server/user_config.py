# SPDX-License-Identifier: AGPL-3.0-or-later
"""Stores users, API tokens, roles and access control entries, and computes privileges from them as Proxmox does.

The sources are pve-access-control: PVE/AccessControl.pm (roles, add_role_privs, check_path) and PVE/RPCEnvironment.pm
(permissions, which intersects the privileges of a token with those of its user).

fakepve, the library that simulates the Proxmox API, has a method `grant`. It grants a privilege without an access
control entry, so `GET /access/acl` does not list the privilege. Two callers use it: seed.py, which fills a new cluster,
and the control port, through which tests change the cluster.
"""

from __future__ import annotations

import re
from typing import Any

from fakepve.shapes import PRIVILEGES, ROLES

from smith_lab.proxmox.fakepve_server.access import OR_SIGN, AccessChecks

ROOT = "root@pam"
#: The paths in the answer to `GET /access/permissions`, besides the paths of access control entries.
TOP_PATHS = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms")
#: Identifies an access control entry: its path, its kind (user or token), the id of the user or token, and its role.
AclKey = tuple[str, str, str, str]


class UserConfig(AccessChecks):
    """The content of Proxmox's file user.cfg, and the privileges that follow from it.

    The base class AccessChecks checks the privileges that `grant` has granted. This class adds the privileges that
    roles grant.

    In `allowed`, `granted_paths` and `_permissions`, `user` is the id of a user or of a token, such as `smith@pve!job`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # `acl` is fakepve's name: the privileges that `grant` has granted. With None, fakepve would allow everything.
        self.acl = {}
        #: The properties of each user, such as `comment`, by user id.
        self.accounts: dict[str, dict[str, Any]] = {ROOT: {}}
        self.user_tokens: dict[str, dict[str, dict[str, Any]]] = {ROOT: {}}  #: the tokens of each user, by token id
        #: The roles that exist in every cluster. Proxmox calls them special.
        self.special_roles = {name: frozenset(privileges) for name, privileges in ROLES.items()}
        self.roles: dict[str, frozenset[str]] = dict(self.special_roles)
        self.acl_entries: dict[AclKey, int] = {}  #: the value is 1 if the entry applies below its path, too

    def add_account(self, user: str, token: str = "") -> None:
        """Add a user, and a token if `token` is given.

        The caller adds the token's secret to `apitokens`, in which fakepve stores the secrets.
        """
        self.accounts.setdefault(user, {})
        tokens = self.user_tokens.setdefault(user, {})
        if token:
            tokens.setdefault(token, {"privsep": 1})

    def valid_privileges(self) -> frozenset[str]:
        """Return the names of all privileges of the simulated version. Versions 8 and 9 have different privileges."""
        if not self.version.startswith("8."):
            return frozenset(PRIVILEGES)
        return frozenset({*(name for name in PRIVILEGES if not name.startswith("VM.GuestAgent.")), "VM.Monitor"})

    def allowed(self, user: str, path: str, privilege: str) -> bool:
        """Return whether a user or token has a privilege on a path. Of several privileges (`A|B`), one is enough."""
        if super().allowed(user, path, privilege):
            return True
        return not self.privileges_from_roles(user, path).isdisjoint(privilege.split(OR_SIGN))

    def granted_paths(self, user: str) -> set[str]:
        """Return the paths on which `grant` or an access control entry has granted privileges to a user or a token."""
        ids = (user, user.partition("!")[0])
        return super().granted_paths(user) | {
            path for path, _kind, entry_id, _role in self.acl_entries if entry_id in ids
        }

    def privileges_from_roles(self, user_or_token: str, path: str) -> frozenset[str]:
        """Return the privileges of a user or token on a path.

        A token with privilege separation (`privsep`) has a privilege only if roles grant it to both the token and its
        user.
        """
        user, _, token = user_or_token.partition("!")
        if user == ROOT:
            return self.valid_privileges()
        user_privileges = self._privileges_of(self._roles_on(user, "user", path))
        if not token:
            return user_privileges
        token_info = self.user_tokens.get(user, {}).get(token)
        if token_info is None:
            return frozenset()
        return (
            user_privileges & self._privileges_of(self._roles_on(user_or_token, "token", path))
            if token_info["privsep"]
            else user_privileges
        )

    def _privileges_of(self, roles: set[str]) -> frozenset[str]:
        return frozenset().union(*(self.roles.get(role, frozenset()) for role in roles))

    def _roles_on(self, user_or_token: str, kind: str, path: str) -> set[str]:
        """Return the roles of a user or token on a path.

        Each access control entry for the user or token on this path has a role. If there is no entry for the user or
        token on this path, the entries on the nearest path above apply. If a pool contains the guest or storage of the
        path, the roles on the pool are added.
        """
        roles: set[str] = set()
        for each_path in _paths_down_to(path):
            roles_on_path = {
                role
                for (entry_path, entry_kind, entry_id, role), propagates in self.acl_entries.items()
                if (entry_path, entry_kind, entry_id) == (each_path, kind, user_or_token)
                and (propagates or each_path == path)
            }
            roles = roles_on_path or roles
        if "NoAccess" in roles:
            return set()
        for pool in self._pools_with(path):
            roles |= self._roles_on(user_or_token, kind, f"/pool/{pool}")
        return roles

    def _pools_with(self, path: str) -> list[str]:
        """Return the pools that contain the guest or the storage of the path.

        In fakepve, `pools` has the VMIDs of each pool, and `pool_info` has its storages.
        """
        if match := re.fullmatch(r"/vms/(\d+)", path):
            return [name for name, vmids in self.pools.items() if int(match[1]) in vmids]
        storage = path.removeprefix("/storage/")
        return [name for name, info in self.pool_info.items() if path != storage and storage in info["storage"]]

    async def _permissions(self, v: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        """Return the privileges of a user or token by path: those that roles grant and those that `grant` has granted.

        `v` contains the parameters of the request. Without `userid`, the privileges are the caller's. Without `path`,
        the paths are TOP_PATHS, the paths of access control entries and the paths on which `grant` has granted a
        privilege. A path on which the user or token has no privilege is left out.
        """
        granted = await super()._permissions(v, user)
        user_or_token = v.get("userid") or user
        paths = [v["path"]] if v.get("path") else [*TOP_PATHS, *(key[0] for key in self.acl_entries)]
        for path in dict.fromkeys(paths):
            if role_privileges := self.privileges_from_roles(user_or_token, path):
                granted[path] = {**granted.get(path, {}), **dict.fromkeys(sorted(role_privileges), 1)}
        return granted


def _paths_down_to(path: str) -> list[str]:
    """Return `/`, then each path between `/` and the given path, and last the given path."""
    parts = [part for part in path.split("/") if part]
    return ["/", *("/" + "/".join(parts[: count + 1]) for count in range(len(parts)))]
