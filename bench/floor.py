"""Measures the floor: the cost of create, start and stop for a process that calls Proxmox's API without Ansible.

The costs of other ways to run these actions are compared with the floor.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from proxmoxer import ProxmoxAPI
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.measuring import WorkloadFailed

TEMPLATE, NODE = 9000, "pve1"
#: Interval at which the status of a Proxmox task is read.
POLL_S = 0.2
ROUNDS = 10
#: No other workload uses this VMID or a higher one.
FIRST_VMID = 700_000


def measure(stand_in: ProxmoxStandIn, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Return for each action the CPU-seconds, the wall seconds and the number of requests, as means of `rounds` calls.

    The wall time includes the time of the Proxmox tasks.
    """
    proxmox = ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )
    _create(proxmox, FIRST_VMID - 1)  # this call, which is not measured, opens the connection
    spent: dict[str, dict[str, float]] = {}
    for name, action in {"create": _create, "start": _start, "stop": _stop}.items():
        stand_in.reset_request_log()
        cpu_before_s, started = time.process_time(), time.monotonic()
        for number in range(rounds):
            action(proxmox, FIRST_VMID + number)
        facts = {"cpu_s": time.process_time() - cpu_before_s, "wall_s": time.monotonic() - started}
        facts["requests"] = len(stand_in.request_log())
        spent[name] = {key: value / rounds for key, value in facts.items()}
    _remove(proxmox, rounds)
    return spent


def _create(proxmox: Any, vmid: int) -> None:
    proxmox.cluster.resources.get(type="vm")
    proxmox.nodes(NODE).qemu(TEMPLATE).config.get()
    _wait_for_task(proxmox, proxmox.nodes(NODE).qemu(TEMPLATE).clone.post(newid=vmid, name=f"floor-{vmid}", full=1))
    vm = proxmox.nodes(NODE).qemu(vmid)
    vm.config.put(cores=2, memory=2048, description=f"smith-uid={uuid.uuid4()}", tags="smith")
    vm.resize.put(disk="scsi0", size="10G")
    vm.config.get()


def _start(proxmox: Any, vmid: int) -> None:
    vm = proxmox.nodes(NODE).qemu(vmid)
    vm.config.get()
    _wait_for_task(proxmox, vm.status.start.post())
    vm.status.current.get()


def _stop(proxmox: Any, vmid: int) -> None:
    vm = proxmox.nodes(NODE).qemu(vmid)
    vm.config.get()
    _wait_for_task(proxmox, vm.status.stop.post())
    vm.status.current.get()


def _remove(proxmox: Any, rounds: int) -> None:
    for vmid in range(FIRST_VMID - 1, FIRST_VMID + rounds):
        _wait_for_task(proxmox, proxmox.nodes(NODE).qemu(vmid).delete())


def _wait_for_task(proxmox: Any, upid: str) -> None:
    """Wait until a Proxmox task has ended. Raises WorkloadFailed if the task failed."""
    get_status: Callable[[], dict[str, Any]] = proxmox.nodes(upid.split(":")[1]).tasks(upid).status.get
    while (status := get_status())["status"] != "stopped":
        time.sleep(POLL_S)
    if status["exitstatus"] != "OK":
        raise WorkloadFailed(f"floor: {upid}: {status['exitstatus']}")
