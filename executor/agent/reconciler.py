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
KNOWN_WITHIN_S = 20.0
#: A result older than this many intervals is not shown any more: another node runs the checks now.
FRESH_INTERVALS = 3.0


@dataclass(kw_only=True)
class Reconciler:
    """The critical job: checks, corrects what corrects itself, and logs each finding once, when it comes and goes.

    What was found is kept in memory: after a restart what still differs is said again.
    """

    inspector: Inspector
    state: AgentState
    interval_s: float
    _standing: dict[tuple[str, str, int | None], Finding] = field(default_factory=dict)
    _inconclusive_reason: str = ""
    _concluded_at: float | None = None  #: monotonic; of the last check that reached a conclusion
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def turn(self) -> None:
        """Check once. Raises FulcrumUnavailable, JobError (Proxmox)."""
        if not self._may_begin():
            return
        outcome = self.inspector.check(self.state.agent_id)
        if outcome.inconclusive_reason != self._inconclusive_reason and outcome.inconclusive_reason:
            log.warning("drift_check_inconclusive", reason=outcome.inconclusive_reason, mapped=outcome.mapped)
        elif self._inconclusive_reason and not outcome.inconclusive_reason:
            log.info("drift_check_resumed", mapped=outcome.mapped)
        self._inconclusive_reason = outcome.inconclusive_reason
        if not outcome.inconclusive_reason:
            self._tell([finding for finding in outcome.findings if not self._corrected(finding)])

    def counts(self) -> dict[str, int]:
        """Return how many findings stand by kind; empty when this process has not concluded anything lately."""
        with self._lock:
            at, standing = self._concluded_at, list(self._standing.values())
        if at is None or time.monotonic() - at > self.interval_s * FRESH_INTERVALS:
            return {}
        return {kind.value: sum(finding.kind is kind for finding in standing) for kind in DriftKind}

    def _may_begin(self) -> bool:
        """Wait for the first heartbeat: a turn that is given away comes again only after the whole interval."""
        limit = time.monotonic() + KNOWN_WITHIN_S
        while not self.state.agent_id and time.monotonic() < limit and not self.state.stopping.is_set():
            self.state.stopping.wait(0.2)
        return bool(self.state.agent_id) and not self.state.draining.is_set() and not self.state.stopping.is_set()

    def _corrected(self, finding: Finding) -> bool:
        if finding.repair not in AUTOMATIC_REPAIRS:
            return False
        inspector = self.inspector
        if not repair(inspector.engine, inspector.cluster, finding, who=audit.AGENT):
            return True  # something happens to it just now: the next check sees what came of it
        (log.warning if finding.needs_attention else log.info)("drift_corrected", **finding.facts)
        return True

    def _tell(self, findings: Sequence[Finding]) -> None:
        now = {finding.key: finding for finding in findings}
        with self._lock:
            before, self._standing, self._concluded_at = self._standing, now, time.monotonic()
        for key in now.keys() - before.keys():
            log.warning("drift_found", **now[key].facts)
        for key in before.keys() - now.keys():
            log.info("drift_resolved", **before[key].facts)
