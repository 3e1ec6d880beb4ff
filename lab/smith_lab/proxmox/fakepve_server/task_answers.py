# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers requests about Proxmox tasks as Proxmox does (pve-manager: PVE/API2/Tasks.pm).

If a token started a Proxmox task, the list of Proxmox tasks shows the whole token (`user!tokenid`) as the member `user`
while the Proxmox task runs. In all other answers, user and token id are two members.
"""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web
from fakepve.model import PveError
from fakepve.routing import param_error
from fakepve.server import USER, FakePve, ok

UPID = re.compile(r"UPID:[^:\s]+:[0-9A-Fa-f]{8}:[0-9A-Fa-f]{8,9}:[0-9A-Fa-f]{8}:[^:\s]+:[^:\s]*:[^:\s]+:")


class TaskStatusAndLogs(FakePve):
    """Handles the list, the status and the log of Proxmox tasks.

    fakepve is the simulation of Proxmox that this package extends. `request[USER]` is the user or token that sent the
    request, and None without credentials. `param_error` makes the exception for an error answer.
    """

    def forget_tasks(self, vmid: int) -> None:
        """Remove the Proxmox tasks of a guest and their logs, as the rotation of the logs does.

        `tasklog` is a list of all Proxmox tasks. `tasks` contains the same Proxmox tasks by UPID.
        """
        self.tasklog = [task for task in self.tasklog if task["id"] != str(vmid)]
        self.tasks = {upid: task for upid, task in self.tasks.items() if task["id"] != str(vmid)}

    def _task_view(self, task: dict[str, Any], listing: bool = False) -> dict[str, Any]:
        """Return the members of a Proxmox task that an answer contains. `listing`: the answer is the list of tasks."""
        view: dict[str, Any] = super()._task_view(task, listing)
        if listing and task["status"] == "running":
            view.pop("tokenid", None)
            view["status"] = "RUNNING"
        elif "!" in view["user"]:
            view["user"], _, view["tokenid"] = view["user"].partition("!")
        return view

    def _get_task(self, request: web.Request) -> dict[str, Any]:
        upid = request.match_info["upid"]
        if not UPID.fullmatch(upid):
            raise param_error(upid="unable to parse worker upid")
        if upid not in self.tasks:
            raise param_error(upid="no such task")
        task: dict[str, Any] = super()._get_task(request)
        return task

    async def _task_log(self, request: web.Request) -> web.Response:
        """Return the log of a Proxmox task.

        If the Proxmox task does not exist, and the request has credentials, return Proxmox's line for a missing file.
        """
        try:
            answer: web.Response = await super()._task_log(request)
        except PveError as exc:
            if "no such task" not in str(exc.errors) or request[USER] is None:
                raise
            return ok([{"n": 1, "t": "unable to open file - No such file or directory"}])
        return answer
