"""Reads which roles, users, tokens, access control entries and pools exist in Proxmox, for `smith init`."""

from __future__ import annotations

from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import as_int, as_objects, as_text
from executor.proxmox.setup.admin_session import AdminSession
from executor.proxmox.setup.plan import AclEntry, ExistingAccess


def read_existing_access(session: AdminSession, user: str) -> ExistingAccess:
    """Return the existing roles, users, access control entries and pools, and the tokens of `user`.

    `user` is the agent's user at Proxmox. Access control entries that do not apply below their path are left out.
    Raises JobError if a request fails.
    """
    reader = ProxmoxReader.from_session(session)
    users = {
        as_text(row.get("userid")): bool(as_int(row.get("enable", 1))) for row in _read_rows(session, "/access/users")
    }
    tokens = _read_rows(session, f"/access/users/{user}/token") if user in users else []
    return ExistingAccess(
        roles=reader.roles(),
        users=users,
        token_comments={as_text(row.get("tokenid")): as_text(row.get("comment")) for row in tokens},
        acl_entries=frozenset(
            AclEntry(as_text(row.get("path")), as_text(row.get("ugid")), as_text(row.get("roleid")))
            for row in _read_rows(session, "/access/acl")
            if as_int(row.get("propagate", 1))
        ),
        pools=reader.pools(),
    )


def _read_rows(session: AdminSession, path: str) -> list[dict[str, object]]:
    return as_objects(session.get(path))
