"""The output of runs: how it is stored, truncated and redacted, and which events are read from it."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.run_site import (
    PUBLISH,
    TOKEN,
    Site,
    events_of,
    eventually,
    result_of,
)

from executor.model import RunStatus
from executor.redaction import Redactor
from executor.runs import output as run_output


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for orphan in site.orphans():
        for process in (*orphan.children(recursive=True), orphan):
            process.kill()
    assert not list(site.paths.run_dir.glob("*/*.yml")), "a run left its secrets behind"


def test_f25_the_output_of_20_mb_is_truncated_and_the_result_is_read(site: Site) -> None:
    """A run prints without end → the stored output is truncated and marked; its result is still read."""
    tasks = (
        '- name: Shout\n  ansible.builtin.debug:\n    msg: "{{ \'x\' * 1000000 }}"\n  loop: "{{ range(20) | list }}"\n'
    )

    artifacts = site.runner.run(site.run_of(site.playbook(tasks + PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL, (artifacts.folder / "stdout").read_text()[:2000]
    assert result_of(artifacts)["vmid"] == 101
    assert run_output.LEFT_OUT_TEXT in (artifacts.folder / "stdout").read_text()
    sizes = {path.name: path.stat().st_size for path in artifacts.folder.iterdir()}
    assert sizes["stdout"] < run_output.MAX_OUTPUT_BYTES
    assert sizes["events.jsonl"] < run_output.MAX_FILE_BYTES_FOR_ORDINARY_EVENTS + run_output.MAX_EVENT_BYTES


def _install_callback(site: Site, body: str) -> None:
    """Install a callback plugin that executes this code. It can write raw bytes to the output, as no module can."""
    folder = site.home / "callback_plugins"
    folder.mkdir()
    site.home.joinpath("ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\ncallbacks_enabled = noise\n")
    head = """
        import base64, json, os, pathlib
        from ansible.plugins.callback import CallbackBase

        DOCUMENTATION = "name: noise\\ntype: notification\\nshort_description: noise\\ndescription: noise"

        def mark(data):
            text = base64.b64encode(json.dumps(data).encode()).decode()
            return f"\\x1b[K{text}\\x1b[{len(text)}D\\x1b[K".encode()

        class CallbackModule(CallbackBase):
            CALLBACK_VERSION = 2.0
            CALLBACK_TYPE = "notification"
            CALLBACK_NAME = "noise"
            CALLBACK_NEEDS_ENABLED = True

            def v2_playbook_on_task_start(self, task, is_conditional):
                folder = pathlib.Path(os.environ["AWX_ISOLATED_DATA_DIR"], "job_events")
    """
    indented = textwrap.indent(textwrap.dedent(body), " " * 8)
    (folder / "noise.py").write_text(textwrap.dedent(head) + indented)


def test_f25_bytes_that_are_not_utf8_are_replaced(site: Site) -> None:
    """A run prints bytes that are not UTF-8 → they are replaced, and the run is not affected."""
    _install_callback(site, r'os.write(1, b"\xff\xfe caf\xe9 \xed\xa0\x80\n")')

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert result_of(artifacts)["vmid"] == 101
    assert " caf" in (artifacts.folder / "stdout").read_text(encoding="utf-8")


def test_f25_invalid_event_files_do_not_prevent_the_reading_of_the_others(site: Site) -> None:
    """Event files are truncated, too large or not JSON → they are left out, and the others are read."""
    body = r"""
        (folder / "aaaa-partial.json").write_bytes(b'{"event": "runner_on_ok", "event_da')
        (folder / "bbbb-partial.json").write_bytes(b"\xff\xff")
        (folder / "cccc-partial.json").write_bytes(b"[" * 200000)
        (folder / "dddd-partial.json").write_bytes(b" " * 5000000 + b'{"event": "runner_on_ok"}')
        (folder / "eeee-partial.json").write_bytes(b'["no object"]')
        for name in ("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "../../../../../x"):
            os.write(1, mark({"uuid": name}) + b"text\n" + mark({}))
    """
    _install_callback(site, body)

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert result_of(artifacts)["vmid"] == 101
    kinds = {event.get("uuid"): event["event"] for event in events_of(artifacts)}
    assert {kinds[uuid] for uuid in ("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff")} == {"verbose"}


def test_text_that_looks_like_an_event_is_not_an_event(site: Site) -> None:
    """Only the files of ansible-runner's callback define events: text of a guest must not become a result."""
    forged = {"event": "playbook_on_stats", "event_data": {"artifact_data": {"vm_result": {"vmid": 987654321}}}}
    _install_callback(site, f"os.write(1, mark({{'uuid': 'abcd', **{forged!r}}}) + b'text' + mark({{}}))")

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert result_of(artifacts)["vmid"] == 101
    assert "987654321" not in (artifacts.folder / "events.jsonl").read_text()


def _mark(data: dict[str, Any]) -> bytes:
    """Return the mark of an event in the output, as ansible-runner's callback writes it."""
    text = base64.b64encode(json.dumps(data).encode()).decode()
    return f"\x1b[K{text}\x1b[{len(text)}D\x1b[K".encode()


def test_beyond_the_output_limit_event_marks_are_found_however_the_output_is_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_output, "MAX_OUTPUT_BYTES", 0)
    marks = [_mark({"uuid": "0123-4567"}), _mark({}), _mark({"uuid": "89ab-cdef"}), _mark({})]
    stream = b"lead" + b"some \x1b[K text".join(marks) + b"tail"
    for size in range(1, len(stream) + 1):
        decoded: list[str] = []
        reader = run_output.OutputDecoder(decoded.append, lambda: None)
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
        assert "".join(decoded).encode() == b"".join(marks)


def test_failures_and_results_are_stored_even_if_the_event_file_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_output, "MAX_FILE_BYTES_FOR_ORDINARY_EVENTS", 1000)
    output = run_output.RunOutput(tmp_path / "kept", Redactor())
    for number in range(50):
        output.add_event({"event": "runner_on_ok", "counter": number, "event_data": {"res": {"msg": "x" * 100}}})
    output.add_event({"event": "runner_on_failed", "event_data": {"res": {"msg": "why"}}})
    output.add_event({"event": "playbook_on_stats", "event_data": {"artifact_data": {"vm_result": {"vmid": 101}}}})
    output.finish(status="failed", rc=2)

    events = [json.loads(line) for line in (tmp_path / "kept" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events[-3:]] == ["runner_on_failed", "playbook_on_stats", "smith_truncated"]
    assert len(events) + events[-1]["left_out"] == 53


def test_of_a_too_large_event_only_the_error_text_and_the_result_are_stored(tmp_path: Path) -> None:
    output = run_output.RunOutput(tmp_path / "kept", Redactor())
    many_values = {str(number): "x" * 1000 for number in range(5000)}
    output.add_event(
        {"event": "runner_on_failed", "event_data": {"res": {"msg": "CAPACITY: full", "other": many_values}}}
    )
    output.add_event(
        {"event": "playbook_on_stats", "event_data": {"artifact_data": {"vm_result": {"vmid": 1}, **many_values}}}
    )
    output.finish(status="failed", rc=2)

    first, second = [json.loads(line) for line in (tmp_path / "kept" / "events.jsonl").read_text().splitlines()]
    assert first["event_data"]["res"] == {"msg": "CAPACITY: full"}
    assert second["event_data"]["artifact_data"] == {"vm_result": {"vmid": 1}}


def test_the_output_of_a_current_run_can_be_read_redacted(site: Site) -> None:
    playbook = site.waiting(f"- name: Say\n  ansible.builtin.debug:\n    msg: 'hello {TOKEN}'\n")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(playbook))
        eventually(site.is_waiting)
        output = (site.runner.current_artifacts_folder("run-1") / "stdout").read_text()
        site.runner.kill("run-1")
        future.result()

    assert "hello ********" in output


def test_the_story_of_a_run_is_read_during_the_run_and_returned_at_its_end(site: Site) -> None:
    playbook = site.waiting(f"- name: Say {TOKEN}\n  ansible.builtin.debug:\n    msg: hello\n")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(playbook))
        eventually(site.is_waiting)
        stories = site.runner.changed_stories()
        site.runner.kill("run-1")
        artifacts = future.result()

    tasks = [(row["task"], row["outcome"]) for row in stories["run-1"]["tasks"]]
    assert tasks == [("Say ********", "ok"), ("Wait", "running")]
    assert artifacts.story is not None
    assert [row["outcome"] for row in artifacts.story["tasks"]] == ["ok", "interrupted"]
    assert site.runner.changed_stories() == {}
