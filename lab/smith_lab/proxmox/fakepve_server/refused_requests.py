# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers requests without a valid login, for an unknown path and for an unknown node as Proxmox does.

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


class RefusedRequests(FakePve):
    """Handles the requests that Proxmox refuses before it calls the function for their path."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.login_delay_s = 0.0  #: real seconds by which an answer 401 is delayed; Proxmox: 3
        self.default_login_delay_s = 0.0  #: the verb `clear_faults` sets `login_delay_s` to this value
        self.is_user_list_missing = False  #: if true, every login is refused, as while pmxcfs restarts
        #: Disabled users and expired tokens. Their logins are refused. A disabled user's tokens are refused, too.
        self.unusable_logins: set[str] = set()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Handle a request. Delay an answer 401. If the request is not a login, send this answer without a body."""
        answer: web.StreamResponse = await super()._middleware(request, handler)
        if answer.status != 401:
            return answer
        await asyncio.sleep(self.login_delay_s)
        if request.path.endswith(LOGIN_PATH):
            return answer
        has_login = "Authorization" in request.headers or "PVEAuthCookie" in request.cookies
        return web.Response(status=401, reason="Authentication failed!" if has_login else "No ticket", body=b"")

    def _authenticate(self, request: web.Request) -> Any:
        """Return the user or token that sends the request. Raises PveError (401) if the login must be refused."""
        if self.is_user_list_missing:
            raise PveError(401, "Authentication failed!")
        user_or_token = super()._authenticate(request)
        if user_or_token and self.unusable_logins & {user_or_token, user_or_token.partition("!")[0]}:
            raise PveError(401, "Authentication failed!")
        return user_or_token

    async def _answer(self, request: web.Request, handler: Any, generic: Any, path_node: str | None) -> Any:
        """Answer a request. If the node in the path does not exist, answer with an error."""
        if path_node and path_node not in self.nodes:
            cause = f"failed to get address info for: {path_node}: Name or service not known"
            return error(500, f"hostname lookup '{path_node}' failed - {cause}")
        return await super()._answer(request, handler, generic, path_node)

    async def answer(self, request: web.Request, match: Any, params: Any, user: str, call: Any = None) -> Any:
        """Answer a request by the schema of the Proxmox API. Raises PveError (501) if the schema lacks the path."""
        if match is None:
            raise PveError(501, f"Method '{request.method} {request.path.removeprefix(API)}' not implemented")
        return await super().answer(request, match, params, user, call)
