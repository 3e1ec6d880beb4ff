"""Runs the critical job ReportMetric: reads all VMs with one request to Proxmox, sends their metrics to FulcrumCore.

FulcrumCore accepts one metric entry per request and sets the entry's timestamp itself. So the requests are spread over
the interval. All of this uses at most 5 % of a CPU core. Samples that cannot be sent in time are dropped, and the next
round starts with the VMs of these samples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.agent.state import AgentState
from executor.database import mappings
from executor.database.engine import reading
from executor.errors import FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import METRIC_TYPES
from executor.log import get_logger
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.rows import VmRow

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Number of threads that send entries.
SENDERS = 4
#: Maximum rate, to limit the load of FulcrumCore.
MAX_POSTS_PER_S = 40.0
#: Share of a CPU core that sending may use. The CPU time of previous entries is measured to keep to it. Reading and
#: computing the samples may use the remainder of the 5 %.
POSTS_SHARE_OF_A_CORE = 0.035
#: The cost of an entry is averaged over about this many entries.
COST_WINDOW = 20
#: Minimum rate: a few entries need not be spread over the whole interval.
MIN_POSTS_PER_S = 20.0
#: Share of the interval in which entries are sent.
USABLE_SHARE = 0.8
#: Metrics in bytes per second: metric type, resource, and Proxmox's counter from which the rate is computed.
RATES = (
    ("vm.network.in", "network", "net_in_bytes"),
    ("vm.network.out", "network", "net_out_bytes"),
    ("vm.disk.read", "disk", "disk_read_bytes"),
    ("vm.disk.write", "disk", "disk_write_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One value to send to FulcrumCore."""

    vmid: int
    type_name: str
    resource_id: str  #: one of few constant values, because FulcrumCore groups series by it
    value: float


@dataclass(kw_only=True)
class VmMetrics:
    """Collects and sends samples. Keeps the counters of the previous round to compute rates."""

    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    state: AgentState
    interval_s: float
    _previous: dict[int, tuple[float, VmRow]] = field(default_factory=dict)  #: by VMID: time and row of the last round
    _logged_missing: set[str] = field(default_factory=set)  #: missing metric types that were logged
    _first_vmid: int = 0  #: the next round starts with this VM, the first one of which a sample was dropped
    _is_incomplete: bool = False  #: the last round dropped samples

    def report(self) -> None:
        """Send the samples of every mapped VM. Raises FulcrumUnavailable, JobError (Proxmox)."""
        if not self.state.agent_id:
            return
        started = time.monotonic()
        with reading(self.engine) as session:
            mapped = {mapping.vmid for mapping in mappings.active(session)}
        if not mapped:
            return
        rows = [row for row in self.proxmox.vms() if row.vmid in mapped and not row.is_template]
        rows.sort(key=lambda row: (row.vmid < self._first_vmid, row.vmid))
        known_types = self._known_types()
        samples = [sample for row in rows for sample in self._samples(row, started) if sample.type_name in known_types]
        self._previous = {row.vmid: (started, row) for row in rows}
        self._post(samples, started + self.interval_s * USABLE_SHARE)

    def _known_types(self) -> set[str]:
        """Return the metric types that FulcrumCore has. Log each metric type that it lacks once."""
        known = {metric_type.name for metric_type in self.fulcrum.metric_types() if metric_type.name}
        missing = set(METRIC_TYPES) - known
        if new := missing - self._logged_missing:
            log.warning("metric_types_missing", names=sorted(new), hint="an admin creates them with POST /metric-types")
        self._logged_missing |= missing
        return known

    def _samples(self, row: VmRow, now: float) -> Iterator[Sample]:
        """Yield the samples of one VM."""
        yield Sample(vmid=row.vmid, type_name="vm.cpu.usage", resource_id="cpu", value=row.cpu_share)
        if row.max_memory_bytes:
            used = row.memory_bytes / row.max_memory_bytes
            yield Sample(vmid=row.vmid, type_name="vm.memory.usage", resource_id="memory", value=used)
        if row.disk_bytes and row.max_disk_bytes:  # always 0 for qemu: Proxmox does not know the guest's disk usage
            used = row.disk_bytes / row.max_disk_bytes
            yield Sample(vmid=row.vmid, type_name="vm.disk.usage", resource_id="disk", value=used)
        then, previous = self._previous.get(row.vmid, (now, row))
        if now <= then or row.uptime_s < previous.uptime_s:
            return  # no rate: this is the VM's first sample, or a restart has reset its counters
        for type_name, resource_id, counter in RATES:
            grown = getattr(row, counter) - getattr(previous, counter)
            if grown >= 0:
                yield Sample(vmid=row.vmid, type_name=type_name, resource_id=resource_id, value=grown / (now - then))

    def _post(self, samples: list[Sample], deadline: float) -> None:
        """Send the samples until the deadline. Raises FulcrumUnavailable when FulcrumCore did not accept one."""
        if not samples:
            return
        pace = _Pace(len(samples), deadline)
        with ThreadPoolExecutor(max_workers=SENDERS, thread_name_prefix="metric") as pool:
            outcomes = list(pool.map(lambda sample: self._post_one(sample, pace), samples))
        log.debug("metrics_posted", sent=outcomes.count("sent"), unknown=outcomes.count("unknown"))
        self._note_dropped(samples, outcomes)
        if "down" in outcomes:
            raise FulcrumUnavailable("metric entries were not accepted")

    def _note_dropped(self, samples: list[Sample], outcomes: list[str]) -> None:
        """Let the next round start with the first dropped sample. Log once that samples are dropped."""
        dropped = outcomes.count("late")
        self._first_vmid = samples[outcomes.index("late")].vmid if dropped else 0
        if dropped and not self._is_incomplete and not self.state.stopping.is_set():
            rounds = len(samples) / max(len(samples) - dropped, 1)
            log.warning("metrics_need_several_turns", turns=round(rounds, 1), interval_s=self.interval_s)
        self._is_incomplete = bool(dropped)

    def _post_one(self, sample: Sample, pace: _Pace) -> str:
        """Wait until the sample's planned time and send it; return the outcome.

        The outcome is sent, late (dropped), unknown (FulcrumCore refused the entry) or down (no answer).
        """
        if self.state.stopping.wait(pace.wait_s()) or pace.is_over():
            return "late"
        cpu_started_s = time.thread_time()
        try:
            self.fulcrum.post_metric(
                agent_instance_id=f"{self.state.agent_id}/{sample.vmid}",
                resource_id=sample.resource_id,
                type_name=sample.type_name,
                value=sample.value,
            )
        except (FulcrumNotFound, FulcrumRefused):
            return "unknown"  # the create of the service is not completed yet, or the service was deleted meanwhile
        except FulcrumUnavailable:
            return "down"
        finally:
            pace.note_cost(time.thread_time() - cpu_started_s)
        return "sent"


class _Pace:
    """Spreads entries evenly over the time until a deadline, and keeps to the limits of rate and CPU use."""

    def __init__(self, entries: int, deadline: float) -> None:
        self._deadline = deadline
        self._next_at = now = time.monotonic()
        self._gap_s = self._min_gap_s = min(max((deadline - now) / entries, 1 / MAX_POSTS_PER_S), 1 / MIN_POSTS_PER_S)
        self._cost_s = 0.0
        self._lock = threading.Lock()

    def wait_s(self) -> float:
        """Return how long the next entry has to wait, and plan the entry after it."""
        with self._lock:
            now = time.monotonic()
            at, self._next_at = self._next_at, max(self._next_at, now) + self._gap_s
        return 0.0 if at > self._deadline else max(at - now, 0.0)

    def note_cost(self, cpu_s: float) -> None:
        """Record the CPU time of an entry, and adapt the gap between entries to it."""
        with self._lock:
            self._cost_s += (cpu_s - self._cost_s) / COST_WINDOW
            self._gap_s = max(self._min_gap_s, self._cost_s / POSTS_SHARE_OF_A_CORE)

    def is_over(self) -> bool:
        """True when no more entries can be sent before the deadline."""
        with self._lock:
            return max(time.monotonic(), self._next_at - self._gap_s) > self._deadline
