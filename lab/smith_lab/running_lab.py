"""Finds the lab that runs in a folder, so that commands in other shells can use its simulator and its stand-in.

`smith lab` writes `lab.json` into its folder, and removes the file when it ends.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from executor.errors import SmithError
from smith_lab.fulcrum_setup import AdminClient
from smith_lab.private_file import write_private_file
from smith_lab.proxmox.stand_in import ProxmoxStandIn
from smith_lab.simulator.control import SimulatorControl

#: The environment variable with the folder of a running lab. `smith lab` writes a file of shell variables for other
#: shells, `lab.env`, which sets this variable.
FOLDER_VARIABLE = "LAB_FOLDER"
#: The folder of the lab if FOLDER_VARIABLE is not set, relative to the current folder. `make lab` uses the same folder.
DEFAULT_FOLDER = Path(".lab")
LAB_FILE_NAME = "lab.json"
ANSWER_TIMEOUT_S = 2.0


class NoLab(SmithError):
    """No lab is running in the folder."""


@dataclass(frozen=True, kw_only=True)
class RunningLab:
    """The data with which another process uses a running lab. Each member is stored in `lab.json` under its name."""

    fulcrum_base_url: str  #: the URL of the simulator, without /api/v1
    control_port: int  #: the stand-in's control port, through which its cluster is changed
    # Ids of objects in the simulator.
    consumer_id: str  #: the customer who orders services
    agent_id: str  #: the agent that runs the jobs of the customer's services
    service_type_id: str  #: the service type of VMs
    container_type_id: str  #: the service type of containers

    def write(self, folder: Path) -> None:
        """Write the data to `lab.json` in this folder."""
        write_private_file(folder / LAB_FILE_NAME, json.dumps(asdict(self)).encode())

    def simulator(self) -> SimulatorControl:
        """Return the object through which the caller controls the simulator."""
        return SimulatorControl(self.fulcrum_base_url)

    def stand_in(self, folder: Path) -> ProxmoxStandIn:
        """Return the object through which the caller changes the cluster of the running stand-in."""
        # This starts no stand-in: the object uses the control port of the running one.
        return ProxmoxStandIn(folder / "proxmox", control_port=self.control_port)

    def is_running(self) -> bool:
        """Return whether the lab's simulator answers."""
        try:
            return requests.get(f"{self.fulcrum_base_url}/lab/clock", timeout=ANSWER_TIMEOUT_S).ok
        except requests.RequestException:
            return False


def read_lab(folder: Path) -> RunningLab | None:
    """Return the lab that runs in the folder; None if no lab runs there."""
    try:
        lab = RunningLab(**json.loads((folder / LAB_FILE_NAME).read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
    return lab if lab.is_running() else None


def find_lab(folder: Path) -> RunningLab:
    """Return the lab that runs in the folder. Raises NoLab."""
    lab = read_lab(folder)
    if lab is None:
        raise NoLab(
            f"no lab is running in {folder.resolve()}: start `smith lab` in another shell, "
            "then load lab.env in this shell, with the command that `smith lab` prints (`. …/lab.env`)"
        )
    return lab


def open_admin_client(lab: RunningLab, folder: Path) -> AdminClient:
    """Return a client that calls the simulator as an administrator of FulcrumCore."""
    return AdminClient(lab.fulcrum_base_url, (folder / "admin-token").read_text().strip())
