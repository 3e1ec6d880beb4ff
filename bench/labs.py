"""Runs a variant's agent in a lab: with the FulcrumCore simulator and the Proxmox stand-in.

A variant is an installation of the executor that the bench compares with others. The simulator runs in the process of
the bench; the stand-in and the agent run in other processes. All use the cores of this machine. In production,
FulcrumCore, Proxmox and the agent run on different machines.

A warm server is a process of the executor that has imported Ansible and forks the playbook runs.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from smith_lab.simulator.rows import Job
from smith_lab.system import LabSystem, run_lab_system, wait_for

from bench.baseline import MAX_SHOWN_CHARACTERS, Variant
from bench.measuring import MeasurementFailed, own_cpu_s, tree_cpu_s

#: The simulator fails a job that has not ended after this time. In production, FulcrumCore does this after 300 s. On a
#: slow machine, many jobs that are ordered at the same time may take longer.
JOB_TIMEOUT_S = 1200
#: How long the bench waits until a new agent polls.
START_TIMEOUT_S = 60.0
#: The statuses of a job that has not ended.
OPEN_STATUSES = ("Pending", "Processing")
#: How long the bench sleeps after jobs have ended, so that the agent can end its remaining work for the jobs.
WAIT_AFTER_JOBS_S = 5.0
_lab_numbers = itertools.count()


@contextmanager
def running_lab_with_agent(
    variant: Variant, folder: Path, *, clone_s: float = 0.0, **settings: str
) -> Iterator[LabSystem]:
    """Run a lab with the agent of a variant for the `with` block. The agent has new folders for its data and its runs.

    A first VM is created before the block, because the first playbook run of an agent fills caches. `clone_s` is how
    long the stand-in takes to clone a template. If it is 0, no Proxmox task takes time. `lab.core` is the simulator.
    `lab.executor` is the supervisor, which is the parent process of the agent.
    """
    with running_lab_without_agent(variant, folder, clone_s=clone_s, **settings) as lab:
        start_agent(lab)
        order_services_and_wait(lab, ["first"])
        time.sleep(WAIT_AFTER_JOBS_S)
        yield lab
        lab.stop_executor()


@contextmanager
def running_lab_without_agent(
    variant: Variant, folder: Path, *, clone_s: float = 0.0, **settings: str
) -> Iterator[LabSystem]:
    """Run a lab for the agent of a variant for the `with` block. The caller starts the agent."""
    lab_folder = folder / f"{variant.name}-{next(_lab_numbers)}"
    lab_folder.mkdir()
    # How many real seconds a second of simulated Proxmox time takes. With 0, the stand-in's Proxmox tasks take no time.
    time_scale = 1.0 if clone_s else 0.0
    with (
        tempfile.TemporaryDirectory(prefix="bench-run-", dir="/dev/shm") as run_folder,
        run_lab_system(
            lab_folder,
            time_scale=time_scale,
            settings={"SMITH_RUN_DIR": run_folder, "FULCRUM_JOB_TIMEOUT_S": str(JOB_TIMEOUT_S)} | settings,
        ) as lab,
    ):
        lab.core.set_options(job_timeout_s=JOB_TIMEOUT_S)
        lab.python = str(variant.python)
        # The lab passes only these settings to the executor, because an earlier executor refuses settings that it does
        # not know.
        lab.accepted_setting_names = variant.setting_names()
        lab.proxmox.control("task_seconds", type="qmclone", seconds=clone_s)
        yield lab


def start_agent(lab: LabSystem) -> None:
    """Start the agent, and wait until it polls. If it exits, raise MeasurementFailed with the end of the log."""
    executor = lab.start_executor()

    def has_polled_or_ended() -> bool:
        return bool(lab.core.history(method="GET", path_end="/jobs/pending")) or executor.poll() is not None

    wait_for(has_polled_or_ended, START_TIMEOUT_S, "the agent to poll")
    if executor.poll() is not None:
        end_of_log = lab.log_file.read_text(encoding="utf-8", errors="replace")[-MAX_SHOWN_CHARACTERS:]
        raise MeasurementFailed(f"the agent ended with exit code {executor.returncode}: {end_of_log}")


def order_services_and_wait(lab: LabSystem, names: list[str]) -> list[Job]:
    """Order services with these names at the same time; wait until all jobs have ended; return the services' jobs."""
    service_ids = {lab.order_service(name) for name in names}
    wait_for_jobs(lab)
    store = lab.core.server.store
    with store.lock:
        return [job for job in store.jobs.values() if job.service_id in service_ids]


def wait_for_jobs(lab: LabSystem) -> None:
    """Wait until all jobs in the simulator have ended. Raises MeasurementFailed if a job failed."""
    store = lab.core.server.store

    def have_all_ended() -> bool:
        with store.lock:
            return all(job.status not in OPEN_STATUSES for job in store.jobs.values())

    wait_for(have_all_ended, JOB_TIMEOUT_S + 60, "all jobs to end", interval_s=0.2)
    with store.lock:
        error_texts = [job.error_message for job in store.jobs.values() if job.status == "Failed"]
    if error_texts:
        raise MeasurementFailed(f"{len(error_texts)} jobs failed: {error_texts[0]}")


@dataclass(frozen=True)
class CpuByProcess:
    """The CPU times of a lab's processes in seconds."""

    agent: float
    supervisor: float
    runs: float  #: of the playbook runs and warm servers: all processes of the executor except agent and supervisor
    stand_in: float
    simulator: float  #: of the process that runs the simulator and the bench

    @property
    def executor(self) -> float:
        """The CPU time of all processes of the executor."""
        return self.agent + self.supervisor + self.runs

    def __sub__(self, earlier: CpuByProcess) -> CpuByProcess:
        return CpuByProcess(*(vars(self)[name] - vars(earlier)[name] for name in vars(self)))


def cpu_by_process(lab: LabSystem) -> CpuByProcess:
    """Return the CPU times of the lab's processes since their starts."""
    supervisor_pid = lab.executor.pid
    agent_s, supervisor_s = own_cpu_s(agent_pid(lab)), own_cpu_s(supervisor_pid)
    return CpuByProcess(
        agent=agent_s,
        supervisor=supervisor_s,
        runs=tree_cpu_s(supervisor_pid) - agent_s - supervisor_s,
        stand_in=tree_cpu_s(lab.proxmox.pid or 0),  # `or 0` is only for the type checker: the stand-in runs
        simulator=own_cpu_s(os.getpid()),
    )


def agent_pid(lab: LabSystem) -> int:
    """Return the process id of the agent."""
    children = psutil.Process(lab.executor.pid).children()
    return next(child.pid for child in children if "agent-process" in child.cmdline())
