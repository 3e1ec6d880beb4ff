"""Runs an action's playbook with ansible-playbook for a command of `smith`, and reads the result as the agent does.

ansible-playbook gets the credentials and the extra variable `vm` as files in a private folder. The folder is on tmpfs
if possible, and is deleted after the run. No argument and no environment variable of the run contains a secret.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from executor.cli.output_excerpt import OutputExcerpt
from executor.model import JobResult, RunArtifacts, RunStatus
from executor.processes import process_tree
from executor.runs import results
from executor.runs.actions import collection_folder
from executor.runs.private_folder import CREDENTIALS_VARIABLE, ansible_credentials, write_credentials, write_extra_vars
from executor.runs.run_until_file import RUN_UNTIL_FILE, RunUntilFile
from executor.settings.settings import Settings
from executor.shared.run_until import RUN_UNTIL_VARIABLE
from executor.views.text import sanitized

if TYPE_CHECKING:  # service_lock imports SQLAlchemy, but `smith actions`, which uses this file, does not need it.
    from executor.cli.service_lock import ServiceLock

#: The folder with the callback plugin `smith_events`, which writes the events that `results.read_result` needs.
CALLBACK_PLUGIN_FOLDER = Path(__file__).parent / "callbacks"
#: The prefixes of the environment variables that are our settings. ansible-playbook does not get these variables,
#: because some are secrets. The playbook reads the credentials for Proxmox from a file instead.
_SETTING_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
#: Matches a terminal control sequence that sets a colour. Because of the parentheses, `split` also returns the
#: sequences.
_COLOUR_SEQUENCE = re.compile(r"(\x1b\[[0-9;]*m)")
#: The maximum length of the text that `find_syntax_problem` returns.
_MAX_SYNTAX_PROBLEM_LENGTH = 600


class Output(Protocol):
    """A text stream for the output of a playbook."""

    def write(self, text: str, /) -> object:
        """Write the text."""

    def flush(self) -> None:
        """Write the buffered text."""

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""


@dataclass(frozen=True, kw_only=True)
class PlaybookRequest:
    """The run of an action's playbook that a command of `smith` requests."""

    action: str
    playbook: Path
    #: The extra variable `vm`, which describes the VM to the playbook.
    vm: Mapping[str, Any]
    #: Whether ansible-playbook gets the option --check, and so changes nothing.
    is_check_mode: bool = False


class PlaybookStopper:
    """Ends the playbooks that several threads run. A playbook that is started after a call of `stop` ends at once.

    A guard is the process that starts a playbook and can end all processes of the playbook (see `_run_command`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guards: list[subprocess.Popen[str]] = []
        self.is_stopped = False  #: whether `stop` has been called

    def add_guard(self, guard: subprocess.Popen[str]) -> None:
        """Add the guard of a playbook. If `stop` was called before, make the guard end the playbook."""
        with self._lock:
            self._guards.append(guard)
            if self.is_stopped:
                _make_guard_end_playbook(guard)

    def stop(self) -> None:
        """Make the guards end all playbooks. Do not wait until the playbooks have ended, which takes seconds."""
        with self._lock:
            self.is_stopped = True
            for guard in self._guards:
                _make_guard_end_playbook(guard)


def run(
    request: PlaybookRequest,
    settings: Settings,
    output: Output,
    lock: ServiceLock | None = None,
    stopper: PlaybookStopper | None = None,
) -> JobResult:
    """Run the playbook, copy its output to `output`, and return the result that the agent would store.

    `lock` locks the service of the VM: while a command holds `lock`, no agent runs a job of this service. `lock`
    stores the run, with its output and result, in the database under the name `lock.run_ident`. If the VM has no
    service, or if there is no database, `lock.run_ident` is empty. If `lock.run_ident` is empty or `lock` is None,
    nothing is locked or stored.

    A caller that runs several playbooks at once passes the same `stopper` to each call, so that `PlaybookStopper.stop`
    ends all of them.
    """
    stopper = stopper or PlaybookStopper()
    started_at = time.time()
    with temporary_private_folder() as folder:
        events_file = folder / "events.jsonl"
        events_file.touch(mode=0o600)
        command = _write_files_and_build_command(request, folder, settings)
        extra_environment = {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACK_PLUGIN_FOLDER),
            "ANSIBLE_CALLBACKS_ENABLED": "smith_events",
            "SMITH_EVENTS_FILE": str(events_file),
        }
        if lock is not None and lock.run_ident:
            # The run has a lease and a deadline before the end of the lease. `lock` renews the lease. Now and after
            # each renewal, it calls `set_deadline`, which writes the deadline to the file RUN_UNTIL_FILE. The guard
            # reads this file, and ends the run at the deadline.
            run_until_file = RunUntilFile(folder / RUN_UNTIL_FILE)
            lock.set_deadline_callback(run_until_file.set_deadline)
            extra_environment[RUN_UNTIL_VARIABLE] = str(run_until_file.path)
        # `lock.output` is the excerpt of the playbook's output that `lock` stores.
        excerpt = lock.output if lock is not None else OutputExcerpt()
        environment = build_environment(folder, settings) | extra_environment
        exit_code = _run_command(command, environment, output, excerpt, events_file, stopper)
        artifacts = RunArtifacts(
            ident=lock.run_ident if lock is not None else "",
            folder=folder,
            status=RunStatus.FAILED if exit_code else RunStatus.SUCCESSFUL,
            rc=exit_code,
            started_at=started_at,
            ended_at=time.time(),
        )
        result = results.read_result(artifacts)
    if lock is not None:
        lock.set_result_to_store(result)
    return result


def find_syntax_problem(playbook: Path) -> str:
    """Return the error of `ansible-playbook --syntax-check`, or '' if there is no error. Proxmox is not called."""
    with temporary_private_folder() as folder:
        finished_process = subprocess.run(
            [ansible_program_path("ansible-playbook"), "--syntax-check", str(playbook)],
            env=build_environment(folder, settings=None),
            cwd=collection_folder(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if finished_process.returncode == 0:
        return ""
    lines = [line.strip() for line in finished_process.stderr.splitlines()]
    return " ".join(line for line in lines if line and "WARNING" not in line)[:_MAX_SYNTAX_PROBLEM_LENGTH]


def build_environment(folder: Path, settings: Settings | None) -> dict[str, str]:
    """Return the environment for ansible-playbook: this process's environment without our settings.

    Ansible creates its own files in `folder`. With `settings`, the environment also has the path of Proxmox's CA bundle
    and the path of the file in `folder` with the credentials for Proxmox. Without `settings`, the variable for the path
    of the credentials file is empty.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTING_PREFIXES)}
    environment |= {
        "ANSIBLE_CONFIG": str(collection_folder() / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "tmp"),
        CREDENTIALS_VARIABLE: str(folder / "credentials.yml") if settings else "",
    }
    if settings and settings.proxmox_ca_bundle:
        ca_bundle = str(settings.proxmox_ca_bundle.resolve())
        environment |= {"REQUESTS_CA_BUNDLE": ca_bundle, "SSL_CERT_FILE": ca_bundle}
    return environment


@contextmanager
def temporary_private_folder() -> Iterator[Path]:
    """Create a folder that only our user can read, on tmpfs if possible. Delete it at the end of the `with` block."""
    tmpfs = Path("/dev/shm")  # noqa: S108 (mkdtemp creates a folder with mode 0700 in it)
    parent_folder = str(tmpfs) if tmpfs.is_dir() and os.access(tmpfs, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="smith-play-", dir=parent_folder) as folder:
        yield Path(folder)


def _write_files_and_build_command(request: PlaybookRequest, folder: Path, settings: Settings) -> list[str]:
    """Write the variable `vm` and the credentials into the folder, and return ansible-playbook's command line."""
    write_extra_vars(folder / "vm.yml", dict(request.vm))
    write_credentials(folder / "credentials.yml", ansible_credentials(settings))
    command = [ansible_program_path("ansible-playbook"), str(request.playbook.resolve()), "-e", f"@{folder / 'vm.yml'}"]
    return [*command, "--check"] if request.is_check_mode else command


def _run_command(  # noqa: PLR0913, PLR0917 (three of the parameters are destinations of the output)
    command: list[str],
    environment: dict[str, str],
    output: Output,
    excerpt: OutputExcerpt,
    events_file: Path,
    stopper: PlaybookStopper,
) -> int:
    """Run the command, print its output to `output`, and return the command's exit code.

    The output is printed without secrets, and with control characters escaped (`sanitized`). The first and the last
    lines are also kept in `excerpt`. A line that contains an error is also appended to `events_file`.

    The command is started by a guard process. The guard ends all processes of the command when this process ends or is
    interrupted. The guard and the command are in another session than this process, so Ctrl-C in the terminal
    interrupts only this process.
    """
    if output.isatty():
        environment = environment | {"ANSIBLE_FORCE_COLOR": "1"}
    guard = subprocess.Popen(
        [*process_tree.guard_command_prefix(), *command],
        env=environment,
        cwd=collection_folder(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    stopper.add_guard(guard)
    try:
        for line in guard.stdout or ():
            print(_sanitize_except_colours(line.rstrip("\n")), file=output, flush=True)
            excerpt.add(sanitized(line.rstrip("\n"), keep_whitespace=True))
            if "ERROR" in line:
                _write_error_event(events_file, line)
        return guard.wait()
    finally:
        _make_guard_end_playbook(guard)
        if guard.stdout is not None:
            guard.stdout.close()
        _wait_for_guard(guard)


def _make_guard_end_playbook(guard: subprocess.Popen[str]) -> None:
    """Close the pipe to the guard, which then ends all processes of the playbook."""
    if guard.stdin is not None:
        guard.stdin.close()


def _wait_for_guard(guard: subprocess.Popen[str]) -> None:
    """Wait until the guard has ended all processes of the playbook, which takes seconds. Ctrl-C does not end the wait.

    When `run` ends, the command releases the service's lock. This is safe only if no process of the playbook runs.
    """
    while True:
        try:
            guard.wait()
        except KeyboardInterrupt:
            continue
        return


def _write_error_event(events_file: Path, line: str) -> None:
    """Append an error line of ansible-playbook to the events, so that `results.read_result` finds the error.

    For some errors, such as a syntax error, ansible-playbook prints a line but calls no callback plugin. `verbose` is
    ansible-runner's event for a line of output that no callback plugin reports.
    """
    with events_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "verbose", "stdout": _COLOUR_SEQUENCE.sub("", line.strip())}) + "\n")


def _sanitize_except_colours(line: str) -> str:
    """Return the line without secrets. Keep colour sequences and tabs, and escape all other control characters."""
    texts_and_sequences = _COLOUR_SEQUENCE.split(line)
    return "".join(
        part if _COLOUR_SEQUENCE.fullmatch(part) else sanitized(part, keep_whitespace=True)
        for part in texts_and_sequences
    )


def ansible_program_path(name: str) -> str:
    """Return the path of a program of Ansible that is installed in our Python environment."""
    script = Path(sysconfig.get_path("scripts"), name)
    return str(script if script.exists() else Path(sys.executable).with_name(name))
