"""A failure text that no rule matches is not final while the VM may have been changed. The rules take linear time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import failures
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.agent.retry import MAX_ATTEMPTS, backoff_if_retried_s
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode
from executor.shared.error_patterns import RULES
from executor.shared.error_rules import classify_failure
from executor.shared.reactions import Reaction, reaction_to

#: Words that Proxmox's texts contain, and other words.
WORDS = (
    *("VM", "301", "disk", "'scsi1'", "storage", "volume", "failed", "error", "unable", "to", "the", "config", "node"),
    *("not", "is", "timeout", "-", "exit", "code", "5", "unexpected", "lost", "while", "aborted", "(x)", "invalid"),
)
RANDOM_TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=10)), max_size=12).map(" ".join),
)
#: Texts that no rule matches.
UNKNOWN_TEXTS = RANDOM_TEXTS.filter(lambda text: not any(re.search(pattern, text) for _code, pattern in RULES))
FACTS = {"vmid": 301, "reached": False, "task_error": "", "running_tasks": [], "lock": "", "status": "stopped"}


def is_retried(code: str) -> bool:
    """Return whether the agent repeats a job whose first attempt failed with this code."""
    job = Job(attempt=1, deadline_at=utc_now() + timedelta(minutes=5))
    result = JobResult(succeeded=False, code=ErrorCode(code), detail="x")
    return backoff_if_retried_s(job, result, clock_offset_s=0) is not None


@settings(max_examples=500, deadline=None)
@given(UNKNOWN_TEXTS)
def test_an_unknown_text_of_a_module_leads_to_a_look_up_and_is_not_final(text: str) -> None:
    answer = {"failed": True, "msg": text}
    assert failures.is_outcome_unknown(answer)
    assert failures.is_outcome_unknown(answer, is_single_request=True)
    assert is_retried(classify_failure(text).code)
    assert is_retried(failures.outcome_problem(FACTS, answer, "running").partition(":")[0])


@settings(max_examples=500, deadline=None)
@given(UNKNOWN_TEXTS, st.sampled_from([500, 501]))
def test_an_unknown_text_in_an_answer_of_proxmox_leads_to_a_look_up_and_is_not_final(text: str, status: int) -> None:
    answer = {
        "failed": True,
        "msg": f"{status} {'Internal Server Error' if status == 500 else 'Not Implemented'}: {text}",
    }
    assert failures.proxmox_failure(answer).startswith("PVE_API_ERROR: ")
    assert failures.is_outcome_unknown(answer, is_single_request=True)
    assert is_retried("PVE_API_ERROR")


@settings(max_examples=500, deadline=None)
@given(UNKNOWN_TEXTS.filter(bool))
def test_an_unknown_end_of_a_proxmox_task_is_not_final(text: str) -> None:
    """The task has ended with an error, and the look-up has read the VM after it."""
    problem = failures.outcome_problem({**FACTS, "task_error": text}, {}, "running")
    assert problem.startswith("TASK_FAILED: ")
    assert is_retried("TASK_FAILED")


@settings(max_examples=500, deadline=None)
@given(RANDOM_TEXTS, st.sampled_from(["Reached timeout while waiting", "Read timed out", "596 ", "got timeout"]))
def test_a_text_that_says_that_the_outcome_is_unknown_is_not_final(text: str, words: str) -> None:
    """The words must be at the beginning, because Proxmox's text may contain words of a tenant."""
    known = [code for code, pattern in RULES if re.search(pattern, text)]
    code = classify_failure(f"{words} {text}").code
    assert reaction_to(code) is not Reaction.NEVER or code in known


def test_a_job_whose_outcome_stays_unknown_has_a_maximum_number_of_attempts() -> None:
    """A job whose outcome stays unknown is not repeated for ever."""
    job = Job(attempt=MAX_ATTEMPTS, deadline_at=utc_now() + timedelta(minutes=5))
    result = JobResult(succeeded=False, code=ErrorCode.PVE_TIMEOUT, detail="x")
    assert backoff_if_retried_s(job, result, clock_offset_s=0) is None


def _find_unlimited_repetitions(parsed: object) -> Iterator[str]:
    """Yield each repetition without a limit in a parsed regular expression."""
    if isinstance(parsed, tuple) and len(parsed) == 2 and str(parsed[0]).endswith("REPEAT"):
        _least, most, _what = parsed[1]
        if str(most) == "MAXREPEAT":
            yield str(parsed)
    if isinstance(parsed, (tuple, list)) or type(parsed).__name__ == "SubPattern":
        for part in parsed:
            yield from _find_unlimited_repetitions(part)


@pytest.mark.parametrize(("code", "pattern"), RULES)
def test_each_repetition_in_a_pattern_has_a_limit(code: str, pattern: str) -> None:
    """Without a limit, a pattern such as `'[^']+'` takes quadratic time for a text of many quotes."""
    parser = pytest.importorskip("re._parser")
    assert list(_find_unlimited_repetitions(parser.parse(pattern))) == []


def test_the_search_for_unlimited_repetitions_finds_all_kinds_of_them() -> None:
    parser = pytest.importorskip("re._parser")
    assert len(list(_find_unlimited_repetitions(parser.parse("a(b+|c*)[d-f]{2,}x{1,3}")))) == 3
