"""The agent ends while jobs run: killed, at a limit, or by a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest
from smith_lab.system import LabSystem, wait_for
from support import fork_server

MakeLab = Callable[..., LabSystem]


def agent_process(lab: LabSystem) -> psutil.Process:
    """Return the agent: the supervisor's child that runs `agent-process`."""

    def find() -> psutil.Process | None:
        for child in psutil.Process(lab.executor.pid).children():
            if "agent-process" in child.cmdline():
                return child
        return None

    return wait_for(find, 20, "the agent process")


def list_clone_requests(lab: LabSystem) -> list[dict]:
    return [
        call for call in lab.proxmox.changing_requests() if call["method"] == "POST" and call["path"].endswith("/clone")
    ]


def is_clone_requested(lab: LabSystem) -> bool:
    return bool(list_clone_requests(lab))


def test_f06_killing_the_supervisor_ends_its_processes_and_the_next_start_continues(make_lab: MakeLab) -> None:
    """The supervisor is killed during a clone → its agent and runs end; the next start continues the job; one VM."""
    lab = make_lab(time_scale=1.0)
    lab.start_executor()
    service_id = lab.order_service("supervisor-killed")
    wait_for(lambda: is_clone_requested(lab), 60, "the clone to begin")
    processes = [lab.executor, *psutil.Process(lab.executor.pid).children(recursive=True)]

    os.kill(lab.executor.pid, signal.SIGKILL)
    lab.executor.wait()
    agent = processes[1]
    psutil.wait_procs([agent], timeout=10)
    assert not agent.is_running()
    lab.start_executor()

    assert lab.wait_for_jobs(service_id, 200)["status"] == "Stopped"
    assert len(lab.guests()) == 1
    assert len(lab.reports(lab.last_job(service_id)["id"])) == 1


def test_a_schema_downgrade_and_upgrade_during_a_create_loses_nothing(make_lab: MakeLab) -> None:
    """An upgrade is reverted and repeated while Proxmox clones: the job in progress continues (R14)."""
    lab = make_lab(time_scale=1.0)
    lab.start_executor()
    service_id = lab.order_service("upgraded")
    wait_for(lambda: is_clone_requested(lab), 60, "the clone to begin")
    agent = agent_process(lab)
    os.kill(lab.executor.pid, signal.SIGKILL)
    lab.executor.wait()
    psutil.wait_procs([agent], timeout=10)

    done = fork_server.run(["db", "downgrade", "--yes"], env=lab.environment(), cwd=lab.folder)
    assert (done.returncode, done.stderr) == (0, "")
    lab.start_executor()  # the newer version again, which upgrades the schema itself

    assert lab.wait_for_jobs(service_id, 200)["status"] == "Stopped"
    assert len(list_clone_requests(lab)) == 1
    assert len(lab.guests()) == 1
    assert len(lab.reports(lab.last_job(service_id)["id"])) == 1


def test_f31_the_job_limit_restarts_the_agent_without_losing_or_repeating_a_job(make_lab: MakeLab) -> None:
    """The agent reaches its job limit while jobs run → it drains, then restarts; no job is lost or repeated."""
    lab = make_lab(SMITH_MAX_JOBS="5", SMITH_CONCURRENCY="3")
    lab.start_executor()
    services = [lab.order_service(f"limited-{number}") for number in range(12)]

    states = [lab.wait_for_jobs(service_id, 200)["status"] for service_id in services]

    assert states == ["Stopped"] * 12
    assert len(lab.guests()) == 12
    for service_id in services:
        (job,) = lab.admin.list_jobs(service_id)
        assert len(lab.reports(job["id"])) == 1
    reached = lab.log_events("limit_reached")
    assert len(reached) == 2
    assert {event["limit"] for event in reached} == {"jobs"}
    assert len(lab.log_events("agent_ready")) == 3


@pytest.mark.parametrize(
    ("setting", "value", "limit"),
    [("SMITH_MAX_RUNTIME_S", "6", "runtime"), ("SMITH_MAX_MEMORY_MIB", "30", "memory")],
)
def test_f31_the_memory_and_runtime_limits_drain_and_restart_the_agent(
    make_lab: MakeLab, setting: str, value: str, limit: str
) -> None:
    """The agent reaches its memory or runtime limit → it drains, then restarts; no job is lost or repeated."""
    lab = make_lab(**{setting: value})
    lab.start_executor()
    service_id = lab.order_service("first")
    wait_for(lambda: len(lab.log_events("agent_ready")) >= 2, 90, "a fresh agent")

    lab.settings[setting] = "0"
    lab.stop_executor()
    lab.start_executor()

    assert lab.wait_for_jobs(service_id, 120)["status"] == "Stopped"
    assert lab.log_events("limit_reached")[0]["limit"] == limit
    (job,) = lab.admin.list_jobs(service_id)
    assert len(lab.reports(job["id"])) == 1


def agent_states(lab: LabSystem) -> list[str]:
    return [node["state"] for node in lab.run_smith_json("status")["nodes"]]


def test_the_first_sigterm_drains_running_jobs(make_lab: MakeLab) -> None:
    lab = make_lab(time_scale=0.5)
    lab.start_executor()
    service_id = lab.order_service("draining")
    wait_for(lambda: is_clone_requested(lab), 60, "the clone to begin")

    lab.executor.send_signal(signal.SIGTERM)
    wait_for(lambda: agent_states(lab) != ["running"], 60, "the end of the state running")
    assert agent_states(lab) == ["draining"]
    lab.executor.wait(120)
    assert lab.executor.returncode == 0
    assert agent_states(lab) == ["stopped"]

    assert lab.admin.get_service(service_id)["status"] == "Stopped"
    assert psutil.pid_exists(lab.executor.pid) is False


def test_a_second_sigterm_releases_the_job_and_the_next_start_finishes_it(make_lab: MakeLab) -> None:
    lab = make_lab(time_scale=2.0)
    lab.start_executor()
    service_id = lab.order_service("hurried")
    wait_for(lambda: is_clone_requested(lab), 60, "the clone to begin")

    lab.executor.send_signal(signal.SIGTERM)
    wait_for(lambda: lab.log_events("drain_started"), 20, "the drain")
    lab.executor.send_signal(signal.SIGTERM)
    lab.executor.wait(60)

    assert lab.admin.list_jobs(service_id)[0]["status"] == "Processing"
    assert lab.run_smith_json("jobs", "list")[0]["status"] == "pending"
    lab.start_executor()
    assert lab.wait_for_jobs(service_id, 200)["status"] == "Stopped"
    assert len(lab.guests()) == 1
    assert len(list_clone_requests(lab)) == 1
