"""Measures how much CPU time an agent without jobs uses, by the number of running VMs whose metrics it sends.

A turn is one metrics interval (SMITH_METRICS_INTERVAL_S): in each, the critical job ReportMetric sends metrics. The
agent limits the rate, so it may need several intervals to send the metrics of all VMs.
"""

from __future__ import annotations

import copy
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from smith_lab.system import LabSystem, wait_for

from bench.labs import START_TIMEOUT_S, agent_pid, running_lab_without_agent, start_agent
from bench.measuring import measure_cpu_use, own_cpu_s
from bench.part import POLL_INTERVAL_S, Bench, Goal, Part, Table
from bench.seeding import THREADS, add_services_with_vms
from executor.database import mappings
from executor.database.engine import open_engine, transaction
from executor.database.schema import upgrade
from executor.processes.memory import process_tree_memory_mib

Json = dict[str, Any]
FIRST_VMID = 300_000
#: The number of measured turns. The first turn is not measured: a VM's first metrics lack network and disk rates.
TURNS = 2
#: The goals are checked with this number of VMs.
GOAL_VMS = 5_000


def measure(bench: Bench) -> Json:
    """Return the figures for each number of VMs, such as the share of a core that the agent uses."""
    return {count: _measure_vm_count(bench, count) for count in bench.sizes.vm_counts}


def _measure_vm_count(bench: Bench, count: int) -> Json:
    interval_s = bench.sizes.metrics_interval_s
    settings = {"FULCRUM_POLL_INTERVAL_S": POLL_INTERVAL_S, "SMITH_METRICS_INTERVAL_S": f"{interval_s:g}"}
    # The bench can compare executors of several commits (variants). This part measures only this checkout's executor.
    with running_lab_without_agent(bench.variant_of_this_checkout, bench.folder, **settings) as lab:
        service_ids = _add_running_vms(lab, count)
        _add_mappings(lab, service_ids)
        start_agent(lab)
        simulator_data = lab.core.server.store  # the data of the FulcrumCore simulator
        wait_for(lambda: simulator_data.metric_entries, START_TIMEOUT_S + interval_s, "the first metrics")
        time.sleep(interval_s)
        # `own_cpu_s` returns the CPU time of the agent process, without its child processes.
        cpu_before_s, started_at_s = own_cpu_s(agent_pid(lab)), time.time()
        with measure_cpu_use() as cpu_use:
            time.sleep(TURNS * interval_s)
        took_s = time.time() - started_at_s
        with simulator_data.lock:
            entries = [entry for entry in simulator_data.metric_entries if entry.created_at >= started_at_s]
        vm_count_by_turn = [
            len({entry.service_id for entry in entries if int((entry.created_at - started_at_s) / interval_s) == turn})
            for turn in range(TURNS)
        ]
        return {
            "share_of_a_core": (own_cpu_s(agent_pid(lab)) - cpu_before_s) / took_s,
            # A metric entry contains one metric value of a VM.
            "entries_per_turn": len(entries) / TURNS,
            # how many turns the agent needs to send the metrics of all VMs
            "turns_for_all": count * TURNS / max(sum(vm_count_by_turn), 1),
            # of all processes of the executor: the supervisor and its descendants, such as the agent
            "mib": process_tree_memory_mib(lab.executor.pid),
            # share of the machine's CPU time that processes outside of the bench used
            "others_share": cpu_use.others_share,
        }


def _add_running_vms(lab: LabSystem, count: int) -> list[str]:
    """Add running VMs to the Proxmox stand-in, and their services to the FulcrumCore simulator; return the service ids.

    Each service is a copy of an example service, and is written directly into the simulator's data. It would take
    minutes to order five thousand VMs through the API.
    """
    (example,) = add_services_with_vms(lab, count=1)
    service_ids = [str(uuid.uuid4()) for _ in range(count)]
    simulator_data = lab.core.server.store
    with simulator_data.lock:
        example_service = simulator_data.services[example.service_id]
        for vmid, service_id in enumerate(service_ids, FIRST_VMID):
            service = copy.copy(example_service)
            service.id, service.agent_instance_id = service_id, f"{lab.ids.agent_id}/{vmid}"
            service.status = "Started"
            simulator_data.services[service.id] = service
            simulator_data.service_id_by_agent_instance_id[service.agent_instance_id] = service.id

    def add_vm(vmid: int, service_id: str) -> None:
        config = {"memory": "2048", "description": f"smith-uid={service_id}", "tags": "smith"}
        lab.proxmox.control("add", vmid=vmid, name=f"fleet-{vmid}", status="running", config=config)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(add_vm, range(FIRST_VMID, FIRST_VMID + count), service_ids))
    return service_ids


def _add_mappings(lab: LabSystem, service_ids: list[str]) -> None:
    """Add the mappings of the VMs to the agent's database, before the agent starts."""
    lab.data_dir.mkdir(mode=0o700)
    engine = open_engine(f"sqlite:///{lab.data_dir / 'smith.db'}")
    upgrade(engine)
    with transaction(engine) as session:
        for vmid, service_id in enumerate(service_ids, FIRST_VMID):
            columns = {"service_id": service_id, "cluster": "default", "name": f"fleet-{vmid}", "node": "pve1"}
            mappings.insert_active_mapping(session, vmid=vmid, **columns)
    engine.dispose()


def _tables(figures: Json) -> list[Table]:
    rows = [
        (
            f"{int(count):,}",
            f"{figures_of_count['share_of_a_core']:.2%}",
            f"{figures_of_count['entries_per_turn']:.0f}",
            f"{figures_of_count['turns_for_all']:.1f}",
            f"{figures_of_count['mib']:.0f}",
        )
        for count, figures_of_count in figures.items()
    ]
    headings = (
        "running VMs",
        "agent's share of a core",
        "metric entries per interval",
        "intervals to send the metrics of all VMs",
        "MiB of all executor processes",
    )
    return [Table(title="An agent without jobs, by the number of its VMs", headings=headings, rows=rows)]


def _goals(figures: Json) -> list[Goal]:
    counts = {int(count): figures_of_count for count, figures_of_count in figures.items()}
    if GOAL_VMS not in counts:
        return []
    share = counts[GOAL_VMS]["share_of_a_core"]
    text = f"metrics of {GOAL_VMS:,} VMs: CPU of the agent"
    if min(counts) < GOAL_VMS:
        text = f"metrics of {GOAL_VMS:,} VMs: CPU of the agent, minus its CPU with {min(counts)} VMs"
        share -= counts[min(counts)]["share_of_a_core"]
    return [
        Goal(
            figure_name=f"metrics of {GOAL_VMS:,} VMs: intervals to send all",
            limit=2,
            measured=counts[GOAL_VMS]["turns_for_all"],
        ),
        Goal(figure_name=text, limit=5, measured=100 * share, unit="% of a core"),
    ]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="cost of an agent without jobs by number of VMs", measure=measure, tables=_tables, goals=_goals)
