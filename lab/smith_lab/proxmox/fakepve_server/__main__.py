# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs the Proxmox stand-in: a server that extends fakepve, a simulation of the Proxmox API.

    python -m smith_lab.proxmox.fakepve_server settings.json

The server simulates a cluster with templates, adds functions that fakepve lacks, and has a control port, by which
tests read and change the cluster.
`smith_lab.proxmox.stand_in` runs this module as a process. fakepve is under the AGPL, so this package is also under the
AGPL, and no module outside this package imports it.

The settings file is a JSON object with the members `host`, `port`, `control_port`, `ca`, `cert`, `key`, `user`,
`token_id`, `token_secret`, `root_password`, `time_scale`, `statistics_interval_s`, `delay_of_401_s`, `ready_file` and
`changes_file`. `user` is the owner of the API token `token_id`; if `user` is empty, there is no token.
`root_password` is the password of root@pam. `ca`, `cert` and `key` are the paths of the CA's certificate, the server's
certificate and its key. `time_scale` is the number of real seconds for each second of simulated Proxmox time.
`statistics_interval_s` is the number of real seconds between two broadcasts in which each node sends the statistics of
its guests. The API's lists of guests show the statistics of the last broadcast.
`delay_of_401_s` is the number of real seconds by which an answer 401 is delayed.
If a port is 0, the operating system chooses the port.
Once both ports answer, the server writes their numbers to the file that `ready_file` names. The server stops when its
standard input closes, which also happens when the process that started the server ends. If `changes_file` names a file,
the stopping server adds a line to this file. The line maps each version of Proxmox VE that the server has simulated (a
test can change the version) to the number of successful POST, PUT and DELETE requests.
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
from smith_lab.proxmox.fakepve_server.control import ControlPort
from smith_lab.proxmox.fakepve_server.seed import seed_cluster


async def serve(settings: dict[str, Any]) -> None:
    """Run the cluster and its control port until standard input closes."""
    cluster = Cluster(user="root@pam", password=settings["root_password"], host=settings["host"], port=settings["port"])
    cluster.time_scale = settings["time_scale"]
    seed_cluster(cluster, settings)
    # The certificates that the API lists for each node. The keys are the file names in the answer.
    cluster.certificate_files = {"pve-root-ca.pem": Path(settings["ca"]), "pve-ssl.pem": Path(settings["cert"])}
    # Tests may change the interval and the delay. `clear_faults` of the control port sets them to the defaults again.
    cluster.statistics_interval_s = cluster.default_statistics_interval_s = settings["statistics_interval_s"]
    cluster.delay_of_401_s = cluster.default_delay_of_401_s = settings["delay_of_401_s"]
    statistics_task = asyncio.ensure_future(cluster.send_statistics_repeatedly())
    await cluster.start(settings["cert"], settings["key"])
    runner = web.AppRunner(ControlPort(cluster).app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", settings["control_port"]).start()
    write_ports(Path(settings["ready_file"]), {"port": cluster.port, "control_port": runner.addresses[0][1]})
    await wait_until_stdin_closes()
    statistics_task.cancel()
    await runner.cleanup()
    await cluster.stop()
    if settings["changes_file"]:
        with Path(settings["changes_file"]).open("a") as file:
            # The line is a single write, because several servers append to this file.
            file.write(json.dumps(cluster.accepted_changes) + "\n")


def write_ports(path: Path, ports: dict[str, int]) -> None:
    """Write the port numbers to a file. The file appears in one step, so a reader never sees an incomplete file."""
    temporary_file = path.with_suffix(".tmp")
    temporary_file.write_text(json.dumps(ports))
    temporary_file.replace(path)


async def wait_until_stdin_closes() -> None:
    """Wait until the parent process ends, or closes its end of the pipe that is standard input."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    stdin = os.fdopen(sys.stdin.fileno(), "rb")
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdin)
    while await reader.read(1024):
        pass


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
