"""The command `smith demo`: runs the whole system and checks that its three records agree at the end.

The demo creates services in the FulcrumCore simulator. The executor creates, starts, updates, stops and deletes their
VMs on the Proxmox stand-in. Then the demo compares FulcrumCore, the executor's mappings and Proxmox. The exit code is 0
if they agree.
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

#: Real seconds of a Proxmox second: slow enough to see the progress.
TIME_SCALE = 0.2
#: FulcrumCore's job timeout; no phase of the demo may take longer.
PHASE_LIMIT_S = 300.0
OPEN_STATES = ("Pending", "Processing")
#: Columns of the output without a terminal.
LOG_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Row:
    """One service in FulcrumCore, in the mappings and in Proxmox."""

    name: str
    fulcrum: str  #: FulcrumCore's state of the service
    instance: str  #: the VMID in its agentInstanceId
    mapping: str
    proxmox: str
    agrees: bool


def main(*, services: int = 6, as_json: bool = False, keep: bool = False) -> int:
    """Run the demo; return the exit code. `keep` keeps the working folder and prints its path."""
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = LOG_WIDTH
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
    started = time.monotonic()
    with _progress(lab, console):
        names = {
            lab.order_service(f"web-{number}", diskGb=10 + number): f"web-{number}" for number in range(1, count + 1)
        }
        services = list(names)
        _phase(lab, console, "created", services, "Stopped")
        for service_id in services:
            lab.admin.start_action(service_id, "start")
        _phase(lab, console, "started", services, "Started")
        half = services[: max(count // 2, 1)]
        for service_id in half:
            lab.admin.start_action(service_id, "stop")
        _phase(lab, console, "stopped", half, "Stopped")
        for service_id in half:
            lab.admin.patch_service(service_id, {"cores": 4, "memoryMb": 4096, "diskGb": 32})
        _phase(lab, console, "updated", half, "Stopped")
        deleted = [*half[: max(len(half) // 2, 1)], services[-1]]
        for service_id in dict.fromkeys(deleted):
            lab.admin.delete_service(service_id)
        _phase(lab, console, "deleted", list(dict.fromkeys(deleted)), "Deleted")
    console.print(f"{len(lab.admin.list_all('jobs'))} jobs in {time.monotonic() - started:.0f} s")
    return _compare(lab, names)


def _phase(lab: LabSystem, console: Console, word: str, services: list[str], wanted: str) -> None:
    """Wait until no job is open. Raises TimeoutError; RuntimeError if a service is not in the wanted state."""

    def no_open_job() -> bool:
        return not any(job["status"] in OPEN_STATES for job in lab.admin.list_all("jobs"))

    started = time.monotonic()
    wait_for(no_open_job, PHASE_LIMIT_S, f"{len(services)} services to be {word}", interval_s=0.3)
    states = Counter(lab.admin.get_service(service_id)["status"] for service_id in services)
    console.print(f"  {word:8} {states[wanted]}/{len(services)} in {time.monotonic() - started:.0f} s")
    if states[wanted] != len(services):
        errors = sorted({str(job["errorMessage"]) for job in lab.admin.list_all("jobs") if job.get("errorMessage")})
        raise RuntimeError(f"the services are {dict(states)}, expected {wanted}: {'; '.join(errors)}")


@contextmanager
def _progress(lab: LabSystem, console: Console) -> Iterator[None]:
    """Show the state of every service while the block runs, if there is a terminal."""
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
        doing = f"{job.get('action')} {job.get('status')}" if job.get("status") in OPEN_STATES else ""
        vmid = str(service.get("agentInstanceId") or "").rpartition("/")[2]
        table.add_row(service["name"], service["status"], doing, vmid)
    return table


def _compare(lab: LabSystem, names: dict[str, str]) -> list[Row]:
    """Compare the three records. A VM or mapping without a service gets a row of its own."""
    mappings = {mapping["service_id"]: mapping for mapping in lab.smith("mappings", "list")}
    guests = {guest["vmid"]: guest for guest in lab.guests()}
    rows = [
        _row(lab.admin.get_service(service_id), mappings.pop(service_id, None), lab.guests_of(service_id))
        for service_id in names
    ]
    expected = {guest["vmid"] for service_id in names for guest in lab.guests_of(service_id)}
    unexpected = [str(vmid) for vmid in guests.keys() - expected] + [str(found["vmid"]) for found in mappings.values()]
    return rows + [
        Row(name="(no service)", fulcrum="", instance="", mapping=vmid, proxmox=vmid, agrees=False)
        for vmid in unexpected
    ]


def _row(service: dict[str, Any], mapping: dict[str, Any] | None, vms: list[dict[str, Any]]) -> Row:
    instance = str(service.get("agentInstanceId") or "").rpartition("/")[2]
    running = {"Started": "running", "Stopped": "stopped"}.get(service["status"])
    if service["status"] == "Deleted":
        agrees = mapping is None and not vms and not instance
    else:
        agrees = (
            len(vms) == 1
            and mapping is not None
            and mapping["state"] == "active"
            and instance == str(mapping["vmid"]) == str(vms[0]["vmid"])
            and vms[0]["status"] == running
            and _has_requested_size(service["properties"], vms[0]["config"])
        )
    return Row(
        name=service["name"],
        fulcrum=service["status"],
        instance=instance,
        mapping=f"{mapping['vmid']} {mapping['state']}" if mapping else "",
        proxmox=", ".join(_vm_line(vm) for vm in vms),
        agrees=agrees,
    )


def _has_requested_size(properties: dict[str, Any], config: dict[str, Any]) -> bool:
    return (
        str(config.get("cores")) == str(properties["cores"])
        and str(config.get("memory")) == str(properties["memoryMb"])
        and f"size={properties['diskGb']}G" in str(config.get("scsi0"))
    )


def _vm_line(vm: dict[str, Any]) -> str:
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
