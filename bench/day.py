"""Measures the heartbeats and metrics of a day, or a share of it, and one round of the metrics of thousands of VMs.

The heartbeats and metrics that the agent would send in this share of a day are sent without the waits between them. A
round of metrics is one call of `VmMetrics.report`, which sends the metrics of all VMs, or of as many VMs as the rate
limit allows. In the figures, a round is called a turn.

`python -m bench.day INPUT OUTPUT` runs one workload. INPUT is a JSON file with `workload` (day or fleet), `agent_id`,
`vms` (the number of VMs) and, for the workload day, `share` (the share of a day). The variables FULCRUM_*, PROXMOX_*
and SMITH_* contain the addresses and credentials of the systems. The figures are written to the file OUTPUT.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from smith_lab.system import LabSystem, running_lab

from bench.measuring import run_in_own_process
from bench.seeding import add_services_with_vms
from executor.agent import metrics
from executor.agent.heartbeat import Heartbeat
from executor.agent.state import AgentState
from executor.database import mappings
from executor.database.engine import open_engine, transaction
from executor.database.schema import upgrade
from executor.fulcrum.client import FulcrumClient
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import load_settings

Json = dict[str, Any]
DAY_S = 24 * 3600.0
#: The agent's default intervals between two heartbeats and between two rounds of metrics.
HEARTBEAT_INTERVAL_S = 10.0
METRICS_INTERVAL_S = 60.0
FIRST_VMID = 300_000
#: A rate limit of metrics with this value does not limit a round.
UNLIMITED = 1e9


def measure_share_of_a_day(folder: Path, *, share: float, vms: int) -> Json:
    """Measure all heartbeats and metrics of a share of a day. They are sent without the waits between them."""
    return _run_workload(folder, vms, {"workload": "day", "share": share})


def measure_fleet(folder: Path, *, vms: int) -> Json:
    """Measure one round of the metrics of a fleet of `vms` VMs, with the agent's rate limit."""
    return _run_workload(folder, vms, {"workload": "fleet"})


def _run_workload(folder: Path, vms: int, workload: Json) -> Json:
    folder.mkdir(parents=True)
    with running_lab(folder) as lab:
        _add_running_vms(lab, vms)
        inputs = {**workload, "agent_id": lab.ids.agent_id, "vms": vms}
        return run_in_own_process("bench.day", inputs, folder, lab.environment())


def _add_running_vms(lab: LabSystem, vms: int) -> None:
    """Add running VMs and their services to the data of the simulators.

    This takes seconds. To order five thousand VMs through the API would take minutes.
    """
    (example,) = add_services_with_vms(lab, count=1)
    lab.proxmox.control("add", vmid=FIRST_VMID, name="fleet", status="running", copies=vms, config={"memory": "2048"})
    store = lab.core.server.store
    with store.lock:
        original = store.services[example.service_id]
        for vmid in range(FIRST_VMID, FIRST_VMID + vms):
            service = copy.copy(original)
            service.id, service.agent_instance_id = str(uuid.uuid4()), f"{lab.ids.agent_id}/{vmid}"
            store.services[service.id] = service
            store.service_id_by_instance_id[service.agent_instance_id] = service.id


# --- in a process of its own ------------------------------------------------------------------------------------------


def main(input_file: str, output_file: str) -> None:
    """Run the workload of the input file and write its figures to the output file."""
    inputs = json.loads(Path(input_file).read_text(encoding="utf-8"))
    settings = load_settings()
    state = AgentState(agent_id=inputs["agent_id"])
    token = settings.fulcrum_api_token.get_secret_value()
    fulcrum = FulcrumClient(str(settings.fulcrum_api_url), lambda: token)
    engine = open_engine(f"sqlite:///{Path(output_file).with_suffix('.db')}")
    upgrade(engine)
    with transaction(engine) as session:
        for vmid in range(FIRST_VMID, FIRST_VMID + inputs["vms"]):
            columns = {"service_id": str(uuid.uuid4()), "cluster": "default", "name": f"fleet-{vmid}", "node": "pve1"}
            mappings.insert_active(session, vmid=vmid, **columns)
    proxmox = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    vm_metrics = metrics.VmMetrics(
        engine=engine, fulcrum=fulcrum, proxmox=proxmox, state=state, interval_s=METRICS_INTERVAL_S
    )
    if inputs["workload"] == "fleet":
        figures = _measure_round(vm_metrics)
    else:
        figures = _send_share_of_a_day(inputs["share"], Heartbeat(fulcrum=fulcrum, state=state), vm_metrics)
    Path(output_file).write_text(json.dumps({**figures, "vms": inputs["vms"]}), encoding="utf-8")


def _measure_round(vm_metrics: metrics.VmMetrics) -> Json:
    """Measure one round of metrics."""
    post_counter = _count_posts_of(vm_metrics.fulcrum)
    cpu_before_s, started = time.process_time(), time.monotonic()
    vm_metrics.report()
    took_s = time.monotonic() - started
    cpu_s = time.process_time() - cpu_before_s
    posts = post_counter["post_metric"]
    # In its first round, a VM has two metrics. Its other metrics are rates, which need the values of two rounds.
    posts_for_all_vms = 2 * len(vm_metrics._previous_rows)
    # The next round starts when the interval ends, or when this round ends if that is later.
    return {
        "posts": posts,
        "took_s": took_s,
        "share_of_a_core": cpu_s / max(took_s, METRICS_INTERVAL_S),
        "turns_for_all": posts_for_all_vms / posts,
        "interval_s": METRICS_INTERVAL_S,
    }


def _count_posts_of(fulcrum: FulcrumClient) -> dict[str, int]:
    """Make `fulcrum` count the calls of `post_metric`. Return a dict in which this count grows."""
    counts = {"post_metric": 0}
    original_post_metric = fulcrum.post_metric

    def post_and_count(**values: Any) -> None:
        original_post_metric(**values)
        counts["post_metric"] += 1

    fulcrum.post_metric = post_and_count  # type: ignore[method-assign]
    return counts


def _send_share_of_a_day(share: float, heartbeat: Heartbeat, vm_metrics: metrics.VmMetrics) -> Json:
    """Send all heartbeats, then all metrics, of the share of a day; return the CPU time and the growth of memory."""
    # Without the rate limit of metrics, all rounds take only seconds.
    metrics.MAX_POSTS_PER_S = metrics.MIN_POSTS_PER_S = metrics.POSTS_SHARE_OF_A_CORE = UNLIMITED
    heartbeats = int(DAY_S / HEARTBEAT_INTERVAL_S * share)
    rounds = int(DAY_S / METRICS_INTERVAL_S * share)
    for function in (heartbeat.send, vm_metrics.report):
        _repeat(function, max(rounds // 10, 2))  # fills connection pools and caches before the measurement
    memory_before_mib = _memory_mib()
    heartbeats_cpu_s = _repeat(heartbeat.send, heartbeats)
    metrics_cpu_s = _repeat(vm_metrics.report, rounds)
    return {
        "share": share,
        "heartbeats": heartbeats,
        "heartbeat_share_of_a_core": heartbeats_cpu_s / (DAY_S * share),
        "metric_turns": rounds,
        "metric_share_of_a_core": metrics_cpu_s / (DAY_S * share),
        "grown_mib": _memory_mib() - memory_before_mib,
        "highest_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _repeat(function: Callable[[], object], times: int) -> float:
    """Call the function `times` times; return the total CPU time of the calls in seconds."""
    cpu_before_s = time.process_time()
    for _ in range(times):
        function()
    return time.process_time() - cpu_before_s


def _memory_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 1024 / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
