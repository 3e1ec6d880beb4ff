"""The simulator and a real FulcrumCore give the same answers to the same requests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.contract_servers import Server
from support.conversation import Conversation, load, read_answers, requests_of, write_answers

FOLDER = Path(__file__).parent
CONVERSATIONS = FOLDER / "conversations"
#: The conversation that creates the types, participants and agents for all others. Each of them is sent after it.
WORLD = CONVERSATIONS / "world.yaml"
MIN_REQUESTS = 300


def take_steps(conversation: Conversation, steps: list[dict[str, Any]], server: Server) -> list[dict[str, Any]]:
    """Take the steps of a conversation in order: send a request, or wait. Return the facts of the answers."""
    answers = []
    for step in steps:
        if "wait" in step:
            server.do(step["wait"])
        else:
            answers.append(conversation.ask(step))
    return answers


@pytest.mark.parametrize("name", sorted(file.stem for file in CONVERSATIONS.glob("*.yaml")))
def test_the_server_answers_as_recorded(
    name: str, server: Server, request: pytest.FixtureRequest, record_property: Any
) -> None:
    script = load(CONVERSATIONS / f"{name}.yaml")
    missing = [need for need in script.get("needs", []) if not server.can(need)]
    if missing:
        pytest.skip(f"the conversation needs {missing}, which this server does not have")
    conversation = Conversation(server.api_url, server.admin_token)
    try:
        if name != WORLD.stem:
            take_steps(conversation, load(WORLD)["steps"], server)
        answers = take_steps(conversation, script["steps"], server)
    finally:
        objects_left = conversation.remove_created()
        conversation.close()
    file = FOLDER / "answers" / f"{name}.jsonl"
    if request.config.getoption("--record", False):
        write_answers(file, answers)
    record_property("figure", f"{name}: {len(answers)} requests; FulcrumCore keeps {len(objects_left)} objects")
    assert not differences(read_answers(file), answers)


def differences(expected: list[dict[str, Any]], answers: list[dict[str, Any]]) -> list[str]:
    """Return a text for each answer that differs from the recorded one."""
    texts = []
    for number, (record, answer) in enumerate(zip(expected, answers, strict=True), 1):
        if record != answer:
            lines = [f"{number}. {answer['ask']}"]
            lines += [
                f"   {key}: recorded {json.dumps(record[key])}\n   {' ' * len(key)}  answered {json.dumps(answer[key])}"
                for key in record
                if record[key] != answer[key]
            ]
            texts.append("\n".join(lines))
    return texts


def test_every_request_has_a_recorded_answer_and_at_least_a_third_are_refusals() -> None:
    answers = [answer for file in (FOLDER / "answers").glob("*.jsonl") for answer in read_answers(file)]
    refusals = Counter(answer["status"] >= 400 for answer in answers)
    assert len(answers) == len(list(requests_of(CONVERSATIONS))) >= MIN_REQUESTS
    assert refusals[True] * 3 >= len(answers)
