"""R5 to R7, measured: how fast the executor is back, how evenly its heart beats, what is left of a run."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from itertools import pairwise

import psutil
import pytest
from faults.conftest import MakeRig
from sqlalchemy import insert
from support.databases import LONG_AGO

from executor.database.engine import open_engine, transaction
from executor.database.schema import upgrade
from executor.database.tables import Job
from executor.model import JobStatus, ReportState

ROWS = 100_000
BATCH = 5_000
CORE_ANSWERS_IN_S = 5.0
BEATS = 5


def test_r5_the_agent_claims_again_after_each_kill(make_rig: MakeRig, figure: Callable[[str], None]) -> None:
    rig = make_rig()
    rig.start()
    took = []
    for number in range(2):
        killed_at = time.time()
        rig.agent().send_signal(signal.SIGKILL)
        service_id = rig.order(f"after-{number}")
        assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
        (claim,) = rig.lab.core.history(method="POST", path=f"/{rig.last_job(service_id)['id']}/claim")
        took.append(claim["time"] - killed_at)
    figure(f"R5 claiming again after SIGKILL, of 10 s: {', '.join(f'{each:.1f} s' for each in took)}")
    rig.prove()


@pytest.mark.timeout(400)
def test_r6_heartbeats_continue_while_all_slots_are_busy_and_fulcrumcore_is_slow(
    make_rig: MakeRig, figure: Callable[[str], None]
) -> None:
    rig = make_rig(time_scale=1.0, SMITH_CONCURRENCY="4")
    _fill(f"sqlite:///{rig.lab.data_dir / 'smith.db'}")
    rig.lab.proxmox.control("task_seconds", type="qmclone", seconds=BEATS * 20)
    rig.start()
    services = [rig.order(f"busy-{number}") for number in range(4)]
    rig.until(lambda: len(rig.clones()) == len(services), "all slots to be busy")
    rig.lab.core.fault("delay", path="^/api/v1/(agents|jobs)", delay_s=CORE_ANSWERS_IN_S)
    since = rig.lab.core.history()[-1]["seq"]

    def beats() -> list[float] | None:
        calls = rig.lab.core.history(method="PUT", path="/agents/me/status", since=since)
        return [call["time"] for call in calls] if len(calls) > BEATS else None

    gaps = [later - earlier for earlier, later in pairwise(rig.until(beats, "enough heartbeats"))]
    assert len(rig.lab.log_events("playbook_finished")) == 0, "the slots were not busy all the time"
    figure(
        f"R6 heartbeat gap with {ROWS:,} rows, busy slots and a FulcrumCore that takes 5 s, of 15 s: {max(gaps):.1f} s"
    )
    rig.lab.core.clear_faults()
    rig.lab.executor.send_signal(signal.SIGQUIT)
    rig.lab.executor.wait(60)


def _fill(url: str) -> None:
    """Write the history of a long life."""
    engine = open_engine(url)
    upgrade(engine)
    settled = {"status": JobStatus.COMPLETED, "report_state": ReportState.REPORTED, "action": "start", "priority": 1}
    times = dict.fromkeys(("core_created_at", "deadline_at", "received_at", "finished_at", "reported_at"), LONG_AGO)
    for start in range(0, ROWS, BATCH):
        rows = [{"fulcrum_id": f"old-{number}", **settled, **times} for number in range(start, start + BATCH)]
        with transaction(engine) as session:
            session.execute(insert(Job), rows)
    engine.dispose()


@pytest.mark.parametrize("end", ["cancelled", "agent killed", "supervisor killed"])
def test_r7_no_process_of_a_run_is_alive_five_seconds_after_its_end(
    make_rig: MakeRig, figure: Callable[[str], None], end: str
) -> None:
    rig = make_rig(time_scale=1.0)
    rig.start()
    service_id = rig.order("ended")
    rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    processes = rig.run_processes()
    assert processes
    if end == "cancelled":
        rig.lab.smith("jobs", "cancel", rig.last_job(service_id)["id"], "--yes")
        rig.until(lambda: rig.lab.log_events("playbook_finished"), "the cancelled run to end")
    elif end == "agent killed":
        rig.agent().send_signal(signal.SIGKILL)
    else:
        rig.lab.executor.kill()
    ended_at = time.monotonic()
    _gone, alive = psutil.wait_procs(processes, timeout=5)
    figure(f"R7 a run's last process after: {end}, of 5 s: {time.monotonic() - ended_at:.1f} s")
    assert not [process for process in alive if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
