"""The story of a run (the summary of its events for the database): what it keeps, and within which limits."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from support.run_events import event, failed, verbose

from executor.redaction import Redactor
from executor.runs.story import MAX_ENTRIES, MAX_TEXT_LENGTH, RunStory

WITHIN_S = 10.0

UPID = "UPID:pve1:0000C5A1:0001:66000000:qmclone:9000:smith@pve!job:"


def line(text: str) -> dict[str, Any]:
    return verbose(f"VM 100500 (web-1): {text} [1.5 s]")


def story(*events: dict[str, Any], redactor: Redactor | None = None) -> RunStory:
    made = RunStory(redactor or Redactor())
    for each in events:
        made.add_event(each)
    return made


def test_an_ansible_task_is_running_until_its_result_arrives() -> None:
    made = story(event("playbook_on_task_start", task="Create the VM"))
    assert [(row["task"], row["outcome"]) for row in made.to_dict()["tasks"]] == [("Create the VM", "running")]
    made.add_event(event("runner_on_ok", task="Create the VM", duration=12.34, res={"changed": True}))
    (row,) = made.to_dict()["tasks"]
    assert (row["outcome"], row["seconds"], row["message"]) == ("changed", 12.3, "")


def test_a_failed_ansible_task_has_its_message_and_one_without_a_result_is_interrupted() -> None:
    made = story(
        event("playbook_on_task_start", task="a task"),
        failed("CAPACITY: no space"),
        event("playbook_on_task_start", task="Next"),
    )
    rows = made.end()["tasks"]
    assert [(row["outcome"], row["message"]) for row in rows] == [
        ("failed", "CAPACITY: no space"),
        ("interrupted", ""),
    ]


def test_progress_lines_are_steps_and_the_lines_of_one_wait_are_one_step() -> None:
    made = story(
        line("cloning the template 9000 on pve1"),
        line(f"waiting for Proxmox task {UPID}, 10 %, log: transferred 1 GiB"),
        line(f"waiting for Proxmox task {UPID}, 40 %, log: transferred 4 GiB"),
        line(f"Proxmox task {UPID} has ended, log: transferred 4 GiB | TASK ERROR: no space"),
        verbose("[WARNING]: not a progress line [1.5 s]"),
    )
    document = made.to_dict()
    assert [row["text"] for row in document["steps"]] == [
        "cloning the template 9000 on pve1",
        f"waiting for Proxmox task {UPID}, 40 %",
        f"Proxmox task {UPID} has ended",
    ]
    (task,) = document["proxmox_tasks"]
    assert (task["upid"], task["percent"]) == (UPID, 40.0)
    assert task["log"] == ["transferred 4 GiB", "TASK ERROR: no space"]


def test_a_story_is_bounded_and_keeps_its_beginning_and_its_newest_entry() -> None:
    made = story(*(line(f"step {number} " + "x" * 1000) for number in range(MAX_ENTRIES * 3)))
    steps = made.to_dict()["steps"]
    assert len(steps) == MAX_ENTRIES
    assert steps[0]["text"].startswith("step 0 ")
    assert steps[-1]["text"].startswith(f"step {MAX_ENTRIES * 3 - 1} ")
    assert max(len(row["text"]) for row in steps) == MAX_TEXT_LENGTH


def test_a_story_has_no_secret_and_no_character_that_a_database_refuses() -> None:
    redactor = Redactor()
    redactor.add("hunter2-secret")
    made = story(line("logging in with hunter2-secret"), failed("NUL \0 and \ud800 hunter2-secret"), redactor=redactor)
    text = json.dumps(made.to_dict())
    assert "hunter2-secret" not in text
    assert "\\u0000" not in text
    assert "\\ud800" not in text


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"event": None, "event_data": None},
        {"event": "runner_on_ok", "event_data": "text"},
        {"event": "runner_on_ok", "event_data": {"task": 7, "res": [], "duration": "long"}},
        {"event": "runner_on_ok", "event_data": {"duration": float("inf")}},
        {"event": "runner_on_ok", "event_data": {"duration": float("nan")}},
        {"event": "runner_on_ok", "event_data": {"duration": 10**400}},
        {"event": "verbose", "stdout": 7},
        {"event": "verbose", "stdout": f"VM 1 (a): UPID:x, {'9' * 400} % [1.5 s]"},
    ],
)
def test_a_malformed_event_raises_nothing(odd: dict[str, Any]) -> None:
    json.dumps(story(odd).end(), allow_nan=False)


def test_an_unchanged_story_is_not_returned_again() -> None:
    made = story(line("cloning"))
    assert made.to_dict_if_changed() is not None
    assert made.to_dict_if_changed() is None
    made.add_event(line("configuring"))
    assert made.to_dict_if_changed() is not None


def test_the_text_of_each_step_is_passed_on_when_it_arrives() -> None:
    texts: list[str] = []
    made = RunStory(Redactor(), texts.append)
    for text in ("cloning the template 9000 on pve1", f"verifying the outcome of {UPID}"):
        made.add_event(line(text))
    made.add_event(verbose("[WARNING]: not a progress line [1.5 s]"))
    assert texts == ["cloning the template 9000 on pve1", f"verifying the outcome of {UPID}"]


def test_the_story_can_be_read_while_a_step_is_passed_on() -> None:
    """Passing on a step may cause a slow write to the database, and the lease keeper reads the story meanwhile."""
    stories: list[dict[str, Any]] = []

    def read_in_another_thread(_text: str) -> None:
        reader = threading.Thread(target=lambda: stories.append(made.to_dict()), daemon=True)
        reader.start()
        reader.join(WITHIN_S)

    made = RunStory(Redactor(), read_in_another_thread)
    made.add_event(line("cloning"))
    assert [step["text"] for story in stories for step in story["steps"]] == ["cloning"]
