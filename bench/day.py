"""Workload (g): a day of heartbeats and metrics without its pauses, and a round of metrics of very many VMs.

`python -m bench.day ORDER OUT` does one. ORDER is a JSON file: `what` (day or fleet), `agent_id`, how many `vms`, the
`share` of a day. FULCRUM_*, PROXMOX_* and SMITH_* say where to. OUT takes the figures.
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
from bench.seeding import seed
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
BEAT_S = 10.0
METRICS_S = 60.0
FIRST_VMID = 300_000


def day(folder: Path, *, share: float, vms: int) -> Json:
    """Do the heartbeats and the metrics of so much of a day; the pauses between them cost nothing and are left out."""
    return _measure(folder, vms, {"what": "day", "share": share})


def fleet(folder: Path, *, vms: int) -> Json:
    """Do one turn of the metrics of so many VMs, at its own pace."""
    return _measure(folder, vms, {"what": "fleet"})


def _measure(folder: Path, vms: int, order: Json) -> Json:
    folder.mkdir(parents=True)
    with running_lab(folder) as lab:
        _people(lab, vms)
        whole = {**order, "agent_id": lab.ids.agent_id, "vms": vms}
        return in_own_process("bench.day", whole, folder, lab.environment())


def _people(lab: LabSystem, vms: int) -> None:
    """Make so many running VMs with services; the stores' own doors, as five thousand orders would take minutes."""
    (first,) = seed(lab, 1)
    lab.proxmox.control("add", vmid=FIRST_VMID, name="fleet", status="running", copies=vms, config={"memory": "2048"})
    store = lab.core.server.store
    with store.lock:
        pattern = store.services[first.service_id]
        for vmid in range(FIRST_VMID, FIRST_VMID + vms):
            one = copy.copy(pattern)
            one.id, one.agent_instance_id = str(uuid.uuid4()), f"{lab.ids.agent_id}/{vmid}"
            store.services[one.id] = one
            store.instance_owner[one.agent_instance_id] = one.id


# --- in a process of its own ------------------------------------------------------------------------------------------


def main(order_file: str, out_file: str) -> None:
    """Carry out an order and write down what it cost."""
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    settings = load_settings()
    state = AgentState(agent_id=order["agent_id"])
    token = settings.fulcrum_api_token.get_secret_value()
    fulcrum = FulcrumClient(str(settings.fulcrum_api_url), lambda: token)
    engine = open_engine(f"sqlite:///{Path(out_file).with_suffix('.db')}")
    upgrade(engine)
    with transaction(engine) as session:
        for vmid in range(FIRST_VMID, FIRST_VMID + order["vms"]):
            one = {"service_id": str(uuid.uuid4()), "cluster": "default", "name": f"fleet-{vmid}", "node": "pve1"}
            mappings.insert_active(session, vmid=vmid, **one)
    proxmox = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    reporter = metrics.VmMetrics(engine=engine, fulcrum=fulcrum, proxmox=proxmox, state=state, interval_s=METRICS_S)
    if order["what"] == "fleet":
        facts = _turn(reporter)
    else:
        facts = _share_of_a_day(order["share"], Heartbeat(fulcrum=fulcrum, state=state), reporter)
    Path(out_file).write_text(json.dumps({**facts, "vms": order["vms"]}), encoding="utf-8")


def _turn(reporter: metrics.VmMetrics) -> Json:
    requests = _counted(reporter.fulcrum)
    cpu, began = time.process_time(), time.monotonic()
    reporter.report()
    took = time.monotonic() - began
    posts = requests["post_metric"]
    wanted = 2 * len(reporter._before)  # a first look has no rates yet
    return {
        "posts": posts,
        "took_s": took,
        "share_of_a_core": (time.process_time() - cpu) / max(took, METRICS_S),
        "turns_for_all": wanted / posts,
        "interval_s": METRICS_S,
    }


def _counted(fulcrum: FulcrumClient) -> dict[str, int]:
    counts = {"post_metric": 0}
    post = fulcrum.post_metric

    def count(**values: Any) -> None:
        post(**values)
        counts["post_metric"] += 1

    fulcrum.post_metric = count  # type: ignore[method-assign]
    return counts


def _share_of_a_day(share: float, heartbeat: Heartbeat, reporter: metrics.VmMetrics) -> Json:
    # The pace is what makes a day of it.
    metrics.MAX_POSTS_PER_S = metrics.MIN_POSTS_PER_S = metrics.POSTS_SHARE_OF_A_CORE = 1e9
    beats, turns = int(DAY_S / BEAT_S * share), int(DAY_S / METRICS_S * share)
    for act in (heartbeat.beat, reporter.report):
        _repeat(act, max(turns // 10, 2))  # pools and caches
    before = _memory_mib()
    beat_cpu_s, turn_cpu_s = _repeat(heartbeat.beat, beats), _repeat(reporter.report, turns)
    return {
        "share": share,
        "heartbeats": beats,
        "heartbeat_share_of_a_core": beat_cpu_s / (DAY_S * share),
        "metric_turns": turns,
        "metric_share_of_a_core": turn_cpu_s / (DAY_S * share),
        "grown_mib": _memory_mib() - before,
        "highest_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _repeat(act: Callable[[], object], times: int) -> float:
    cpu = time.process_time()
    for _ in range(times):
        act()
    return time.process_time() - cpu


def _memory_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 1024 / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
