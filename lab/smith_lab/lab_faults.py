"""Begins and ends the faults of `smith lab fault` in a running lab, so that users see a failure and its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from executor.errors import SmithError
from smith_lab.running_lab import find_lab

#: A regular expression for the paths that only an agent requests. The commands of the lab request other paths, so these
#: commands still reach FulcrumCore during a fault.
AGENT_PATH_PATTERN = r"/agents/me|/jobs/pending|/jobs/[^/]+/(claim|complete|fail)$"
GIB = 1024**3


class UnknownFault(SmithError):
    """No fault has this name."""


class ControlRequest(NamedTuple):
    """A request to the control port of the Proxmox stand-in, which changes the stand-in's cluster.

    The verb is the name of the change, such as `revoke`.
    """

    verb: str
    arguments: dict[str, Any]


class Fault(NamedTuple):
    """A fault of the FulcrumCore simulator or of the Proxmox stand-in, and the command that shows it to users."""

    name: str
    #: What is broken.
    description: str
    #: The command with which users observe the fault.
    observe_command: str
    #: The rule that is added to the simulator to begin the fault. `simulator/fault_rules.py` explains the members of a
    #: rule. None: the fault is in the stand-in.
    simulator_rule: dict[str, Any] | None = None
    #: The request that begins the fault in the stand-in; None: the fault is in the simulator.
    begin_request: ControlRequest | None = None
    #: The request that ends the fault in the stand-in. None: the fault is in the simulator, or the stand-in's verb
    #: `clear_faults` ends it.
    end_request: ControlRequest | None = None


FAULTS = (
    Fault(
        "fulcrum-down",
        "FulcrumCore closes the agent's connections without an answer",
        "smith status",
        # drop_before: close the connection before the request is processed
        simulator_rule={"kind": "drop_before", "path": AGENT_PATH_PATTERN},
    ),
    Fault(
        "fulcrum-token",
        "FulcrumCore refuses the agent's token",
        "smith doctor",
        simulator_rule={"kind": "status", "status": 401, "path": AGENT_PATH_PATTERN},
    ),
    Fault(
        "proxmox-down",
        "Proxmox closes all connections without an answer",
        "smith status",
        # status 0: close the connection without an answer; times -1: until the fault ends
        begin_request=ControlRequest("fail", {"method": "*", "path": "*", "status": 0, "times": -1}),
    ),
    Fault(
        "proxmox-slow",
        "Proxmox answers each request after 2 s",
        "smith top",
        begin_request=ControlRequest("slow", {"seconds": 2}),
    ),
    Fault(
        "node-down",
        "the node pve1 is offline",
        "smith doctor",
        begin_request=ControlRequest("node", {"node": "pve1", "online": False}),
    ),
    Fault(
        "no-quorum",
        "the cluster has no quorum",
        "smith doctor",
        begin_request=ControlRequest("quorum", {"quorate": False}),
    ),
    Fault(
        "storage-full",
        "the storage local-lvm has 1 GiB left",
        "smith lab order full-1; smith jobs list --failed",
        begin_request=ControlRequest("fill", {"storage": "local-lvm", "left": GIB}),
        end_request=ControlRequest("end_fill", {"storage": "local-lvm"}),
    ),
    Fault(
        "clone-fails",
        "each clone ends with an error of the storage",
        "smith lab order broken-1; smith jobs list --failed",
        begin_request=ControlRequest(
            "fail_task", {"type": "qmclone", "text": "clone failed: lvcreate: device is busy", "times": -1}
        ),
    ),
    Fault(
        "privilege",
        "the API token lacks the privilege VM.Clone",
        "smith doctor",
        begin_request=ControlRequest("revoke", {"path": "/vms", "privilege": "VM.Clone"}),
        end_request=ControlRequest("grant", {"path": "/vms", "privilege": "VM.Clone"}),
    ),
    Fault(
        "template",
        "the template debian-12 (VM 9000) has been removed",
        "smith doctor",
        begin_request=ControlRequest("remove", {"vmid": 9000}),
        end_request=ControlRequest("add_template", {"vmid": 9000, "name": "debian-12", "node": "pve1"}),
    ),
)


def begin_fault(folder: Path, name: str) -> Fault:
    """Begin the fault in the lab that runs in this folder. Raises NoLab if no lab runs there, and UnknownFault."""
    fault = next((fault for fault in FAULTS if fault.name == name), None)
    if fault is None:
        names = ", ".join(fault.name for fault in FAULTS)
        raise UnknownFault(f"there is no fault {name}; faults: {names}; `smith lab fault clear` ends all faults")
    lab = find_lab(folder)
    # The fault may have begun already. So its `end_request`, if it has one, is sent first: the stand-in cannot remove a
    # template twice.
    _end_fault_in_stand_in(folder, fault)
    # `simulator()` and `stand_in()` return clients of the running simulator and stand-in.
    if fault.simulator_rule is not None:
        lab.simulator().add_fault(**fault.simulator_rule)
    if fault.begin_request is not None:
        lab.stand_in(folder).control(fault.begin_request.verb, **fault.begin_request.arguments)
    return fault


def clear_faults(folder: Path) -> None:
    """End all faults of the lab that runs in this folder. Raises NoLab if no lab runs there."""
    lab = find_lab(folder)
    lab.simulator().clear_faults()
    lab.stand_in(folder).control("clear_faults")
    for fault in FAULTS:
        _end_fault_in_stand_in(folder, fault)


def _end_fault_in_stand_in(folder: Path, fault: Fault) -> None:
    """Send to the stand-in the request that ends the fault. A template that exists is not added again."""
    stand_in = find_lab(folder).stand_in(folder)
    request = fault.end_request
    if request is None:
        return
    if request.verb == "add_template" and stand_in.guest(int(request.arguments["vmid"])) is not None:
        return
    stand_in.control(request.verb, **request.arguments)
