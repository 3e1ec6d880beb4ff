"""`smith` itself: help, versions, exit codes, and a quick start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_world import GIVE_UP_S, Cli

#: pydantic is missing here: typer itself imports it to show an option's type.
HEAVY = (
    "sqlalchemy",
    "requests",
    "alembic",
    "ansible_runner",
    "structlog",
    "proxmoxer",
    "psutil",
    "executor.settings.settings",
)
#: Runs the command in this very interpreter and tells afterwards what it has imported.
TELL_IMPORTS = """
import sys
from executor.__main__ import main
try:
    main()
except SystemExit as leaving:
    print("code", leaving.code, file=sys.stderr)
print("imported", sorted(set(sys.argv_heavy) & set(sys.modules)), file=sys.stderr)
"""
#: Prints what is wrong with the help of each of COMMANDS.
TELL_HELPS = """
from typer.testing import CliRunner
from executor import __main__ as command
shown = {}
command.run_app = lambda app: shown.update(app=app)
command.main()
for args in COMMANDS:
    result = CliRunner().invoke(shown["app"], [*args, "--help"])
    if result.exit_code or "Examples:" not in result.output or f"smith {' '.join(args)}" not in result.output:
        print(args, result.exit_code, result.output)
"""
COMMANDS = (
    ("run",),
    ("status",),
    ("health",),
    ("doctor",),
    ("version",),
    ("demo",),
    ("lab",),
    ("jobs", "list"),
    ("jobs", "show"),
    ("jobs", "log"),
    ("jobs", "retry"),
    ("jobs", "cancel"),
    ("runs", "list"),
    ("runs", "show"),
    ("mappings", "list"),
    ("mappings", "show"),
    ("mappings", "adopt"),
    ("mappings", "forget"),
    ("drift",),
    ("drift", "fix"),
    ("audit", "list"),
    ("critical", "list"),
    ("db", "upgrade"),
    ("db", "downgrade"),
    ("db", "current"),
    ("db", "check"),
    ("db", "backup"),
    ("db", "restore"),
    ("config", "show"),
    ("config", "example"),
)


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.mark.parametrize("args", [("--help",), ("jobs", "list", "--help"), ("run", "--help"), ("--show-completion",)])
def test_help_and_completion_import_nothing_heavy(args: tuple[str, ...], smith: Cli) -> None:
    """Completion runs the command at every press of the tab key."""
    code = f"import sys; sys.argv_heavy = {HEAVY!r}; sys.argv = ['smith', *{list(args)!r}]\n{TELL_IMPORTS}"
    env = smith.environment(SHELL="/bin/bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=GIVE_UP_S, check=False
    )
    assert "imported []" in done.stderr, done.stderr


def test_every_command_has_examples_in_its_help() -> None:
    """One process for all of them: twenty starts of Python would tell nothing more."""
    code = f"COMMANDS = {COMMANDS!r}\n{TELL_HELPS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=GIVE_UP_S, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_hidden_command_is_not_in_the_help(smith: Cli) -> None:
    shown = smith.ok("--help")
    assert "agent-process" not in shown
    assert "mappings" in shown


def test_without_arguments_the_help_is_shown(smith: Cli) -> None:
    done = smith()
    assert "Usage: smith" in done.stdout + done.stderr


def test_an_unknown_command_is_a_usage_error(smith: Cli) -> None:
    done = smith("jobz")
    assert done.returncode == 2
    assert "jobz" in done.stderr
    assert done.stdout == ""


def test_version_tells_what_a_bug_report_needs(smith: Cli) -> None:
    found = smith.json("version")
    assert set(found) == {
        "agent_smith",
        "python",
        "ansible_core",
        "ansible_runner",
        "community_proxmox",
        "newest_schema",
    }
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert all(found.values()), found


def test_the_version_option_says_the_same_as_the_command(smith: Cli) -> None:
    assert smith.ok("--version") == smith.ok("version")


def test_a_collection_that_is_named_counts_before_the_installed_one(smith: Cli) -> None:
    folder = smith.folder / "collections" / "ansible_collections" / "community" / "proxmox"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text('{"collection_info": {"version": "99.1.0"}}')
    found = smith.json("version", ANSIBLE_COLLECTIONS_PATH=str(smith.folder / "collections"))
    assert found["community_proxmox"] == "99.1.0"


@pytest.mark.parametrize("command", ["demo", "lab"])
def test_a_missing_lab_extra_says_how_to_install_it(command: str, smith: Cli) -> None:
    """A module of the lab's extra that cannot be found stands for an installation without the extra."""
    for name in ("cryptography", "uvicorn", "starlette"):
        text = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        (smith.folder / f"{name}.py").write_text(text)
    done = smith(command, PYTHONPATH=str(smith.folder))
    assert done.returncode == 1
    assert done.stderr.startswith("smith: ")
    assert "pip install 'agent-smith[lab]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_gets_no_traceback(smith: Cli) -> None:
    """`smith … | head`: the pipe's other end is closed before anything is written."""
    process = subprocess.Popen(
        smith.command("config", "show"),
        env=smith.environment(),
        cwd=smith.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(GIVE_UP_S) == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_a_terminal_without_utf8_ends_no_command(smith: Cli) -> None:
    smith.submit(action="créer-☃")
    shown = smith.ok("jobs", "list", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert r"cr\xe9er-\u2603" in shown
