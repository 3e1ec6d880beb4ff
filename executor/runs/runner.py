"""Step 5 of 7, the doing half: a PlaybookRun becomes RunArtifacts. The only user of ansible_runner.

A run has a private folder on tmpfs with its extra vars, its credentials and its temporary files; nothing secret is in
an argument or in the environment. It hangs on a keeper process (`process_tree.keep`; a warm run, on its guard by way
of `warm/client.py`), which ends the whole tree when we say so, and when we are gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import shlex
import shutil
import stat
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from executor import redaction
from executor.errors import ErrorCode, JobError, SettingsError
from executor.log import get_logger
from executor.model import PlaybookRun, RunArtifacts, RunStatus
from executor.processes import process_tree
from executor.runs.output import OutputReader, RunOutput
from executor.runs.warm.servers import WarmServers, why_untested
from executor.settings.settings import Settings

log = get_logger(__name__)

#: Names the run's credentials file to the inventory's group_vars. It is the mark by which strays are found, too.
CREDENTIALS_VARIABLE = "SMITH_CREDENTIALS_FILE"
#: Names the run, for people who look at processes.
IDENT_VARIABLE = "SMITH_RUN_IDENT"
#: Which of the credentials are secret.
SECRET_CREDENTIALS = ("api_token_secret", "api_password")
#: How often a run is asked whether it may go on.
STEP_S = 0.2
#: Given to the keeper beyond its own grace, before we kill what carries the run's mark.
KEEPER_MARGIN_S = 2.0
#: A larger event file is not even parsed.
MAX_EVENT_FILE_BYTES = 4 * 1024 * 1024
READ_BYTES = 16 * 1024

_IDENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}\Z")
_UUID = re.compile(r"[0-9A-Za-z-]{1,64}\Z")
#: Variables of the agent's that a run may see: they say how to reach the network, and what time it is.
_PASSED_ON = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "TZ")
#: Variables of ansible-runner's that its display callback needs. It sets more, which we decide ourselves.
_RUNNERS_OWN = (
    "ANSIBLE_CALLBACK_PLUGINS",
    "ANSIBLE_STDOUT_CALLBACK",
    "ANSIBLE_RETRY_FILES_ENABLED",
    "AWX_ISOLATED_DATA_DIR",
    "RUNNER_OMIT_EVENTS",
    "RUNNER_ONLY_FAILED_EVENTS",
)
#: Stands for a run's folder in the environment of the servers of warm runs, and holds their sockets.
WARM_FOLDER = ".warm"
#: What Python appends to TMPDIR for a Unix socket, which ansible-core 2.21 opens in every run; what unix(7) lets it be.
_SOCKET_BYTES, _LONGEST_SOCKET_BYTES = len("/pymp-12345678/listener-12345678"), 107
#: A run's artifacts that could not be moved to where they belong.
_SPARED = ".kept"


@dataclass(frozen=True, kw_only=True)
class RunnerPaths:
    """Where runs read and write."""

    ansible_home: Path  #: holds playbooks/ roles/ inventory/ ansible.cfg
    run_dir: Path  #: private folders of runs, on tmpfs; one agent's alone
    artifacts_dir: Path  #: what is kept of runs, redacted


class Runner:
    """Executes playbook runs, any number at once, each called from a thread of its own."""

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
        self._executions: dict[str, _Execution] = {}
        self._warm: WarmServers | None = None

    def start_warm(self, *, insist: bool = False) -> None:
        """Make runs warm from now on, where that is possible; returns at once. Call it after `sweep`.

        Raises SettingsError when we `insist` on it, and this ansible-core was not tested with it.
        """
        if insist and (reason := why_untested()):
            raise SettingsError(f"SMITH_WARM is on, but {reason}")
        folder = self._run_dir / WARM_FOLDER
        _make_private(self._run_dir)
        _remove(folder)
        folder.mkdir(mode=0o700)
        _make_folders(folder)
        pattern = PlaybookRun(ident="warm", action="", playbook=Path("none.yml"), vm={}, timeout_s=0)
        self._warm = WarmServers(folder, self._home, lambda: dict(self._config(folder, pattern, warm=None).env))
        self._warm.start()

    def warm_pids(self) -> list[int]:
        """Return the process ids of the servers of warm runs, while there are any."""
        return self._warm.pids() if self._warm else []

    def stop_warm(self) -> None:
        """End the servers of warm runs. Runs that are under way go on; further ones are cold."""
        warm, self._warm = self._warm, None
        if warm is not None:
            warm.close()
            _remove(self._run_dir / WARM_FOLDER)

    def run(self, run: PlaybookRun, *, cancelled: Callable[[], bool] = lambda: False) -> RunArtifacts:
        """Execute a playbook to its end, its timeout, or until `cancelled` says true; no process of it is left then.

        A run that is killed, or breaks, is a failed one; so is one whose outcome nobody knows.
        Raises JobError INVALID_REQUEST when `vm` holds text that is no Unicode, OSError when there is no place for it.
        """
        started_at = time.time()
        credentials = self._credentials()
        with self._secrets_masked(run, credentials), self._private_folder(run.ident) as folder:
            write_extra_vars(folder / "vm.yml", run.vm)
            write_credentials(folder / "credentials.yml", credentials)
            execution = self._executions[run.ident] = _Execution(
                self._config(folder, run, self._warm), RunOutput(folder / "kept", self._redactor)
            )
            status, rc = execution.carry(time.monotonic() + run.timeout_s, cancelled)
            kept = self._keep(folder / "kept", run.ident)
        return RunArtifacts(
            ident=run.ident, folder=kept, status=status, rc=rc, started_at=started_at, ended_at=time.time()
        )

    def kill(self, ident: str) -> None:
        """End a run's whole tree: TERM, a short grace, KILL. A running `run` returns it as canceled."""
        if (execution := self._executions.get(_checked(ident))) is not None:
            execution.cancel()
        process_tree.end(lambda: _processes_in(self._run_dir / ident))

    def sweep(self) -> list[str]:
        """End what earlier runs in this run_dir have left alive and remove their private folders; return their idents.

        Call it once, before the first run. What such a run had shown until then is kept, as that of a failed run.
        """
        _make_private(self._run_dir)
        process_tree.end(lambda: _processes_in(self._run_dir))
        idents = []
        for folder in sorted(path for path in self._run_dir.iterdir() if path.is_dir()):
            if folder.name.endswith(_SPARED):
                self._keep(folder, folder.name.removesuffix(_SPARED))
                continue
            if folder.name == WARM_FOLDER:
                _remove(folder)
                continue
            if (folder / "kept").is_dir():
                self._keep(folder / "kept", folder.name)
            _remove(folder)
            idents.append(folder.name)
        return idents

    def live_folder(self, ident: str) -> Path:
        """Where a run's artifacts are while it runs; as redacted as they will be afterwards."""
        return self._run_dir / _checked(ident) / "kept"

    @contextlib.contextmanager
    def _secrets_masked(self, run: PlaybookRun, credentials: dict[str, Any]) -> Iterator[None]:
        secrets = [*run.secrets, *(str(credentials[name]) for name in SECRET_CREDENTIALS if credentials.get(name))]
        secrets += [password for name in _PASSED_ON if (password := _password_in(os.environ.get(name, "")))]
        self._redactor.add(*secrets)
        try:
            yield
        finally:
            self._redactor.discard(*secrets)

    @contextlib.contextmanager
    def _private_folder(self, ident: str) -> Iterator[Path]:
        """A folder of the run's own, removed with all that it holds."""
        folder = self._run_dir / _checked(ident)
        _make_private(self._run_dir)
        folder.mkdir(mode=0o700)
        try:
            _make_folders(folder)
            _shorten_tmp(folder)
            yield folder
        finally:
            self._executions.pop(ident, None)
            _remove(folder)

    def _config(self, folder: Path, run: PlaybookRun, warm: WarmServers | None) -> Any:
        """ansible-runner's description of the run: its command, our environment.

        ansible-runner starts from a copy of the agent's whole environment, in which there may be secrets, and writes
        it to a file. So the environment is replaced after `prepare`, by ours and by the few names that it adds.
        """
        import ansible_runner  # noqa: PLC0415  0.1 s, for commands that run nothing

        ours = self._environment(folder, run)
        # No inventory: ansible.cfg names it, for a run by hand as well.
        config = ansible_runner.RunnerConfig(
            private_data_dir=str(folder / "runner"),
            project_dir=str(self._home),
            host_cwd=str(self._home),
            ident=run.ident,
            playbook=str(run.playbook.resolve()),
            cmdline=shlex.join(["-e", f"@{folder / 'vm.yml'}"]),
            envvars={**dict.fromkeys(("AWX_LIB_DIRECTORY", *_RUNNERS_OWN), ""), **ours},
            fact_cache_type="none",
            quiet=True,
        )
        config.prepare()
        config.env = {name: config.env[name] for name in _RUNNERS_OWN if config.env.get(name)} | ours
        cold = [*process_tree.keeper_command(), *config.command]
        config.command = warm.command(config.command, ours["PATH"]) if warm else cold
        config.suppress_output_file = True  # as an argument, `prepare` would overwrite it
        # Its mode for commands, over its default, a pseudo-terminal by pexpect. That one forks this process, threads
        # and all, with Python code before the exec; it looks at the clock every 5 s; it kills one process group only;
        # and its own read timeout can turn a good run into a failed one (runner#1343).
        config.runner_mode = "subprocess"
        return config

    def _environment(self, folder: Path, run: PlaybookRun) -> dict[str, str]:
        tmp = str(folder / "tmp")
        environment = {name: value for name in _PASSED_ON if (value := os.environ.get(name))}
        environment |= {
            "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
            "HOME": str(folder / "home"),
            "TMPDIR": str(_tmp_of(folder)),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(self._home / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "home" / ".ansible"),
            "ANSIBLE_LOCAL_TEMP": tmp,
            "ANSIBLE_REMOTE_TEMP": tmp,
            "ANSIBLE_PIPELINING": "1",  # a module is one process then, not five
            # YAML folds long lines: a secret with a space in it would be cut in two, and not be recognised.
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_NOCOWS": "1",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            IDENT_VARIABLE: run.ident,
            CREDENTIALS_VARIABLE: str(folder / "credentials.yml"),
        }
        if self._ca_bundle:
            names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PROXMOX_CA_PATH")
            environment |= dict.fromkeys(names, str(self._ca_bundle))
        return environment

    def _keep(self, kept: Path, ident: str) -> Path:
        """Move a run's artifacts out of its private folder; return where they are.

        When there is no room for them, or no right to write, they stay on tmpfs: the result must still be read.
        """
        target, partial = self._artifacts_dir / ident, self._artifacts_dir / f".{ident}.part"
        try:
            self._artifacts_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in (partial, target):
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(kept, partial)
            if not (partial / "status").exists():  # the agent was killed during the run
                _write_text(partial / "status", RunStatus.FAILED)
            partial.rename(target)
        except (OSError, shutil.Error) as error:
            log.error("artifacts_not_kept", run_ident=ident, reason=_words_of(error))
            spared = self._run_dir / f"{ident}{_SPARED}"
            return kept if kept == spared else kept.rename(spared)
        shutil.rmtree(kept, ignore_errors=True)
        return target


class _Execution:
    """One run between its start and its end."""

    def __init__(self, config: Any, output: RunOutput) -> None:
        import ansible_runner  # noqa: PLC0415  see Runner._config
        from ansible_runner.utils import OutputEventFilter  # noqa: PLC0415

        self._config = config
        self._output = output
        self._events_folder = Path(config.artifact_dir, "job_events")
        self._mark = config.env[CREDENTIALS_VARIABLE]
        self._runner = ansible_runner.Runner(config, event_handler=self._take_event)
        self._filter = OutputEventFilter(output, self._on_event, suppress_ansible_output=True)
        self._reader = OutputReader(self._filter.write, output.seal)
        self._lock = threading.Lock()
        self._reason: RunStatus | None = None
        self._asked_at = 0.0
        self._lifeline_reader, self._lifeline = os.pipe2(os.O_CLOEXEC)

    def carry(self, deadline: float, cancelled: Callable[[], bool]) -> tuple[RunStatus, int]:
        """Run to the end, and leave no process; return how it ended."""
        output_reader, output_writer = os.pipe2(os.O_CLOEXEC)
        # `_config` chose the mode in which ansible-runner gives the process these, and waits for it.
        self._config.input_fd = self._lifeline_reader
        self._config.output_fd = self._config.error_fd = output_writer
        name = f"run-{self._config.ident}"
        thread = threading.Thread(target=self._run, args=(output_writer,), name=name, daemon=True)
        thread.start()
        try:
            self._follow(thread, output_reader, deadline, cancelled)
        finally:
            self._end(thread)
            self._drain(output_reader)
            os.close(output_reader)
        status, rc = self._outcome()
        self._output.finish(status=status, rc=rc)
        return status, rc

    def cancel(self, reason: RunStatus = RunStatus.CANCELED) -> None:
        """Ask for the end. Only the first reason counts."""
        with self._lock:
            if self._reason is None and self._lifeline >= 0:
                self._reason, self._asked_at = reason, time.monotonic()
        self._cut_lifeline()

    def _cut_lifeline(self) -> None:
        """Let the keeper end the tree, if it has not done so yet."""
        with self._lock:
            if self._lifeline >= 0:
                os.close(self._lifeline)
            self._lifeline = -1

    def _run(self, output_writer: int) -> None:
        try:
            self._runner.run()
        except OSError as error:  # no place for a file, no process to be had: a failed run
            log.error("run_broke", run_ident=self._config.ident, reason=str(error))
        finally:
            os.close(output_writer)
            os.close(self._lifeline_reader)

    def _follow(self, thread: threading.Thread, output: int, deadline: float, cancelled: Callable[[], bool]) -> None:
        """Take in what the run prints until its keeper has ended."""
        poll, look_at = _poll(output), 0.0
        while thread.is_alive():
            if poll.poll(STEP_S * 1000) and not self._read(output):
                thread.join(STEP_S)  # end of output comes a moment before the end of the process
            now = time.monotonic()
            if now < look_at:
                continue
            look_at = now + STEP_S
            self._decide(now, deadline, cancelled)

    def _decide(self, now: float, deadline: float, cancelled: Callable[[], bool]) -> None:
        if self._reason is not None:
            if now > self._asked_at + process_tree.GRACE_S + KEEPER_MARGIN_S:
                process_tree.end(self._processes, grace_s=0)  # the keeper does not do it: stopped, or killed
        elif cancelled():
            self.cancel()
        elif now >= deadline:
            self.cancel(RunStatus.TIMEOUT)

    def _end(self, thread: threading.Thread) -> None:
        """Leave nothing alive, whatever came before: the keeper itself may have been killed."""
        self._cut_lifeline()
        thread.join(process_tree.GRACE_S + KEEPER_MARGIN_S)
        if strays := process_tree.end(self._processes, grace_s=0 if thread.is_alive() else process_tree.GRACE_S):
            log.warning("strays_ended", run_ident=self._config.ident, processes=len(strays))
        thread.join()

    def _drain(self, output: int) -> None:
        poll = _poll(output)
        while poll.poll(0) and self._read(output):
            pass
        self._filter.close()

    def _read(self, output: int) -> bool:
        """Take in a piece; False at the end."""
        data = os.read(output, READ_BYTES)
        self._reader.feed(data)
        return bool(data)

    def _processes(self) -> set[int]:
        return process_tree.marked(CREDENTIALS_VARIABLE, f"{self._mark}\0")

    def _outcome(self) -> tuple[RunStatus, int]:
        rc = process_tree.ENDED if self._runner.rc is None else int(self._runner.rc)
        if rc == 0:  # it was through before anybody could stop it
            return RunStatus.SUCCESSFUL, 0
        if self._reason is not None:  # whether the keeper ended it or we had to
            return self._reason, process_tree.ENDED
        return RunStatus.FAILED, rc if rc > 0 else 128 - rc

    def _on_event(self, event: dict[str, Any]) -> None:
        """One event from the output: let ansible-runner add what its callback has put into a file.

        The output may hold text of strangers. So nothing but the file may say what an event means, and a file that is
        cut, huge or no JSON must not stop the run.
        """
        if not _UUID.match(str(event.get("uuid", ""))):
            return
        file = self._events_folder / f"{event['uuid']}-partial.json"
        event = {key: event[key] for key in ("uuid", "counter", "stdout", "start_line", "end_line") if key in event}
        event |= {"event": "verbose"}
        try:
            if file.exists() and file.stat().st_size > MAX_EVENT_FILE_BYTES:
                raise ValueError("too large")
            self._runner.event_callback(event)
        except (ValueError, TypeError, OSError, RecursionError) as error:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            self._take_event(event | {"smith_unreadable": type(error).__name__})

    def _take_event(self, event: dict[str, Any]) -> bool:
        """Keep one event; False tells ansible-runner to write none of its own."""
        self._output.add_event(event)
        return False


def ansible_home() -> Path:
    """Where our playbooks are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    bundled = package / "ansible"
    return bundled if bundled.is_dir() else package.parent


def module_credentials(settings: Settings) -> dict[str, Any]:
    """Return what the modules of community.proxmox log in with, under their own names."""
    credentials: dict[str, Any] = {
        "api_host": settings.proxmox_host,
        "api_port": settings.proxmox_port,
        "api_user": settings.proxmox_user,
        "validate_certs": settings.proxmox_validate_certs,
    }
    if settings.proxmox_token_id:
        secret = settings.proxmox_token_secret.get_secret_value()
        return credentials | {"api_token_id": settings.proxmox_token_id, "api_token_secret": secret}
    return credentials | {"api_password": settings.proxmox_password.get_secret_value()}


def write_credentials(file: Path, credentials: dict[str, Any]) -> None:
    """Write the modules' login to a file that only we can read; CREDENTIALS_VARIABLE names it to the playbooks."""
    _write_yaml(file, credentials, yaml.SafeDumper)


def write_extra_vars(file: Path, vm: dict[str, Any]) -> None:
    """Write the extra var `vm` for ansible-playbook to read. Every string in it is data, none is a template.

    Raises JobError INVALID_REQUEST when a string is no Unicode text.
    """
    try:
        _write_yaml(file, {"vm": _Untrusted(vm)}, _DataDumper)
    except UnicodeEncodeError as error:
        raise JobError(ErrorCode.INVALID_REQUEST, "a value is not valid Unicode text") from error


class _Untrusted(dict[str, Any]):
    """Text from outside, with all that is below it."""


class _DataDumper(yaml.SafeDumper):
    """Writes an untrusted mapping as !unsafe, which Ansible hands down to everything inside.

    Not each string as !unsafe: ansible-core then guesses the type anew, whatever the quotes, and a password "012" or a
    name "yes" arrives as 10 or true (tried with 2.19).
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    text.encode("utf-8")  # half a surrogate pair would be escaped here, and be a syntax error there
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')


_DataDumper.add_representer(_Untrusted, lambda dumper, data: dumper.represent_mapping("!unsafe", data))
_DataDumper.add_representer(str, _represent_text)
_DataDumper.add_multi_representer(str, _represent_text)


def _write_yaml(file: Path, value: Any, dumper: type[yaml.SafeDumper]) -> None:
    _write_text(file, yaml.dump(value, Dumper=dumper, allow_unicode=True, width=1_000_000))


def _write_text(file: Path, text: str) -> None:
    data = text.encode("utf-8")
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(data)


def _make_private(folder: Path) -> None:
    """Make the folder ours alone. Somebody else could have made it before us, in a place as public as /dev/shm."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise SettingsError(f"SMITH_RUN_DIR {folder} belongs to somebody else: name a folder that only we can read")
    if facts.st_mode & 0o077:
        folder.chmod(0o700)


def _make_folders(folder: Path) -> None:
    """Make what a run's private folder has in it."""
    for name in ("home", "tmp", "runner"):
        (folder / name).mkdir(mode=0o700)


def _link_to_tmp(folder: Path) -> Path | None:
    """The short name of a run's temporary folder, when its own is too long for a socket in it."""
    tmp = os.fsencode(folder / "tmp")
    if len(tmp) + _SOCKET_BYTES <= _LONGEST_SOCKET_BYTES:
        return None
    return Path(tempfile.gettempdir(), f"smith-{hashlib.sha256(tmp).hexdigest()[:16]}")


def _shorten_tmp(folder: Path) -> None:
    """Give the temporary folder its short name. Without a place for it, the long one has to do."""
    with contextlib.suppress(OSError):
        if link := _link_to_tmp(folder):
            link.symlink_to(folder / "tmp")


def _tmp_of(folder: Path) -> Path:
    """Where temporary files go. A link in a public folder counts only when it is ours and leads where it should."""
    tmp, link = folder / "tmp", _link_to_tmp(folder)
    with contextlib.suppress(OSError):
        if link and link.lstat().st_uid == os.geteuid() and link.readlink() == tmp:
            return link
    return tmp


def _remove(folder: Path) -> None:
    """Remove a private folder, its secrets first."""
    for name in ("vm.yml", "credentials.yml"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if (link := _link_to_tmp(folder)) and link.is_symlink():
            link.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.error("private_folder_not_removed", folder=str(folder))


def _words_of(error: OSError | shutil.Error) -> str:
    """What went wrong; `copytree` collects that of each file, and the first says enough."""
    collected = error.args[0] if error.args else ""
    return str(collected[0][2]) if isinstance(collected, list) and collected else str(error)


def _checked(ident: str) -> str:
    """The ident, which becomes a folder's name."""
    if not _IDENT.match(ident):
        raise ValueError(f"not a run ident: {ident!r}")
    return ident


def _processes_in(folder: Path) -> set[int]:
    return process_tree.marked(CREDENTIALS_VARIABLE, f"{folder}/")


def _password_in(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None


def _poll(fd: int) -> select.poll:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll
