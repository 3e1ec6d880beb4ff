# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers the requests that read and change users, API tokens, roles and access control entries.

The sources are pve-access-control: PVE/API2/Role.pm, User.pm, ACL.pm and AccessControl.pm. Before fakepve (the
simulation of Proxmox that this package extends) calls a method of this module, fakepve checks the parameters and the
permissions of the request by the schema of Proxmox's API.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Iterator
from typing import Any

from aiohttp import web
from fakepve.model import PveError
from fakepve.routing import die, param_error, split_list
from fakepve.server import API, ok, params

from smith_lab.proxmox.fakepve_server.user_config import UserConfig

#: Parameters of the request that creates a user. Answers about the user contain their values.
USER_MEMBERS = ("expire", "firstname", "lastname", "email", "comment", "keys")
_NAME = r"[A-Za-z0-9._-]+"
#: The paths that may have access control entries, as in Proxmox's function `check_path`.
_ACL_PATH = re.compile(
    rf"/|/access(?:/groups|/realm)?|/access/(?:groups|realm)/{_NAME}|/nodes(?:/{_NAME})?|/pool(?:/{_NAME}){{0,3}}|/sdn"
    rf"|/sdn/(?:controllers|dns|fabrics|ipams)(?:/{_NAME})?|/sdn/zones(?:/{_NAME}){{0,2}}"
    rf"|/sdn/zones/{_NAME}/{_NAME}/[1-9][0-9]{{0,3}}|/storage(?:/{_NAME})?|/vms(?:/[1-9][0-9]{{2,}})?"
    rf"|/mapping(?:/{_NAME}){{0,2}}"
)


class AccessRequests(UserConfig):
    """Handles requests below `/access`.

    `v` contains the values of a request, as in fakepve: the parameters of the path, the query and the body.
    `die` and `param_error` make the exception for an error answer. `accounts` contains every user with the values of
    USER_MEMBERS. fakepve's members `users` and `apitokens` contain only secrets: the passwords by user, and the secrets
    by token. `user_tokens` contains the properties of each user's tokens, such as `privsep`. fakepve's method
    `need_quorum` raises PveError if the cluster has no quorum. `refused_users_and_tokens` contains the disabled users
    and the expired tokens.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.totp_code = ""  #: the second factor of a login with a password; '': none is needed
        self._challenges: dict[str, str] = {}  #: maps each challenge for a second factor to the user who logs in

    def _routes_roles_and_users(self) -> list[tuple[str, str, Any]]:
        """Return the routes of the requests. fakepve calls every method whose name starts with `_routes_`."""
        return [
            ("GET", "/access/roles", self._role_list),
            ("POST", "/access/roles", self._role_create),
            ("GET", "/access/roles/{roleid}", self._role_read),
            ("PUT", "/access/roles/{roleid}", self._role_update),
            ("DELETE", "/access/roles/{roleid}", self._role_delete),
            ("GET", "/access/users", self._user_list),
            ("POST", "/access/users", self._user_create),
            ("GET", "/access/users/{userid}/token", self._token_list),
            ("GET", "/access/users/{userid}/token/{tokenid}", self._token_read),
            ("POST", "/access/users/{userid}/token/{tokenid}", self._token_create),
            ("DELETE", "/access/users/{userid}/token/{tokenid}", self._token_delete),
            ("GET", "/access/acl", self._acl_list),
            ("PUT", "/access/acl", self._acl_update),
        ]

    # --- roles ---

    async def _role_list(self, _v: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        return [
            {"roleid": name, "privs": ",".join(sorted(privileges)), "special": int(name in self.special_roles)}
            for name, privileges in self.roles.items()
        ]

    async def _role_read(self, v: dict[str, Any], _user: str) -> dict[str, int]:
        self._require_role(v["roleid"])
        return dict.fromkeys(sorted(self.roles[v["roleid"]]), 1)

    async def _role_create(self, v: dict[str, Any], _user: str) -> None:
        role = v["roleid"]
        privileges = self._privileges_in(v.get("privs"))
        if role.upper().startswith("PVE"):
            raise param_error(roleid="cannot use role ID starting with the (case-insensitive) 'PVE' namespace")
        self.need_quorum()
        if role in self.roles:
            raise die(f"create role failed: role '{role}' already exists")
        self.roles[role] = privileges

    async def _role_update(self, v: dict[str, Any], _user: str) -> None:
        role, privileges = v["roleid"], self._privileges_in(v.get("privs"))
        self._refuse_special_role(role, "modified")
        self.need_quorum()
        self._require_role(role, "update role failed: ")
        self.roles[role] = privileges | self.roles[role] if v.get("append") else privileges

    async def _role_delete(self, v: dict[str, Any], _user: str) -> None:
        self._refuse_special_role(v["roleid"], "deleted")
        self.need_quorum()
        self._require_role(v["roleid"], "delete role failed: ")
        del self.roles[v["roleid"]]

    def _privileges_in(self, text: Any) -> frozenset[str]:
        """Parse a list of privileges. Raises PveError if the simulated version does not have one of the privileges."""
        privileges = split_list(text)
        for privilege in privileges:
            if privilege not in self.valid_privileges():
                raise param_error(privs=f"invalid format - invalid privilege '{privilege}'\n")
        return frozenset(privileges)

    def _refuse_special_role(self, role: str, refused_change: str) -> None:
        if role in self.special_roles:
            raise die(f"auto-generated role '{role}' cannot be {refused_change}")

    def _require_role(self, role: str, error_prefix: str = "") -> None:
        if role not in self.roles:
            raise die(f"{error_prefix}role '{role}' does not exist")

    # --- users and tokens ---

    async def _user_list(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        may_see_all = self.allowed(user, "/access/groups", "User.Modify|Sys.Audit")
        rows = []
        for name in sorted(self.accounts):
            if not (may_see_all or name == user):
                continue
            is_enabled = int(name not in self.refused_users_and_tokens)
            row = {**self.accounts[name], "userid": name, "enable": is_enabled, "realm-type": name.rpartition("@")[2]}
            if v.get("full"):
                row |= {"groups": "", "tokens": self._tokens_of(name)}
            rows.append(row)
        return rows

    async def _user_create(self, v: dict[str, Any], _user: str) -> None:
        name = v["userid"]
        self.need_quorum()
        if name in self.accounts:
            raise die(f"create user failed: user '{name}' already exists")
        self.add_account(name)  # adds the user to `accounts` and `user_tokens`
        self.accounts[name] = {key: v[key] for key in USER_MEMBERS if v.get(key) is not None}
        if v.get("password") is not None:
            self.users[name] = v["password"]

    def _tokens_of(self, user: str) -> list[dict[str, Any]]:
        return [{**token_info, "tokenid": name} for name, token_info in sorted(self.user_tokens.get(user, {}).items())]

    async def _token_list(self, v: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        self._require_user(v["userid"])
        return self._tokens_of(v["userid"])

    async def _token_read(self, v: dict[str, Any], _user: str) -> dict[str, Any]:
        return dict(self._require_token(v["userid"], v["tokenid"]))

    async def _token_create(self, v: dict[str, Any], _user: str) -> dict[str, Any]:
        """Create a token. Only this answer contains the secret of the token, as the member `value`."""
        user, token = v["userid"], v["tokenid"]
        self._require_user(user)
        if token in self.user_tokens[user]:
            raise param_error(tokenid="Token already exists.")
        self.need_quorum()
        token_info = {
            "privsep": int(v.get("privsep", 1)),
            **{key: v[key] for key in ("expire", "comment") if v.get(key)},
        }
        self.user_tokens[user][token] = token_info
        value = self.apitokens[f"{user}!{token}"] = str(uuid.uuid4())
        return {"info": token_info, "value": value, "full-tokenid": f"{user}!{token}"}

    async def _token_delete(self, v: dict[str, Any], _user: str) -> None:
        """Delete a token and its access control entries."""
        user, token = v["userid"], v["tokenid"]
        self._require_token(user, token)
        self.need_quorum()
        del self.user_tokens[user][token]
        self.apitokens.pop(f"{user}!{token}", None)
        self.acl_entries = {key: value for key, value in self.acl_entries.items() if key[2] != f"{user}!{token}"}

    def _require_user(self, user: str) -> None:
        if user not in self.accounts:
            raise die(f"no such user ('{user}')")

    def _require_token(self, user: str, token: str) -> dict[str, Any]:
        self._require_user(user)
        if token not in self.user_tokens[user]:
            raise die(f"no such token '{token}' for user '{user}'")
        return self.user_tokens[user][token]

    # --- access control entries ---

    async def _acl_list(self, _v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        may_see_all = self.allowed(user, "/access", "Sys.Audit")
        return [
            {"path": path, "type": kind, "ugid": ugid, "roleid": role, "propagate": propagates}
            for (path, kind, ugid, role), propagates in self.acl_entries.items()
            if may_see_all or self.allowed(user, path, "Permissions.Modify")
        ]

    async def _acl_update(self, v: dict[str, Any], _user: str) -> None:
        if not any(v.get(name) for name in ("users", "groups", "tokens")):
            text = "either 'users', 'groups' or 'tokens' is required."
            raise param_error(users=text, groups=text, tokens=text)
        path = "/" + "/".join(part for part in v["path"].split("/") if part)
        if not (v.get("delete") or _ACL_PATH.fullmatch(path)):
            raise param_error(path=f"invalid ACL path '{v['path']}'")
        self.need_quorum()
        for kind, ugid, role in list(self._requested_entries(v)):
            if v.get("delete"):
                self.acl_entries.pop((path, kind, ugid, role), None)
            else:
                self.acl_entries[path, kind, ugid, role] = int(v.get("propagate", 1))

    def _requested_entries(self, v: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        """Yield the kind, id and role of each requested entry. Raises PveError if an id or a role does not exist."""
        prefix = "ACL update failed: "
        for role in split_list(v["roles"]):
            self._require_role(role, prefix)
            for group in split_list(v.get("groups")):  # the simulation has no groups
                raise die(f"{prefix}group '{group}' does not exist")
            for user in split_list(v.get("users")):
                if user not in self.accounts:
                    raise die(f"{prefix}user '{user}' does not exist")
                yield "user", user, role
            for full_token in split_list(v.get("tokens")):
                user, _, token = full_token.partition("!")
                if user not in self.accounts:
                    raise die(f"{prefix}no such user ('{user}')")
                if token not in self.user_tokens[user]:
                    raise die(f"{prefix}no such token '{token}' for user '{user}'")
                yield "token", full_token, role

    # --- logins ---

    async def _ticket(self, request: web.Request) -> web.Response:
        """Log in. With a second factor, the first answer has a challenge, which the second request repeats."""
        values = await params(request)
        challenge = values.get("tfa-challenge")
        # `API` is the path prefix `/api2/json`. With the prefix of Proxmox's web UI, `/api2/extjs`, a password is
        # enough in this simulation.
        if not self.totp_code or not request.path.startswith(API):
            return await super()._ticket(request)
        user = str(values.get("username", ""))
        if challenge is None:
            if not self.check_password(user, values.get("password", "")):
                raise PveError(401, "authentication failure")
            challenge = f"PVE:!tfa!{secrets.token_hex(8)}"
            self._challenges[challenge] = user
            return ok(
                {"ticket": challenge, "username": user, "NeedTFA": 1, "CSRFPreventionToken": secrets.token_hex(8)}
            )
        if self._challenges.get(challenge) != user or values.get("password") != f"totp:{self.totp_code}":
            raise PveError(401, "authentication failure")
        ticket, csrf_token = self.issue_ticket(user)
        return ok({"ticket": ticket, "CSRFPreventionToken": csrf_token, "username": user, "cap": {}})

    def check_password(self, user: str, password: str) -> bool:
        """Return whether the password is correct and the user is enabled."""
        return user not in self.refused_users_and_tokens and bool(super().check_password(user, password))
