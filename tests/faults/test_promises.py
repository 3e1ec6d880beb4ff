"""R5 to R7, measured: time until the agent claims again, gaps between heartbeats, processes left by a run."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from itertools import pairwise

import psutil
import pytest
from faults.conftest import MakeSystem
from sqlalchemy import insert
from support.databases import LONG_AGO

from executor.database.engine import open_engine, transaction
from executor.database.schema import upgrade
from executor.database.tables.jobs import Job
from executor.model import JobStatus, ReportState

OLD_JOBS = 100_000
BATCH = 5_000
FULCRUMCORE_RESPONSE_S = 5.0
MIN_GAPS = 5


def test_r5_the_agent_claims_again_after_each_kill(make_system: MakeSystem, figure: Callable[[str], None]) -> None:
    system = make_system()
    system.start()
    claim_delays_s = []
    for number in range(2):
        killed_at = time.time()
        system.agent().send_signal(signal.SIGKILL)
        service_id = system.order_service(f"after-{number}")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        (claim,) = system.lab.core.history(method="POST", path_end=f"/{system.last_job(service_id)['id']}/claim")
        claim_delays_s.append(claim["time"] - killed_at)
    figure(f"R5 claiming again after SIGKILL, of 10 s: {', '.join(f'{delay_s:.1f} s' for delay_s in claim_delays_s)}")
    system.assert_consistent()


@pytest.mark.timeout(400)
def test_r6_heartbeats_continue_while_all_slots_are_busy_and_fulcrumcore_is_slow(
    make_system: MakeSystem, figure: Callable[[str], None]
) -> None:
    system = make_system(time_scale=1.0, SMITH_CONCURRENCY="4")
    _insert_old_jobs(f"sqlite:///{system.lab.data_dir / 'smith.db'}")
    system.lab.proxmox.control("task_seconds", type="qmclone", seconds=MIN_GAPS * 20)
    system.start()
    services = [system.order_service(f"busy-{number}") for number in range(4)]
    system.wait_until(lambda: len(system.clone_requests()) == len(services), "all slots to be busy")
    system.lab.core.add_fault("delay", path="^/api/v1/(agents|jobs)", delay_s=FULCRUMCORE_RESPONSE_S)
    since = system.lab.core.history()[-1]["seq"]

    def heartbeat_times() -> list[float] | None:
        calls = system.lab.core.history(method="PUT", path_end="/agents/me/status", since=since)
        return [call["time"] for call in calls] if len(calls) > MIN_GAPS else None

    gaps = [later - earlier for earlier, later in pairwise(system.wait_until(heartbeat_times, "enough heartbeats"))]
    assert len(system.lab.log_events("playbook_finished")) == 0, "a slot became free during the measurement"
    figure(f"R6 heartbeat gap with {OLD_JOBS:,} rows, busy slots and a slow FulcrumCore, of 15 s: {max(gaps):.1f} s")
    system.lab.core.clear_faults()
    system.lab.executor.send_signal(signal.SIGQUIT)
    system.lab.executor.wait(60)


def _insert_old_jobs(url: str) -> None:
    """Insert many completed and reported jobs."""
    engine = open_engine(url)
    upgrade(engine)
    settled = {"status": JobStatus.COMPLETED, "report_state": ReportState.REPORTED, "action": "start", "priority": 1}
    times = dict.fromkeys(("core_created_at", "deadline_at", "received_at", "finished_at", "reported_at"), LONG_AGO)
    for start in range(0, OLD_JOBS, BATCH):
        rows = [{"fulcrum_id": f"old-{number}", **settled, **times} for number in range(start, start + BATCH)]
        with transaction(engine) as session:
            session.execute(insert(Job), rows)
    engine.dispose()


@pytest.mark.parametrize("end", ["cancelled", "agent killed", "supervisor killed"])
def test_r7_no_process_of_a_run_is_alive_five_seconds_after_its_end(
    make_system: MakeSystem, figure: Callable[[str], None], end: str
) -> None:
    system = make_system(time_scale=1.0)
    system.start()
    service_id = system.order_service("ended")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    processes = system.run_processes()
    assert processes
    if end == "cancelled":
        system.lab.run_smith_json("jobs", "cancel", system.last_job(service_id)["id"], "--yes")
        system.wait_until(lambda: system.lab.log_events("playbook_finished"), "the cancelled run to end")
    elif end == "agent killed":
        system.agent().send_signal(signal.SIGKILL)
    else:
        system.lab.executor.kill()
    ended_at = time.monotonic()
    _gone, alive = psutil.wait_procs(processes, timeout=5)
    figure(f"R7 a run's last process after: {end}, of 5 s: {time.monotonic() - ended_at:.1f} s")
    assert not [process for process in alive if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
