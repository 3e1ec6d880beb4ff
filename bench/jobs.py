"""Measures how the cost of a job depends on the number of jobs that run at the same time. Each job starts a VM.

The executor consists of the agent, the supervisor (the agent's parent process), the playbook runs, and warm servers:
processes that have imported Ansible and fork the runs.
"""

from __future__ import annotations

import time
from typing import Any

from smith_lab.simulator.rows import Job
from smith_lab.system import LabSystem

from bench.labs import WAIT_AFTER_JOBS_S, cpu_by_process, running_lab_without_agent, start_agent, wait_for_jobs
from bench.measuring import median
from bench.part import Bench, Part, Table, ratio_text
from bench.seeding import ServiceWithVm, add_services_with_vms

Json = dict[str, Any]
#: Up to this number of jobs at once, the measurement is done `bench.sizes.rounds` times. With more jobs, it is done
#: once.
MAX_JOBS_OF_REPEATED_MEASUREMENT = 10


def measure(bench: Bench) -> Json:
    """Return, for each number of jobs at once, the time until all jobs ended, and the CPU time per job by process."""
    repeats_by_count = {
        count: bench.sizes.rounds if count <= MAX_JOBS_OF_REPEATED_MEASUREMENT else 1
        for count in bench.sizes.job_counts
    }
    # The bench can compare variants: versions of the executor, and ansible-runner alone. This variant is the executor
    # of this checkout.
    with running_lab_without_agent(bench.variant_of_this_checkout, bench.folder) as lab:
        # The bench adds the VMs and completes their create jobs itself. The agent starts after that, so that it does
        # not claim the create jobs.
        services = add_services_with_vms(lab, 1 + sum(count * repeats for count, repeats in repeats_by_count.items()))
        start_agent(lab)
        _start_vms(lab, [services.pop()])  # the first run after the agent's start fills caches
        time.sleep(WAIT_AFTER_JOBS_S)  # until the agent has ended all work for the job
        figures = {}
        for count, repeats in repeats_by_count.items():
            figures_of_repeats = [_start_vms(lab, [services.pop() for _ in range(count)]) for _ in range(repeats)]
            figures[count] = {
                name: median([repeat[name] for repeat in figures_of_repeats]) for name in figures_of_repeats[0]
            }
        return figures


def _start_vms(lab: LabSystem, services: list[ServiceWithVm]) -> Json:
    """Start the VMs of all services at the same time; return the time until all jobs ended, and CPU times per job.

    `lab.admin` calls the FulcrumCore simulator as an administrator.
    """
    cpu_before = cpu_by_process(lab)
    for service in services:
        lab.admin.request_action(service.service_id, "start")
    wait_for_jobs(lab)
    cpu_spent, count = cpu_by_process(lab) - cpu_before, len(services)
    store = lab.core.server.store  # the data of the FulcrumCore simulator
    with store.lock:
        jobs: list[Job] = [store.last_job_by_service_id[service.service_id] for service in services]
    all_done_s = max(job.completed_at or 0.0 for job in jobs) - min(job.created_at for job in jobs)
    # The fields of `cpu_spent`: the CPU time of the agent, the supervisor, the runs with the warm servers, the Proxmox
    # stand-in and the simulator. Its property `executor` is the sum of the first three.
    cpu_s = {f"{name}_cpu_s": value / count for name, value in vars(cpu_spent).items()}
    return {"all_done_s": all_done_s, **cpu_s, "executor_cpu_s": cpu_spent.executor / count}


def _tables(figures: Json) -> list[Table]:
    """Return the table."""
    figures_of_fewest_jobs = next(iter(figures.values()))
    rows = [
        (
            f"{int(count):,}",
            f"{figures_of_count['all_done_s']:.1f}",
            f"{60 * int(count) / figures_of_count['all_done_s']:.0f}",
            f"{figures_of_count['executor_cpu_s']:.3f}",
            ratio_text(figures_of_count["executor_cpu_s"], figures_of_fewest_jobs["executor_cpu_s"]),
            *(f"{figures_of_count[f'{name}_cpu_s']:.3f}" for name in ("agent", "runs", "stand_in")),
        )
        for count, figures_of_count in figures.items()
    ]
    headings = (
        *("jobs at once", "s until all were done", "jobs/min", "CPU-s per job", "ratio to fewest jobs"),
        *("of which agent", "of which playbook runs, warm servers"),
        "CPU-s of the stand-in per job (not part of CPU-s per job)",
    )
    return [Table(title="Starts of VMs at the same time, by their number", headings=headings, rows=rows)]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="cost of a job by number of jobs at once", measure=measure, tables=_tables)
