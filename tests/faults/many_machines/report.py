"""The result of a trial with several machines, as text and as a record."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faults.chaos.report import MAX_LISTED, MIN_COMPLETED_SHARE, count_text
from faults.many_machines.check import MAX_MEDIAN_TAKEOVER_S, MAX_TAKEOVER_S, Takeover, problems, takeovers

#: The name under which violations are counted, by the start of their text. The first start that matches is used.
KIND_BY_TEXT_START = {
    "R1": "lost",
    "R2 overlapping": "overlapping runs on one VM",
    "R2": "doubled",
    "R3 stale": "stale reports",
    "R3": "contradictory",
    "R4": "wrong VM",
    "R7": "orphan processes",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a trial."""

    seed: int
    lease_s: float
    took_s: float
    jobs: dict[str, int]
    codes: dict[str, int]
    faults: dict[str, int]
    runs_seen: int
    reports: int  #: reports that FulcrumCore received
    takeovers: list[Takeover]
    violations: list[str]

    @property
    def violation_counts(self) -> dict[str, int]:
        """How many violations there are of each kind."""
        counts = dict.fromkeys(KIND_BY_TEXT_START.values(), 0)
        for text in self.violations:
            counts[next((name for start, name in KIND_BY_TEXT_START.items() if text.startswith(start)), "lost")] += 1
        return counts

    @property
    def takeover_s(self) -> tuple[float, float]:
        """Median and maximum of the time from a kill to the claim of an interrupted job by another machine.

        Jobs on probation are not counted.
        """
        times = [takeover.seconds for takeover in self.takeovers if not takeover.is_on_probation] or [0.0]
        return statistics.median(times), max(times)

    @property
    def is_passed(self) -> bool:
        """Whether no promise was violated, and enough jobs have completed."""
        return not self.violations and self.jobs.get("Completed", 0) >= MIN_COMPLETED_SHARE * sum(self.jobs.values())

    def text(self) -> str:
        """Return the report as text."""
        median, longest = self.takeover_s
        probation = [takeover.seconds for takeover in self.takeovers if takeover.is_on_probation]
        return "\n".join(
            [
                f"seed {self.seed}, leases of {self.lease_s:g} s, {self.took_s:.0f} s",
                f"jobs: {count_text(self.jobs)}; at least {MIN_COMPLETED_SHARE:.0%} must complete",
                f"failed with: {count_text(self.codes) or 'nothing'}",
                f"faults: {count_text(self.faults)}",
                f"runs that were seen with a live process: {self.runs_seen}; reports received: {self.reports}",
                f"jobs of killed machines, claimed by others: {len(self.takeovers) - len(probation)}, after "
                f"{median:.1f} s (median) and {longest:.1f} s (maximum); limits for leases of 30 s: "
                f"{MAX_MEDIAN_TAKEOVER_S:.0f} s, {MAX_TAKEOVER_S:.0f} s",
                f"the same for jobs on probation: {len(probation)}, after at most {max(probation, default=0.0):.1f} s",
                f"violations: {', '.join(f'{kind} {count}' for kind, count in self.violation_counts.items())}",
                *self.violations[:MAX_LISTED],
            ]
        )

    def record(self) -> dict[str, Any]:
        """Return the values for a file."""
        median, longest = self.takeover_s
        values = vars(self) | {"takeovers": [vars(takeover) for takeover in self.takeovers]}
        return values | {
            "violation_counts": self.violation_counts,
            "takeover_median_s": median,
            "takeover_max_s": longest,
        }


def make_report(
    history: Sequence[dict[str, Any]],
    violations_outside_history: Sequence[str],
    *,
    seed: int,
    lease_s: float,
    took_s: float,
    faults: dict[str, int],
) -> Report:
    """Check a history and return the report. The history does not show the other violations."""
    jobs = [job for record in history if record["kind"] == "facts" for job in record["core"]["jobs"]]
    failed = [job for job in jobs if job["status"] == "Failed"]
    calls = [record for record in history if record["kind"] == "call" and not record["path"].endswith("/claim")]
    return Report(
        seed=seed,
        lease_s=lease_s,
        took_s=took_s,
        jobs=dict(Counter(job["status"] for job in jobs)),
        codes=dict(Counter(str(job["errorMessage"]).partition(":")[0] for job in failed)),
        faults=faults,
        runs_seen=len({record["run"] for record in history if record["kind"] == "run"}),
        reports=len(calls),
        takeovers=takeovers(history),
        violations=[*problems(history), *violations_outside_history],
    )
