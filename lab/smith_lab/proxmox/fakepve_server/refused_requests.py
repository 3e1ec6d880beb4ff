# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers as Proxmox does if a request has no valid credentials, or if its path or its node does not exist.

The sources are pve-manager (PVE/HTTPServer.pm) and pve-http-server (PVE/APIServer/AnyEvent.pm).
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from fakepve.model import PveError
from fakepve.server import API, FakePve, error

#: The path of a login. The answer 401 to a wrong password has a body. All other answers 401 have no body.
LOGIN_PATH = "/access/ticket"


class CredentialAndPathChecks(FakePve):
    """Handles the requests that Proxmox refuses before it calls the function for their path.

    Credentials are a password, a ticket or an API token. A login is the request that sends a password and gets a
    ticket. fakepve is the simulation of Proxmox that this package extends.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.delay_of_401_s = 0.0  #: seconds by which an answer 401 is delayed; Proxmox: 3
        #: The value of `delay_of_401_s` after a test has cleared the faults (`do_clear_faults` in verbs_cluster.py).
        self.default_delay_of_401_s = 0.0
        self.refuses_all_credentials = False  #: whether all credentials are refused, as while pmxcfs restarts
        #: Disabled users and expired tokens. Their credentials are refused. A disabled user's tokens are refused, too.
        self.refused_users_and_tokens: set[str] = set()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Handle a request. Delay an answer 401. If the request is not a login, send this answer without a body."""
        answer: web.StreamResponse = await super()._middleware(request, handler)
        if answer.status != 401:
            return answer
        await asyncio.sleep(self.delay_of_401_s)
        if request.path.endswith(LOGIN_PATH):
            return answer
        has_credentials = "Authorization" in request.headers or "PVEAuthCookie" in request.cookies
        return web.Response(status=401, reason="Authentication failed!" if has_credentials else "No ticket", body=b"")

    def _authenticate(self, request: web.Request) -> Any:
        """Return the user or token that sends the request. Raises PveError (401) if its credentials are refused."""
        if self.refuses_all_credentials:
            raise PveError(401, "Authentication failed!")
        user_or_token = super()._authenticate(request)
        token_and_user = {user_or_token, user_or_token.partition("!")[0]} if user_or_token else set()
        if self.refused_users_and_tokens & token_and_user:
            raise PveError(401, "Authentication failed!")
        return user_or_token

    async def _answer(self, request: web.Request, handler: Any, schema_entry: Any, path_node: str | None) -> Any:
        """Answer a request. If the node in the path does not exist, answer with an error.

        fakepve calls this method for every request, except one that needs a valid token or ticket and has none.
        `handler` is the function for the path, and `path_node` is the node in the path. `schema_entry` is the entry for
        the path in the schema of the Proxmox API. It is None if the schema has no entry for the path. It is also None
        if fakepve has a handler for exactly this path, because this handler looks up the entry itself.
        """
        if path_node and path_node not in self.nodes:
            cause = f"failed to get address info for: {path_node}: Name or service not known"
            return error(500, f"hostname lookup '{path_node}' failed - {cause}")
        return await super()._answer(request, handler, schema_entry, path_node)

    async def answer(self, request: web.Request, schema_entry: Any, params: Any, user: str, call: Any = None) -> Any:
        """Return the data for a request that fakepve checks by the schema of the Proxmox API.

        `_answer` calls the handler of the request, and the handler calls this method. fakepve chose both names.
        `schema_entry` is the entry for the path in the schema. It is None if the schema has no entry for the path;
        then, this method raises PveError (501). `call` is a function that makes the data. If it is None, fakepve makes
        the data from the schema.
        """
        if schema_entry is None:
            raise PveError(501, f"Method '{request.method} {request.path.removeprefix(API)}' not implemented")
        return await super().answer(request, schema_entry, params, user, call)
