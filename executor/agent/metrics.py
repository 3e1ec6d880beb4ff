"""Runs the critical job ReportMetric: reads all VMs with one request to Proxmox, sends their metrics to FulcrumCore.

A round reads all VMs once and sends their samples. In FulcrumCore, each sample becomes a metric entry. FulcrumCore
accepts one entry per request and sets the entry's timestamp itself. So the requests are spread over the interval
between two rounds. Reading, computing and sending use at most 5 % of a CPU core. Samples that cannot be sent in time
are dropped, and the next round starts with the VMs of these samples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from executor.agent.state import AgentState
from executor.database import mappings
from executor.database.engine import read_only_session
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
SENDER_THREADS = 4
#: Maximum number of entries that are sent per second, to limit the load of FulcrumCore. With an interval of 60 s, two
#: rounds at this rate send 10,000 samples, for example two metrics of each of 5,000 VMs.
MAX_ENTRIES_PER_S = 110.0
#: Share of a CPU core that sending may use. The rate is adapted to the CPU time that was measured for previous entries.
#: Reading and computing the samples uses at most another 1 %.
SENDING_SHARE_OF_A_CORE = 0.04
#: The CPU time of an entry is averaged over about this many entries.
CPU_TIME_WINDOW_ENTRIES = 20
#: Minimum number of entries that are sent per second, even if a lower rate would meet the round's deadline. The rate is
#: lower only if SENDING_SHARE_OF_A_CORE requires it.
MIN_ENTRIES_PER_S = 20.0
#: Share of the interval in which entries are sent.
SENDING_SHARE_OF_INTERVAL = 0.8
#: Time in which no samples of a VM are sent after FulcrumCore has answered 404 to all samples of the VM.
UNKNOWN_VM_BACKOFF_S = 600.0
#: Metrics in bytes per second: metric type, `resource_id` of the sample, and the counter of VmRow from which the rate
#: is computed.
RATE_METRICS = (
    ("vm.network.in", "network", "net_in_bytes"),
    ("vm.network.out", "network", "net_out_bytes"),
    ("vm.disk.read", "disk", "disk_read_bytes"),
    ("vm.disk.write", "disk", "disk_write_bytes"),
)


class _SampleOutcome(StrEnum):
    """Says what happened to one sample."""

    SENT = "sent"
    #: Not sent: the time planned for sending it was after the round's deadline, an earlier sample got no answer, or the
    #: agent stops.
    DROPPED = "dropped"
    #: Refused with 404: FulcrumCore knows no service with the VM's `agent_instance_id` ("<agent id>/<VMID>"), or does
    #: not know the metric type.
    UNKNOWN = "unknown"
    REFUSED = "refused"  #: FulcrumCore refused the entry for another reason
    UNANSWERED = "unanswered"  #: sent, but FulcrumCore did not answer, or cannot process the entry now


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One value to send to FulcrumCore."""

    vmid: int
    type_name: str
    resource_id: str  #: "cpu", "memory", "disk" or "network"; FulcrumCore groups entries by this value
    value: float  #: a share from 0 to 1, or a rate in bytes per second


@dataclass(kw_only=True)
class VmMetrics:
    """Collects and sends samples. Keeps the counters of the previous round to compute rates."""

    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    state: AgentState
    cluster: str  #: the name of the Proxmox cluster (SMITH_CLUSTER)
    interval_s: float
    #: For each VMID: the monotonic time of the last round, and the VM's row in that round.
    _previous_rows: dict[int, tuple[float, VmRow]] = field(default_factory=dict)
    _logged_missing_types: set[str] = field(default_factory=set)  #: the missing metric types that were logged
    #: The VMID with which the next round starts: the VMID of the first sample that the last round dropped; 0 if the
    #: last round dropped no sample.
    _first_vmid_of_next_round: int = 0
    _has_dropped_samples: bool = False  #: the last round dropped samples
    #: For each VMID whose `agent_instance_id` FulcrumCore does not know: the monotonic time until which no samples are
    #: sent.
    _skipped_until: dict[int, float] = field(default_factory=dict)

    def report(self) -> None:
        """Send the samples of each VM of this cluster that is running and is mapped to a service.

        Raises FulcrumUnavailable, or JobError after a failed request to Proxmox.
        """
        if not self.state.agent_id:  # FulcrumCore's id of this agent, '' until the first heartbeat
            return
        started_at = time.monotonic()
        with read_only_session(self.engine) as session:
            mapped_vmids = {mapping.vmid for mapping in mappings.active_mappings(session, self.cluster)}
        if not mapped_vmids:
            return
        vms = self.proxmox.vms()
        self._skipped_until = {vmid: end for vmid, end in self._skipped_until.items() if end > started_at}
        vmids = mapped_vmids - self._skipped_until.keys()
        rows = [row for row in vms if row.vmid in vmids and row.status == "running" and not row.is_template]
        # The VMs are sorted by VMID, but VMs with a lower VMID than `_first_vmid_of_next_round` come last.
        rows.sort(key=lambda row: (row.vmid < self._first_vmid_of_next_round, row.vmid))
        existing_types = self._existing_types()
        samples = [sample for row in rows for sample in self._samples_of_vm(row, started_at)]
        samples = [sample for sample in samples if sample.type_name in existing_types]
        self._previous_rows = {row.vmid: (started_at, row) for row in rows}
        self._send_samples(samples, deadline=started_at + self.interval_s * SENDING_SHARE_OF_INTERVAL)

    def _existing_types(self) -> set[str]:
        """Return the metric types that exist in FulcrumCore. Log each missing metric type once."""
        existing_types = {metric_type.name for metric_type in self.fulcrum.metric_types() if metric_type.name}
        missing_types = set(METRIC_TYPES) - existing_types
        if unlogged_types := missing_types - self._logged_missing_types:
            hint = "an administrator of FulcrumCore must create these metric types (POST /metric-types)"
            log.warning("metric_types_missing", names=sorted(unlogged_types), hint=hint)
        self._logged_missing_types |= missing_types
        return existing_types

    def _samples_of_vm(self, row: VmRow, read_at: float) -> Iterator[Sample]:
        """Yield the samples of one VM. `read_at` is the monotonic time at which `row` was read.

        A share larger than 1 is reduced to 1. For example, Proxmox 9 reports the memory that a VM occupies on its
        Proxmox node. This may be more than the VM's configured memory.
        """
        yield Sample(vmid=row.vmid, type_name="vm.cpu.usage", resource_id="cpu", value=min(row.cpu_usage, 1.0))
        if row.max_memory_bytes:
            used_share = min(row.memory_bytes / row.max_memory_bytes, 1.0)
            yield Sample(vmid=row.vmid, type_name="vm.memory.usage", resource_id="memory", value=used_share)
        if row.disk_bytes and row.max_disk_bytes:  # always false so far: Proxmox reports `disk_bytes` 0 for each VM
            used_share = min(row.disk_bytes / row.max_disk_bytes, 1.0)
            yield Sample(vmid=row.vmid, type_name="vm.disk.usage", resource_id="disk", value=used_share)
        previous_read_at, previous_row = self._previous_rows.get(row.vmid, (read_at, row))
        elapsed_s = read_at - previous_read_at
        if elapsed_s <= 0 or row.uptime_s < previous_row.uptime_s:
            return  # no rate can be computed: the VM has no previous row, or a restart has reset its counters
        for type_name, resource_id, counter in RATE_METRICS:
            increase = getattr(row, counter) - getattr(previous_row, counter)
            if increase >= 0:
                rate = increase / elapsed_s
                yield Sample(vmid=row.vmid, type_name=type_name, resource_id=resource_id, value=rate)

    def _send_samples(self, samples: list[Sample], *, deadline: float) -> None:
        """Send the samples until the deadline, or until a sample gets no answer from FulcrumCore.

        Raises FulcrumUnavailable when at least one sample got no answer.
        """
        if not samples:
            return
        pace = _Pace(len(samples), deadline)
        with ThreadPoolExecutor(max_workers=SENDER_THREADS, thread_name_prefix="metric") as pool:
            outcomes = list(pool.map(lambda sample: self._send_sample(sample, pace), samples))
        refused_count = outcomes.count(_SampleOutcome.REFUSED) + outcomes.count(_SampleOutcome.UNKNOWN)
        log.debug("metrics_posted", sent=outcomes.count(_SampleOutcome.SENT), refused=refused_count)
        self._skip_unknown_vms_for_a_time(samples, outcomes)
        self._record_first_dropped_sample(samples, outcomes)
        if _SampleOutcome.UNANSWERED in outcomes:
            raise FulcrumUnavailable("FulcrumCore did not answer when metric entries were sent")

    def _skip_unknown_vms_for_a_time(self, samples: list[Sample], outcomes: list[_SampleOutcome]) -> None:
        """Skip a VM in the rounds of the next UNKNOWN_VM_BACKOFF_S if FulcrumCore answered 404 to all its samples.

        The usual cause is that FulcrumCore does not have the VM's `agent_instance_id`. `smith drift` shows such a VM.
        """
        vmids_and_outcomes = [(sample.vmid, outcome) for sample, outcome in zip(samples, outcomes, strict=True)]
        vmids_with_404 = {vmid for vmid, outcome in vmids_and_outcomes if outcome is _SampleOutcome.UNKNOWN}
        vmids_with_other_outcome = {
            vmid for vmid, outcome in vmids_and_outcomes if outcome is not _SampleOutcome.UNKNOWN
        }
        unknown_vmids = vmids_with_404 - vmids_with_other_outcome
        skip_end = time.monotonic() + UNKNOWN_VM_BACKOFF_S
        self._skipped_until |= dict.fromkeys(unknown_vmids, skip_end)
        if unknown_vmids:
            log.info("metrics_of_unknown_vms", vmids=sorted(unknown_vmids), backoff_s=UNKNOWN_VM_BACKOFF_S)

    def _record_first_dropped_sample(self, samples: list[Sample], outcomes: list[_SampleOutcome]) -> None:
        """Store the VM of the first dropped sample, for the next round.

        If successive rounds drop samples, log a warning only in the first of these rounds.
        """
        dropped_count = outcomes.count(_SampleOutcome.DROPPED)
        self._first_vmid_of_next_round = samples[outcomes.index(_SampleOutcome.DROPPED)].vmid if dropped_count else 0
        if _SampleOutcome.UNANSWERED in outcomes:
            return  # the samples were dropped because of an outage, not because a round is too short for all samples
        if dropped_count and not self._has_dropped_samples and not self.state.stopping.is_set():
            required_round_count = len(samples) / max(len(samples) - dropped_count, 1)
            log.warning(
                "metrics_need_several_rounds", rounds=round(required_round_count, 1), interval_s=self.interval_s
            )
        self._has_dropped_samples = bool(dropped_count)

    def _send_sample(self, sample: Sample, pace: _Pace) -> _SampleOutcome:
        """Wait until the sample's planned time, then send it.

        Drop the sample if the deadline has passed, the agent stops, or an earlier sample got no answer.
        """
        is_stopping = self.state.stopping.wait(pace.plan_next_entry())
        if is_stopping or pace.is_deadline_passed():
            return _SampleOutcome.DROPPED
        cpu_time_before_s = time.thread_time()
        try:
            self.fulcrum.post_metric(
                agent_instance_id=f"{self.state.agent_id}/{sample.vmid}",
                resource_id=sample.resource_id,
                type_name=sample.type_name,
                value=sample.value,
            )
        except FulcrumNotFound:
            # FulcrumCore knows a VM's `agent_instance_id` from the completion of the create job to the deletion of the
            # service.
            return _SampleOutcome.UNKNOWN
        except FulcrumRefused:
            return _SampleOutcome.REFUSED
        except FulcrumUnavailable:
            pace.drop_later_entries()  # the other entries would get no answer either
            return _SampleOutcome.UNANSWERED
        finally:
            pace.adapt_to_cpu_time(time.thread_time() - cpu_time_before_s)
        return _SampleOutcome.SENT


class _Pace:
    """Spreads entries evenly over the time until a deadline, within the limits of rate and CPU use.

    All times are monotonic.
    """

    def __init__(self, entry_count: int, deadline: float) -> None:
        now = time.monotonic()
        even_gap_s = (deadline - now) / entry_count
        self._deadline = deadline
        self._next_entry_at = now  #: planned time of the next entry
        self._min_gap_s = min(max(even_gap_s, 1 / MAX_ENTRIES_PER_S), 1 / MIN_ENTRIES_PER_S)
        self._gap_s = self._min_gap_s  #: time between two entries; longer than `_min_gap_s` if CPU time limits the rate
        self._average_cpu_s = 0.0  #: CPU time of one entry
        self._lock = threading.Lock()

    def plan_next_entry(self) -> float:
        """Plan the time of the next entry; return the seconds until that time.

        Return 0 when the entry's planned time is after the deadline, because the caller then drops the entry at once.
        """
        with self._lock:
            now = time.monotonic()
            entry_at = self._next_entry_at
            self._next_entry_at = max(entry_at, now) + self._gap_s
        return 0.0 if entry_at > self._deadline else max(entry_at - now, 0.0)

    def adapt_to_cpu_time(self, cpu_s: float) -> None:
        """Record the CPU time of an entry, and adapt the gap between entries to it."""
        with self._lock:
            self._average_cpu_s += (cpu_s - self._average_cpu_s) / CPU_TIME_WINDOW_ENTRIES
            self._gap_s = max(self._min_gap_s, self._average_cpu_s / SENDING_SHARE_OF_A_CORE)

    def drop_later_entries(self) -> None:
        """Set the deadline to the past, so that no further entry is sent."""
        with self._lock:
            self._deadline = float("-inf")

    def is_deadline_passed(self) -> bool:
        """True if the deadline has passed, or if the entry that was planned last is planned after the deadline."""
        with self._lock:
            last_planned_at = self._next_entry_at - self._gap_s
            return max(time.monotonic(), last_planned_at) > self._deadline
