"""Runs plain ansible-playbook as a person does, with our settings, and reads the result as the executor does.

Credentials and the variable `vm` pass in files of a private folder, in memory if there is any, which goes with the run;
nothing secret is in an argument or in the environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from executor.cli.output import harmless
from executor.model import JobResult, RunArtifacts, RunStatus
from executor.runs import results
from executor.runs.actions import ansible_home
from executor.runs.private_folder import CREDENTIALS_VARIABLE, module_credentials, write_credentials, write_extra_vars
from executor.settings.settings import Settings

CALLBACKS = Path(__file__).parent / "callbacks"
#: How long ansible-playbook has to end after it was asked to.
STOP_TIMEOUT_S = 10.0
#: Ours, and the modules': what they hold comes from a file instead.
_OURS = ("FULCRUM_", "PROXMOX_", "SMITH_")
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


@dataclass(frozen=True, kw_only=True)
class Play:
    """One run by hand."""

    action: str
    playbook: Path
    vm: Mapping[str, Any]
    is_check: bool = False


def run(play: Play, settings: Settings, shown_on: IO[str]) -> JobResult:
    """Run the playbook to its end, its output on `shown_on`; return what came of it, read as the executor reads it."""
    started_at = time.time()
    with private_folder() as folder:
        events = folder / "events.jsonl"
        events.touch(mode=0o600)
        command = [*_command(play.playbook, folder, play.vm, settings), *(("--check",) if play.is_check else ())]
        extra = {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "smith_events",
            "SMITH_EVENTS_FILE": str(events),
        }
        rc = _stream(command, environment(folder, settings) | extra, shown_on, events)
        artifacts = RunArtifacts(
            ident=f"{play.action}-{uuid.uuid4().hex[:12]}",
            folder=folder,
            status=RunStatus.FAILED if rc else RunStatus.SUCCESSFUL,
            rc=rc,
            started_at=started_at,
            ended_at=time.time(),
        )
        return results.read(artifacts)


def syntax_problem(playbook: Path) -> str:
    """Say what ansible-playbook has against a playbook's syntax; '' when nothing. Needs no Proxmox."""
    with private_folder() as folder:
        done = subprocess.run(
            [_ansible_playbook(), "--syntax-check", str(playbook)],
            env=environment(folder, None),
            cwd=home(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    said = [line.strip() for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
    return " ".join(said)[:600] if done.returncode else ""


def environment(folder: Path, settings: Settings | None) -> dict[str, str]:
    """Return a person's environment without our settings; the login is in the folder's file, if there is any."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    found |= {
        "ANSIBLE_CONFIG": str(home() / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "tmp"),
        CREDENTIALS_VARIABLE: str(folder / "credentials.yml") if settings else "",
    }
    if settings and settings.proxmox_ca_bundle:
        found |= dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(settings.proxmox_ca_bundle.resolve()))
    return found


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only we can read, in memory if possible, for the length of a block."""
    memory = Path("/dev/shm")  # noqa: S108 (mkdtemp makes a folder in it that is ours alone)
    place = str(memory) if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="smith-play-", dir=place) as folder:
        yield Path(folder)


def _command(playbook: Path, folder: Path, vm: Mapping[str, Any], settings: Settings) -> list[str]:
    write_extra_vars(folder / "vm.yml", dict(vm))
    write_credentials(folder / "credentials.yml", module_credentials(settings))
    return [_ansible_playbook(), str(playbook.resolve()), "-e", f"@{folder / 'vm.yml'}"]


def _stream(command: list[str], env: dict[str, str], shown_on: IO[str], events: Path) -> int:
    """Run a command, show each line as it comes, without secrets and control sequences; return its exit code."""
    if shown_on.isatty():
        env = env | {"ANSIBLE_FORCE_COLOR": "1"}
    process = subprocess.Popen(
        command,
        env=env,
        cwd=home(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        for line in process.stdout or ():
            print(shown(line.rstrip("\n")), file=shown_on, flush=True)
            if "ERROR" in line:
                _note_error(events, line)
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _note_error(events: Path, line: str) -> None:
    """Keep what ansible-playbook says before any task runs, where `results` looks for it."""
    with events.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "verbose", "stdout": _COLOUR.sub("", line.strip())}) + "\n")


def shown(line: str) -> str:
    """Return a line with its colours, and nothing else that steers a terminal."""
    return "".join(part if _COLOUR.fullmatch(part) else harmless(part, keep_lines=True) for part in _COLOUR.split(line))


def _ansible_playbook() -> str:
    """The one that is installed beside us."""
    beside = Path(sysconfig.get_path("scripts"), "ansible-playbook")
    return str(beside) if beside.exists() else str(Path(sys.executable).with_name("ansible-playbook"))


def home() -> Path:
    """Return where our playbooks are."""
    return ansible_home()
