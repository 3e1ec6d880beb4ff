"""The result of a chaos run, as text and as a record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from faults.chaos.recorder import Recorder

#: The name under which violations are counted, by the start of their text. The first start that matches is used.
KIND_BY_TEXT_START = {
    "R2 overlapping": "overlapping runs on one VM",
    "R1 lost: FulcrumCore's job": "stuck",
    "R1": "lost",
    "R2": "doubled",
    "R3": "contradictory",
    "R4": "wrong VM",
    "R7": "orphan processes",
    "contract": "contract with FulcrumCore",
}
#: The share of the jobs that must complete, so that enough jobs have passed through all steps.
MIN_COMPLETED_SHARE = 0.8
MAX_LISTED = 50


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a chaos run."""

    seed: int
    database: str
    took_s: float
    jobs: dict[str, int]
    codes: dict[str, int]
    kills: dict[str, int]
    troubles: dict[str, int]
    not_tested: list[str]
    violations: list[str]
    recovery_p50_s: float
    recovery_max_s: float
    heartbeat_gap_p99_s: float
    runs_seen: int  #: runs that were seen with a live process; overlaps are found between these only

    @property
    def violation_counts(self) -> dict[str, int]:
        """How many violations there are of each kind."""
        counts = dict.fromkeys(KIND_BY_TEXT_START.values(), 0)
        for text in self.violations:
            counts[next((name for start, name in KIND_BY_TEXT_START.items() if text.startswith(start)), "lost")] += 1
        return counts

    @property
    def completed_share(self) -> float:
        return self.jobs.get("Completed", 0) / max(1, sum(self.jobs.values()))

    @property
    def has_no_violation(self) -> bool:
        """Whether no promise was violated."""
        return not self.violations

    @property
    def is_passed(self) -> bool:
        """Whether no promise was violated, and enough jobs have completed."""
        return self.has_no_violation and self.completed_share >= MIN_COMPLETED_SHARE

    def text(self) -> str:
        """Return the report as text."""
        counts = ", ".join(f"{kind} {count}" for kind, count in self.violation_counts.items())
        lines = [
            f"seed {self.seed}, {self.database}, {self.took_s:.0f} s",
            f"jobs: {count_text(self.jobs)}; {self.completed_share:.0%} completed (at least {MIN_COMPLETED_SHARE:.0%})",
            f"failed with: {count_text(self.codes) or 'nothing'}",
            f"killed: {count_text(self.kills)}",
            f"faults: {count_text(self.troubles)}",
            *(f"NOT TESTED: {text}" for text in self.not_tested),
            f"claiming again after a kill: {self.recovery_p50_s:.1f} s (median), {self.recovery_max_s:.1f} s (maximum)",
            f"heartbeat gap, 99th percentile: {self.heartbeat_gap_p99_s:.1f} s",
            f"runs that were seen with a live process: {self.runs_seen}",
            f"violations: {counts}",
            *self.violations[:MAX_LISTED],
        ]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Return the values for a file."""
        return vars(self) | {"violation_counts": self.violation_counts, "completed_share": self.completed_share}


def count_text(counts: dict[str, int]) -> str:
    """Return counts as text, the highest first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def make_report(
    jobs: list[dict[str, Any]],
    recorder: Recorder,
    *,
    kills: dict[str, int],
    recovery_s: list[float],
    troubles: dict[str, int],
    seed: int,
    database: str,
    took_s: float,
    violations: list[str],
    not_tested: list[str],
) -> Report:
    """Build the report. `jobs` are FulcrumCore's jobs at the end."""
    codes = Counter(str(job["errorMessage"]).partition(":")[0] for job in jobs if job["status"] == "Failed")
    gaps = sorted(later - earlier for earlier, later in pairwise(recorder.heartbeat_times)) or [0.0]
    recovery = sorted(recovery_s) or [0.0]
    return Report(
        seed=seed,
        database=database,
        took_s=took_s,
        jobs=dict(Counter(job["status"] for job in jobs)),
        codes=dict(codes),
        kills=kills,
        troubles=troubles,
        not_tested=not_tested,
        violations=violations,
        recovery_p50_s=recovery[len(recovery) // 2],
        recovery_max_s=recovery[-1],
        heartbeat_gap_p99_s=gaps[int(0.99 * (len(gaps) - 1))],
        runs_seen=len(recorder.idents_seen),
    )
