"""Logs have one event per line, in UTC, with secrets masked, and of libraries only warnings and errors."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
import urllib3
from urllib3.util import Retry

from executor import log
from executor.model import ReportState
from executor.redaction import MASK, redactor

SECRET = "hunter22-canary"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo `configure`, which changes the whole process."""
    root, ours = logging.getLogger(), logging.getLogger(log.PROGRAM_LOGGER_NAME)
    handlers, levels = root.handlers, (root.level, ours.level)
    redactor.add(SECRET)
    yield
    redactor.discard(SECRET)
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def stream() -> io.StringIO:
    """Configure a log of JSON lines; return its stream."""
    stream = io.StringIO()
    log.configure("json", "debug", stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def run_python(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environ})


def test_an_event_is_one_json_line_that_begins_with_time_level_and_name(stream: io.StringIO) -> None:
    log.get_logger("executor.agent.worker").info("playbook_finished", rc=0, duration_s=41.3, vmid=101)
    (line,) = lines(stream)
    assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo == UTC
    assert line == {
        "level": "info",
        "event": "playbook_finished",
        "logger": "executor.agent.worker",
        "rc": 0,
        "duration_s": 41.3,
        "vmid": 101,
    }


def test_bound_keys_are_on_every_line_of_the_block_and_on_none_after_it(stream: io.StringIO) -> None:
    with log.bound_contextvars(job_id="j1"):
        log.get_logger().info("claimed")
        logging.getLogger("urllib3").warning("retrying")
    log.get_logger().info("polled")
    assert [line.get("job_id") for line in lines(stream)] == ["j1", "j1", None]


def test_an_exception_is_one_line_with_its_traceback_redacted(stream: io.StringIO) -> None:
    try:
        raise RuntimeError(f"refused: {SECRET}")
    except RuntimeError:
        log.get_logger().exception("job_failed", vmid=101)
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert line["traceback"].startswith("Traceback (most recent call last):")
    assert line["traceback"].endswith(f"RuntimeError: refused: {MASK}")


def test_secrets_are_masked_in_every_part_of_an_event(stream: io.StringIO) -> None:
    logger = log.get_logger().bind(bound=SECRET)
    nested = {"list": [{SECRET: f"x{SECRET}"}], "json": json.dumps({"password": SECRET})}
    logger.warning(f"event {SECRET}", nested=nested, error=ValueError(SECRET), path=Path(f"/{SECRET}"))
    logger.warning("formatted %s", SECRET)
    logging.getLogger("other").error("%s", SECRET, extra={"url": f"https://x/?t={SECRET}"})
    with log.bound_contextvars(context=SECRET):
        logger.info("bound")
    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count(MASK) >= 10


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_secret_in_an_objects_repr_is_masked(format: log.LogFormat) -> None:
    class Leaky:
        def __repr__(self) -> str:
            return f"<Leaky {SECRET}>"

        def __str__(self) -> str:
            return "harmless"

    stream = io.StringIO()
    log.configure(format, "debug", stream=stream)
    log.get_logger().info("shown", plain=Leaky(), inside=[Leaky()])
    assert "shown" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_libraries_are_logged_from_warning_on_even_when_they_set_a_level(stream: io.StringIO) -> None:
    chatty = logging.getLogger("chatty.library")
    chatty.setLevel(logging.DEBUG)
    chatty.info("GET /secret-path")
    chatty.warning("slow")
    logging.getLogger("quiet.library").info("hello")
    log.get_logger().debug("ours")
    assert [line["event"] for line in lines(stream)] == ["slow", "ours"]


def test_urllib3_does_not_log_its_urls(stream: io.StringIO) -> None:
    with urllib3.PoolManager(retries=Retry(0)) as pool, pytest.raises(urllib3.exceptions.MaxRetryError):
        pool.request("GET", "http://127.0.0.1:1/api/v1/jobs?token=abc")
    assert stream.getvalue() == ""


def test_events_below_the_level_are_not_logged() -> None:
    stream = io.StringIO()
    log.configure("json", "WARNING", stream=stream)
    log.get_logger().info("polled")
    log.get_logger().warning("postponed")
    assert [line["event"] for line in lines(stream)] == ["postponed"]


def test_values_without_a_json_form_are_logged_as_text(stream: io.StringIO) -> None:
    log.get_logger().info("odd", nan=float("nan"), keys={(1, 2): 3}, when=datetime(2026, 1, 1, tzinfo=UTC), rc=0)
    (line,) = lines(stream)
    assert (line["nan"], line["keys"], line["rc"]) == ("nan", "{(1, 2): 3}", 0)


def test_a_logger_created_before_configure_uses_its_settings() -> None:
    early = log.get_logger("executor.early").bind(node="n1")
    stream = io.StringIO()
    log.configure("json", "info", stream=stream)
    early.info("started")
    assert lines(stream)[0]["node"] == "n1"


def test_configuring_twice_writes_each_line_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.configure("json", "info", stream=first)
    log.configure("json", "info", stream=second)
    log.get_logger().info("started")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


def test_our_loggers_are_named_below_executor() -> None:
    stream = io.StringIO()
    log.configure("json", "info", stream=stream)
    for name in (None, "executor", "executor.agent.worker", "__main__"):
        log.get_logger(name).info("named")
    names = [line["logger"] for line in lines(stream)]
    assert names == ["executor", "executor", "executor.agent.worker", "executor.__main__"]


def test_the_console_escapes_control_characters() -> None:
    stream = io.StringIO()
    log.configure("console", "info", stream=stream)
    log.get_logger().info("vm\x1b[2J\nfound", name="vm\x1b]0;title\x07\nforged line")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_the_console_shows_the_value_of_an_enum() -> None:
    stream = io.StringIO()
    log.configure("console", "info", stream=stream)
    log.get_logger().info("job_reported", report_state=ReportState.REPORTED)
    assert "report_state='reported'" in stream.getvalue()
    assert "ReportState" not in stream.getvalue()


def test_a_log_that_cannot_be_written_is_reported_on_stderr() -> None:
    program = f"""
from executor import log
class Full:
    def isatty(self): return False
    def write(self, text): raise OSError("no space left: " + text)
    def flush(self): pass
log.configure("json", "info", stream=Full())
log.get_logger().info("lost", value={SECRET!r})
print("still alive")
"""
    done = run_python(program)
    assert done.stdout == "still alive\n"
    assert done.stderr == "a log line of executor could not be written: OSError\n"


def test_before_configure_nothing_is_printed() -> None:
    done = run_python("from executor.log import get_logger; get_logger().error('early', secret='s')")
    assert (done.stdout, done.stderr) == ("", "")


def test_logs_go_to_stdout_as_json_when_that_is_no_terminal() -> None:
    done = run_python("from executor import log; log.configure(); log.get_logger().info('started')")
    assert json.loads(done.stdout)["event"] == "started"
    assert done.stderr == ""


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_the_console_and_colours_unless_no_color_is_set(no_color: str, is_coloured: bool) -> None:
    terminal_of_test, terminal_of_program = pty.openpty()
    program = "from executor import log; log.configure(); log.get_logger().info('started', vmid=101)"
    environ = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=terminal_of_program, env=environ):
        shown = os.read(terminal_of_test, 4096).decode()
    os.close(terminal_of_program)
    os.close(terminal_of_test)
    assert "started" in shown
    assert "{" not in shown
    assert ("\x1b[" in shown) is is_coloured


def test_uncaught_exceptions_and_warnings_are_logged_redacted() -> None:
    program = f"""
import threading, warnings
from executor import log
from executor.redaction import redactor
redactor.add({SECRET!r})
log.configure("json", "info")
log.capture_warnings_and_exceptions()
def fail(): raise RuntimeError({SECRET!r})
thread = threading.Thread(target=fail, name="poller")
thread.start()
thread.join()
warnings.warn({SECRET!r})
fail()
"""
    done = run_python(program)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["logger"] for event in events] == ["executor", "py.warnings", "executor"]
    assert (events[0]["event"], events[0]["thread"], events[2]["event"]) == ("thread_crashed", "poller", "crashed")
    assert "RuntimeError" in events[2]["traceback"]
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr


def test_lines_of_several_threads_are_not_mixed(stream: io.StringIO) -> None:
    def work(number: int) -> None:
        for turn in range(50):
            log.get_logger().info("turned", number=number, turn=turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(stream)) == 200


def test_the_capture_of_structlog_works_for_the_other_tests() -> None:
    with structlog.testing.capture_logs() as captured:
        log.get_logger().info("started", vmid=101)
    assert captured == [{"event": "started", "log_level": "info", "vmid": 101}]
