# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serves the control port, by which tests and the demo read and change the cluster.

The port accepts JSON over HTTP, on the loopback interface only.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from smith_lab.proxmox.fakepve_server.cluster import Cluster
from smith_lab.proxmox.fakepve_server.faults import SECRET_PARAMS
from smith_lab.proxmox.fakepve_server.verbs_cluster import ClusterVerbs
from smith_lab.proxmox.fakepve_server.verbs_guests import GuestVerbs


class Control(ClusterVerbs, GuestVerbs):
    """Handles the requests of the control port: a GET reads a collection, POST /<verb> calls the method `do_<verb>`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def app(self) -> web.Application:
        """Return the web application that handles the requests of the control port."""
        app = web.Application()
        app.router.add_get("/{what}", self._read)
        app.router.add_post("/{verb}", self._call_verb)
        return app

    async def _read(self, request: web.Request) -> web.Response:
        readers = {
            "guests": self._guests,
            "requests": lambda: self.cluster.request_log,
            "changing_requests": lambda: [call for call in self.cluster.request_log if call["method"] != "GET"],
            "tasks": lambda: [
                {key: value for key, value in task.items() if key != "log"} for task in self.cluster.tasklog
            ],
            "storages": lambda: {
                name: {"avail": storage.get("avail"), "volumes": sorted(storage.get("volumes", {}))}
                for name, storage in self.cluster.storages.items()
            },
            "health": lambda: {"ok": True},
        }
        reader = readers.get(request.match_info["what"])
        return web.json_response(reader()) if reader else web.json_response({"error": "unknown"}, status=404)

    async def _call_verb(self, request: web.Request) -> web.Response:
        verb = getattr(self, "do_" + request.match_info["verb"], None)
        if verb is None:
            return web.json_response({"error": "unknown verb"}, status=404)
        try:
            return web.json_response({"done": verb(**(await request.json()))})
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            return web.json_response({"error": f"{type(exc).__name__}: {exc}"}, status=400)

    def _guests(self) -> list[dict[str, Any]]:
        guests = []
        for vm in sorted([*self.cluster.vms, *self.cluster.cts], key=lambda vm: vm.vmid):
            attributes = {
                key: getattr(vm, key) for key in ("vmid", "name", "node", "status", "template", "lock", "pool")
            }
            config = {key: "***" if key in SECRET_PARAMS else value for key, value in vm.config.items()}
            guests.append(
                {**attributes, "config": config, "pending": dict(vm.pending), "snapshots": list(vm.snapshots)}
            )
        return guests
