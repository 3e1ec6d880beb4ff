"""Explores a model: every order of events in which two agents process two jobs of one service, with faults anywhere.

Most tests replace a decision of the code by a wrong one, and assert that the exploration then finds a broken promise.

`make explore` explores more faults than these tests do.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from protocol.decisions import Decisions
from protocol.exploration import Exploration, Explorer, Violation, world_after

from executor.agent import claim, reaper


def find_violation(decisions: Decisions, *, faults: int) -> Violation:
    exploration = Explorer(decisions, faults=faults, max_depth=20).explore()
    assert exploration.violation is not None
    return exploration.violation


def assert_in_order(violation: Violation, *events: str) -> None:
    """Assert that the history contains events with these texts, in this order."""
    history = iter(violation.history)
    for text in events:
        assert any(text in event for event in history), (
            f"{text!r} is missing in this order:\n{violation.numbered_history}"
        )


@pytest.mark.timeout(1200)  # 35 s of CPU, which is minutes on a busy machine
def test_no_promise_is_broken_after_any_single_fault() -> None:
    exploration = Explorer(faults=1).explore()

    assert exploration.violation is None, exploration.violation.numbered_history
    assert exploration.is_complete
    assert exploration.states > 100_000


def test_no_promise_is_broken_by_two_faults_in_few_events() -> None:
    exploration = Explorer(faults=2, max_depth=11).explore()

    assert exploration.violation is None, exploration.violation.numbered_history
    assert exploration.depth == 11


def test_two_answers_403_are_too_few_to_give_up_a_job() -> None:
    violation = find_violation(Decisions(is_gone=lambda _refusals: True), faults=2)

    assert violation.promise == "R1: job 1 is given up while it is Pending in FulcrumCore"
    assert_in_order(
        violation,
        "Agent A reads the list of pending jobs",
        "Agent A claims job 1 in the database",
        "it sends the claim; FulcrumCore answers 403, although the job exists",
        "it checks the 403; FulcrumCore answers 403, although the job exists; the agent concludes that the job is gone",
        "it stores how the attempt ended (JOB_GONE): abandon",
    )


def test_an_agent_must_not_mistake_its_own_late_claim_for_the_claim_of_another_executor() -> None:
    def require_claim_by_this_agent(status_at_fulcrum: str, *, was_claim_sent_before: bool, refusal: str) -> None:
        claim.require_claim_by_this_agent(status_at_fulcrum, was_claim_sent_before=False, refusal=refusal)

    violation = find_violation(Decisions(require_claim_by_this_agent=require_claim_by_this_agent), faults=1)

    assert violation.promise.startswith("R1: ")
    assert_in_order(
        violation,
        "it sends the claim; it is late, and the agent stops waiting for an answer",
        "it stores how the attempt ended (no answer): requeue",
        "Agent A claims job 1 in the database",
        "it reads the job; FulcrumCore says that it is Pending",
        "The late request `claim` of job 1 arrives; FulcrumCore accepts it",
        "it sends the claim; FulcrumCore answers 400",
        "it reads the job; FulcrumCore says that it is Processing",
        "it stores how the attempt ended (JOB_CLAIMED_ELSEWHERE): abandon",
    )


#: Agent A runs job 1.
A_RUNS = (
    "Agent A reads the list of pending jobs, and stores what is new",
    "Agent A claims job 1 in the database",
    "Agent A, job 1 (create): it stores that it will send the claim",
    "Agent A, job 1 (create): it sends the claim; FulcrumCore accepts it",
    "Agent A, job 1 (create): it stores that FulcrumCore has accepted the claim",
    "Agent A, job 1 (create): it finds or reserves the VMID",
    "Agent A, job 1 (create): it stores that the run starts, and starts it",
)


@pytest.mark.parametrize("is_fence_due", [lambda *_facts: False, lambda since_renewal, _others: since_renewal >= 4])
def test_an_agent_without_the_database_must_end_its_runs_before_its_leases_expire(is_fence_due: Any) -> None:
    """The fence of the agent and the guards of the runs both do this. Here the guards are missing."""
    world = world_after(*A_RUNS, "Agent A no longer reaches the database")
    decisions = Decisions(is_fence_due=is_fence_due, guard_limit_s=lambda _has_other_agents: math.inf)
    violation = Explorer(decisions, faults=0, max_depth=8, start=world).explore().violation

    assert Explorer(faults=0, max_depth=8, start=world).explore().violation is None
    assert violation is not None
    assert violation.promise == "R2: two runs change one VM at once"
    assert_in_order(
        violation,
        "10 s pass",
        "10 s pass",
        "10 s pass",
        "Agent B claims job 1 in the database",
        "Agent B, job 1 (create): it stores that the run starts, and starts it",
    )


@pytest.mark.parametrize("second_fault", ["Agent A is suspended", "Agent A no longer reaches the database"])
def test_the_guards_end_the_runs_of_a_suspended_agent_without_the_database(second_fault: str) -> None:
    """If the agent is resumed late, its own fence may end the runs after the other agent has reaped the job."""
    first_fault = "Agent A no longer reaches the database after it has renewed its leases; 10 s pass"
    if second_fault == first_fault.partition(" after")[0]:
        first_fault = "Agent A is suspended after it has renewed its leases; 10 s pass"
    world = world_after(*A_RUNS, first_fault, second_fault, "10 s pass")
    without_guards = Decisions(guard_limit_s=lambda _has_other_agents: math.inf)
    violation = Explorer(without_guards, faults=0, max_depth=8, start=world).explore().violation

    assert Explorer(faults=0, max_depth=8, start=world).explore().violation is None
    assert violation is not None
    assert violation.promise == "R2: two runs change one VM at once"
    assert_in_order(
        violation, "Agent B claims job 1 in the database", "Agent B, job 1 (create): it stores that the run"
    )


def test_the_guards_must_end_the_runs_of_a_suspended_agent_before_its_leases_expire() -> None:
    violation = find_violation(Decisions(guard_limit_s=lambda _has_other_agents: math.inf), faults=1)

    assert violation.promise == "R2: two runs change one VM at once"
    assert_in_order(
        violation,
        "Agent A, job 1 (create): it stores that the run starts, and starts it",
        "Agent A is suspended",
        "10 s pass",
        "10 s pass",
        "10 s pass",
        "Agent B claims job 1 in the database",
        "Agent B, job 1 (create): it stores that the run starts, and starts it",
    )


def test_a_run_that_a_resumed_agent_starts_too_late_ends_before_it_changes_the_vm() -> None:
    suspended = "Agent A, job 1 (create): it stores that the run starts, and is suspended before that"
    world = world_after(*A_RUNS[:-1], suspended, *["10 s pass"] * 4)
    without_guards = Decisions(guard_limit_s=lambda _has_other_agents: math.inf)
    violation = Explorer(without_guards, faults=0, max_depth=6, start=world).explore().violation

    assert Explorer(faults=0, max_depth=6, start=world).explore().violation is None
    assert violation is not None
    assert violation.promise == "R2: two runs change one VM at once"
    assert_in_order(violation, "Agent A is resumed", "Agent A, job 1 (create): it starts the run")


def test_a_job_whose_run_the_guard_has_ended_is_processed_again() -> None:
    """All jobs are settled even if no other agent has reaped the job before its agent is resumed."""
    description = "Agent A, job 1 (create): the guard ends its run after it has changed the VM"
    world = world_after(*A_RUNS, "Agent A is suspended", "10 s pass", "10 s pass", description, "Agent A is resumed")
    exploration = Explorer(faults=0, max_depth=10, start=world).explore()

    assert exploration.violation is None, exploration.violation.numbered_history


def test_a_restarted_agent_must_release_the_jobs_of_its_killed_process_at_once() -> None:
    violation = find_violation(Decisions(is_of_earlier_process=lambda _owner, _agent: False), faults=1)

    assert violation.promise == "R5: agent A cannot claim job 1 again after its restart"
    assert violation.history == [
        "Agent A reads the list of pending jobs, and stores what is new",
        "Agent A claims job 1 in the database",
        "Agent A is killed",
        "Agent A is started again",
    ]


#: Agent A is about to report the completion of job 1. The tests then let FulcrumCore answer 500, once too often.
COMPLETION_DUE = (
    *A_RUNS,
    "Agent A, job 1 (create): its run succeeds",
    "Agent A, job 1 (create): it stores how the attempt ended (success): finish",
    "Agent A finds the due report of job 1",
)


@pytest.mark.parametrize("answer", ["FulcrumCore answers 500", "FulcrumCore accepts it, but answers 500"])
def test_a_completion_that_is_answered_with_500_too_often_is_settled_with_one_result(answer: str) -> None:
    description = f"it sends the request `complete`; {answer}, as to the 5 requests before"
    exploration = Explorer(faults=0, max_depth=8, start=world_after(*COMPLETION_DUE, description)).explore()

    assert exploration.violation is None, exploration.violation.numbered_history


#: Agent B runs job 1. It does not fence, because it has not seen agent A for long.
B_RUNS_ALONE = (
    "Agent A is killed",
    "10 s pass",
    "10 s pass",
    "10 s pass",
    "Agent B reads the list of pending jobs, and stores what is new",
    "Agent B claims job 1 in the database",
    "Agent B, job 1 (create): it stores that it will send the claim",
    "Agent B, job 1 (create): it sends the claim; FulcrumCore accepts it",
    "Agent B, job 1 (create): it stores that FulcrumCore has accepted the claim",
    "Agent B, job 1 (create): it finds or reserves the VMID",
    "Agent B, job 1 (create): it stores that the run starts, and starts it",
)


def explore_from_b_runs_alone(decisions: Decisions) -> Exploration:
    """Explore one more fault after B_RUNS_ALONE."""
    return Explorer(decisions, faults=1, max_depth=13, start=world_after(*B_RUNS_ALONE)).explore()


def test_a_job_of_an_agent_that_does_not_fence_is_not_reaped_while_its_run_may_continue() -> None:
    exploration = explore_from_b_runs_alone(Decisions())

    assert exploration.violation is None, exploration.violation.numbered_history
    assert exploration.depth == 13


def test_an_agent_that_ignores_that_the_owner_does_not_fence_reaps_its_job_too_early() -> None:
    def decide_as_if_the_owner_fenced(unchanged_s: float, **facts: Any) -> reaper.ReapDecision:
        return reaper.decide_reaping(unchanged_s, **(facts | {"is_owner_fencing": True}))

    violation = explore_from_b_runs_alone(Decisions(decide_reaping=decide_as_if_the_owner_fenced)).violation

    assert violation is not None
    assert violation.promise == "R2: two runs change one VM at once"
    assert_in_order(
        violation,
        "Agent B no longer reaches the database",
        "10 s pass",
        "10 s pass",
        "10 s pass",
        "Agent A claims job 1 in the database",
        "Agent A, job 1 (create): it stores that the run starts, and starts it",
    )
    assert_in_order(violation, "Agent A is started again", "10 s pass", "10 s pass", "10 s pass")


def test_an_agent_must_fence_before_the_commit_that_shows_other_agents_that_it_fences() -> None:
    decisions = Decisions(
        has_other_agents_after_lost_answer=lambda had_other_agents, _has_other_agents: had_other_agents
    )
    violation = explore_from_b_runs_alone(decisions).violation

    assert violation is not None
    assert violation.promise == "R2: two runs change one VM at once"
    assert_in_order(
        violation,
        "Agent A is started again",
        "Agent B no longer reaches the database after it has renewed its leases",
        "10 s pass",
        "10 s pass",
        "10 s pass",
        "Agent A claims job 1 in the database",
    )


def test_an_agent_that_is_suspended_before_it_knows_of_the_other_agent_must_have_limited_its_runs() -> None:
    """The row of the suspended agent says that it fences, from the moment at which its renewal is stored."""
    history = (*B_RUNS_ALONE, "Agent A is started again", "Agent B is suspended after it has renewed its leases")
    fencing_too_late = Decisions(
        has_other_agents_after_lost_answer=lambda had_other_agents, _has_other_agents: had_other_agents
    )
    violation = (
        Explorer(fencing_too_late, faults=0, max_depth=7, start=world_after(*history, decisions=fencing_too_late))
        .explore()
        .violation
    )

    assert Explorer(faults=0, max_depth=7, start=world_after(*history)).explore().violation is None
    assert violation is not None
    assert violation.promise == "R2: two runs change one VM at once"
    assert_in_order(violation, "10 s pass", "10 s pass", "10 s pass", "Agent A claims job 1 in the database")


def test_a_history_is_printed_as_numbered_sentences() -> None:
    violation = find_violation(Decisions(is_gone=lambda _refusals: True), faults=2)

    lines = violation.numbered_history.splitlines()
    assert lines[0] == "1. Agent A reads the list of pending jobs, and stores what is new."
    assert [line.split(". ")[0] for line in lines[:-1]] == [str(number) for number in range(1, len(lines))]
    assert lines[-1] == "Broken promise R1: job 1 is given up while it is Pending in FulcrumCore."


def test_the_history_of_a_violation_is_a_shortest_one() -> None:
    decisions = Decisions(is_fence_due=lambda *_facts: False, guard_limit_s=lambda _has_other_agents: math.inf)
    length = len(find_violation(decisions, faults=1).history)

    assert Explorer(decisions, faults=1, max_depth=length - 1).explore().violation is None
