"""Collects Prometheus gauges from the agent and its database when Prometheus requests the metrics."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from executor.agent.disk_space import BYTES_PER_MIB
from executor.database import mapping_queries, queries
from executor.database.engine import read_only_session
from executor.database.times import utc_now
from executor.errors import DatabaseError
from executor.version import VERSION
from executor.web.agent_view import AgentView
from executor.web.health import is_fulcrum_up
from executor.web.probes import Prober


class Gauges(Collector):
    """Collects the gauges of one agent. An AgentView contains the parts of the agent that the web pages read.

    A Prober checks Proxmox, the database and the disks in the background, and keeps the last results.
    """

    def __init__(self, view: AgentView, prober: Prober) -> None:
        self._view = view
        self._prober = prober

    def describe(self) -> Iterator[Metric]:
        """Return no descriptions.

        Without this method, the registry would call `collect` when the collector is registered, and `collect` would
        query the database.
        """
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield all gauges. If the database fails, smith_database_up is 0 and the other database gauges are omitted."""
        yield _build_info()
        yield from self._gauges_without_database()
        try:
            yield from self._database_gauges()
        except DatabaseError:
            yield _gauge("smith_database_up", "Whether the database can be read and written", 0)

    def _gauges_without_database(self) -> Iterator[Metric]:
        """Yield the gauges that need no database."""
        state, settings = self._view.state, self._view.settings
        # Both numbers count the jobs since the start of this process.
        running_job_count = state.claimed_job_count - state.ended_job_count
        yield _gauge("smith_jobs_running", "Jobs running in this process", running_job_count)
        yield _gauge("smith_job_slots", "Maximum number of jobs running at once", settings.smith_concurrency)
        yield _gauge(
            "smith_heartbeat_last_success_timestamp_seconds",
            "Time of the last heartbeat that FulcrumCore accepted, by the agent's clock; 0 before the first",
            state.heartbeat_at,
        )
        help_text = (
            "Whether FulcrumCore answered the last request, and has accepted a heartbeat since the agent's start"
        )
        yield _gauge("smith_fulcrum_up", help_text, is_fulcrum_up(self._view))
        proxmox_is_up = self._prober.result("proxmox").ok
        yield _gauge("smith_proxmox_up", "Whether Proxmox answered the last check", proxmox_is_up)
        memory_bytes = self._view.measure_memory_mib() * BYTES_PER_MIB
        yield _gauge(
            "smith_process_tree_memory_bytes", "Resident memory of the agent and its descendants", memory_bytes
        )
        # `drift_counts` is empty if the mappings were not compared recently with Proxmox and FulcrumCore.
        if drift_counts := self._view.count_drift_by_kind():
            help_text = "Differences between mappings, Proxmox and FulcrumCore, by kind of difference"
            yield _gauge_with_label("smith_drift_vms", help_text, drift_counts, label="kind")
        free_space_gauge = GaugeMetricFamily(
            "smith_disk_free_bytes", "Free disk space in SMITH_DATA_DIR and in SMITH_RUN_DIR", labels=["folder"]
        )
        for name in self._prober.folders:
            with suppress(OSError):
                free_space_gauge.add_metric([name], self._prober.free_bytes(name))
        yield free_space_gauge

    def _database_gauges(self) -> Iterator[Metric]:
        """Yield the gauges that are read from the database. Raises DatabaseError.

        A report (a job's result) is due until FulcrumCore has acknowledged it.
        """
        with read_only_session(self._view.engine) as session:
            queue_depths = queries.count_pending_and_processing_jobs(session) | {
                "report_due": queries.count_due_reports(session)
            }
            mapping_counts = mapping_queries.count_mappings_by_state(session, should_count_deleted_mappings=False)
            # jobs that have ended in the agent's database, but are open (have not ended) in FulcrumCore
            open_only_at_fulcrum_counts = queries.count_jobs_open_only_at_fulcrum(session)
            oldest_report_at = queries.oldest_due_report_time(session)
            oldest_pending_at = queries.oldest_pending_time(session)
        is_writable = self._prober.result("database").ok
        yield _gauge("smith_database_up", "Whether the database can be read and written", is_writable)
        yield _gauge_with_label(
            "smith_queue_depth",
            "Jobs that have not ended, and results that FulcrumCore has not acknowledged",
            queue_depths,
            label="status",
        )
        yield _gauge_with_label(
            "smith_unaccepted_jobs",
            "Jobs that have ended in the agent's database but not in FulcrumCore: FulcrumCore does not accept the "
            "result, or another installation with this agent's token has claimed the job",
            open_only_at_fulcrum_counts,
            label="cause",
        )
        yield _gauge(
            "smith_queue_oldest_seconds",
            "Age of the oldest pending job; 0 if no job is pending",
            _age_s(oldest_pending_at),
        )
        yield _gauge(
            "smith_outbox_oldest_seconds",
            "Age of the oldest result that FulcrumCore has not acknowledged; 0 if there is none",
            _age_s(oldest_report_at),
        )
        yield _gauge_with_label(
            "smith_mappings", "Mappings of services to VMs, by state of the mapping", mapping_counts, label="state"
        )


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=float(value))


def _gauge_with_label(name: str, help_text: str, counts: dict[str, int], *, label: str) -> Metric:
    """Return a gauge with one sample for each item of `counts`. The item's key is the value of the label `label`."""
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for label_value, count in counts.items():
        family.add_metric([label_value], count)
    return family


def _age_s(moment: datetime | None) -> float:
    """Return the seconds since `moment`; 0 if `moment` is None or in the future."""
    if moment is None:
        return 0.0
    return max((utc_now() - moment).total_seconds(), 0.0)


def _build_info() -> Metric:
    versions = {"version": VERSION, "python": platform.python_version(), "ansible_core": _version_of("ansible-core")}
    family = GaugeMetricFamily(
        "smith_build_info",
        "Versions of this program, Python and ansible-core in the labels; the value is always 1",
        labels=list(versions),
    )
    family.add_metric(list(versions.values()), 1)
    return family


def _version_of(package: str) -> str:
    """Return the version of a Python package; `none` if it is not installed."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "none"
