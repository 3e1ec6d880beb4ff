# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serves the control port, through which tests and the demo read and change the cluster.

The port accepts JSON over HTTP, on the loopback interface only. The path of a changing request is `/<verb>`. A verb is
the name of a change, such as `fail`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from smith_lab.proxmox.fakepve_server.cluster import Cluster
from smith_lab.proxmox.fakepve_server.faults import hide_secrets
from smith_lab.proxmox.fakepve_server.verbs_cluster import ClusterVerbs
from smith_lab.proxmox.fakepve_server.verbs_guests import GuestVerbs

#: Maximum size of a request. A request for the verb `fail` may contain the body of an error answer.
MAX_REQUEST_BYTES = 64 * 1024 * 1024


class ControlPort(ClusterVerbs, GuestVerbs):
    """Handles the requests of the control port. GET /<collection> reads data. POST /<verb> calls `do_<verb>`.

    In the list `/cluster/resources` of the simulated Proxmox API, a guest's name, status and usage are statistics that
    the nodes send at an interval. After each verb, the nodes send statistics at once, so the list shows the change.
    If the body of a verb's request contains `"is_new": true`, no statistics are sent for the guest whose VMID is the
    body's member `vmid`. The list then shows the guest with the status `unknown`, as Proxmox shows a guest that was
    just created.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def app(self) -> web.Application:
        """Return the web application that handles the requests of the control port."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_get("/{collection}", self._read_collection)
        app.router.add_post("/{verb}", self._call_verb)
        return app

    async def _read_collection(self, request: web.Request) -> web.Response:
        readers: dict[str, Callable[[], Any]] = {
            "guests": self._guests,
            "requests": lambda: self.cluster.request_log,
            "changing_requests": lambda: [row for row in self.cluster.request_log if row["method"] != "GET"],
            "tasks": self._tasks,
            "storages": self._storages,
            # whether the simulated Proxmox API holds an answer back until a test calls the verb `clear_faults`
            "holding": lambda: self.cluster.is_holding,
            "health": lambda: {"ok": True},
        }
        reader = readers.get(request.match_info["collection"])
        return web.json_response(reader()) if reader else web.json_response({"error": "unknown collection"}, status=404)

    def _tasks(self) -> list[dict[str, Any]]:
        """Return every Proxmox task without its log."""
        return [{key: value for key, value in task.items() if key != "log"} for task in self.cluster.tasklog]

    def _storages(self) -> dict[str, dict[str, Any]]:
        """Return free bytes, names of volumes and notes of volumes for every storage."""
        rows = {}
        for name, storage in self.cluster.storages.items():
            volumes = storage.get("volumes", {})
            notes = {volume: values["notes"] for volume, values in volumes.items() if "notes" in values}
            rows[name] = {"avail": storage.get("avail"), "volumes": sorted(volumes), "notes": notes}
        return rows

    async def _call_verb(self, request: web.Request) -> web.Response:
        do_verb = getattr(self, "do_" + request.match_info["verb"], None)
        if do_verb is None:
            return web.json_response({"error": "unknown verb"}, status=404)
        values = await request.json()
        is_new = values.pop("is_new", False)
        try:
            result = do_verb(**values)
            self.cluster.send_statistics(without_vmid=values.get("vmid") if is_new else None)
            return web.json_response({"done": result})
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            return web.json_response({"error": f"{type(exc).__name__}: {exc}"}, status=400)

    def do_clock(self, shift_s: float) -> None:
        """Set by how many seconds the header `Date` of all answers differs from this machine's clock."""
        self.cluster.clock_shift_s = shift_s

    def _guests(self) -> list[dict[str, Any]]:
        """Return every VM and container, sorted by VMID, with stars instead of secrets."""
        rows = []
        for guest in sorted([*self.cluster.vms, *self.cluster.cts], key=lambda guest: guest.vmid):
            names = ("vmid", "name", "node", "status", "template", "lock", "pool")
            row: dict[str, Any] = {name: getattr(guest, name) for name in names}
            row["config"] = hide_secrets(guest.config)
            row["pending"] = dict(guest.pending)
            row["snapshots"] = list(guest.snapshots)
            rows.append(row)
        return rows
