"""Finds which roles, users, tokens, pools and access control entries Proxmox lacks. This module changes nothing.

The list of privileges comes from `privileges.py`. No planned change removes a privilege or changes an existing user.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from executor.errors import SmithError
from executor.proxmox.privileges import PrivilegeNeed

USER_COMMENT = "Agent Smith"


class SetupRefused(SmithError):
    """Something that exists in Proxmox prevents the set-up. Nothing was changed; an administrator must act."""


@dataclass(frozen=True, order=True)
class AclEntry:
    """An access control entry: the user or token has the role on the path and below it."""

    path: str
    ugid: str  #: such as `smith@pve`, or `smith@pve!job` for a token
    role: str


@dataclass(frozen=True, kw_only=True)
class ExistingAccess:
    """The roles, users, tokens, access control entries and pools that exist in Proxmox."""

    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)  #: the privileges of each role
    users: Mapping[str, bool] = field(default_factory=dict)  #: maps each user to True if the user is enabled
    #: The comment of each token of the agent's user. The keys are the ids of the tokens.
    token_comments: Mapping[str, str] = field(default_factory=dict)
    entries: frozenset[AclEntry] = frozenset()
    pools: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class NeededAccess:
    """The user, the token, the privileges and the pool that the agent needs in Proxmox."""

    user: str
    token_id: str
    needs: tuple[PrivilegeNeed, ...]
    pool: str = ""
    token_comment: str = USER_COMMENT
    creates_token: bool = True  #: True: make the token, and delete an existing one: its secret is not known


class ChangeKind(StrEnum):
    """The kind of object that a change creates or changes."""

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


def plan_changes(wanted: NeededAccess, existing: ExistingAccess) -> list[Change]:
    """Return the necessary changes in the order in which they must be made. Raises SetupRefused."""
    if not existing.users.get(wanted.user, True):
        remedy = shlex.join(["pveum", "user", "modify", wanted.user, "--enable", "1"])
        raise SetupRefused(f"the user {wanted.user} is disabled in Proxmox: {remedy}")
    return [
        *_role_changes(wanted.needs, existing.roles),
        *_user_changes(wanted, existing),
        *_pool_changes(wanted.pool, existing.pools),
        *_token_changes(wanted, existing),
        *_acl_changes(wanted, existing),
    ]


def _role_changes(needs: Iterable[PrivilegeNeed], roles: Mapping[str, frozenset[str]]) -> Iterator[Change]:
    needed: dict[str, frozenset[str]] = {}
    for need in needs:
        needed[need.role] = needed.get(need.role, frozenset()) | need.privileges
    for role, privileges in needed.items():
        if role not in roles:
            names = ",".join(sorted(privileges))
            body = {"roleid": role, "privs": names}
            yield Change(
                kind=ChangeKind.ROLE, text=f"make role {role}: {names}", method="POST", path="/access/roles", body=body
            )
        elif missing := privileges - roles[role]:
            names = ",".join(sorted(missing))
            yield Change(
                kind=ChangeKind.ROLE,
                text=f"add to role {role}: {names}",
                method="PUT",
                path=f"/access/roles/{role}",
                body={"privs": names, "append": 1},
            )


def _user_changes(wanted: NeededAccess, existing: ExistingAccess) -> Iterator[Change]:
    if wanted.user not in existing.users:
        body = {"userid": wanted.user, "comment": USER_COMMENT}
        yield Change(
            kind=ChangeKind.USER, text=f"make user {wanted.user}", method="POST", path="/access/users", body=body
        )


def _pool_changes(pool: str, pools: frozenset[str]) -> Iterator[Change]:
    if pool and pool not in pools:
        yield Change(
            kind=ChangeKind.POOL, text=f"make pool {pool}", method="POST", path="/pools", body={"poolid": pool}
        )


def _token_changes(wanted: NeededAccess, existing: ExistingAccess) -> Iterator[Change]:
    if not wanted.creates_token:
        return
    full_id, path = f"{wanted.user}!{wanted.token_id}", f"/access/users/{wanted.user}/token/{wanted.token_id}"
    if wanted.token_id in existing.token_comments:
        text = f"delete token {full_id}, whose secret is not stored"
        yield Change(kind=ChangeKind.TOKEN, text=text, method="DELETE", path=path)
    body = {"privsep": 1, "comment": wanted.token_comment}
    yield Change(kind=ChangeKind.TOKEN, text=f"make token {full_id}", method="POST", path=path, body=body)


def _acl_changes(wanted: NeededAccess, existing: ExistingAccess) -> Iterator[Change]:
    """Yield one change for each path and role. With privilege separation, user and token both need the role."""
    token = f"{wanted.user}!{wanted.token_id}"
    # When an existing token is replaced, Proxmox deletes its access control entries, so these must be made again.
    entries = {entry for entry in existing.entries if not (wanted.creates_token and entry.ugid == token)}
    for path, role in dict.fromkeys((need.path, need.role) for need in wanted.needs):
        members = {"users": wanted.user, "tokens": token}
        missing = {kind: who for kind, who in members.items() if AclEntry(path, who, role) not in entries}
        if missing:
            text = f"grant role {role} on {path} to {' and '.join(missing.values())}"
            body = {"path": path, "roles": role, **missing}
            yield Change(kind=ChangeKind.ACL, text=text, method="PUT", path="/access/acl", body=body)
