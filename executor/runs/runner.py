"""Step 5 of a job's processing (ARCHITECTURE.md): executes a PlaybookRun and stores its artifacts.

The module `private_folder` makes a run's private folder, which contains the run's extra vars, credentials and temporary
files until the run ends. `runner_config` makes the run's command and environment, and `execution` executes the run. The
story of a run is the summary of what the run has done so far (`story.py`). A warm run is a fork of a server process
that has already imported Ansible (`warm/servers.py`). A cold run is a new ansible-playbook process. Only the package
`executor.runs` uses ansible_runner.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from executor import redaction
from executor.errors import SettingsError
from executor.model import PlaybookRun, RunArtifacts, RunStatus
from executor.processes import process_tree
from executor.runs.artifact_store import ArtifactStore
from executor.runs.execution import Execution, open_execution
from executor.runs.output import RunOutput
from executor.runs.private_folder import (
    SECRET_CREDENTIALS,
    find_processes_of_runs,
    is_folder_of_this_user,
    is_private_folder_of_run,
    make_subfolders,
    private_folder,
    remove_private_folder,
    validate_ident,
    write_credentials,
    write_extra_vars,
)
from executor.runs.run_folder import RunFolder
from executor.runs.run_until_file import RunUntilFile
from executor.runs.runner_config import COPIED_VARIABLES, runner_config
from executor.runs.story import RunStory
from executor.runs.warm.compatibility import why_warm_runs_unavailable
from executor.runs.warm.servers import WarmServerKeeper

#: How long before the run's timeout a playbook must stop waiting. In this time, the action plugin that has waited for a
#: change in Proxmox reads the VM's state for the last time, and ansible-playbook ends.
MARGIN_BEFORE_TIMEOUT_S = 5.0
#: Name of the private folder of the server of warm runs. The server has the same environment as a run, except that
#: paths in the environment begin with this folder instead of the run's private folder.
WARM_SERVER_FOLDER = ".warm"
#: Subfolder of a run's private folder to which the run's artifacts are written.
ARTIFACTS_SUBFOLDER = "kept"


@dataclass(frozen=True, kw_only=True)
class RunnerPaths:
    """The folders that runs read from and write to."""

    #: the folder of our Ansible collection, which contains playbooks/, roles/, inventory/ and ansible.cfg
    collection_folder: Path
    #: SMITH_RUN_DIR: the run folder, which contains the private folders of all runs. This folder may be
    #: unusable, for example because another agent uses it. Then `RunFolder` tries `<name>-2` to `<name>-9`, but only on
    #: a file system in memory (tmpfs or ramfs). If no folder can be used, `RunFolder` raises SettingsError.
    run_dir: Path
    artifacts_dir: Path  #: contains the redacted artifacts of ended runs
    data_dir: Path | None = None  #: the agent's data folder; None if a command executes the runs, not an agent process


class Runner:
    """Executes playbook runs. Several threads may call `run` at the same time."""

    def __init__(
        self,
        paths: RunnerPaths,
        get_credentials: Callable[[], dict[str, Any]],
        *,
        ca_bundle: Path | None = None,
        redactor: redaction.Redactor = redaction.redactor,
    ) -> None:
        """Prepare the execution of runs.

        `get_credentials` returns the login at Proxmox, as parameters of the modules of community.proxmox. With the
        certificates in `ca_bundle`, runs check the certificate of Proxmox; None for the certificates of the system.
        """
        self._collection_folder = paths.collection_folder.resolve()
        #: chooses, opens and locks the run folder at its first use
        self._run_folder = RunFolder(paths.run_dir, paths.data_dir)
        self.artifact_store = ArtifactStore(paths.artifacts_dir.resolve(), lambda: self._run_dir)
        self._get_credentials = get_credentials
        self._ca_bundle = ca_bundle.resolve() if ca_bundle else None
        self._redactor = redactor
        #: by the ident of each current run: the object that starts the run, reads its output and ends it
        self._executions: dict[str, Execution] = {}
        #: starts the server of warm runs, and replaces it if it does not work; None before `start_warm_server`
        self._warm_server_keeper: WarmServerKeeper | None = None

    @property
    def _run_dir(self) -> Path:
        """The path of the run folder of this agent process, which `_run_folder` has locked."""
        return self._run_folder.path

    @property
    def _run_until_file(self) -> RunUntilFile:
        """The file with the time at which all runs of this agent process must end."""
        return self._run_folder.run_until_file

    def set_runs_deadline(self, deadline_s: float) -> None:
        """Make the guards end all runs at this time of the clock CLOCK_BOOTTIME. Each call replaces the time.

        A guard is the process that ends the processes of a run (`execution.py`).
        """
        self._run_until_file.set_deadline(deadline_s)

    def start_warm_server(self, *, are_warm_runs_required: bool = False) -> None:
        """Start the server of warm runs in the background.

        If warm runs are not possible on this machine, `WarmServerKeeper` starts no server, and all runs are cold. With
        `are_warm_runs_required`, this method raises SettingsError instead. Call `end_earlier_runs` before this method.
        """
        if are_warm_runs_required and (reason := why_warm_runs_unavailable()):
            raise SettingsError(f"SMITH_WARM is on, but {reason}; set SMITH_WARM to auto to allow cold runs")
        folder = self._run_dir / WARM_SERVER_FOLDER
        remove_private_folder(folder)
        folder.mkdir(mode=0o700)
        make_subfolders(folder)
        self._warm_server_keeper = WarmServerKeeper(
            folder, self._collection_folder, lambda: self._server_environment(folder)
        )
        self._warm_server_keeper.start()

    def warm_server_pid(self) -> int | None:
        """Return the process id of the server of warm runs; None if there is no server."""
        return self._warm_server_keeper.pid() if self._warm_server_keeper else None

    def stop_warm_server(self) -> None:
        """End the server of warm runs. Current runs continue; later runs are cold."""
        warm_server_keeper, self._warm_server_keeper = self._warm_server_keeper, None
        if warm_server_keeper is not None:
            warm_server_keeper.close()
            remove_private_folder(self._run_dir / WARM_SERVER_FOLDER)

    def run(
        self,
        run: PlaybookRun,
        *,
        should_cancel: Callable[[], bool] = lambda: False,
        on_step: Callable[[str], None] = lambda _text: None,
    ) -> RunArtifacts:
        """Execute a playbook until it ends, times out or `should_cancel` returns True. Then end the run's processes.

        `on_step` is called with the text of each step that the playbook begins, such as `cloning the template 9000`.

        A run gets the status FAILED if it crashes, if another process or the kernel kills it, or if its outcome cannot
        be stored because the run folder is full.
        Raises JobError INVALID_REQUEST when a string in `run.vm` is not valid Unicode, and OSError when the file system
        of the run folder is full before the run.
        """
        started_at = time.time()
        self._run_until_file.ensure_written()  # without this file, the guard would end the run at once
        credentials = self._get_credentials()
        with self._mask_secrets(run, credentials), private_folder(self._run_dir, run.ident) as folder:
            write_extra_vars(folder / "vm.yml", {**run.vm, "deadline_monotonic_s": _deadline_monotonic_s(run)})
            write_credentials(folder / "credentials.yml", credentials)
            status, rc, story = self._execute(run, folder, should_cancel, on_step)
            stored_folder = self.artifact_store.store(folder / ARTIFACTS_SUBFOLDER, run.ident)
        return RunArtifacts(
            ident=run.ident,
            folder=stored_folder,
            status=status,
            rc=rc,
            started_at=started_at,
            ended_at=time.time(),
            story=story,
        )

    def changed_stories(self) -> dict[str, dict[str, Any]]:
        """Return the story of each current run whose story has changed since the last call. The keys are the idents."""
        stories = {ident: execution.story.to_dict_if_changed() for ident, execution in [*self._executions.items()]}
        return {ident: story for ident, story in stories.items() if story is not None}

    def kill(self, ident: str) -> None:
        """End a run's process tree with TERM and, after a short grace period, KILL.

        The run then gets the status CANCELED, unless the playbook succeeds before its processes end.
        """
        if (execution := self._executions.get(validate_ident(ident))) is not None:
            execution.cancel()
        process_tree.end_processes(lambda: find_processes_of_runs(self._run_dir / ident))

    def end_earlier_runs(self) -> list[str]:
        """End the runs of earlier agent processes that used this data folder. Return the idents of these runs.

        This method ends the runs' processes, stores the runs' artifacts, and removes the runs' private folders. A run
        whose artifacts contain no status gets the status `failed` (in `ArtifactStore.store`). Call this method once,
        before the first run. Raises SettingsError when no run folder can be used.
        """
        idents = self._end_runs_in(self._run_dir)
        # An earlier agent process may have used another run folder, for example because SMITH_RUN_DIR was different.
        for earlier_run_dir in self._run_folder.lock_earlier_run_folders():
            idents += self._end_runs_in(earlier_run_dir)
        return idents

    def _end_runs_in(self, run_dir: Path) -> list[str]:
        """End the runs of earlier agent processes in a locked run folder. Remove only folders that an agent made."""
        process_tree.end_processes(lambda: find_processes_of_runs(run_dir))
        idents = []
        for folder in sorted(path for path in run_dir.iterdir() if is_private_folder_of_run(path)):
            if is_folder_of_this_user(folder / ARTIFACTS_SUBFOLDER):
                self.artifact_store.store(folder / ARTIFACTS_SUBFOLDER, folder.name)
            remove_private_folder(folder)
            idents.append(folder.name)
        if is_folder_of_this_user(run_dir / WARM_SERVER_FOLDER):
            remove_private_folder(run_dir / WARM_SERVER_FOLDER)
        # Move the artifacts, of any age, that an earlier agent process could not move out of its run folder.
        self.artifact_store.retry_artifact_moves(min_age_s=0, run_folder=run_dir)
        return idents

    def current_artifacts_folder(self, ident: str) -> Path:
        """Return the folder to which a current run writes its artifacts. The artifacts contain no secrets."""
        return self._run_dir / validate_ident(ident) / ARTIFACTS_SUBFOLDER

    def _execute(
        self, run: PlaybookRun, folder: Path, should_cancel: Callable[[], bool], on_step: Callable[[str], None]
    ) -> tuple[RunStatus, int, dict[str, Any]]:
        """Execute the run in its private folder. Return its status, its exit code and its story."""
        config = self._runner_config(folder, run)
        config.command = self._guarded_command(config)
        output = RunOutput(folder / ARTIFACTS_SUBFOLDER, self._redactor)
        story = RunStory(self._redactor, on_step)
        with contextlib.closing(output), open_execution(config, output, story) as execution:
            self._executions[run.ident] = execution
            try:
                status, rc = execution.execute(time.monotonic() + run.timeout_s, should_cancel)
            finally:
                del self._executions[run.ident]
        return status, rc, story.end()

    def _guarded_command(self, config: Any) -> list[str]:
        """Return the command that executes the run under a guard: warm if a server of warm runs works, else cold."""
        if warm_server_keeper := self._warm_server_keeper:
            return warm_server_keeper.make_command(config.command, search_path=config.env["PATH"])
        return [*process_tree.guard_command_prefix(), *config.command]

    def _server_environment(self, folder: Path) -> dict[str, str]:
        """Return the environment of the server of warm runs, as if `folder` were the private folder of a run."""
        placeholder_run = PlaybookRun(ident="warm", action="", playbook=Path("none.yml"), vm={}, timeout_s=0)
        return dict(self._runner_config(folder, placeholder_run).env)

    def _runner_config(self, folder: Path, run: PlaybookRun) -> Any:
        return runner_config(
            folder, run, self._collection_folder, self._ca_bundle, run_until_file=self._run_until_file.path
        )

    @contextlib.contextmanager
    def _mask_secrets(self, run: PlaybookRun, credentials: dict[str, Any]) -> Iterator[None]:
        """Mask the run's secrets, and the passwords in proxy URLs, in all output of the agent during the block."""
        secrets = list(run.secrets)
        secrets += [str(credentials[name]) for name in SECRET_CREDENTIALS if credentials.get(name)]
        # COPIED_VARIABLES are the agent's environment variables that runs get, such as HTTPS_PROXY.
        secrets += [password for name in COPIED_VARIABLES if (password := _password_in(os.environ.get(name, "")))]
        self._redactor.add(*secrets)
        try:
            yield
        finally:
            self._redactor.discard(*secrets)


def _deadline_monotonic_s(run: PlaybookRun) -> float:
    """Return when the playbook must end by itself: a time of the clock `time.monotonic`, before the run's timeout.

    A playbook that ends by itself states the true cause in its error message, such as a Proxmox task that has not
    ended. On Linux, all processes have the same monotonic clock, and it does not jump.
    """
    return time.monotonic() + run.timeout_s - min(MARGIN_BEFORE_TIMEOUT_S, run.timeout_s / 4)


def _password_in(url: str) -> str | None:
    """Return the password in a URL; None if the URL has no password or is invalid."""
    try:
        return urlsplit(url).password
    except ValueError:
        return None
