# SPDX-License-Identifier: AGPL-3.0-or-later
"""Logs every request, and applies the faults that tests add by the control port."""

from __future__ import annotations

import asyncio
import fnmatch
from typing import Any

from aiohttp import web
from fakepve.model import PveError
from fakepve.server import API, FakePve, error, params

#: Parameters that the request log shows as stars.
SECRET_PARAMS = ("cipassword", "password")


class InjectedFaults(FakePve):
    """Logs every request, and makes a request fail if a fault matches it. The first matching fault counts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slow_s = 0.0  #: delay of every answer, in real seconds
        self.faults: list[dict[str, Any]] = []  #: added by `do_fail` in verbs_cluster.py
        self.request_log: list[dict[str, Any]] = []

    async def _answer(self, request: web.Request, handler: Any, generic: Any, path_node: str | None) -> Any:
        """Log the request and answer it. If a fault matches, send the fault's error or close the connection."""
        path = request.path.removeprefix(API)
        self.request_log.append(
            {"method": request.method, "path": path, "params": await _params_without_secrets(request)}
        )
        await asyncio.sleep(self.slow_s)
        fault = self._use_fault(request.method, path)
        if fault is None:
            return await super()._answer(request, handler, generic, path_node)
        if fault["after"]:
            await super()._answer(request, handler, generic, path_node)
        await asyncio.sleep(fault["delay_s"])
        if not fault["status"]:
            if request.transport is not None:
                request.transport.close()
            raise ConnectionResetError("stand-in: connection dropped")
        return error(fault["status"], fault["text"])

    def _use_fault(self, method: str, path: str) -> dict[str, Any] | None:
        """Return the first fault that matches a request, or None. Each use reduces the fault's `times` by one."""
        for fault in self.faults:
            if fault["method"] in ("*", method) and fnmatch.fnmatchcase(path, fault["path"]):
                fault["times"] -= 1
                if fault["times"] == 0:
                    self.faults.remove(fault)
                return fault
        return None


async def _params_without_secrets(request: web.Request) -> dict[str, Any]:
    try:
        values = await params(request)
    except PveError:
        return {}
    return {key: "***" if key in SECRET_PARAMS else value for key, value in values.items()}
