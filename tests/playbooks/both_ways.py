"""Runs an action by hand, with ansible-playbook, or as the agent does. The test gets the same facts from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from executor_bench import ExecutorBench
from play_bench import Bench

WAYS = ("by hand", "by the agent")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The end of one action. `code` and `message` are empty after a success."""

    code: str
    message: str
    result: dict[str, Any]  #: the result document; empty if the action published none


#: A function that runs an action with the extra var `vm`.
Play = Callable[[str, Mapping[str, Any]], Attempt]


def by_hand(bench: Bench) -> Play:
    """Return a function that runs `ansible-playbook`."""

    def play(action: str, vm: Mapping[str, Any]) -> Attempt:
        outcome = bench.play(action, dict(vm))
        return Attempt(code=outcome.code, message=outcome.message, result=outcome.result)

    return play


def by_the_agent(executor: ExecutorBench) -> Play:
    """Return a function that runs the agent's runner."""

    def play(action: str, vm: Mapping[str, Any]) -> Attempt:
        result = executor.play(action, vm)
        return Attempt(code=str(result.code or ""), message=result.message, result=result.vm)

    return play
