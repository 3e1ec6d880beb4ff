"""The story of a run (the summary of its events for the database): what it contains, and within which limits."""

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


def progress_event(text: str) -> dict[str, Any]:
    """Return the event of ansible-runner for a progress line of an action plugin."""
    return verbose(f"VM 100500 (web-1): {text} [1.5 s]")


def make_story(*events: dict[str, Any], redactor: Redactor | None = None) -> RunStory:
    run_story = RunStory(redactor or Redactor())
    for each in events:
        run_story.add_event(each)
    return run_story


def test_an_ansible_task_is_running_until_its_result_arrives() -> None:
    run_story = make_story(event("playbook_on_task_start", task="Create the VM"))
    assert [(row["task"], row["outcome"]) for row in run_story.to_dict()["tasks"]] == [("Create the VM", "running")]
    run_story.add_event(event("runner_on_ok", task="Create the VM", duration=12.34, res={"changed": True}))
    (row,) = run_story.to_dict()["tasks"]
    assert (row["outcome"], row["seconds"], row["message"]) == ("changed", 12.3, "")


def test_a_failed_ansible_task_has_its_message_and_one_without_a_result_is_interrupted() -> None:
    run_story = make_story(
        event("playbook_on_task_start", task="a task"),
        failed("CAPACITY: no space"),
        event("playbook_on_task_start", task="Next"),
    )
    rows = run_story.end()["tasks"]
    assert [(row["outcome"], row["message"]) for row in rows] == [
        ("failed", "CAPACITY: no space"),
        ("interrupted", ""),
    ]


def test_progress_lines_are_steps_and_the_lines_of_one_wait_are_one_step() -> None:
    run_story = make_story(
        progress_event("cloning the template 9000 on pve1"),
        progress_event(f"waiting for Proxmox task {UPID}, 10 %, log: transferred 1 GiB"),
        progress_event(f"waiting for Proxmox task {UPID}, 40 %, log: transferred 4 GiB"),
        progress_event(f"Proxmox task {UPID} has ended, log: transferred 4 GiB | TASK ERROR: no space"),
        verbose("[WARNING]: not a progress line [1.5 s]"),
    )
    document = run_story.to_dict()
    assert [row["text"] for row in document["steps"]] == [
        "cloning the template 9000 on pve1",
        f"waiting for Proxmox task {UPID}, 40 %",
        f"Proxmox task {UPID} has ended",
    ]
    (task,) = document["proxmox_tasks"]
    assert (task["upid"], task["percent"]) == (UPID, 40.0)
    assert task["log"] == ["transferred 4 GiB", "TASK ERROR: no space"]


def test_a_long_story_has_its_first_entries_and_its_newest_one_within_limits() -> None:
    run_story = make_story(*(progress_event(f"step {number} " + "x" * 1000) for number in range(MAX_ENTRIES * 3)))
    steps = run_story.to_dict()["steps"]
    assert len(steps) == MAX_ENTRIES
    assert steps[0]["text"].startswith("step 0 ")
    assert steps[-1]["text"].startswith(f"step {MAX_ENTRIES * 3 - 1} ")
    assert max(len(row["text"]) for row in steps) == MAX_TEXT_LENGTH


def test_a_story_has_no_secret_and_no_character_that_a_database_refuses() -> None:
    redactor = Redactor()
    redactor.add("hunter2-secret")
    run_story = make_story(
        progress_event("logging in with hunter2-secret"), failed("NUL \0 and \ud800 hunter2-secret"), redactor=redactor
    )
    text = json.dumps(run_story.to_dict())
    assert "hunter2-secret" not in text
    assert "\\u0000" not in text
    assert "\\ud800" not in text


@pytest.mark.parametrize(
    "malformed_event",
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
def test_a_malformed_event_raises_nothing(malformed_event: dict[str, Any]) -> None:
    json.dumps(make_story(malformed_event).end(), allow_nan=False)


def test_an_unchanged_story_is_not_returned_again() -> None:
    run_story = make_story(progress_event("cloning"))
    assert run_story.to_dict_if_changed() is not None
    assert run_story.to_dict_if_changed() is None
    run_story.add_event(progress_event("configuring"))
    assert run_story.to_dict_if_changed() is not None


def test_the_text_of_each_step_is_given_to_the_callback_when_it_arrives() -> None:
    texts: list[str] = []
    run_story = RunStory(Redactor(), texts.append)
    for text in ("cloning the template 9000 on pve1", f"verifying the outcome of {UPID}"):
        run_story.add_event(progress_event(text))
    run_story.add_event(verbose("[WARNING]: not a progress line [1.5 s]"))
    assert texts == ["cloning the template 9000 on pve1", f"verifying the outcome of {UPID}"]


def test_the_story_can_be_read_while_the_callback_of_a_step_runs() -> None:
    """The callback of a step may cause a slow write to the database, and the lease keeper reads the story meanwhile."""
    stories: list[dict[str, Any]] = []

    def read_in_another_thread(_text: str) -> None:
        reader = threading.Thread(target=lambda: stories.append(run_story.to_dict()), daemon=True)
        reader.start()
        reader.join(WITHIN_S)

    run_story = RunStory(Redactor(), read_in_another_thread)
    run_story.add_event(progress_event("cloning"))
    assert [step["text"] for story in stories for step in story["steps"]] == ["cloning"]
