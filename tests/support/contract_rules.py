"""Checks an agent's requests and their answers against the recorded conversations of tests/contract.

Each recorded request and answer is an example. A request must have the method, the path, the parameters and a body like
those that FulcrumCore has accepted from an agent. Its answer must have the status, the headers and a body like a
recorded answer of the same method and path.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.conversation import HEADERS, TIME, UUID, load, parse_request, read_answers

FOLDER = Path(__file__).parents[1] / "contract"
#: The callers of the conversations that are agents.
AGENTS = ("agent", "sibling", "foreign")
#: Members whose content is not compared, because the service type, the agent type or the agent decides it.
NOT_COMPARED = frozenset(
    {
        "agentInstanceData", "configTemplate", "configuration", "configurationSchema", "lifecycleSchema", "params",
        "properties", "propertySchema",
    }
)  # fmt: skip
#: Members that FulcrumCore leaves out as long as they have no value.
OPTIONAL = frozenset({"agentInstanceId", "agentInstanceData", "claimedAt", "completedAt", "errorMessage", "params"})
#: Matches the part of a conversation's path that stands for an identifier; `nonsense` is an invalid one.
_PATH_IDENTIFIER = re.compile(r"\$\{\w+\}|nonsense")
#: Matches the text, such as `<job>`, that replaces an identifier in a recorded answer.
_REPLACED_IDENTIFIER = re.compile(r"<(?!text>|time>|number>|url>|not compared>|run>)[a-z_]+( \d+)?>")
_NO_BODY = object()


@dataclass(frozen=True, kw_only=True)
class Example:
    """A recorded request with its answer. `body` is _NO_BODY if the request had no body."""

    is_of_agent: bool
    query: frozenset[str]
    body: Any
    answer: dict[str, Any]


@dataclass
class ContractRules:
    """The recorded examples, by method and path."""

    examples: dict[tuple[str, str], list[Example]] = field(default_factory=lambda: defaultdict(list))

    def problems(self, method: str, path: str, query: str, body: Any, answer: dict[str, Any] | None) -> list[str]:
        """Return how a request and its answer differ from all recorded examples. The path is without /api/v1.

        `answer` has `status`, `headers` and `body`. It is None if no answer has arrived.
        """
        examples = self.examples.get((method, template_of(path)), [])
        if not any(example.is_of_agent and example.answer["status"] < 300 for example in examples):
            return ["no conversation has this request of an agent with an answer of success"]
        differences = list(_request_problems(examples, query, body))
        if answer is not None:
            differences += _answer_problems(examples, answer)
        return list(dict.fromkeys(differences))


def recorded_rules() -> ContractRules:
    """Read the conversations with their answers."""
    rules = ContractRules()
    for file in sorted((FOLDER / "answers").glob("*.jsonl")):
        steps = [step for step in load(FOLDER / "conversations" / f"{file.stem}.yaml")["steps"] if "ask" in step]
        for step, answer in zip(steps, read_answers(file), strict=True):
            method, target, caller = parse_request(step["ask"])
            path, _, query = target.partition("?")
            rules.examples[method, template_of(path)].append(
                Example(
                    is_of_agent=caller in AGENTS and "text" not in step,  # such a body is malformed on purpose
                    query=frozenset(_parameter_names(query)),
                    body=step.get("body", _NO_BODY),
                    answer=answer,
                )
            )
    return rules


def template_of(path: str) -> str:
    """Return a path with `{}` in the place of each identifier."""
    return UUID.sub("{}", _PATH_IDENTIFIER.sub("{}", path))


def _parameter_names(query: str) -> Iterator[str]:
    return (part.partition("=")[0] for part in query.split("&") if part)


def _request_problems(examples: list[Example], query: str, body: Any) -> Iterator[str]:
    accepted = [example for example in examples if example.is_of_agent and example.answer["status"] < 300]
    accepted_names = frozenset().union(*(example.query for example in accepted))
    yield from (
        f"the parameter {name} is in no accepted request"
        for name in _parameter_names(query)
        if name not in accepted_names
    )
    bodies = [example.body for example in accepted if example.body is not _NO_BODY]
    if body is None:
        if len(bodies) == len(accepted):
            yield "the request has no body"
    elif not bodies:
        yield "the request has a body"
    else:
        yield from _differences("request", body, bodies)


def _answer_problems(examples: list[Example], answer: dict[str, Any]) -> Iterator[str]:
    answers = [example.answer for example in examples if example.answer["status"] == answer["status"]]
    if not answers:
        yield f"the status {answer['status']} is in no recorded answer"
        return
    headers = {name.title(): value for name, value in answer["headers"].items()}
    for name in HEADERS:
        values = {str(example["headers"].get(name)) for example in answers}
        if str(headers.get(name)) not in values:
            yield f"the header {name} is {headers.get(name)}, recorded is {sorted(values)}"
    body = "" if answer["body"] is None else answer["body"]
    yield from _differences("answer", body, [example["body"] for example in answers])


def _differences(place: str, value: Any, examples: list[Any]) -> Iterator[str]:
    """Yield where a value differs from all examples in its type or in its members, at any depth."""
    examples_of_kind = [example for example in examples if _kind(example) == _kind(value)]
    if not examples_of_kind:
        yield f"{place} is a {_kind(value)}, recorded is {sorted({_kind(example) for example in examples})}"
    elif isinstance(value, dict):
        yield from _member_differences(place, value, examples_of_kind)
    elif isinstance(value, list):
        items = [item for example in examples_of_kind for item in example]
        for item in value if items else ():
            yield from _differences(f"{place}[]", item, items)
    elif isinstance(value, str):
        yield from _text_differences(place, value, examples_of_kind)


def _member_differences(place: str, value: dict[str, Any], examples: list[dict[str, Any]]) -> Iterator[str]:
    names = set().union(*examples)
    required_names = set.intersection(*(set(example) for example in examples)) - OPTIONAL
    if place != "request":
        yield from (f"{place}.{name} is missing" for name in sorted(required_names - set(value)))
    for name, member in value.items():
        if name in NOT_COMPARED:
            continue
        if name in names:
            yield from _differences(f"{place}.{name}", member, [item[name] for item in examples if name in item])
        elif name not in OPTIONAL:
            yield f"{place}.{name} is in no recorded example"


def _text_differences(place: str, value: str, examples: list[str]) -> Iterator[str]:
    if all(example == "<time>" for example in examples) and not TIME.fullmatch(value):
        yield f"{place} is no time: {value}"
    if all(_REPLACED_IDENTIFIER.fullmatch(example) for example in examples) and not UUID.fullmatch(value):
        yield f"{place} is no identifier: {value}"


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return type(value).__name__
    return "number" if isinstance(value, int | float) else type(value).__name__
