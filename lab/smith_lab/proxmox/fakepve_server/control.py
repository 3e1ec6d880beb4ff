# SPDX-License-Identifier: AGPL-3.0-or-later
"""The control port: tests and the demo read and change the cluster by JSON over HTTP, on loopback only."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from smith_lab.proxmox.fakepve_server.cluster import Cluster
from smith_lab.proxmox.fakepve_server.faults import SECRET_PARAMS
from smith_lab.proxmox.fakepve_server.verbs_cluster import ClusterVerbs
from smith_lab.proxmox.fakepve_server.verbs_guests import GuestVerbs


class Control(ClusterVerbs, GuestVerbs):
    """The control port's application: GET reads, POST /<verb> calls the method `do_<verb>`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def app(self) -> web.Application:
        """Return the control port's application: GET reads, POST /<verb> calls the method of that name."""
        app = web.Application()
        app.router.add_get("/{what}", self._read)
        app.router.add_post("/{verb}", self._do)
        return app

    async def _read(self, request: web.Request) -> web.Response:
        readers = {
            "guests": self._guests,
            "requests": lambda: self.cluster.request_log,
            "changing_requests": lambda: [call for call in self.cluster.request_log if call["method"] != "GET"],
            "tasks": lambda: [{k: v for k, v in t.items() if k != "log"} for t in self.cluster.tasklog],
            "storages": lambda: {
                n: {"avail": s.get("avail"), "volumes": sorted(s.get("volumes", {}))}
                for n, s in self.cluster.storages.items()
            },
            "health": lambda: {"ok": True},
        }
        reader = readers.get(request.match_info["what"])
        return web.json_response(reader()) if reader else web.json_response({"error": "unknown"}, status=404)

    async def _do(self, request: web.Request) -> web.Response:
        verb = getattr(self, "do_" + request.match_info["verb"], None)
        if verb is None:
            return web.json_response({"error": "unknown verb"}, status=404)
        try:
            return web.json_response({"done": verb(**(await request.json()))})
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            return web.json_response({"error": f"{type(exc).__name__}: {exc}"}, status=400)

    def _guests(self) -> list[dict[str, Any]]:
        shown = []
        for vm in sorted([*self.cluster.vms, *self.cluster.cts], key=lambda vm: vm.vmid):
            facts = {key: getattr(vm, key) for key in ("vmid", "name", "node", "status", "template", "lock", "pool")}
            config = {key: "***" if key in SECRET_PARAMS else value for key, value in vm.config.items()}
            shown.append({**facts, "config": config, "pending": dict(vm.pending), "snapshots": list(vm.snapshots)})
        return shown
