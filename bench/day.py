"""Measures the heartbeats and metrics of a share of a day, and one round of the metrics of very many VMs.

The heartbeats and metrics of a share of a day run without the waits between them. A round of metrics is one call of
`VmMetrics.report`, which sends the metrics of all VMs.

`python -m bench.day INPUT OUTPUT` runs one workload. INPUT is a JSON file with `workload` (day or fleet), `agent_id`,
`vms` (the number of VMs) and `share` (the share of a day). The variables FULCRUM_*, PROXMOX_* and SMITH_* contain the
addresses and credentials of the systems. The figures are written to the file OUTPUT.
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

from bench.measuring import in_own_process
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
#: The intervals at which an agent sends heartbeats and metrics.
HEARTBEAT_INTERVAL_S = 10.0
METRICS_INTERVAL_S = 60.0
FIRST_VMID = 300_000


def day(folder: Path, *, share: float, vms: int) -> Json:
    """Measure all heartbeats and metrics of a share of a day, but without the waits between them."""
    return _measure(folder, vms, {"workload": "day", "share": share})


def fleet(folder: Path, *, vms: int) -> Json:
    """Measure one round of the metrics of `vms` VMs, with the agent's rate limit."""
    return _measure(folder, vms, {"workload": "fleet"})


def _measure(folder: Path, vms: int, workload: Json) -> Json:
    folder.mkdir(parents=True)
    with running_lab(folder) as lab:
        _add_vms(lab, vms)
        inputs = {**workload, "agent_id": lab.ids.agent_id, "vms": vms}
        return in_own_process("bench.day", inputs, folder, lab.environment())


def _add_vms(lab: LabSystem, vms: int) -> None:
    """Add running VMs and their services to the data of the simulators.

    Orders of five thousand VMs through the API would take minutes.
    """
    (first,) = add_services_with_vms(lab, 1)
    lab.proxmox.control("add", vmid=FIRST_VMID, name="fleet", status="running", copies=vms, config={"memory": "2048"})
    store = lab.core.server.store
    with store.lock:
        original = store.services[first.service_id]
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
    reporter = metrics.VmMetrics(
        engine=engine, fulcrum=fulcrum, proxmox=proxmox, state=state, interval_s=METRICS_INTERVAL_S
    )
    if inputs["workload"] == "fleet":
        facts = _turn(reporter)
    else:
        facts = _share_of_a_day(inputs["share"], Heartbeat(fulcrum=fulcrum, state=state), reporter)
    Path(output_file).write_text(json.dumps({**facts, "vms": inputs["vms"]}), encoding="utf-8")


def _turn(reporter: metrics.VmMetrics) -> Json:
    """Measure one round of metrics. The figures call a round a turn."""
    requests = _count_posts(reporter.fulcrum)
    cpu_before, started = time.process_time(), time.monotonic()
    reporter.report()
    took_s = time.monotonic() - started
    posts = requests["post_metric"]
    expected = 2 * len(reporter._previous)  # a VM has two metrics in its first round: rates need a second round
    return {
        "posts": posts,
        "took_s": took_s,
        "share_of_a_core": (time.process_time() - cpu_before) / max(took_s, METRICS_INTERVAL_S),
        "turns_for_all": expected / posts,
        "interval_s": METRICS_INTERVAL_S,
    }


def _count_posts(fulcrum: FulcrumClient) -> dict[str, int]:
    """Replace `fulcrum.post_metric` by a function that also counts its calls; return the dict with the count."""
    counts = {"post_metric": 0}
    post = fulcrum.post_metric

    def count(**values: Any) -> None:
        post(**values)
        counts["post_metric"] += 1

    fulcrum.post_metric = count  # type: ignore[method-assign]
    return counts


def _share_of_a_day(share: float, heartbeat: Heartbeat, reporter: metrics.VmMetrics) -> Json:
    # Without the rate limit of metrics, all rounds of the share of a day run in seconds.
    metrics.MAX_POSTS_PER_S = metrics.MIN_POSTS_PER_S = metrics.POSTS_SHARE_OF_A_CORE = 1e9
    beats, turns = int(DAY_S / HEARTBEAT_INTERVAL_S * share), int(DAY_S / METRICS_INTERVAL_S * share)
    for function in (heartbeat.send, reporter.report):
        _repeat(function, max(turns // 10, 2))  # fills connection pools and caches before the measurement
    memory_before_mib = _memory_mib()
    beat_cpu_s, turn_cpu_s = _repeat(heartbeat.send, beats), _repeat(reporter.report, turns)
    return {
        "share": share,
        "heartbeats": beats,
        "heartbeat_share_of_a_core": beat_cpu_s / (DAY_S * share),
        "metric_turns": turns,
        "metric_share_of_a_core": turn_cpu_s / (DAY_S * share),
        "grown_mib": _memory_mib() - memory_before_mib,
        "highest_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _repeat(function: Callable[[], object], times: int) -> float:
    """Call the function `times` times; return the CPU time of all calls in seconds."""
    cpu_before_s = time.process_time()
    for _ in range(times):
        function()
    return time.process_time() - cpu_before_s


def _memory_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 1024 / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
