"""Runs the critical job Reconcile: compares mappings, Proxmox and FulcrumCore, and applies automatic repairs.

A critical job is a periodic task of the agent. A mapping says which VM serves which service. The differences between
mappings, Proxmox and FulcrumCore are called drift. A finding describes one difference. A finding is open until a check
finds that the difference is gone. A check is inconclusive, and has no findings, if a list from Proxmox or FulcrumCore
may be incomplete.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from executor.agent.state import AgentState
from executor.database import audit, drift_checks
from executor.database.engine import read_only_session, transaction
from executor.drift.facts import AUTOMATIC_REPAIRS, DriftKind, Finding
from executor.drift.inspector import DriftInspector
from executor.drift.repair import apply_repair
from executor.drift.stored_findings import decode_findings, encode_finding
from executor.errors import DatabaseError
from executor.log import get_logger

log = get_logger(__name__)

#: Maximum time for which a check waits for the first heartbeat. The heartbeat's response contains the agent's id, which
#: the check needs.
AGENT_ID_TIMEOUT_S = 20.0
AGENT_ID_CHECK_INTERVAL_S = 0.2
#: Maximum age of the findings in web pages and metrics, as a number of intervals of the critical job. Older findings
#: are probably out of date.
MAX_FINDINGS_AGE_INTERVALS = 3.0


@dataclass(kw_only=True)
class Reconciler:
    """Checks for drift, applies automatic repairs, and logs each finding when it appears and when it is resolved.

    The findings are in the database. So all agents show the same findings, and each finding is logged only once.
    """

    inspector: DriftInspector
    state: AgentState
    interval_s: float
    #: Why the last check was inconclusive; '' if it was conclusive.
    _inconclusive_reason: str = ""

    def check_and_repair(self) -> None:
        """Check once, apply automatic repairs, log new and resolved findings.

        Raises FulcrumUnavailable, or JobError if a request to Proxmox fails.
        """
        if not self._wait_for_first_heartbeat():
            return
        outcome = self.inspector.check_drift(self.state.agent_id)
        reason, previous_reason = outcome.inconclusive_reason, self._inconclusive_reason
        self._inconclusive_reason = reason
        if reason:
            if reason != previous_reason:
                log.warning("drift_check_inconclusive", reason=reason, mapping_count=outcome.mapping_count)
            return
        if previous_reason:
            log.info("drift_check_resumed", mapping_count=outcome.mapping_count)
        self._store_and_log_changes([finding for finding in outcome.findings if not self._repair_if_automatic(finding)])

    def open_findings(self) -> list[Finding] | None:
        """Return the open findings.

        None: the database fails, or no check of the last MAX_FINDINGS_AGE_INTERVALS intervals was conclusive.
        """
        max_age_s = self.interval_s * MAX_FINDINGS_AGE_INTERVALS
        encoded_findings = None
        with contextlib.suppress(DatabaseError), read_only_session(self.inspector.engine) as session:
            encoded_findings = drift_checks.latest_findings(session, self.inspector.cluster, max_age_s=max_age_s)
        return None if encoded_findings is None else decode_findings(encoded_findings)

    def count_open_findings(self) -> dict[str, int]:
        """Return the number of open findings of each kind; {} if `open_findings` returns None."""
        findings = self.open_findings()
        if findings is None:
            return {}
        return {kind.value: sum(finding.kind is kind for finding in findings) for kind in DriftKind}

    def _wait_for_first_heartbeat(self) -> bool:
        """Wait for the first heartbeat; return whether a check may start.

        Without the wait, the check at the start of the agent would be skipped, and the agent would check for drift only
        after a whole interval.
        """
        state = self.state
        deadline = time.monotonic() + AGENT_ID_TIMEOUT_S
        while not state.agent_id and time.monotonic() < deadline and not state.stopping.is_set():
            state.stopping.wait(AGENT_ID_CHECK_INTERVAL_S)
        # `draining` is set when the process claims no more jobs, `stopping` when its loops must end.
        return bool(state.agent_id) and not state.draining.is_set() and not state.stopping.is_set()

    def _repair_if_automatic(self, finding: Finding) -> bool:
        """Apply the repair of a finding if it is one of AUTOMATIC_REPAIRS. Return whether it is one of them.

        The result is True even when the repair is impossible now. The caller then does not store the finding, and the
        next check tries the repair again. The audit entry of the repair names the agent as its author.
        """
        if finding.repair not in AUTOMATIC_REPAIRS:
            return False
        inspector = self.inspector
        if not apply_repair(inspector.engine, inspector.cluster, finding, who=audit.AGENT):
            return True  # nothing was repaired: the mapping has changed meanwhile, or a job of the service runs
        # A repair changes only a mapping. If, for example, the VM was lost, an operator must still act.
        log_repair = log.warning if finding.needs_operator else log.info
        log_repair("drift_corrected", **finding.shown_values)  # the keys and values in `smith drift --json`
        return True

    def _store_and_log_changes(self, findings: Sequence[Finding]) -> None:
        """Store `findings` as the open findings. Log each new finding, and each finding that is resolved now."""
        open_findings = {finding.key: finding for finding in findings}
        with transaction(self.inspector.engine) as session:
            encoded_findings = [encode_finding(finding) for finding in open_findings.values()]
            encoded_earlier_findings = drift_checks.replace_findings(session, self.inspector.cluster, encoded_findings)
        earlier_findings = {finding.key: finding for finding in decode_findings(encoded_earlier_findings)}
        for key in open_findings.keys() - earlier_findings.keys():
            log.warning("drift_found", **open_findings[key].shown_values)
        for key in earlier_findings.keys() - open_findings.keys():
            log.info("drift_resolved", **earlier_findings[key].shown_values)
