"""Implements `smith demo`: runs the whole system, then checks that FulcrumCore, the mappings and Proxmox agree.

The demo creates services in the FulcrumCore simulator. The executor creates, starts, updates, stops and deletes their
VMs on the Proxmox stand-in. Then the demo compares the services in FulcrumCore, the executor's mappings (each assigns
a VMID to a service) and the VMs in Proxmox. The exit code is 0 if all three agree.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from executor.errors import EXIT_FAILURE, EXIT_OK
from smith_lab.system import LabSystem, running_lab, wait_for

#: How many real seconds one second of the Proxmox stand-in takes: slow enough that a user sees the progress.
TIME_SCALE = 0.2
#: Time after which a phase of the demo fails. FulcrumCore fails a job after the same time.
PHASE_TIMEOUT_S = 300.0
OPEN_STATES = ("Pending", "Processing")
#: Width of the output in characters if it is not a terminal.
NON_TERMINAL_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Row:
    """The state of one service in FulcrumCore, in the mappings and in Proxmox."""

    name: str
    fulcrum: str  #: FulcrumCore's state of the service
    instance: str  #: the VMID in the service's agentInstanceId
    mapping: str  #: VMID and state of the mapping
    proxmox: str  #: VMID, status and size of the VM
    agrees: bool  #: whether the other members describe the same state


def main(*, services: int = 6, as_json: bool = False, keep: bool = False) -> int:
    """Run the demo; return the exit code. With `keep`, keep the folder with the log and print its path.

    `services` is the number of services to create.
    """
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = NON_TERMINAL_WIDTH
    folder = Path(tempfile.mkdtemp(prefix="agent-smith-demo-"))
    console.print(
        f"[bold]Agent Smith demo[/]: {services} services, FulcrumCore simulator, Proxmox stand-in, real executor"
    )
    with running_lab(folder, time_scale=TIME_SCALE) as lab:
        lab.start_executor()
        try:
            rows = _run_phases(lab, console, services)
            code = lab.stop_executor()
            console.print(f"the executor drained and ended with exit code {code}")
        except (TimeoutError, RuntimeError) as failure:
            console.print(f"[red]{failure}[/]\nend of the executor's log:")
            console.print("\n".join(lab.log_file.read_text(errors="replace").splitlines()[-15:]), markup=False)
            return EXIT_FAILURE
    agreed = bool(rows) and all(row.agrees for row in rows) and code == EXIT_OK
    _show_result(rows, console, agreed, as_json)
    if keep or not agreed:
        console.print(f"log, database and artifacts: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return EXIT_OK if agreed else EXIT_FAILURE


def _run_phases(lab: LabSystem, console: Console, count: int) -> list[Row]:
    """Create and start `count` services; stop, update and delete some of them; return the rows of the comparison."""
    started = time.monotonic()
    with _progress(lab, console):
        names = {
            lab.order_service(f"web-{number}", diskGb=10 + number): f"web-{number}" for number in range(1, count + 1)
        }
        services = list(names)
        _wait_for_phase(lab, console, "created", services, "Stopped")
        for service_id in services:
            lab.admin.start_action(service_id, "start")
        _wait_for_phase(lab, console, "started", services, "Started")
        first_half = services[: max(count // 2, 1)]
        for service_id in first_half:
            lab.admin.start_action(service_id, "stop")
        _wait_for_phase(lab, console, "stopped", first_half, "Stopped")
        for service_id in first_half:
            lab.admin.patch_service(service_id, {"cores": 4, "memoryMb": 4096, "diskGb": 32})
        _wait_for_phase(lab, console, "updated", first_half, "Stopped")
        deleted = [*first_half[: max(len(first_half) // 2, 1)], services[-1]]
        for service_id in dict.fromkeys(deleted):
            lab.admin.delete_service(service_id)
        _wait_for_phase(lab, console, "deleted", list(dict.fromkeys(deleted)), "Deleted")
    console.print(f"{len(lab.admin.list_all('jobs'))} jobs in {time.monotonic() - started:.0f} s")
    return _compare_services(lab, names)


def _wait_for_phase(lab: LabSystem, console: Console, outcome: str, services: list[str], expected: str) -> None:
    """Wait until no job is open, then check that each of the services is in the `expected` state.

    `outcome` is the word for this phase in the output. Raises TimeoutError, or RuntimeError for another state.
    """

    def no_open_job() -> bool:
        return not any(job["status"] in OPEN_STATES for job in lab.admin.list_all("jobs"))

    started = time.monotonic()
    wait_for(no_open_job, PHASE_TIMEOUT_S, f"{len(services)} services to be {outcome}", interval_s=0.3)
    states = Counter(lab.admin.get_service(service_id)["status"] for service_id in services)
    console.print(f"  {outcome:8} {states[expected]}/{len(services)} in {time.monotonic() - started:.0f} s")
    if states[expected] != len(services):
        errors = sorted({str(job["errorMessage"]) for job in lab.admin.list_all("jobs") if job.get("errorMessage")})
        raise RuntimeError(f"the services are {dict(states)}, expected {expected}: {'; '.join(errors)}")


@contextmanager
def _progress(lab: LabSystem, console: Console) -> Iterator[None]:
    """On a terminal, show the state of every service while the block runs."""
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=lambda: _live_table(lab), console=console, refresh_per_second=2, transient=True):
        yield


def _live_table(lab: LabSystem) -> Table:
    table = Table(title="FulcrumCore", title_justify="left")
    for heading in ("service", "state", "job", "VMID"):
        table.add_column(heading)
    jobs = {job["serviceId"]: job for job in lab.admin.list_all("jobs", sort="createdAt")}
    for service in lab.admin.list_services():
        job = jobs.get(service["id"], {})
        open_job = f"{job.get('action')} {job.get('status')}" if job.get("status") in OPEN_STATES else ""
        vmid = str(service.get("agentInstanceId") or "").rpartition("/")[2]
        table.add_row(service["name"], service["status"], open_job, vmid)
    return table


def _compare_services(lab: LabSystem, names: dict[str, str]) -> list[Row]:
    """Return a row for each service, and a row for each VM or mapping that belongs to no service.

    `names` maps the ids of the demo's services to their names.
    """
    mappings = {mapping["service_id"]: mapping for mapping in lab.smith("mappings", "list")}
    guests = {guest["vmid"]: guest for guest in lab.guests()}
    rows = [
        _compare_service(lab.admin.get_service(service_id), mappings.pop(service_id, None), lab.guests_of(service_id))
        for service_id in names
    ]
    expected = {guest["vmid"] for service_id in names for guest in lab.guests_of(service_id)}
    unexpected = [str(vmid) for vmid in guests.keys() - expected] + [
        str(mapping["vmid"]) for mapping in mappings.values()
    ]
    return rows + [
        Row(name="(no service)", fulcrum="", instance="", mapping=vmid, proxmox=vmid, agrees=False)
        for vmid in unexpected
    ]


def _compare_service(service: dict[str, Any], mapping: dict[str, Any] | None, vms: list[dict[str, Any]]) -> Row:
    """Return the row of a service. `vms` are the VMs whose description contains the service's id."""
    instance = str(service.get("agentInstanceId") or "").rpartition("/")[2]
    expected_status = {"Started": "running", "Stopped": "stopped"}.get(service["status"])
    if service["status"] == "Deleted":
        agrees = mapping is None and not vms and not instance
    else:
        agrees = (
            len(vms) == 1
            and mapping is not None
            and mapping["state"] == "active"
            and instance == str(mapping["vmid"]) == str(vms[0]["vmid"])
            and vms[0]["status"] == expected_status
            and _has_requested_size(service["properties"], vms[0]["config"])
        )
    return Row(
        name=service["name"],
        fulcrum=service["status"],
        instance=instance,
        mapping=f"{mapping['vmid']} {mapping['state']}" if mapping else "",
        proxmox=", ".join(_describe_vm(vm) for vm in vms),
        agrees=agrees,
    )


def _has_requested_size(properties: dict[str, Any], config: dict[str, Any]) -> bool:
    return (
        str(config.get("cores")) == str(properties["cores"])
        and str(config.get("memory")) == str(properties["memoryMb"])
        and f"size={properties['diskGb']}G" in str(config.get("scsi0"))
    )


def _describe_vm(vm: dict[str, Any]) -> str:
    config = vm["config"]
    size = str(config.get("scsi0", "")).rpartition("size=")[2]
    return f"{vm['vmid']} {vm['status']}, {config.get('cores')} cores, {config.get('memory')} MiB, {size}"


def _show_result(rows: list[Row], console: Console, agreed: bool, as_json: bool) -> None:
    if as_json:
        json.dump({"agree": agreed, "services": [asdict(row) for row in rows]}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(title="Result", title_justify="left")
    for heading in ("service", "FulcrumCore", "instance", "mapping", "Proxmox", "agree"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.fulcrum, row.instance, row.mapping, row.proxmox, "yes" if row.agrees else "NO")
    console.print(table)
    console.print(
        "[green]FulcrumCore, mappings and Proxmox agree[/]"
        if agreed
        else "[red]FulcrumCore, mappings and Proxmox differ[/]"
    )
