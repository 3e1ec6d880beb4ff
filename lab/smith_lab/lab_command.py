"""Implements `smith lab`: runs a FulcrumCore simulator and a Proxmox stand-in, and writes the settings for an executor.

The settings are shell variables in the file `lab.env`. A LabSystem contains the running simulator and stand-in. A
RunningLab contains the addresses and ids that commands in other shells need to use the lab.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from executor.errors import EXIT_OK, SmithError
from smith_lab.private_file import write_private_file
from smith_lab.running_lab import FOLDER_VARIABLE, LAB_FILE_NAME, RunningLab, read_lab
from smith_lab.system import SETTING_PREFIXES, LabSystem, run_lab_system

#: The settings that are secrets. `lab.env` contains, for each of them, the path of a file with its value. A container
#: can mount this file.
SECRET_SETTINGS = ("FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET")
#: Settings that `lab.env` does not set. So their defaults apply: a log for people on a terminal, and a folder in memory
#: for the files of runs.
SETTINGS_LEFT_AT_DEFAULT = ("SMITH_LOG_FORMAT", "SMITH_RUN_DIR")
BACKUP_STORAGE = "backups"
#: The text that `smith lab` prints.
TOUR = """\
FulcrumCore simulator  {fulcrum_base_url}
Proxmox stand-in       https://{host}:{port}
agent                  {agent_id}
files                  {folder} (lab.env: settings, admin-token: FulcrumCore's administrator, proxmox/ca.pem: the CA)

A first tour. In a second shell, start Agent Smith:
  . {env} && smith run

In a third shell:
  . {env}
  smith doctor                         checks everything that a job needs
  smith lab order web-1                a customer orders a VM
  smith lab start web-1                and starts it; also: stop, restart, update, delete, list
  smith jobs list                      lists Agent Smith's jobs; smith top shows them live
  smith jobs show 1                    one job as a timeline

Then see a failure and its remedy:
  smith lab fault storage-full         smith lab fault lists all faults, smith lab fault clear ends them

Ctrl-C ends the lab.
"""


class LabIsRunning(SmithError):
    """Another lab is running in the folder."""


def main(*, time_scale: float = 1.0, folder: Path | None = None, fulcrum_port: int = 0, proxmox_port: int = 0) -> int:
    """Run the lab until Ctrl-C or SIGTERM; return the exit code. Remove the files of an earlier lab in `folder`.

    `time_scale` is the number of real seconds for each second of simulated Proxmox time. Raises LabIsRunning.
    """
    stop_requested = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stop_requested.set())
    with ExitStack() as stack:
        lab_folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-smith-lab-")))
        lab_folder = lab_folder.resolve()
        lab_folder.mkdir(parents=True, exist_ok=True)
        _remove_earlier_lab(lab_folder)
        lab = stack.enter_context(
            run_lab_system(
                lab_folder,
                time_scale=time_scale,
                settings={"PROXMOX_BACKUP_STORAGE": BACKUP_STORAGE, "SMITH_HTTP_ADDR": f"127.0.0.1:{_free_port()}"},
                core_port=fulcrum_port,
                proxmox_port=proxmox_port,
                # FulcrumCore refuses orders with values that the executor's settings do not allow
                limits_orders_to_settings=True,
            )
        )
        # `grant` gives the privilege to every user and token. With it, the executor's token can read the load of the
        # Proxmox nodes and the allowed tags.
        lab.proxmox.control("grant", path="/", privilege="Sys.Audit")
        _write_files(lab)
        stack.callback(_remove_lab_files, lab_folder)
        _print_tour(lab)
        stop_requested.wait()
    return EXIT_OK


def _remove_earlier_lab(folder: Path) -> None:
    """Remove the files that an ended lab left in this folder. Raises LabIsRunning if the lab has not ended.

    The folder `data` contains the database and the artifacts of the agent. The new lab cannot use them: its FulcrumCore
    simulator does not have the old services.
    """
    if read_lab(folder) is not None:
        raise LabIsRunning(f"a lab is running in {folder}: end it with Ctrl-C, or choose another --folder")
    # If neither `lab.env` nor `admin-token` exists, no lab has used the folder. Then `data` may belong to another
    # program, and is kept.
    if (folder / "lab.env").exists() or (folder / "admin-token").exists():
        shutil.rmtree(folder / "data", ignore_errors=True)
    _remove_lab_files(folder)


def _remove_lab_files(folder: Path) -> None:
    """Remove `lab.env` and `lab.json`, by which commands in other shells find a running lab."""
    for name in ("lab.env", LAB_FILE_NAME):
        (folder / name).unlink(missing_ok=True)


def _free_port() -> int:
    """Return a port that is free now, for the agent's HTTP server.

    SMITH_HTTP_ADDR must contain the real port instead of 0, because `smith health` reads the port from this setting.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_files(lab: LabSystem) -> None:
    """Write the settings and the secrets. `lab.env` is written last: if it exists, all other files exist, too."""
    environment = lab.environment()
    settings = {name: value for name, value in environment.items() if name.startswith(SETTING_PREFIXES)}
    (lab.folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    for name in SECRET_SETTINGS:
        file = write_private_file(lab.folder / "secrets" / name.lower(), settings.pop(name).encode())
        settings[f"{name}_FILE"] = str(file)
    for name in SETTINGS_LEFT_AT_DEFAULT:
        settings.pop(name, None)
    settings[FOLDER_VARIABLE] = str(lab.folder)
    # `lab.ids` contains the ids of the objects in FulcrumCore, and the tokens of the administrator and of the agent.
    write_private_file(lab.folder / "admin-token", lab.ids.admin_token.encode())
    _data_for_other_shells(lab).write(lab.folder)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(settings.items()))
    write_private_file(lab.folder / "lab.env.new", (exports + _path_export()).encode()).rename(lab.folder / "lab.env")


def _path_export() -> str:
    """Return the line that adds the folder of `smith` to PATH."""
    return f'export PATH={shlex.quote(str(Path(sys.executable).parent))}"{os.pathsep}$PATH"\n'


def _data_for_other_shells(lab: LabSystem) -> RunningLab:
    """Return the data for commands in other shells."""
    return RunningLab(
        fulcrum_base_url=lab.fulcrum_base_url,
        control_port=lab.proxmox.control_port,  # the port for requests that begin and end faults
        consumer_id=lab.ids.consumer_id,
        agent_id=lab.ids.agent_id,
        service_type_id=lab.ids.service_type_id,  # the service type of VMs
        container_type_id=lab.ids.container_type_id,  # the service type of containers
    )


def _print_tour(lab: LabSystem) -> None:
    """Print the addresses of the lab, and the commands for a first tour. Long lines are not wrapped."""
    tour = TOUR.format(
        fulcrum_base_url=lab.fulcrum_base_url,
        host=lab.proxmox.host,
        port=lab.proxmox.port,
        agent_id=lab.ids.agent_id,
        folder=lab.folder,
        env=shlex.quote(str(lab.folder / "lab.env")),
    )
    print(tour, end="", flush=True)
