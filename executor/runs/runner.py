"""Step 5 of a job's processing (ARCHITECTURE.md): executes a PlaybookRun and stores its artifacts.

The module `private_folder` makes a run's private folder, `runner_config` its command and its environment, and
`execution` executes it. A warm run is a fork of a server process that has already imported Ansible (`warm/servers.py`).
A cold run is a new ansible-playbook process. Only the package `executor.runs` uses ansible_runner.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from executor import redaction
from executor.errors import SettingsError
from executor.log import get_logger
from executor.model import PlaybookRun, RunArtifacts, RunStatus
from executor.processes import process_tree
from executor.runs.execution import Execution, prepared
from executor.runs.output import RunOutput
from executor.runs.private_folder import (
    SECRET_CREDENTIALS,
    checked_ident,
    make_private,
    make_subfolders,
    private_folder,
    processes_in,
    remove,
    write_credentials,
    write_extra_vars,
    write_text,
)
from executor.runs.runner_config import PASSED_ON, runner_config
from executor.runs.warm.compatibility import why_unavailable
from executor.runs.warm.servers import WarmServers

log = get_logger(__name__)

#: Name of the private folder of the servers for warm runs. The servers' environment contains the path of this folder
#: wherever a run's environment contains the path of the run's private folder.
WARM_FOLDER = ".warm"
#: Subfolder of a run's private folder in which its artifacts are written.
ARTIFACTS = "kept"
#: Suffix of a folder in `run_dir` with artifacts that could not be moved to `artifacts_dir`.
UNMOVED_SUFFIX = ".kept"


@dataclass(frozen=True, kw_only=True)
class RunnerPaths:
    """The folders that runs read from and write to."""

    ansible_home: Path  #: contains playbooks/, roles/, inventory/ and ansible.cfg
    run_dir: Path  #: contains the private folders of one agent's runs; on tmpfs
    artifacts_dir: Path  #: contains the redacted artifacts of ended runs


class Runner:
    """Executes playbook runs. Several threads may call `run` at the same time."""

    def __init__(
        self,
        paths: RunnerPaths,
        credentials: Callable[[], dict[str, Any]],
        *,
        ca_bundle: Path | None = None,
        redactor: redaction.Redactor = redaction.redactor,
    ) -> None:
        self._home = paths.ansible_home.resolve()
        self._run_dir = paths.run_dir.resolve()
        self._artifacts_dir = paths.artifacts_dir.resolve()
        self._credentials = credentials
        self._ca_bundle = ca_bundle.resolve() if ca_bundle else None
        self._redactor = redactor
        self._executions: dict[str, Execution] = {}
        self._warm: WarmServers | None = None

    def start_warm(self, *, required: bool = False) -> None:
        """Start the servers of warm runs in the background, if warm runs are possible. Call `sweep` before this method.

        Raises SettingsError when warm runs are `required` and not possible with this ansible-core.
        """
        if required and (reason := why_unavailable()):
            raise SettingsError(f"SMITH_WARM is on, but {reason}")
        folder = self._run_dir / WARM_FOLDER
        make_private(self._run_dir)
        remove(folder)
        folder.mkdir(mode=0o700)
        make_subfolders(folder)
        self._warm = WarmServers(folder, self._home, lambda: self._server_environment(folder))
        self._warm.start()

    def warm_pids(self) -> list[int]:
        """Return the process ids of the servers of warm runs."""
        return self._warm.pids() if self._warm else []

    def stop_warm(self) -> None:
        """Stop the servers of warm runs. Current runs continue; later runs are cold."""
        warm, self._warm = self._warm, None
        if warm is not None:
            warm.close()
            remove(self._run_dir / WARM_FOLDER)

    def run(self, run: PlaybookRun, *, cancelled: Callable[[], bool] = lambda: False) -> RunArtifacts:
        """Execute a playbook until it ends, times out or `cancelled` returns True. Then end all its processes.

        A run that is killed, that crashes or whose outcome is unknown counts as failed. Raises JobError INVALID_REQUEST
        when a string in `vm` is not valid Unicode, and OSError when the disk is full.
        """
        started_at = time.time()
        credentials = self._credentials()
        with self._secrets_masked(run, credentials), private_folder(self._run_dir, run.ident) as folder:
            write_extra_vars(folder / "vm.yml", run.vm)
            write_credentials(folder / "credentials.yml", credentials)
            status, rc = self._execute(run, folder, cancelled)
            stored = self._store(folder / ARTIFACTS, run.ident)
        return RunArtifacts(
            ident=run.ident, folder=stored, status=status, rc=rc, started_at=started_at, ended_at=time.time()
        )

    def kill(self, ident: str) -> None:
        """End a run's process tree with TERM and, after a short grace period, KILL. `run` then returns CANCELED."""
        if (execution := self._executions.get(checked_ident(ident))) is not None:
            execution.cancel()
        process_tree.end_processes(lambda: processes_in(self._run_dir / ident))

    def sweep(self) -> list[str]:
        """End the runs that an earlier agent process left in `run_dir`; return their idents.

        Their processes are ended, their artifacts are stored as those of failed runs, and their private folders are
        removed. Call this once, before the first run.
        """
        make_private(self._run_dir)
        process_tree.end_processes(lambda: processes_in(self._run_dir))
        idents = []
        for folder in sorted(path for path in self._run_dir.iterdir() if path.is_dir()):
            if folder.name.endswith(UNMOVED_SUFFIX):
                self._store(folder, folder.name.removesuffix(UNMOVED_SUFFIX))
                continue
            if folder.name == WARM_FOLDER:
                remove(folder)
                continue
            if (folder / ARTIFACTS).is_dir():
                self._store(folder / ARTIFACTS, folder.name)
            remove(folder)
            idents.append(folder.name)
        return idents

    def live_folder(self, ident: str) -> Path:
        """Return the folder to which a current run writes its artifacts. The artifacts contain no secrets."""
        return self._run_dir / checked_ident(ident) / ARTIFACTS

    def _execute(self, run: PlaybookRun, folder: Path, cancelled: Callable[[], bool]) -> tuple[RunStatus, int]:
        config = runner_config(folder, run, self._home, self._ca_bundle)
        config.command = self._command(config)
        output = RunOutput(folder / ARTIFACTS, self._redactor)
        with contextlib.closing(output), prepared(config, output) as execution:
            self._executions[run.ident] = execution
            try:
                return execution.execute(time.monotonic() + run.timeout_s, cancelled)
            finally:
                del self._executions[run.ident]

    def _command(self, config: Any) -> list[str]:
        if warm := self._warm:
            return warm.command(config.command, config.env["PATH"])
        return [*process_tree.guard_command(), *config.command]

    def _server_environment(self, folder: Path) -> dict[str, str]:
        """Return the environment of the servers of warm runs.

        It is the environment that a run with the private folder `folder` would have.
        """
        any_run = PlaybookRun(ident="warm", action="", playbook=Path("none.yml"), vm={}, timeout_s=0)
        return dict(runner_config(folder, any_run, self._home, self._ca_bundle).env)

    @contextlib.contextmanager
    def _secrets_masked(self, run: PlaybookRun, credentials: dict[str, Any]) -> Iterator[None]:
        """Mask the run's secrets, and the passwords in proxy URLs, in all output of the agent during the block."""
        secrets = [*run.secrets, *(str(credentials[name]) for name in SECRET_CREDENTIALS if credentials.get(name))]
        secrets += [password for name in PASSED_ON if (password := _password_in(os.environ.get(name, "")))]
        self._redactor.add(*secrets)
        try:
            yield
        finally:
            self._redactor.discard(*secrets)

    def _store(self, artifacts: Path, ident: str) -> Path:
        """Move a run's artifacts from its private folder to `artifacts_dir`; return their new folder.

        When `artifacts_dir` is full or not writable, the artifacts stay in `run_dir`, so that the agent can read the
        result. The next `sweep` tries to move them again.
        """
        target, partial = self._artifacts_dir / ident, self._artifacts_dir / f".{ident}.part"
        try:
            self._artifacts_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in (partial, target):
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(artifacts, partial)
            if not (partial / "status").exists():  # the agent was killed during the run
                write_text(partial / "status", RunStatus.FAILED)
            partial.rename(target)
        except (OSError, shutil.Error) as error:
            log.error("artifacts_not_stored", run_ident=ident, reason=_reason(error))
            unmoved = self._run_dir / f"{ident}{UNMOVED_SUFFIX}"
            return artifacts if artifacts == unmoved else artifacts.rename(unmoved)
        shutil.rmtree(artifacts, ignore_errors=True)
        return target


def _reason(error: OSError | shutil.Error) -> str:
    """Return the error's text. `copytree` collects one error for each file; of these, return the text of the first."""
    collected = error.args[0] if error.args else ""
    return str(collected[0][2]) if isinstance(collected, list) and collected else str(error)


def _password_in(url: str) -> str | None:
    """Return the password in a URL; None if the URL has no password or is invalid."""
    try:
        return urlsplit(url).password
    except ValueError:
        return None
