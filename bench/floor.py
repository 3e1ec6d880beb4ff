"""Measures the floor: the cost of create, start and stop for a process that calls Proxmox's API without Ansible.

The report compares the playbook runs of the workload `runs` with the floor. A baseline of the workload `bursts` also
contains the floor (see bench/serial.py).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from proxmoxer import ProxmoxAPI
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.measuring import WorkloadFailed

TEMPLATE_VMID = 9000
NODE = "pve1"
#: Interval between two requests for the status of a Proxmox task.
POLL_INTERVAL_S = 0.2
#: How often each action is measured.
EXECUTIONS = 10
#: The VMID of the first measured VM. FIRST_VMID - 1 is the VMID of a VM that is not measured.
FIRST_VMID = 700_000


def measure(stand_in: ProxmoxStandIn, executions: int = EXECUTIONS) -> dict[str, dict[str, float]]:
    """Return the CPU time, the wall time and the number of requests of each action, as means of `executions` calls.

    The wall time includes the time that the Proxmox tasks take.
    """
    proxmox = ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )
    _create(proxmox, FIRST_VMID - 1)  # opens the connection before the measurement
    means_by_action: dict[str, dict[str, float]] = {}
    for name, action in {"create": _create, "start": _start, "stop": _stop}.items():
        stand_in.reset_request_log()
        cpu_before_s, started = time.process_time(), time.monotonic()
        for number in range(executions):
            action(proxmox, FIRST_VMID + number)
        totals = {
            "cpu_s": time.process_time() - cpu_before_s,
            "wall_s": time.monotonic() - started,
            "requests": len(stand_in.request_log()),
        }
        means_by_action[name] = {key: total / executions for key, total in totals.items()}
    _delete_vms(proxmox, executions)
    return means_by_action


def _create(proxmox: Any, vmid: int) -> None:
    proxmox.cluster.resources.get(type="vm")
    template = proxmox.nodes(NODE).qemu(TEMPLATE_VMID)
    template.config.get()
    upid = template.clone.post(newid=vmid, name=f"floor-{vmid}", full=1)
    _wait_for_task(proxmox, upid)
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


def _delete_vms(proxmox: Any, measured_vm_count: int) -> None:
    for vmid in range(FIRST_VMID - 1, FIRST_VMID + measured_vm_count):
        _wait_for_task(proxmox, proxmox.nodes(NODE).qemu(vmid).delete())


def _wait_for_task(proxmox: Any, upid: str) -> None:
    """Wait until a Proxmox task has ended. Raises WorkloadFailed if the task failed. `upid` is the id of the task."""
    node = upid.split(":")[1]  # the form of the id is UPID:<node>:…
    get_status: Callable[[], dict[str, Any]] = proxmox.nodes(node).tasks(upid).status.get
    status = get_status()
    while status["status"] != "stopped":
        time.sleep(POLL_INTERVAL_S)
        status = get_status()
    if status["exitstatus"] != "OK":
        raise WorkloadFailed(f"floor: {upid}: {status['exitstatus']}")
