# SPDX-License-Identifier: AGPL-3.0-or-later
"""Logs every request, and applies the faults that tests add."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from fakepve.model import PveError
from fakepve.server import API, FakePve, error, params

#: Parameters of requests, and keys of configurations, that `hide_secrets` replaces with stars.
SECRET_PARAMS = ("cipassword", "password")
#: Seconds between two checks whether a held answer may be sent.
HOLD_POLL_S = 0.05


class RequestFaults(FakePve):
    """Logs requests, and makes a request fail if a fault matches it.

    If several faults match a request, the first fault applies. A test can also hold an answer: the request is
    processed, but its answer is not sent until the test clears the faults (`do_clear_faults` in verbs_cluster.py).
    fakepve is the simulation of Proxmox that this package extends.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.answer_delay_s = 0.0  #: delay of every answer, in seconds of real (not simulated) time
        self.faults: list[dict[str, Any]] = []  #: tests add them; `do_fail` in verbs_cluster.py explains the keys
        self.request_log: list[dict[str, Any]] = []
        #: 0: no answer is to be held. n > 0: the answer to the n-th POST, PUT or DELETE request from now is to be held.
        #: Each of these requests reduces the number by one. A request is not counted if a fault applies to it.
        self.changes_until_hold = 0
        #: Method and path (a regular expression) of the request whose answer a test wants to hold.
        self.request_to_hold: tuple[str, str] | None = None
        #: The number of successful POST, PUT and DELETE requests, by version of Proxmox VE: a test can change the
        #: version that is simulated.
        self.accepted_changes: Counter[str] = Counter()
        self.is_holding = False  #: whether an answer is held now

    async def _answer(self, request: web.Request, handler: Any, schema_entry: Any, path_node: str | None) -> Any:
        """Log the request and answer it. If a fault matches, send the fault's error or close the connection.

        fakepve calls this method for every request, except one that needs a valid token or ticket and has none.
        `handler`, `schema_entry` and `path_node` are only passed on.
        """
        path = request.path.removeprefix(API)
        arrival = {"time": time.time(), "client": request.remote}
        self.request_log.append(
            {"method": request.method, "path": path, "params": await _params_without_secrets(request), **arrival}
        )
        await asyncio.sleep(self.answer_delay_s)
        fault = self._use_fault(request.method, path)
        if fault is None:
            answer = await super()._answer(request, handler, schema_entry, path_node)
            self.accepted_changes[self.version] += request.method != "GET" and answer.status < 400
            if self._count_and_check_hold(request.method, path):
                await self._wait_for_clear_faults()
            return answer
        if fault["after"]:  # process the request, but send the fault instead of its answer
            await super()._answer(request, handler, schema_entry, path_node)
        await asyncio.sleep(fault["delay_s"])
        if not fault["status"]:  # status 0: close the connection without an answer
            if request.transport is not None:
                request.transport.close()
            raise ConnectionResetError("stand-in: connection dropped")
        if fault.get("body") is not None:
            return await _send_body(request, fault)
        return error(fault["status"], fault["text"])

    def _count_and_check_hold(self, method: str, path: str) -> bool:
        """Return whether the answer to this request must be held. Count this request if it is a POST, PUT or DELETE."""
        if self.request_to_hold and method == self.request_to_hold[0] and re.fullmatch(self.request_to_hold[1], path):
            self.request_to_hold = None
            return True
        if method == "GET" or not self.changes_until_hold:
            return False
        self.changes_until_hold -= 1
        return self.changes_until_hold == 0

    async def _wait_for_clear_faults(self) -> None:
        """Wait until the test clears the faults. Then the caller sends the answer to the processed request."""
        self.is_holding = True
        while self.is_holding:
            await asyncio.sleep(HOLD_POLL_S)

    def _use_fault(self, method: str, path: str) -> dict[str, Any] | None:
        """Return the first fault that matches a request, or None. Each use reduces the fault's `times` by one.

        A fault is removed when its `times` is 0. If `times` was -1 at first, it is never 0, and the fault stays.
        """
        for fault in self.faults:
            is_match = fault["method"] in ("*", method) and fnmatch.fnmatchcase(path, fault["path"])
            if is_match:
                fault["times"] -= 1
                if fault["times"] == 0:
                    self.faults.remove(fault)
                return fault
        return None


async def _send_body(request: web.Request, fault: dict[str, Any]) -> web.StreamResponse:
    """Answer with the body of a fault. With `is_cut`, send only its first half and close the connection."""
    body = base64.b64decode(fault["body"])
    answer = web.StreamResponse(status=fault["status"], headers={"Content-Type": "application/json"})
    answer.content_length = len(body)
    await answer.prepare(request)
    await answer.write(body[: len(body) // 2] if fault["is_cut"] else body)
    if fault["is_cut"] and request.transport is not None:
        request.transport.close()
    return answer


async def _params_without_secrets(request: web.Request) -> dict[str, Any]:
    try:
        values = await params(request)
    except PveError:
        return {}
    return hide_secrets(values)


def hide_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with stars instead of secrets."""
    return {key: "***" if key in SECRET_PARAMS else value for key, value in values.items()}
