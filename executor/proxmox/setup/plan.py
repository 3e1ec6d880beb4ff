"""Finds which roles, users, tokens, pools and access control entries Proxmox lacks, for `smith init`.

This module changes nothing. No planned change removes a privilege from a role or changes an existing user. The needed
privileges are PrivilegeNeeds: each has a path, a role, and the privileges that this role must contain.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from executor.errors import SmithError
from executor.proxmox.privileges import PrivilegeNeed

COMMENT_ON_CREATED_OBJECTS = "Agent Smith"


class SetupPrevented(SmithError):
    """A disabled user or an unverifiable certificate prevents the set-up in Proxmox. Nothing was changed."""


@dataclass(frozen=True, order=True)
class AclEntry:
    """An access control entry: the user or token has the role on the path and below it."""

    path: str
    ugid: str  #: Proxmox's name for the id of a user (`smith@pve`) or of a token (`smith@pve!job`)
    role: str


@dataclass(frozen=True, kw_only=True)
class ExistingAccess:
    """The roles, users, tokens, access control entries and pools that exist in Proxmox."""

    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)  #: the privileges of each role
    users: Mapping[str, bool] = field(default_factory=dict)  #: maps each user to True if the user is enabled
    #: The comment of each token of the agent's user, by token id. By the comment, `smith init` recognizes a token that
    #: an earlier, interrupted `smith init` has created.
    token_comments: Mapping[str, str] = field(default_factory=dict)
    acl_entries: frozenset[AclEntry] = frozenset()
    pools: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class NeededAccess:
    """The user, the token, the privileges and the pool that the agent needs in Proxmox."""

    user: str
    token_id: str
    needs: tuple[PrivilegeNeed, ...]  #: the needed privileges on each path
    pool: str = ""  #: empty if the agent needs no pool
    token_comment: str = COMMENT_ON_CREATED_OBJECTS  #: the comment that a new token gets
    #: True: a new token is needed. An existing token with this id is deleted first, because its secret is unknown.
    needs_new_token: bool = True


class ChangeKind(StrEnum):
    """The kind of object that a change creates, changes or deletes."""

    ROLE = "role"
    USER = "user"
    POOL = "pool"
    TOKEN = "token"  # noqa: S105 (a kind of object, not a secret)
    ACL = "acl"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One request that changes Proxmox."""

    kind: ChangeKind
    text: str  #: what the request does, for the operator
    method: str
    path: str
    body: Mapping[str, Any] = field(default_factory=dict)


def plan_changes(needed_access: NeededAccess, existing: ExistingAccess) -> list[Change]:
    """Return the necessary changes in the order in which they must be made.

    Raises SetupPrevented if the agent's user is disabled.
    """
    if not existing.users.get(needed_access.user, True):
        remedy = shlex.join(["pveum", "user", "modify", needed_access.user, "--enable", "1"])
        raise SetupPrevented(f"the user {needed_access.user} is disabled in Proxmox; enable it with: {remedy}")
    return [
        *_role_changes(needed_access.needs, existing.roles),
        *_user_changes(needed_access, existing),
        *_pool_changes(needed_access.pool, existing.pools),
        *_token_changes(needed_access, existing),
        *_acl_changes(needed_access, existing),
    ]


def _role_changes(needs: Iterable[PrivilegeNeed], roles: Mapping[str, frozenset[str]]) -> Iterator[Change]:
    privileges_by_role: dict[str, frozenset[str]] = {}
    for need in needs:
        privileges_by_role[need.role] = privileges_by_role.get(need.role, frozenset()) | need.privileges
    for role, privileges in privileges_by_role.items():
        if role not in roles:
            privilege_names = ",".join(sorted(privileges))
            body = {"roleid": role, "privs": privilege_names}
            yield Change(
                kind=ChangeKind.ROLE,
                text=f"create role {role}: {privilege_names}",
                method="POST",
                path="/access/roles",
                body=body,
            )
        elif missing := privileges - roles[role]:
            privilege_names = ",".join(sorted(missing))
            yield Change(
                kind=ChangeKind.ROLE,
                text=f"add privileges to role {role}: {privilege_names}",
                method="PUT",
                path=f"/access/roles/{role}",
                body={"privs": privilege_names, "append": 1},
            )


def _user_changes(needed_access: NeededAccess, existing: ExistingAccess) -> Iterator[Change]:
    if needed_access.user not in existing.users:
        body = {"userid": needed_access.user, "comment": COMMENT_ON_CREATED_OBJECTS}
        yield Change(
            kind=ChangeKind.USER,
            text=f"create user {needed_access.user}",
            method="POST",
            path="/access/users",
            body=body,
        )


def _pool_changes(pool: str, pools: frozenset[str]) -> Iterator[Change]:
    if pool and pool not in pools:
        yield Change(
            kind=ChangeKind.POOL, text=f"create pool {pool}", method="POST", path="/pools", body={"poolid": pool}
        )


def _token_changes(needed_access: NeededAccess, existing: ExistingAccess) -> Iterator[Change]:
    if not needed_access.needs_new_token:
        return
    user, token_id = needed_access.user, needed_access.token_id
    full_id, path = f"{user}!{token_id}", f"/access/users/{user}/token/{token_id}"
    if token_id in existing.token_comments:
        text = f"delete token {full_id}, because Agent Smith does not know its secret"
        yield Change(kind=ChangeKind.TOKEN, text=text, method="DELETE", path=path)
    body = {"privsep": 1, "comment": needed_access.token_comment}
    yield Change(kind=ChangeKind.TOKEN, text=f"create token {full_id}", method="POST", path=path, body=body)


def _acl_changes(needed_access: NeededAccess, existing: ExistingAccess) -> Iterator[Change]:
    """Yield one change for each path and role. With privilege separation, user and token both need the role."""
    token = f"{needed_access.user}!{needed_access.token_id}"
    # When an existing token is replaced, Proxmox deletes its access control entries, so these must be created again.
    acl_entries = {
        entry for entry in existing.acl_entries if not (needed_access.needs_new_token and entry.ugid == token)
    }
    for path, role in dict.fromkeys((need.path, need.role) for need in needed_access.needs):
        grantees = {"users": needed_access.user, "tokens": token}
        missing_grantees = {
            key: ugid for key, ugid in grantees.items() if AclEntry(path, ugid, role) not in acl_entries
        }
        if missing_grantees:
            text = f"grant role {role} on {path} to {' and '.join(missing_grantees.values())}"
            body = {"path": path, "roles": role, **missing_grantees}
            yield Change(kind=ChangeKind.ACL, text=text, method="PUT", path="/access/acl", body=body)
