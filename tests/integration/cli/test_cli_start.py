"""`smith` itself: help, versions, exit codes, commands of other distributions, and a short start time (few imports)."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_world import GIVE_UP_S, Cli

from executor.cli.commands import COMMANDS as REGISTERED_COMMANDS
from executor.database import mappings

#: Modules whose import takes long, so that help and completion must not import them. pydantic is not in this list,
#: because typer itself imports it to show an option's type.
HEAVY = (
    "sqlalchemy",
    "requests",
    "alembic",
    "ansible_runner",
    "structlog",
    "proxmoxer",
    "psutil",
    "rich",
    "executor.settings.settings",
    "executor.redaction",
)
#: The modules that a command which only reads the database or the settings does not need.
UNUSED_BY_READERS = (
    "ansible",
    "ansible_runner",
    "requests",
    "proxmoxer",
    "psutil",
    "structlog",
    "yaml",
    "jsonschema",
    "starlette",
    "uvicorn",
    "prometheus_client",
    "alembic",
    "pydantic_settings",
    "rich",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.orm",
    "executor.runs.plan",
    "executor.agent.agent",
    "executor.web.server",
)
COMMAND_MODULES = tuple(sorted({f"executor.cli.{row.module}" for row in REGISTERED_COMMANDS}))
#: Runs the command in this interpreter and prints which of the watched modules it has imported.
PRINT_IMPORTS = """
import sys
from executor.cli.app import main
try:
    main()
except SystemExit as leaving:
    print("code", leaving.code, file=sys.stderr)
print("imported", sorted(set(sys.watched_modules) & set(sys.modules)), file=sys.stderr)
"""
#: Prints the commands of COMMANDS whose help lacks examples.
PRINT_BAD_HELPS = """
import contextlib, io
from executor.cli.app import build_root_command
for args in COMMANDS:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = build_root_command()([*args, "--help"], prog_name="smith", standalone_mode=False)
    if code or "Examples:" not in shown.getvalue() or f"smith {' '.join(args)}" not in shown.getvalue():
        print(args, code, shown.getvalue())
"""
COMMANDS = (
    ("run",),
    ("status",),
    ("top",),
    ("pause",),
    ("support",),
    ("resume",),
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


@pytest.mark.parametrize("args", [("--help",), ("jobs", "--help"), ("mappings", "--help"), ("--show-completion",)])
def test_help_and_completion_import_nothing_heavy(args: tuple[str, ...], smith: Cli) -> None:
    """Completion runs the command at every press of the tab key."""
    assert _run_and_list_imports(smith, args) == ("", [])


@pytest.mark.parametrize(("words", "completion"), [("smith ma", "mappings"), ("smith mappings re", "recall")])
def test_names_of_commands_are_completed_without_importing_their_modules(
    words: str, completion: str, smith: Cli
) -> None:
    env = {"_SMITH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert _run_and_list_imports(smith, (), **env) == (f"{completion}\n", [])


def test_the_help_of_a_command_group_loads_only_the_module_of_this_group(smith: Cli) -> None:
    """`smith drift` is a group and a command with options, which are defined in its module."""
    assert [name for name in _run_and_list_imports(smith, ("drift", "--help"))[1] if name in COMMAND_MODULES] == [
        "executor.cli.drift"
    ]


@pytest.mark.parametrize(
    "command",
    [
        "jobs list",
        "jobs show 1",
        "jobs log 1",
        "top --once",
        "runs list",
        "runs show start-1",
        "runs log start-1",
        "status",
        "mappings list",
        "mappings show 100123",
        "audit list",
        "nodes list",
        "critical list",
        "db current",
        "db check",
        "config show",
        "config example",
        "version",
    ],
)
def test_a_reading_command_imports_only_what_it_needs(command: str, smith: Cli) -> None:
    smith.submit()
    with smith.database_session() as session:
        mappings.reserve(session, service_id="aaaa", cluster="default", vmid=100123, name="web")
    args = tuple(command.split())
    assert _run_and_list_imports(smith, args, UNUSED_BY_READERS)[1] == []
    assert _run_and_list_imports(smith, (*args, "--help"), UNUSED_BY_READERS)[1] == []


@pytest.mark.parametrize("args", [("jobz",), ("jobs", "lst")])
def test_a_mistyped_command_imports_nothing_heavy(args: tuple[str, ...], smith: Cli) -> None:
    assert _run_and_list_imports(smith, args)[1] == []


def _run_and_list_imports(
    smith: Cli, args: tuple[str, ...], watched: tuple[str, ...] = (*HEAVY, *COMMAND_MODULES), **env: str
) -> tuple[str, list[str]]:
    """Run the command; return its completions (if `args` is empty), and the watched modules that it imported."""
    code = f"import sys; sys.watched_modules = {watched!r}; sys.argv = ['smith', *{list(args)!r}]\n{PRINT_IMPORTS}"
    env |= {"SHELL": "/bin/bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=smith.environment(**env),
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        check=False,
    )
    assert "imported " in done.stderr, done.stderr
    imported = done.stderr.splitlines()[-1].removeprefix("imported ")
    return "" if args else done.stdout, ast.literal_eval(imported)


def test_every_command_has_examples_in_its_help() -> None:
    """One process for all commands, because each start of Python takes time."""
    code = f"COMMANDS = {COMMANDS!r}\n{PRINT_BAD_HELPS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=GIVE_UP_S, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_hidden_command_is_not_in_the_help(smith: Cli) -> None:
    output = smith.ok("--help")
    assert "agent-process" not in output
    assert "mappings" in output


def test_without_arguments_the_help_is_shown(smith: Cli) -> None:
    done = smith()
    assert "Usage: smith" in done.stdout + done.stderr


def test_an_unknown_command_is_a_usage_error(smith: Cli) -> None:
    done = smith("jobz")
    assert done.returncode == 2
    assert "jobz" in done.stderr
    assert done.stdout == ""


def test_version_shows_the_versions_for_a_bug_report(smith: Cli) -> None:
    versions = smith.json("version")
    assert set(versions) == {
        "agent_smith",
        "python",
        "ansible_core",
        "ansible_runner",
        "community_proxmox",
        "newest_schema",
    }
    assert versions["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert all(versions.values()), versions


def test_the_version_option_prints_the_same_as_the_command(smith: Cli) -> None:
    assert smith.ok("--version") == smith.ok("version")


def test_a_collection_on_the_configured_path_precedes_the_installed_one(smith: Cli) -> None:
    folder = smith.folder / "collections" / "ansible_collections" / "community" / "proxmox"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text('{"collection_info": {"version": "99.1.0"}}')
    versions = smith.json("version", ANSIBLE_COLLECTIONS_PATH=str(smith.folder / "collections"))
    assert versions["community_proxmox"] == "99.1.0"


def test_run_refuses_to_start_without_the_collection(smith: Cli) -> None:
    (smith.folder / "sitecustomize.py").write_text(
        "import executor.version as v\nv.community_proxmox_version = lambda: None\n"
    )
    done = smith("run", "--once", PYTHONPATH=str(smith.folder))
    assert done.returncode == 3
    assert "community.proxmox is not installed: `smith doctor` shows the command" in done.stderr


@pytest.mark.parametrize("command", ["demo", "lab"])
def test_without_the_labs_distribution_its_commands_say_what_to_install(command: str, smith: Cli) -> None:
    """The test replaces the search for entry points by one that finds none, as if the distribution were missing."""
    (smith.folder / "sitecustomize.py").write_text("import importlib.metadata as m\nm.entry_points = lambda **_: ()\n")
    done = smith(command, PYTHONPATH=str(smith.folder))
    assert done.returncode == 1
    assert done.stderr.startswith("smith: ")
    assert "pip install agent-smith-lab" in done.stderr
    assert done.stderr.count("\n") == 1
    assert f"  {command} " in smith.ok("--help", PYTHONPATH=str(smith.folder))


@pytest.mark.parametrize("command", ["demo", "lab"])
def test_a_missing_dependency_of_the_lab_is_named_in_one_line(command: str, smith: Cli) -> None:
    """With None in sys.modules, an import fails as if the module were not installed."""
    (smith.folder / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
    done = smith(command, PYTHONPATH=str(smith.folder))
    remedy = "pip install agent-smith-lab (installs the missing dependencies)"
    error = f"needs the Python module uvicorn, which is not installed: {remedy}"
    assert (done.returncode, done.stderr) == (1, f"smith: `smith {command}` {error}\n")


def test_another_distribution_can_add_a_command(smith: Cli) -> None:
    (smith.folder / "added_command.py").write_text("def hello():\n    print('hello')\n")
    _install_entry_point(smith, "smith.commands", "added_command:hello")
    assert smith.ok("hello", PYTHONPATH=str(smith.folder)) == "hello\n"


def test_the_garbage_collector_is_enabled_while_a_command_runs(smith: Cli) -> None:
    """It is disabled only during the imports, and then ignores the objects that the imports created (gc.freeze)."""
    (smith.folder / "added_command.py").write_text(
        "import gc\ndef hello():\n    print(gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    _install_entry_point(smith, "smith.commands", "added_command:hello")
    assert smith.ok("hello", PYTHONPATH=str(smith.folder)) == "True True\n"


def test_no_plug_in_of_pydantic_is_loaded(smith: Cli) -> None:
    """A plug-in could read the settings, which contain secrets, and the search for plug-ins takes time."""
    (smith.folder / "plug_in.py").write_text("print('loaded')\nhello = None\n")
    _install_entry_point(smith, "pydantic", "plug_in:hello")
    smith.submit()
    done = subprocess.run(
        smith.command("jobs", "list", "--json"),
        env=smith.environment(PYTHONPATH=str(smith.folder)),
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        check=False,
    )
    assert (done.returncode, done.stdout[:1]) == (0, "["), done


def _install_entry_point(smith: Cli, group: str, function: str) -> None:
    """Write the metadata of a distribution with this entry point. Python finds it if `smith.folder` is on its path."""
    folder = smith.folder / "added-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{group}]\nhello = {function}\n")


def test_a_closed_pipe_gives_no_traceback(smith: Cli) -> None:
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


def test_a_full_disk_gives_one_error_line_and_a_closed_stdout_gives_none(smith: Cli) -> None:
    smith.submit()
    for redirection, code, lines in ((">/dev/full", 1, ["smith: No space left on device"]), (">&-", 0, [])):
        command = f"{shlex.join(smith.command('jobs', 'list'))} {redirection}"
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env=smith.environment(),
            cwd=smith.folder,
            stderr=subprocess.PIPE,
            text=True,
            timeout=GIVE_UP_S,
            check=False,
        )
        assert (done.returncode, done.stderr.splitlines()) == (code, lines), redirection


def test_an_error_of_the_operating_system_gives_one_line_that_names_the_file(smith: Cli) -> None:
    """The file .env is a folder. A file without read permission would not do, because root can read it."""
    (smith.folder / ".env").mkdir()
    done = smith("status")
    assert done.returncode in (1, 3)
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert ".env" in done.stderr


def test_no_command_fails_on_a_terminal_without_utf8(smith: Cli) -> None:
    smith.submit(action="créer-☃")
    output = smith.ok("jobs", "list", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert r"cr\xe9er-\u2603" in output
