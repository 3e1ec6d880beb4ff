"""Names the kind of each process in the executor's running process tree.

A kind follows from the command line: the module, the script or the program that the process executes. A fork has the
command line of its parent, so the number of forks since the start of the program is a part of its kind.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Each process that a run starts has this environment variable. Its value is the run's ident.
RUN_VARIABLE = "SMITH_RUN_IDENT"
#: The value of the variable in the servers of warm runs.
WARM_SERVERS_IDENT = "warm"
#: The variable with the path of the run's credentials file, which is in the run folder of the executor.
CREDENTIALS_VARIABLE = "SMITH_CREDENTIALS_FILE"
#: Names of kinds, by program and number of forks. A kind without an entry has these two as its name.
NAMES = {
    "executor": "supervisor",
    "agent-process": "agent",
    "agent-process, fork 1": "new child of the agent",
    "playbook_server": "playbook server",
    "playbook_server, fork 1": "warm guard",
    "playbook_server, fork 2": "warm run",
    "playbook_server, fork 3": "warm worker",
    "client": "warm client",
    "process_tree": "cold guard",
    "ansible-playbook": "cold run",
    "ansible-playbook, fork 1": "cold worker",
    "python": "module",
    "sh": "shell of a module",
}

Kinds = dict[str, list[psutil.Process]]


def processes_by_kind(supervisor_pid: int) -> Kinds:
    """Return every process of the tree under a supervisor, by its kind. The supervisor is one of them."""
    found: Kinds = defaultdict(list)
    for process in tree(supervisor_pid):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found[kind_of(process)].append(process)
    return dict(found)


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants; nothing if it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kind_of(process: psutil.Process) -> str:
    """Return the kind of a process. Raises psutil.Error if the process has ended."""
    program = _program(process.cmdline()) or process.name()
    forks = _count_forks(process)
    name = f"{program}, fork {forks}" if forks else program
    return NAMES.get(name, name)


def _program(command: list[str]) -> str:
    """Return the module, script or program that a command line executes, without its folder."""
    if "agent-process" in command:
        return "agent-process"
    if "-m" in command:
        return command[command.index("-m") + 1].rpartition(".")[2]
    arguments = [argument for argument in command[1:] if not argument.startswith("-")]
    is_python = Path(command[0]).name.startswith("python") if command else False
    path = Path(arguments[0] if is_python and arguments else command[0] if command else "")
    return "python" if path.name.startswith("python") else path.stem


def _count_forks(process: psutil.Process) -> int:
    """Return how many processes were forked one from another, from the start of the program to this process.

    If the server of warm runs has ended, its fork has another parent. The fork is then recognised by the run's ident,
    because the server itself has the ident `WARM_SERVERS_IDENT`.
    """
    command, forks = process.cmdline(), 0
    is_of_run = environment(process).get(RUN_VARIABLE) not in (None, WARM_SERVERS_IDENT)
    for parent in process.parents():
        if parent.cmdline() != command:
            break
        forks += 1
    if not forks and is_of_run and any(part.endswith("playbook_server") for part in command):
        return 1
    return forks


def environment(process: psutil.Process) -> dict[str, str]:
    """Return the environment of a process; empty if it has ended or cannot be read."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def processes_of_folder(folder: Path, *, with_servers: bool = False) -> list[psutil.Process]:
    """Return all processes on this machine that belong to a run whose credentials are in `folder`."""
    found = []
    for process in psutil.process_iter():
        values = environment(process)
        ident = values.get(RUN_VARIABLE)
        is_wanted = ident and (with_servers or ident != WARM_SERVERS_IDENT)
        if is_wanted and values.get(CREDENTIALS_VARIABLE, "").startswith(f"{folder}/"):
            found.append(process)
    return found


def run_idents(folder: Path) -> set[str]:
    """Return the idents of the runs that have a process at this moment and whose credentials are in `folder`.

    Runs whose agent or supervisor has ended are among them.
    """
    return {run.ident for run in live_runs(folder)}


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """A run that had processes at one moment."""

    ident: str
    credentials: Path  #: the file with its credentials
    is_suspended: bool  #: whether all its processes were suspended


def live_runs(folder: Path) -> list[LiveRun]:
    """Return the runs that have a process at this moment and whose credentials are in `folder`.

    The processes are read one after the other, so a process counts only if it is alive after the last of them.
    """
    values = {process: environment(process) for process in processes_of_folder(folder)}
    statuses: dict[tuple[str, str], set[str]] = defaultdict(set)
    for process, variables in values.items():
        ident = variables.get(RUN_VARIABLE)
        status = _status(process)
        if ident and status is not None:
            statuses[ident, variables[CREDENTIALS_VARIABLE]].add(status)
    return [
        LiveRun(ident=ident, credentials=Path(file), is_suspended=found == {psutil.STATUS_STOPPED})
        for (ident, file), found in statuses.items()
    ]


def _status(process: psutil.Process) -> str | None:
    """Return the status of a process; None if it has ended."""
    try:
        status: str = process.status()
        return status if process.is_running() and status != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
