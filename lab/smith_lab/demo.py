"""Implements `smith demo`: runs the whole system, then checks that FulcrumCore, the mappings and Proxmox agree.

The demo creates services in the FulcrumCore simulator. The executor creates, starts, updates, stops and deletes their
VMs on the Proxmox stand-in. Then the demo compares the services in FulcrumCore, the executor's mappings (each assigns
a VMID to a service) and the VMs in Proxmox. The exit code is 0 if all three agree and the executor
ended with exit code 0.

A LabSystem contains the running simulator, stand-in and executor. `lab.admin` calls FulcrumCore's API, and
`lab.guests()` lists the VMs of the stand-in. `lab.guests_of(service_id)` lists the VMs whose description contains the
marker of this service.
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
from smith_lab.system import LabSystem, run_lab_system, wait_for

#: Real seconds for each second of simulated Proxmox time. With a much smaller value, a user would see no progress.
TIME_SCALE = 0.2
#: The maximum time of one phase of the demo, such as the creation of all VMs. It equals FulcrumCore's default job
#: timeout.
PHASE_TIMEOUT_S = 300.0
#: The statuses of a job that has not ended.
OPEN_STATUSES = ("Pending", "Processing")
#: How many lines of the executor's log the demo prints after a failure.
LOG_TAIL_LINES = 15
#: Width of the output in characters if it is not a terminal.
NON_TERMINAL_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Row:
    """The state of one service in FulcrumCore, in the mappings and in Proxmox.

    The demo also makes a row for each VM and each mapping that belongs to no service.
    """

    name: str
    fulcrum: str  #: the status of the service in FulcrumCore
    instance: str  #: the VMID in FulcrumCore's `agentInstanceId` of the service, which is "<agent id>/<VMID>"
    mapping: str  #: VMID and state of the mapping
    proxmox: str  #: VMID, status and size of the VM
    agrees: bool  #: whether FulcrumCore, the mapping and Proxmox describe the same state


def main(*, service_count: int = 6, as_json: bool = False, keep_folder: bool = False) -> int:
    """Run the demo with this number of services; return the exit code.

    If `keep_folder` is true or the demo fails, keep the folder with the log and print its path.
    """
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = NON_TERMINAL_WIDTH
    folder = Path(tempfile.mkdtemp(prefix="agent-smith-demo-"))
    console.print(
        f"[bold]Agent Smith demo[/]: {service_count} services, FulcrumCore simulator, Proxmox stand-in, real executor"
    )
    # limits_orders_to_settings: FulcrumCore refuses orders with values that the executor's settings do not allow
    with run_lab_system(folder, time_scale=TIME_SCALE, limits_orders_to_settings=True) as lab:
        lab.start_executor()
        try:
            rows = _run_phases(lab, console, service_count)
            exit_code = lab.stop_executor()
            console.print(f"the executor drained and ended with exit code {exit_code}")
        except (TimeoutError, RuntimeError) as failure:
            console.print(f"[red]{failure}[/]\nlast lines of the executor's log:")
            log_lines = lab.log_file.read_text(errors="replace").splitlines()
            console.print("\n".join(log_lines[-LOG_TAIL_LINES:]), markup=False)
            return EXIT_FAILURE
    is_successful = bool(rows) and all(row.agrees for row in rows) and exit_code == EXIT_OK
    _show_result(rows, console, is_successful=is_successful, as_json=as_json)
    if keep_folder or not is_successful:
        console.print(f"log, database and artifacts: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return EXIT_OK if is_successful else EXIT_FAILURE


def _run_phases(lab: LabSystem, console: Console, service_count: int) -> list[Row]:
    """Create and start the services; stop, update and delete some of them; return the rows of the comparison."""
    started_at_s = time.monotonic()
    with _show_progress(lab, console):
        service_ids = [lab.order_service(f"web-{number}", diskGb=10 + number) for number in range(1, service_count + 1)]
        _wait_for_phase(lab, console, "created", service_ids, "Stopped")
        for service_id in service_ids:
            lab.admin.request_action(service_id, "start")
        _wait_for_phase(lab, console, "started", service_ids, "Started")
        first_half = service_ids[: max(service_count // 2, 1)]
        for service_id in first_half:
            lab.admin.request_action(service_id, "stop")
        _wait_for_phase(lab, console, "stopped", first_half, "Stopped")
        for service_id in first_half:
            lab.admin.patch_service(service_id, {"cores": 4, "memoryMb": 4096, "diskGb": 32})
        _wait_for_phase(lab, console, "updated", first_half, "Stopped")
        first_quarter = first_half[: max(len(first_half) // 2, 1)]
        # If there is only one service, it is in `first_quarter` and is also the last service. `dict.fromkeys` removes
        # the duplicate.
        ids_to_delete = list(dict.fromkeys([*first_quarter, service_ids[-1]]))
        for service_id in ids_to_delete:
            lab.admin.delete_service(service_id)
        _wait_for_phase(lab, console, "deleted", ids_to_delete, "Deleted")
    job_count = len(lab.admin.list_all("jobs"))
    console.print(f"{job_count} jobs in {time.monotonic() - started_at_s:.0f} s")
    return _compare_services(lab, service_ids)


def _wait_for_phase(lab: LabSystem, console: Console, label: str, service_ids: list[str], status: str) -> None:
    """Wait until every job has ended, then check that each of the services has this status.

    `label` is the word for this phase in the output, such as `created`. Raises TimeoutError if a job does not end, and
    RuntimeError if a service has another status.
    """

    def has_no_open_job() -> bool:
        return not any(job["status"] in OPEN_STATUSES for job in lab.admin.list_all("jobs"))

    started_at_s = time.monotonic()
    wait_for(has_no_open_job, PHASE_TIMEOUT_S, f"{len(service_ids)} services to be {label}", interval_s=0.3)
    count_by_status = Counter(lab.admin.get_service(service_id)["status"] for service_id in service_ids)
    duration_s = time.monotonic() - started_at_s
    console.print(f"  {label:8} {count_by_status[status]}/{len(service_ids)} in {duration_s:.0f} s")
    if count_by_status[status] != len(service_ids):
        errors = sorted({str(job["errorMessage"]) for job in lab.admin.list_all("jobs") if job.get("errorMessage")})
        raise RuntimeError(
            f"expected {len(service_ids)} services with the status {status}, found {dict(count_by_status)}; "
            f"error messages of jobs: {'; '.join(errors) or 'none'}"
        )


@contextmanager
def _show_progress(lab: LabSystem, console: Console) -> Iterator[None]:
    """On a terminal, show the status of every service while the block runs."""
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=lambda: _progress_table(lab), console=console, refresh_per_second=2, transient=True):
        yield


def _progress_table(lab: LabSystem) -> Table:
    table = Table(title="FulcrumCore", title_justify="left")
    for heading in ("service", "status", "job", "VMID"):
        table.add_column(heading)
    # The jobs are sorted by age, oldest first, so the dict keeps the newest job of each service.
    newest_jobs = {job["serviceId"]: job for job in lab.admin.list_all("jobs", sort="createdAt")}
    for service in lab.admin.list_services():
        job = newest_jobs.get(service["id"], {})
        open_job_text = f"{job.get('action')} {job.get('status')}" if job.get("status") in OPEN_STATUSES else ""
        vmid = str(service.get("agentInstanceId") or "").rpartition("/")[2]
        table.add_row(service["name"], service["status"], open_job_text, vmid)
    return table


def _compare_services(lab: LabSystem, service_ids: list[str]) -> list[Row]:
    """Return a row for each service in `service_ids`, and a row for each VM and mapping that belongs to no service."""
    mappings = {mapping["service_id"]: mapping for mapping in lab.run_smith_json("mappings", "list")}
    unexpected_vmids = {guest["vmid"] for guest in lab.guests()}  # the loop removes the VMIDs of the services
    rows = []
    for service_id in service_ids:
        vms = lab.guests_of(service_id)
        unexpected_vmids -= {vm["vmid"] for vm in vms}
        rows.append(_compare_service(lab.admin.get_service(service_id), mappings.pop(service_id, None), vms))
    # `mappings` now contains only mappings that belong to no service, because the loop removed all others.
    # The row of a VM or mapping without a service shows the VMID as `mapping` and as `proxmox`, even if only the VM or
    # only the mapping exists.
    vmids = [*unexpected_vmids, *(mapping["vmid"] for mapping in mappings.values())]
    return rows + [
        Row(name="(no service)", fulcrum="", instance="", mapping=str(vmid), proxmox=str(vmid), agrees=False)
        for vmid in vmids
    ]


def _compare_service(service: dict[str, Any], mapping: dict[str, Any] | None, vms: list[dict[str, Any]]) -> Row:
    """Return the row of a service. `vms` are the VMs whose description contains the marker of the service."""
    instance = str(service.get("agentInstanceId") or "").rpartition("/")[2]
    expected_vm_status = {"Started": "running", "Stopped": "stopped"}.get(service["status"])
    if service["status"] == "Deleted":
        agrees = mapping is None and not vms and not instance
    else:
        agrees = (
            len(vms) == 1
            and mapping is not None
            and mapping["state"] == "active"
            and instance == str(mapping["vmid"]) == str(vms[0]["vmid"])
            and vms[0]["status"] == expected_vm_status
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


def _show_result(rows: list[Row], console: Console, *, is_successful: bool, as_json: bool) -> None:
    if as_json:
        json.dump({"agree": is_successful, "services": [asdict(row) for row in rows]}, sys.stdout, indent=2)
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
        if is_successful
        else "[red]FulcrumCore, mappings and Proxmox differ, or the executor's exit code is not 0[/]"
    )
