# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Proxmox stand-in's server: fakepve with its gaps closed, a seeded cluster and a control port.

    python -m smith_lab.proxmox.fakepve_server settings.json

Only run as a process of its own, by `smith_lab.proxmox.stand_in`. The package builds on fakepve, which is under the
AGPL, so it is under the AGPL too, and nothing outside the package imports it.

The settings file holds `host port control_port cert key user token_id token_secret root_password time_scale ready`. A
port of 0 lets the system choose; the server writes the ports in use to the file that `ready` names, once both answer.
The process ends when its standard input closes, so it never outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from smith_lab.proxmox.fakepve_server.cluster import Cluster
from smith_lab.proxmox.fakepve_server.control import Control
from smith_lab.proxmox.fakepve_server.seed import seed


async def serve(settings: dict[str, Any]) -> None:
    """Run the cluster and its control port until standard input closes."""
    cluster = Cluster(user="root@pam", password=settings["root_password"], host=settings["host"], port=settings["port"])
    cluster.time_scale = settings["time_scale"]
    seed(cluster, settings)
    await cluster.start(settings["cert"], settings["key"])
    runner = web.AppRunner(Control(cluster).app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", settings["control_port"]).start()
    announce(Path(settings["ready"]), {"port": cluster.port, "control_port": runner.addresses[0][1]})
    await stdin_closed()
    await runner.cleanup()
    await cluster.stop()


def announce(path: Path, ports: dict[str, int]) -> None:
    """Write the ports in one step, so that a reader never sees an incomplete file."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(ports))
    draft.replace(path)


async def stdin_closed() -> None:
    """Return when the process that started this one closes the pipe or ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(sys.stdin.fileno(), "rb"))
    while await reader.read(1024):
        pass


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
