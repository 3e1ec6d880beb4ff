"""How commands print text from outside (FulcrumCore, Proxmox, playbooks), and how output looks on a terminal.

Text from outside is printed without control sequences and invisible characters, and its markup is not interpreted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli_world import GIVE_UP_S, Cli
from support.stories import store_story

from executor.cli.app import build_root_command
from executor.database.revisions import head_revision
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

#: A text that a terminal would obey: it clears the screen, sets the title and colours, reverses the direction of text,
#: has an invisible character, and forges a line of `smith`.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m[bold red]x[/]\u202egnp.exe\u200b\nsmith: all is well\r"


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    """Return a command line whose database and artifacts contain hostile text in every field from outside."""
    cli = Cli(tmp_path)
    job_id = cli.submit(action=HOSTILE, params={HOSTILE: HOSTILE}, service={"name": HOSTILE})
    event = {"event": "runner_on_ok", "created": HOSTILE, "event_data": {"task": HOSTILE, "res": {"msg": HOSTILE}}}
    cli.run_of(job_id, "create-1", stdout=f"one\n{HOSTILE}\ntwo\n", events=[event])
    cli.finished(JobResult(succeeded=False, code=ErrorCode.TASK_FAILED, detail=HOSTILE))
    return cli


COMMANDS = (
    ("jobs", "list"),
    ("jobs", "show", "1"),
    ("jobs", "show", "2"),
    ("jobs", "log", "1"),
    ("jobs", "log", "1", "--events"),
    ("runs", "list"),
    ("runs", "show", "create-1"),
    ("jobs", "retry", "1"),
    ("jobs", "show", HOSTILE),
)
#: The commands that print the output of a playbook, which may contain any lines.
SHOW_PLAYBOOK_OUTPUT = (("jobs", "log", "1"), ("runs", "show", "create-1"))


@pytest.mark.parametrize("args", COMMANDS)
def test_hostile_text_is_shown_without_control_characters(args: tuple[str, ...], smith: Cli) -> None:
    done = smith(*args)
    output = done.stdout + done.stderr
    assert all(char.isprintable() or char == "\n" for char in output), ascii(output)
    assert "all is well" in output or args[0] == "runs"
    if args not in SHOW_PLAYBOOK_OUTPUT:
        # Elsewhere, a line break in the text must not begin a new line, which would look like a message of `smith`.
        assert "\nsmith: all is well" not in output


@pytest.mark.parametrize("args", [args for args in COMMANDS if "retry" not in args and HOSTILE not in args])
def test_hostile_text_is_ascii_in_json_and_unchanged_when_parsed(args: tuple[str, ...], smith: Cli) -> None:
    printed = smith.ok(*args, "--json")
    assert printed.isascii()
    assert all(char.isprintable() or char == "\n" for char in printed)
    jobs = json.loads(printed)
    if args == ("jobs", "list"):
        assert jobs[1]["action"] == HOSTILE


def test_markup_in_data_is_printed_and_not_interpreted(smith: Cli) -> None:
    assert "[bold red]x[/]" in smith.ok("jobs", "list")


def test_a_terminal_gets_colours_unless_no_color_is_set(smith: Cli) -> None:
    coloured, plain = _run_on_terminal(smith), _run_on_terminal(smith, NO_COLOR="1")
    assert "\x1b[31m" in coloured
    assert "\x1b[31m" not in plain
    for output in (coloured, plain):
        assert "\x1b[2J" not in output
        assert "failed" in output


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_narrow_terminal_columns_are_left_out_and_idents_are_not_broken(width: int, tmp_path: Path) -> None:
    smith = Cli(tmp_path)
    result = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space on local-zfs (run create-1) " * 5)
    job_id = smith.finished(result, service={"name": "shop-frontend"})
    smith.add_run(job_id, "create-0c5d0f3a9b21")
    for args, idents in ((("jobs", "list"), ("shop-frontend", "failed")), (("runs", "list"), ("create-0c5d0f3a9b21",))):
        output = re.sub(r"\x1b\[[0-9;]*m", "", _run_on_terminal(smith, *args, COLUMNS=str(width)))
        lines = output.splitlines()
        assert max(len(line) for line in lines) <= width
        assert all(any(ident in line for line in lines) for ident in idents), lines
    wide = _run_on_terminal(smith, "jobs", "list", COLUMNS="200", NO_COLOR="1")
    assert all(heading in wide for heading in ("FULCRUM", "TRY", "REPORT", "ERROR"))
    narrow = _run_on_terminal(smith, "jobs", "list", COLUMNS="60", NO_COLOR="1")
    assert "FULCRUM" not in narrow
    assert "ERROR" in narrow


@pytest.mark.parametrize("width", [60, 80])
def test_a_long_id_in_a_text_is_printed_without_a_line_break(width: int, tmp_path: Path) -> None:
    """The terminal itself wraps the long line, so that the id can be copied in one piece."""
    smith = Cli(tmp_path)
    upid = "UPID:pve1:000003E8:00001B58:6B09E761:qmclone:9000:smith@pve!job:"
    (tmp_path / ("x" * 70)).mkdir()
    smith.env["SMITH_ACTIONS_PATH"] = str(tmp_path / ("x" * 70))
    job_id = smith.submit(params={"note": f"{'word ' * 20}{upid}"})
    smith.run_of(job_id, "create-1")
    task = {"upid": upid, "at": 1, "percent": 40.0, "log": ["transferred 4 GiB of 8 GiB"]}
    step = {"at": 1, "text": f"waiting for Proxmox task {upid}, 40 %"}
    store_story(smith, "create-1", {"tasks": [], "steps": [step], "proxmox_tasks": [task]})
    output = _run_on_terminal(smith, "jobs", "show", str(job_id), COLUMNS=str(width), NO_COLOR="1")
    assert output.count(upid) == 3, output
    coloured = _run_on_terminal(smith, "jobs", "show", str(job_id), COLUMNS=str(width))
    heading = next(line for line in coloured.splitlines() if "AFTER" in line)
    assert len(re.sub(r"\x1b\[[0-9;]*m", "", heading)) < width, "trailing spaces would be wrapped to an empty line"
    assert "x" * 70 in _run_on_terminal(smith, "config", "show", COLUMNS=str(width), NO_COLOR="1")


def test_piped_output_is_not_cut_if_the_variable_term_is_dumb(tmp_path: Path) -> None:
    """In cron jobs and in the shell of an editor, TERM is `dumb`, and the library rich then assumes 80 columns."""
    smith = Cli(tmp_path)
    smith.finished(JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="x" * 300), action="a" * 100)
    output = smith.ok("jobs", "list", TERM="dumb", COLUMNS="40")
    assert "x" * 300 in output
    assert "a" * 100 in output


def test_a_long_error_is_shortened_on_a_terminal_only(tmp_path: Path) -> None:
    smith = Cli(tmp_path)
    smith.finished(JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="x" * 300))
    assert "x" * 300 in smith.ok("jobs", "list")
    assert "…" in _run_on_terminal(smith, "jobs", "list", COLUMNS="200")


def _run_on_terminal(smith: Cli, *args: str, **env: str) -> str:
    """Return what a command (by default `smith jobs list`) prints on a pseudo-terminal."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        smith.command(*(args or ("jobs", "list"))),
        env=smith.environment(**{"TERM": "xterm-256color", "COLUMNS": "200"} | env),
        cwd=smith.folder,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    output = b""
    try:
        while piece := os.read(master, 4096):
            output += piece
    except OSError:
        pass  # on Linux, a read fails when the command has closed the terminal
    finally:
        os.close(master)
    assert process.wait(GIVE_UP_S) == 0
    return output.decode()


#: The commands without the option --json: they run until a signal, print a file, write reports, or ask an operator.
WITHOUT_JSON = {
    *("run", "agent-process", "lab", "config example", "lab-test", "actions test", "init"),
    *(f"lab {name}" for name in ("order", "start", "stop", "restart", "update", "delete", "fault")),
}


def test_every_command_except_those_listed_has_the_option_json() -> None:
    without_option = {
        path for path, command in _commands(build_root_command(), ()) if "--json" not in _options(command)
    }
    assert without_option <= WITHOUT_JSON


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from _commands(
            subcommand.load_real_command() if hasattr(subcommand, "load_real_command") else subcommand, (*path, name)
        )
    if path and not getattr(command, "no_args_is_help", False):
        yield " ".join(path), command


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_a_command_that_changes_something_describes_the_change_in_json(smith: Cli) -> None:
    job_id = smith.submit()
    cancelled = smith.json("jobs", "cancel", str(job_id), "--yes")
    assert (cancelled["job"], cancelled["status"], cancelled["has_ended"]) == (job_id, "failed", True)
    assert smith.json("jobs", "retry", str(job_id))["hastened"] == "report"
    copy = smith.file.with_name("copy.db")
    assert smith.json("db", "backup", str(copy)) == {"file": str(copy), "bytes": copy.stat().st_size}
    assert smith.json("db", "upgrade")["after"] == head_revision()
    restored = smith.json("db", "restore", str(copy), "--yes")
    assert (restored["file"], restored["schema"]) == (str(smith.file), head_revision())
