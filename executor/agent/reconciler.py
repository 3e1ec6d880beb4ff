"""Runs the critical job Reconcile: compares mappings, Proxmox and FulcrumCore, and applies safe repairs."""

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

#: How long the first check waits for the first heartbeat. FulcrumCore's response to it contains the agent's id.
AGENT_ID_TIMEOUT_S = 20.0
#: A result older than this many intervals is not shown, because another agent process has probably made later checks.
MAX_AGE_INTERVALS = 3.0


@dataclass(kw_only=True)
class Reconciler:
    """Checks for drift, applies safe repairs, and logs each finding when it appears and when it is resolved.

    Findings are kept in memory, so after a restart the agent logs existing findings again.
    """

    inspector: Inspector
    state: AgentState
    interval_s: float
    _open_findings: dict[tuple[str, str, int | None], Finding] = field(default_factory=dict)
    _inconclusive_reason: str = ""
    _concluded_at: float | None = None  #: monotonic time at the end of the last conclusive check
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check_and_repair(self) -> None:
        """Check once, repair what is safe, and log new and resolved findings. Raises FulcrumUnavailable, JobError."""
        if not self._may_start():
            return
        outcome = self.inspector.check(self.state.agent_id)
        if outcome.inconclusive_reason != self._inconclusive_reason and outcome.inconclusive_reason:
            log.warning("drift_check_inconclusive", reason=outcome.inconclusive_reason, mapped=outcome.mapping_count)
        elif self._inconclusive_reason and not outcome.inconclusive_reason:
            log.info("drift_check_resumed", mapped=outcome.mapping_count)
        self._inconclusive_reason = outcome.inconclusive_reason
        if not outcome.inconclusive_reason:
            self._log_changes([finding for finding in outcome.findings if not self._try_repair(finding)])

    def counts(self) -> dict[str, int]:
        """Return the number of open findings by kind; empty when this process has no recent result."""
        with self._lock:
            concluded_at, findings = self._concluded_at, list(self._open_findings.values())
        if concluded_at is None or time.monotonic() - concluded_at > self.interval_s * MAX_AGE_INTERVALS:
            return {}
        return {kind.value: sum(finding.kind is kind for finding in findings) for kind in DriftKind}

    def _may_start(self) -> bool:
        """Wait for the first heartbeat; return whether a check may start.

        Without the wait, the first check would be skipped, and the next one would follow only after a whole interval.
        """
        deadline = time.monotonic() + AGENT_ID_TIMEOUT_S
        while not self.state.agent_id and time.monotonic() < deadline and not self.state.stopping.is_set():
            self.state.stopping.wait(0.2)
        return bool(self.state.agent_id) and not self.state.draining.is_set() and not self.state.stopping.is_set()

    def _try_repair(self, finding: Finding) -> bool:
        """Repair a finding if the repair is safe. Return False when the finding stays open."""
        if finding.repair not in AUTOMATIC_REPAIRS:
            return False
        inspector = self.inspector
        if not repair(inspector.engine, inspector.cluster, finding, who=audit.AGENT):
            return True  # the mapping or a job has changed meanwhile: the next check decides
        (log.warning if finding.needs_attention else log.info)("drift_corrected", **finding.facts)
        return True

    def _log_changes(self, findings: Sequence[Finding]) -> None:
        """Store the open findings; log those that are new and those that are resolved."""
        new = {finding.key: finding for finding in findings}
        with self._lock:
            old, self._open_findings, self._concluded_at = self._open_findings, new, time.monotonic()
        for key in new.keys() - old.keys():
            log.warning("drift_found", **new[key].facts)
        for key in old.keys() - new.keys():
            log.info("drift_resolved", **old[key].facts)
