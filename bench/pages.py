"""Measures web pages and list commands (as `smith jobs list`) with many jobs, and the CPU time for viewers of a job.

A viewer is an HTTP connection that receives the live output of the job, as a browser with the job's page does.
"""

from __future__ import annotations

import http.client
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from smith_lab.system import LabSystem, wait_for

from bench.job_rows import postgres_url_if_installed
from bench.labs import START_TIMEOUT_S, agent_pid, running_lab_without_agent, start_agent
from bench.lists import measure_list_commands
from bench.measuring import MeasurementFailed, median, own_cpu_s, percentile
from bench.page_rows import JOBS_PER_MAPPING, VMID_OFFSET, add_ended_jobs
from bench.part import Bench, Goal, Part, Table
from executor.database import schema
from executor.database.engine import open_engine

Json = dict[str, Any]
TOKEN = "a-token-of-the-bench"  # noqa: S105
#: How many times each page is requested before the measurement.
WARM_UP_REPEATS = 3
#: The goals: the maximum median duration of a page or list command, and how much all viewers together may raise the
#: agent's use of the CPU (1.0 is one core).
MAX_MEDIAN_MS, MAX_CORE_SHARE_INCREASE = 200.0, 0.05
VIEWER_COUNT = 20
#: How long the clone of the watched job takes: longer than the measurements without and with viewers.
WATCHED_CLONE_S = 600.0
#: The value of SMITH_JOB_RETENTION_S. All jobs of the bench are younger, so the agent prunes none of them.
RETENTION_S = str(90 * 24 * 3600)
REQUEST_TIMEOUT_S = 60.0


def measure(bench: Bench) -> Json:
    """Return the durations of each page and list command on each database, and the CPU use without and with viewers."""
    figures: Json = {"pages": {}, "lists": {}}
    _add_durations(bench, figures, "SQLite", None)
    with postgres_url_if_installed() as url:
        if url:
            _add_durations(bench, figures, "PostgreSQL", url)
    figures["viewers"] = _measure_viewers(bench)
    figures["jobs"] = bench.sizes.page_jobs
    return figures


# --- pages ------------------------------------------------------------------------------------------------------------


def _add_durations(bench: Bench, figures: Json, database: str, database_url: str | None) -> None:
    """Measure pages and list commands with a database; add the durations to the figures. Without a URL, use SQLite."""
    settings = {"SMITH_HTTP_TOKEN": TOKEN, "SMITH_JOB_RETENTION_S": RETENTION_S}
    if database_url:
        settings["SMITH_DATABASE_URL"] = database_url
    # The bench can compare variants: versions of the executor, and ansible-runner alone. This variant is the executor
    # of this checkout.
    with running_lab_without_agent(bench.variant_of_this_checkout, bench.folder, **settings) as lab:
        lab.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = open_engine(database_url or f"sqlite:///{lab.data_dir / 'smith.db'}")
        schema.upgrade(engine)
        add_ended_jobs(engine, bench.sizes.page_jobs)
        engine.dispose()
        start_agent(lab)
        port, repeats = _pages_port(lab), bench.sizes.page_repeats
        figures["pages"][database] = {
            page: _measure_page(port, path, repeats) for page, path in _path_by_page(bench).items()
        }
        figures["lists"][database] = measure_list_commands(lab.environment(), repeats)


def _path_by_page(bench: Bench) -> dict[str, str]:
    """Return the path of each page, and of the lists with filters, by name."""
    jobs = bench.sizes.page_jobs
    return {
        "overview": "/",
        "jobs": "/jobs",
        "jobs, failed": "/jobs?status=failed",
        "jobs, rare status": "/jobs?status=processing",
        "jobs, action": "/jobs?action=stop",
        "jobs, unused action": "/jobs?action=none-has-it",
        "jobs, not reported": "/jobs?unreported=1",
        "jobs, oldest": f"/jobs?before={jobs // 50}",  # the jobs with lower ids: the oldest 2 %
        "jobs of a VM": "/jobs?q=web-40",
        # The mappings have the VMIDs VMID_OFFSET, VMID_OFFSET + JOBS_PER_MAPPING and so on. This is the second VMID.
        "jobs of a VMID": f"/jobs?q={VMID_OFFSET + JOBS_PER_MAPPING}",
        "jobs, no match": "/jobs?q=no-such-vm",
        "job": f"/jobs/{jobs // 2}",
        "VMs": "/vms",
        "VMs, deleted": "/vms?state=deleted",
        "executors": "/executors",
        "settings": "/settings",
        "audit": "/audit",
        "audit of a job": f"/audit?subject={uuid.UUID(int=jobs // 2)}",
        "audit, unused verb": "/audit?verb=none-has-it",
        "doctor": "/doctor",
    }


def _measure_page(port: int, path: str, repeats: int) -> dict[str, float]:
    """Return the median and the 99th percentile of the durations of a page, and the size of the page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    durations_ms = []
    for number in range(-WARM_UP_REPEATS, repeats):
        started_at_s = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}", "Accept": "text/html"})
        response = connection.getresponse()
        size = len(response.read())
        if response.status != http.client.OK:
            raise MeasurementFailed(f"{path}: HTTP {response.status}")
        if number >= 0:
            durations_ms.append(1000 * (time.perf_counter() - started_at_s))
    connection.close()
    return {"p50_ms": median(durations_ms), "p99_ms": percentile(durations_ms, 0.99), "kib": size / 1024}


def _pages_port(lab: LabSystem) -> int:
    """Return the port of the agent's pages."""
    # The agent logs `http_served` when its HTTP server has started.
    (server_event,) = wait_for(lambda: lab.log_events("http_served"), START_TIMEOUT_S, "the pages")
    port: int = server_event["port"]
    return port


# --- viewers ----------------------------------------------------------------------------------------------------------


def _measure_viewers(bench: Bench) -> Json:
    """Return the share of a core that the agent uses while a job runs, without and with viewers of the job."""
    window_s = bench.sizes.idle_window_s  # the duration of each measurement of CPU use
    with running_lab_without_agent(
        bench.variant_of_this_checkout, bench.folder, clone_s=WATCHED_CLONE_S, SMITH_HTTP_TOKEN=TOKEN
    ) as lab:
        start_agent(lab)
        lab.order_service("watched")
        wait_for(lambda: lab.log_events("playbook_started"), START_TIMEOUT_S, "the run")
        port = _pages_port(lab)
        time.sleep(window_s / 4)
        share_without_viewers = _agent_share_of_core(lab, window_s)
        with _open_viewers(port, VIEWER_COUNT) as count_bytes:
            time.sleep(window_s / 4)
            share_with_viewers = _agent_share_of_core(lab, window_s)
            received_bytes = count_bytes()
        lab.executor.kill()  # a stop by SIGTERM would wait for the clone
    return {
        "without": share_without_viewers,
        "with": share_with_viewers,
        "count": VIEWER_COUNT,
        "bytes_each": received_bytes / VIEWER_COUNT,
    }


def _agent_share_of_core(lab: LabSystem, window_s: float) -> float:
    """Return the share of a core that the agent process, without its child processes, uses in the next `window_s`."""
    pid = agent_pid(lab)
    # `own_cpu_s` returns the CPU time of the process, without its child processes.
    started_at_s, cpu_before_s = time.monotonic(), own_cpu_s(pid)
    time.sleep(window_s)
    return (own_cpu_s(pid) - cpu_before_s) / (time.monotonic() - started_at_s)


@contextmanager
def _open_viewers(port: int, count: int) -> Iterator[Any]:
    """Keep `count` viewers of job 1 connected during the block. Yield a function that counts the received bytes."""
    byte_counts = [0] * count
    with ExitStack() as stack:
        for number in range(count):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
            stack.callback(connection.close)
            connection.request("GET", "/jobs/1/events", headers={"Authorization": f"Bearer {TOKEN}"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise MeasurementFailed(f"viewer {number + 1}: HTTP {response.status}")
            threading.Thread(target=_count_received_bytes, args=(response, byte_counts, number), daemon=True).start()
        yield lambda: sum(byte_counts)


def _count_received_bytes(response: http.client.HTTPResponse, byte_counts: list[int], number: int) -> None:
    """Add the size of each received line to the count of the viewer with this number."""
    try:
        while line := response.readline():
            byte_counts[number] += len(line)
    except (OSError, ValueError, AttributeError):
        return  # the connection was closed at the end of the measurement


def _tables(figures: Json) -> list[Table]:
    viewers = figures["viewers"]
    shares = [
        ("none", f"{viewers['without']:.2%}"),
        (str(viewers["count"]), f"{viewers['with']:.2%}"),
    ]
    # The list commands run in the bench's process. So their durations do not contain the start of Python.
    return [
        _durations_table(f"Pages with {figures['jobs']:,} jobs", "page", figures["pages"]),
        _durations_table(
            f"List commands with {figures['jobs']:,} jobs, without the start of Python", "command", figures["lists"]
        ),
        Table(title="Viewers of a running job", headings=("viewers", "agent's share of a core"), rows=shares),
    ]


def _durations_table(title: str, heading: str, durations: Json) -> Table:
    rows = [
        (database, name, f"{values['p50_ms']:.0f}", f"{values['p99_ms']:.0f}", f"{values['kib']:.0f}")
        for database, by_name in durations.items()
        for name, values in by_name.items()
    ]
    return Table(title=title, headings=("database", heading, "median ms", "p99 ms", "KiB"), rows=rows)


def _goals(figures: Json) -> list[Goal]:
    viewers = figures["viewers"]
    slowest = [
        Goal(
            figure_name=f"the slowest {kind} on {database}",
            limit=MAX_MEDIAN_MS,
            measured=max(values["p50_ms"] for values in durations.values()),
            unit="ms",
        )
        for key, kind in (("pages", "page"), ("lists", "list command"))
        for database, durations in figures[key].items()
    ]
    share = 100 * (viewers["with"] - viewers["without"])
    text = f"{viewers['count']} viewers of a running job"
    return [*slowest, Goal(figure_name=text, limit=100 * MAX_CORE_SHARE_INCREASE, measured=share, unit="% of a core")]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(
    help="web pages and list commands with many jobs; viewers of a running job",
    measure=measure,
    tables=_tables,
    goals=_goals,
)
