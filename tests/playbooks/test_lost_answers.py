"""A restart during which one request gets no answer or finds that the VM has moved: once for each of its requests."""

from __future__ import annotations

import pytest
from executor_bench import ExecutorBench
from play_bench import Bench

from executor.shared.reactions import Reaction, reaction_to

#: A restart sends fewer requests than this.
MAX_REQUESTS = 12


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["lost_answer", "move"])
def test_a_restart_disturbed_at_any_one_request_completes_at_the_latest_when_repeated(
    kind: str, bench: Bench, shared_executor: ExecutorBench
) -> None:
    """The module that restarts a VM catches no exception of the request that reads the VM's state."""
    failures = []
    for request_number in range(1, MAX_REQUESTS + 1):
        vm = bench.add_vm(status="running") | {"timeout_s": 15}
        bench.pve.control("disturb", disturbances=[{"kind": kind, "vmid": vm["vmid"], "requests": request_number}])
        results = [shared_executor.play("restart", vm)]
        bench.pve.control("clear_faults")
        if not results[0].succeeded and reaction_to(str(results[0].code)) is not Reaction.NEVER:
            results.append(shared_executor.play("restart", vm))
        if not results[-1].succeeded:
            failures.append((request_number, [result.message for result in results]))
    assert failures == []
