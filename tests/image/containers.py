"""Runs the image under test as an operator does: with podman, or with chroot where no container can run.

`make image-test` (deploy/image/test.sh) builds the image, creates a network namespace, and runs the tests inside it,
with podman's settings in the environment. The container shares this namespace, so it reaches the simulator of
FulcrumCore and the stand-in of Proxmox at 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from smith_lab.system import LabSystem, wait_for

#: `make image-test` sets these: the image, podman or chroot, and the network namespace.
IMAGE = os.environ.get("IMAGE_UNDER_TEST", "")
MODE = os.environ.get("IMAGE_MODE", "podman")
NETWORK = os.environ.get("IMAGE_NETWORK", "")
needs_podman = pytest.mark.skipif(MODE != "podman", reason="only a container engine sets limits")
USER_ID = 10001
#: The restrictions of docs/install.md and of the files in deploy/.
HARDENING_OPTIONS = (
    "--read-only", "--tmpfs=/tmp:rw,nosuid,nodev,noexec,size=64m", "--cap-drop=all",
    "--security-opt=no-new-privileges", "--memory=512m", "--memory-swap=512m", "--pids-limit=512",
)  # fmt: skip
SECRETS = ("FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET")
CA_FILE = "/run/secrets/proxmox-ca.pem"
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
#: Longer than the drain, which takes a few seconds in these tests.
STOP_TIMEOUT_S = 60


#: A script that an install command runs as `podman`: podman with the image under test and the tests' network. HTTP is
#: off, because the container of the other tests uses the HTTP port of this network.
PODMAN_WRAPPER = """\
#!/bin/sh
set -eu
[ "$1" = run ]
shift
for last in "$@"; do :; done
[ "$last" = localhost/agent-smith:latest ]
for argument in "$@"; do
  shift
  [ "$argument" = "$last" ] || set -- "$@" "$argument"
done
exec {podman} run --network=ns:{network} --no-healthcheck --env=SMITH_HTTP_ADDR=off "$@" {image}
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What an operator prepares for a container: settings, a folder with the secrets and the CA, and a data folder."""

    environment: Mapping[str, str]
    secrets: Path
    data: Path


def prepare_site(folder: Path, environment: Mapping[str, str], ca_bundle: Path | None = None) -> Site:
    """Write the secrets of the environment to files that only the container's user can read; add the data folder."""
    secrets, data = folder / "secrets", folder / "data"
    secrets.mkdir(mode=0o500, parents=True)
    os.chown(secrets, USER_ID, USER_ID)
    data.mkdir(mode=0o750)
    os.chown(data, USER_ID, USER_ID)
    for name in SECRETS:
        file = secrets / name.lower()
        file.touch(mode=0o400)
        file.write_text(environment[name])
        os.chown(file, USER_ID, USER_ID)
    settings = {name: value for name, value in environment.items() if name not in SECRETS}
    if ca_bundle:
        shutil.copy(ca_bundle, secrets / Path(CA_FILE).name)
        settings["PROXMOX_CA_BUNDLE"] = CA_FILE
    return Site(environment=settings, secrets=secrets, data=data)


def prepare_site_of_lab(lab: LabSystem) -> Site:
    """Prepare the settings and files with which a container reaches the lab."""
    settings = {
        name: value for name, value in lab.environment().items() if name.startswith(("FULCRUM_", "PROXMOX_", "SMITH_"))
    }
    for name in ("SMITH_DATA_DIR", "SMITH_RUN_DIR", "SMITH_HTTP_ADDR"):  # the image sets them
        settings.pop(name, None)
    return prepare_site(lab.folder / "site", settings, lab.proxmox.ca_bundle)


@dataclass(kw_only=True)
class Podman:
    """A container run by podman."""

    site: Site
    image: str = IMAGE
    name: str = field(default_factory=lambda: f"agent-smith-test-{os.getpid()}-{time.monotonic_ns()}")

    def start(self, *, hardening: Sequence[str] = HARDENING_OPTIONS, command: Sequence[str] = ()) -> None:
        """Run the container in the background."""
        _podman("run", "--detach", f"--name={self.name}", *self._options(hardening), self.image, *command)

    def start_again(self) -> None:
        """Start the stopped container."""
        _podman("start", self.name)

    def run_to_completion(self, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a container in the foreground and remove it."""
        options = (*self._options(HARDENING_OPTIONS), *options)
        return _podman("run", "--rm", f"--name={self.name}", *options, self.image, *command, check=False)

    def stop(self) -> int:
        """Stop the container as a service manager does; return its exit code."""
        _podman("stop", f"--time={STOP_TIMEOUT_S}", self.name)
        return int(self.inspect()["State"]["ExitCode"])

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as the container's user."""
        return _podman("exec", self.name, *command, check=False)

    def logs(self) -> str:
        """Return the container's output."""
        done = _podman("logs", self.name, check=False)
        return done.stdout + done.stderr

    def inspect(self) -> dict[str, Any]:
        """Return podman's description of the container."""
        return dict(json.loads(_podman("container", "inspect", self.name).stdout)[0])

    def is_running(self) -> bool:
        return bool(self.inspect()["State"]["Running"])

    def changed_paths(self) -> list[str]:
        """Return the paths that changed in the container's layer, outside volumes and tmpfs."""
        return [line[2:] for line in _podman("diff", self.name).stdout.splitlines() if line.startswith(("A ", "C "))]

    def remove(self) -> None:
        _podman("rm", "--force", "--time=2", self.name, check=False)

    def _options(self, hardening: Sequence[str]) -> list[str]:
        volumes = [f"--volume={self.site.secrets}:/run/secrets:ro", f"--volume={self.site.data}:/data"]
        network = f"--network=ns:{NETWORK}" if NETWORK else "--network=none"
        environment = [f"--env={name}={value}" for name, value in self.site.environment.items()]
        return [network, "--no-healthcheck", *hardening, *volumes, *environment]


@dataclass(kw_only=True)
class Chroot:
    """A replacement for a container: the image's files and entry point in namespaces, without limits and seccomp."""

    site: Site
    image: str = IMAGE
    _process: subprocess.Popen[bytes] | None = None
    _root: Path | None = None

    def start(self, *, hardening: Sequence[str] = HARDENING_OPTIONS, command: Sequence[str] = ()) -> None:
        """Run the entry point in the background."""
        config = image_facts(self.image)["Config"]
        self._root = self._root or Path(_podman("image", "mount", self.image).stdout.strip())
        arguments = [*config["Entrypoint"], *(command or config["Cmd"])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [shutil.which("unshare") or "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
                 "sh", "-euc", self._script(read_only="--read-only" in hardening), "sh",
                 str(self._root), *self._as_user(*arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_again(self) -> None:
        """Run the entry point again."""
        self.start()

    def run_to_completion(self, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for its end."""
        assert not options, "options of podman have no effect in a chroot"
        before = len(self.logs())
        self.start(command=command)
        assert self._process
        code = self._process.wait(COMMAND_TIMEOUT_S)
        return subprocess.CompletedProcess(command, code, stdout=self.logs()[before:], stderr="")

    def stop(self) -> int:
        """Send TERM to the first process; return the exit code."""
        assert self._process
        os.kill(self._first_pid(), signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as the container's user."""
        nsenter_command = [
            "nsenter",
            "--mount",
            "--pid",
            f"--target={self._first_pid()}",
            "--",
            *self._as_user(*command),
        ]
        return subprocess.run(nsenter_command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)

    def logs(self) -> str:
        """Return the container's output."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def remove(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def _log(self) -> Path:
        return self.site.data.parent / "container.log"

    def _first_pid(self) -> int:
        """Return the id of process 1 in the namespace, once unshare has started it."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(wait_for(lambda: children.read_text().split(), START_TIMEOUT_S, "the container's first process")[0])

    def _as_user(self, *command: str) -> list[str]:
        config = image_facts(self.image)["Config"]
        environment = [*config["Env"], *(f"{name}={value}" for name, value in self.site.environment.items())]
        tools = {name: shutil.which(name) or name for name in ("setpriv", "chroot")}
        user = f"--userspec={config['User']}"
        return ["env", "-i", *environment, tools["setpriv"], "--no-new-privs", tools["chroot"], user, str(self._root),
                *command]  # fmt: skip

    def _script(self, *, read_only: bool) -> str:
        site = self.site
        lines = [
            'root=$1; shift; mount --bind "$root" "$root"',
            'mount -o remount,bind,ro "$root"' if read_only else "",
            'mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"',
            'mount -t tmpfs -o mode=1777,nosuid,nodev,noexec,size=64m tmp "$root/tmp"',
            'mount -t tmpfs -o mode=0755 run "$root/run"; mkdir "$root/run/secrets"',
            f'mount --bind "{site.secrets}" "$root/run/secrets"; mount --bind "{site.data}" "$root/data"',
            'exec "$@"',
        ]
        return "\n".join(lines)


class Container(Protocol):
    """The interface that `Podman` and `Chroot` have in common."""

    site: Site

    def start(self, *, hardening: Sequence[str] = HARDENING_OPTIONS, command: Sequence[str] = ()) -> None: ...
    def start_again(self) -> None: ...
    def run_to_completion(self, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]: ...
    def stop(self) -> int: ...
    def execute(self, *command: str) -> subprocess.CompletedProcess[str]: ...
    def logs(self) -> str: ...
    def is_running(self) -> bool: ...
    def remove(self) -> None: ...


@contextlib.contextmanager
def container_of(site: Site) -> Iterator[Container]:
    """Yield a container that is not started yet; remove it at the end of the block."""
    container: Container = Podman(site=site) if MODE == "podman" else Chroot(site=site)
    try:
        yield container
    finally:
        container.remove()


@contextlib.contextmanager
def running_install_command(command: str, folder: Path, *, name: str, volume: str) -> Iterator[Podman]:
    """Run an install command in the folder, as an operator does; yield the container, and remove it with its volume.

    The command names its container `name` and its volume `volume`. podman gets the arguments of the command, but the
    image under test instead of the released one, and in addition options for the network of the tests.
    """
    programs = folder / "bin"
    programs.mkdir()
    (programs / "podman").write_text(PODMAN_WRAPPER.format(podman=shutil.which("podman"), network=NETWORK, image=IMAGE))
    (programs / "podman").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    container = Podman(site=Site(environment={}, secrets=folder, data=folder), name=name)
    try:
        shell = ["sh", "-c", command]
        done = subprocess.run(
            shell, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
        yield container
    finally:
        container.remove()
        _podman("volume", "rm", "--force", volume, check=False)


def run_smith_json(container: Container, *arguments: str) -> Any:
    """Run a `smith` command in the container; return its JSON."""
    done = container.execute("smith", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def log_events(container: Container, name: str) -> list[dict[str, Any]]:
    """Return the log entries of one event."""
    lines = [line for line in container.logs().splitlines() if line.startswith("{")]
    return [entry for line in lines if (entry := json.loads(line)).get("event") == name]


def wait_until_healthy(container: Container) -> None:
    """Wait until the health command in the container succeeds."""

    def is_healthy() -> bool:
        assert container.is_running(), container.logs()[-3000:]
        return container.execute("python3", "-m", "executor.cli.health").returncode == 0

    wait_for(is_healthy, START_TIMEOUT_S, f"the container to be healthy: {container.logs()[-2000:]}")


def image_facts(image: str = IMAGE) -> dict[str, Any]:
    """Return podman's description of the image."""
    return dict(json.loads(_podman("image", "inspect", image).stdout)[0])


def save_image(file: Path, image: str = IMAGE) -> None:
    """Write the image with its layers to an archive."""
    _podman("save", "--quiet", "--format=docker-archive", f"--output={file}", image)


@contextlib.contextmanager
def mounted_image(image: str = IMAGE) -> Iterator[Path]:
    """Mount the image; yield the path of its files."""
    yield Path(_podman("image", "mount", image).stdout.strip())
    _podman("image", "unmount", image)


def _podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("podman") or "podman", *arguments]
    limit_s = COMMAND_TIMEOUT_S + STOP_TIMEOUT_S
    # Not in the checkout: after an out-of-memory kill conmon leaves a file `oom` in its working directory.
    done = subprocess.run(
        command, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False, timeout=limit_s
    )
    if check and done.returncode:
        raise RuntimeError(f"podman {arguments[0]}: {done.returncode}: {done.stderr.strip()}")
    return done
