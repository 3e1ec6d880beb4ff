"""The critical job ReportMetric: sends metrics of every mapped VM, with one request to Proxmox per turn.

FulcrumCore takes one entry per call and sets its timestamp itself. So the posts are spread over the interval and
limited to 5 % of a CPU core. What does not fit is left out, and the next turn starts with it.
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

SENDERS = 4
#: Upper limit, to spare FulcrumCore.
MAX_POSTS_PER_S = 40.0
#: CPU share that posts may use, measured by the previous posts. With the rest of each turn this makes 5 % of a core.
POSTS_SHARE_OF_A_CORE = 0.035
#: Number of posts over which the cost is averaged.
COST_WINDOW = 20
#: Lower limit: spreading a few posts over the whole interval would only delay them.
MIN_POSTS_PER_S = 20.0
#: Share of the interval in which posts are sent.
USABLE_SHARE = 0.8
#: Metric type, resource and counter of what is reported in bytes per second.
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
    resource_id: str  #: few and constant values: FulcrumCore groups series by it
    value: float


@dataclass(kw_only=True)
class VmMetrics:
    """Collects and sends samples; keeps the counters of the last turn to compute rates."""

    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    state: AgentState
    interval_s: float
    _previous: dict[int, tuple[float, VmRow]] = field(default_factory=dict)
    _logged_missing: set[str] = field(default_factory=set)
    _first_vmid: int = 0  #: the next turn starts here, with what was left out
    _is_incomplete: bool = False  #: the last turn left something out

    def report(self) -> None:
        """Send one sample of each kind for each VM. Raises FulcrumUnavailable, JobError (Proxmox)."""
        if not self.state.agent_id:
            return
        started = time.monotonic()
        with reading(self.engine) as session:
            mapped = {mapping.vmid for mapping in mappings.active(session)}
        if not mapped:
            return
        rows = [row for row in self.proxmox.vms() if row.vmid in mapped and not row.is_template]
        rows.sort(key=lambda row: (row.vmid < self._first_vmid, row.vmid))
        wanted = self._known_types()
        samples = [sample for row in rows for sample in self._samples(row, started) if sample.type_name in wanted]
        self._previous = {row.vmid: (started, row) for row in rows}
        self._post(samples, started + self.interval_s * USABLE_SHARE)

    def _known_types(self) -> set[str]:
        known = {metric_type.name for metric_type in self.fulcrum.metric_types() if metric_type.name}
        missing = set(METRIC_TYPES) - known
        if new := missing - self._logged_missing:
            log.warning("metric_types_missing", names=sorted(new), hint="an admin creates them with POST /metric-types")
        self._logged_missing |= missing
        return known

    def _samples(self, row: VmRow, now: float) -> Iterator[Sample]:
        yield Sample(vmid=row.vmid, type_name="vm.cpu.usage", resource_id="cpu", value=row.cpu_share)
        if row.max_memory_bytes:
            used = row.memory_bytes / row.max_memory_bytes
            yield Sample(vmid=row.vmid, type_name="vm.memory.usage", resource_id="memory", value=used)
        if row.disk_bytes and row.max_disk_bytes:  # always 0 for qemu: Proxmox does not know the guest's disk usage
            used = row.disk_bytes / row.max_disk_bytes
            yield Sample(vmid=row.vmid, type_name="vm.disk.usage", resource_id="disk", value=used)
        then, before = self._previous.get(row.vmid, (now, row))
        if now <= then or row.uptime_s < before.uptime_s:
            return  # first sample, or restarted: its counters were reset
        for type_name, resource_id, counter in RATES:
            grown = getattr(row, counter) - getattr(before, counter)
            if grown >= 0:
                yield Sample(vmid=row.vmid, type_name=type_name, resource_id=resource_id, value=grown / (now - then))

    def _post(self, samples: list[Sample], until: float) -> None:
        if not samples:
            return
        pace = _Pace(len(samples), until)
        with ThreadPoolExecutor(max_workers=SENDERS, thread_name_prefix="metric") as pool:
            outcomes = list(pool.map(lambda sample: self._post_one(sample, pace), samples))
        log.debug("metrics_posted", sent=outcomes.count("sent"), unknown=outcomes.count("unknown"))
        self._note_left_out(samples, outcomes)
        if "down" in outcomes:
            raise FulcrumUnavailable("metric entries were not accepted")

    def _note_left_out(self, samples: list[Sample], outcomes: list[str]) -> None:
        """Let the next turn start with what this one left out; log it once."""
        left_out = outcomes.count("late")
        self._first_vmid = samples[outcomes.index("late")].vmid if left_out else 0
        if left_out and not self._is_incomplete and not self.state.stopping.is_set():
            rounds = len(samples) / max(len(samples) - left_out, 1)
            log.warning("metrics_need_several_turns", turns=round(rounds, 1), interval_s=self.interval_s)
        self._is_incomplete = bool(left_out)

    def _post_one(self, sample: Sample, pace: _Pace) -> str:
        if self.state.stopping.wait(pace.wait_s()) or pace.is_over():
            return "late"
        began = time.thread_time()
        try:
            self.fulcrum.post_metric(
                agent_instance_id=f"{self.state.agent_id}/{sample.vmid}",
                resource_id=sample.resource_id,
                type_name=sample.type_name,
                value=sample.value,
            )
        except (FulcrumNotFound, FulcrumRefused):
            return "unknown"  # the service is not completed yet, or was deleted meanwhile
        except FulcrumUnavailable:
            return "down"
        finally:
            pace.note_cost(time.thread_time() - began)
        return "sent"


class _Pace:
    """Spreads posts evenly until a time, within the rate and CPU limits."""

    def __init__(self, posts: int, until: float) -> None:
        self._until = until
        self._next_at = now = time.monotonic()
        self._gap_s = self._min_gap_s = min(max((until - now) / posts, 1 / MAX_POSTS_PER_S), 1 / MIN_POSTS_PER_S)
        self._cost_s = 0.0
        self._lock = threading.Lock()

    def wait_s(self) -> float:
        """Return how long the next post has to wait."""
        with self._lock:
            now = time.monotonic()
            at, self._next_at = self._next_at, max(self._next_at, now) + self._gap_s
        return 0.0 if at > self._until else max(at - now, 0.0)

    def note_cost(self, cpu_s: float) -> None:
        """Record the CPU time of a post, and adapt the gap between posts."""
        with self._lock:
            self._cost_s += (cpu_s - self._cost_s) / COST_WINDOW
            self._gap_s = max(self._min_gap_s, self._cost_s / POSTS_SHARE_OF_A_CORE)

    def is_over(self) -> bool:
        """True when no time is left in this turn."""
        with self._lock:
            return max(time.monotonic(), self._next_at - self._gap_s) > self._until
