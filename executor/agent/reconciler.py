"""The critical job Reconcile: compares mappings, Proxmox and FulcrumCore, and applies the repairs that are safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from executor.agent.state import AgentState
from executor.database import audit
from executor.drift.facts import AUTOMATIC_REPAIRS, DriftKind, Finding
from executor.drift.inspector import Inspector
from executor.drift.repair import repair
from executor.log import get_logger

log = get_logger(__name__)

#: How long the first check waits for the first heartbeat, whose answer names our agent id.
AGENT_ID_TIMEOUT_S = 20.0
#: A result older than this many intervals is not shown any more: another node runs the checks now.
MAX_AGE_INTERVALS = 3.0


@dataclass(kw_only=True)
class Reconciler:
    """The critical job: checks, applies safe repairs, and logs each finding when it appears and when it is resolved.

    Findings are kept in memory: after a restart those that still exist are logged again.
    """

    inspector: Inspector
    state: AgentState
    interval_s: float
    _open_findings: dict[tuple[str, str, int | None], Finding] = field(default_factory=dict)
    _inconclusive_reason: str = ""
    _concluded_at: float | None = None  #: monotonic; of the last check that reached a conclusion
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check_and_repair(self) -> None:
        """Check once. Raises FulcrumUnavailable, JobError (Proxmox)."""
        if not self._may_start():
            return
        outcome = self.inspector.check(self.state.agent_id)
        if outcome.inconclusive_reason != self._inconclusive_reason and outcome.inconclusive_reason:
            log.warning("drift_check_inconclusive", reason=outcome.inconclusive_reason, mapped=outcome.mapping_count)
        elif self._inconclusive_reason and not outcome.inconclusive_reason:
            log.info("drift_check_resumed", mapped=outcome.mapping_count)
        self._inconclusive_reason = outcome.inconclusive_reason
        if not outcome.inconclusive_reason:
            self._log_changes([finding for finding in outcome.findings if not self._is_repaired(finding)])

    def counts(self) -> dict[str, int]:
        """Return the number of open findings by kind; empty when this process has no recent result."""
        with self._lock:
            at, findings = self._concluded_at, list(self._open_findings.values())
        if at is None or time.monotonic() - at > self.interval_s * MAX_AGE_INTERVALS:
            return {}
        return {kind.value: sum(finding.kind is kind for finding in findings) for kind in DriftKind}

    def _may_start(self) -> bool:
        """Wait for the first heartbeat: after a skipped turn the next one would follow only a whole interval later."""
        limit = time.monotonic() + AGENT_ID_TIMEOUT_S
        while not self.state.agent_id and time.monotonic() < limit and not self.state.stopping.is_set():
            self.state.stopping.wait(0.2)
        return bool(self.state.agent_id) and not self.state.draining.is_set() and not self.state.stopping.is_set()

    def _is_repaired(self, finding: Finding) -> bool:
        if finding.repair not in AUTOMATIC_REPAIRS:
            return False
        inspector = self.inspector
        if not repair(inspector.engine, inspector.cluster, finding, who=audit.AGENT):
            return True  # the mapping or a job has changed meanwhile: the next check decides
        (log.warning if finding.needs_attention else log.info)("drift_corrected", **finding.facts)
        return True

    def _log_changes(self, findings: Sequence[Finding]) -> None:
        now = {finding.key: finding for finding in findings}
        with self._lock:
            before, self._open_findings, self._concluded_at = self._open_findings, now, time.monotonic()
        for key in now.keys() - before.keys():
            log.warning("drift_found", **now[key].facts)
        for key in before.keys() - now.keys():
            log.info("drift_resolved", **before[key].facts)
