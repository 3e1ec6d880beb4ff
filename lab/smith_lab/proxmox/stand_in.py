"""Starts the Proxmox stand-in as a process, and lets tests read and change the cluster that the stand-in simulates.

The process runs `smith_lab.proxmox.fakepve_server`. That package extends fakepve, a library that simulates the Proxmox
API. Both are under the AGPL, so this module starts the package as a process and never imports it. Each stand-in has its
own CA, which signs its TLS certificate. Clients must verify the certificate, as with a real cluster.

The stand-in has two ports. One serves the Proxmox API. The other is the control port, through which tests and the demo
read and change the cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from executor.errors import SmithError
from smith_lab.private_file import write_private_file
from smith_lab.proxmox.certificates import CertificateAuthority

#: The module that `python -m` runs as the server. No code outside the server's package imports it.
SERVER_MODULE = "smith_lab.proxmox.fakepve_server"
HOST = "127.0.0.1"
USER = "smith@pve"
TOKEN_ID = "job"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 30.0
#: The default time between two broadcasts, by which each node sends the statistics of its guests to the cluster. The
#: list of guests shows these statistics. In Proxmox this time is 10 s.
STATISTICS_INTERVAL_S = 0.5
#: The default delay of an answer 401. In Proxmox it is 3 s.
DELAY_OF_401_S = 0.5
#: How many characters of the end of the server's log an error text contains.
LOG_TAIL_CHARACTERS = 2000


class StandInError(SmithError):
    """The stand-in cannot start, or refuses a request to its control port."""


class ProxmoxStandIn:
    """One stand-in. `start` starts its server. The server ends on `stop`, or when the process that started it ends.

    `time_scale` is the number of real seconds for each second of simulated Proxmox time. With 0, Proxmox tasks end at
    once. `statistics_interval_s` is the number of real seconds between two broadcasts of statistics. Until the next
    broadcast, the list of guests shows a new guest without its name and status. `delay_of_401_s` is the delay of an
    answer 401. If a port is 0, `start` chooses a free port. If `has_user` is false, the cluster starts without the user
    `smith@pve`, its token and the pool `smith`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        time_scale: float = 0.0,
        statistics_interval_s: float = STATISTICS_INTERVAL_S,
        delay_of_401_s: float = DELAY_OF_401_S,
        host: str = HOST,
        port: int = 0,
        control_port: int = 0,
        has_user: bool = True,
    ) -> None:
        self.folder = folder
        self.time_scale = time_scale
        self.statistics_interval_s = statistics_interval_s
        self.delay_of_401_s = delay_of_401_s
        self.host = host
        self.port = port
        self.control_port = control_port
        self.user = USER
        self.token_id = TOKEN_ID
        self.token_secret = secrets.token_hex(16)
        self.root_password = secrets.token_hex(16)  #: the password of root@pam
        self._has_user = has_user
        self.ca_bundle = folder / "ca.pem"
        self._process: subprocess.Popen[bytes] | None = None
        self._authority: CertificateAuthority | None = None

    @property
    def control_url(self) -> str:
        """The URL of the control port."""
        return f"http://127.0.0.1:{self.control_port}"

    @property
    def pid(self) -> int | None:
        """The server's process id, or None if the server does not run."""
        return self._process.pid if self._process else None

    def start(self) -> ProxmoxStandIn:
        """Start the server and wait until it answers. Raises StandInError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = self._write_settings()
        with (self.folder / "server.log").open("ab") as log:
            # The server gets its own session. Otherwise, Ctrl-C in a terminal would end the server before `stop` does.
            self._process = subprocess.Popen(
                [sys.executable, "-m", SERVER_MODULE, str(settings)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_server_environment(),
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server. A second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()  # the server stops when its standard input closes
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def env(self) -> dict[str, str]:
        """Return the environment variables by which the executor and its playbooks connect to the stand-in."""
        return {
            "PROXMOX_HOST": self.host,
            "PROXMOX_PORT": str(self.port),
            "PROXMOX_USER": self.user,
            "PROXMOX_TOKEN_ID": self.token_id,
            "PROXMOX_TOKEN_SECRET": self.token_secret,
            "PROXMOX_VALIDATE_CERTS": "true",
            "PROXMOX_CA_BUNDLE": str(self.ca_bundle),
        }

    # --- the content of the cluster ---

    def guests(self) -> list[dict[str, Any]]:
        """Return every VM and container: vmid, name, node, status, template, lock, pool, config, pending, snapshots."""
        return list(self._read_from_control_port("guests"))

    def guest(self, vmid: int) -> dict[str, Any] | None:
        """Return the VM or container with this VMID; None if there is none."""
        return next((guest for guest in self.guests() if guest["vmid"] == vmid), None)

    def tasks(self) -> list[dict[str, Any]]:
        """Return every Proxmox task since the start, oldest first."""
        return list(self._read_from_control_port("tasks"))

    def storages(self) -> dict[str, dict[str, Any]]:
        """Return, for every storage, its free bytes, the names of its volumes, and the notes of its backups."""
        return dict(self._read_from_control_port("storages"))

    def request_log(self) -> list[dict[str, Any]]:
        """Return every API request since the start, or since `reset_request_log`.

        The members of a request are `method`, `path`, `params` (with stars in place of secrets), `time` (arrival, in
        seconds since 1970) and `client` (the address from which the request was sent).
        """
        return list(self._read_from_control_port("requests"))

    def changing_requests(self) -> list[dict[str, Any]]:
        """Return the logged requests with a method other than GET."""
        return list(self._read_from_control_port("changing_requests"))

    def reset_request_log(self) -> None:
        """Empty the request log."""
        self.control("reset_requests")

    # --- faults and changes ---

    def fail(
        self, method: str, path: str, *, status: int = 500, text: str = "injected", times: int = 1, **options: Any
    ) -> None:
        """Make the next `times` requests to a path fail. If `times` is -1, make all requests to the path fail.

        The answer is an error with this status and text. If the status is 0, the connection is closed without an
        answer. `path` is the part of the URL after `/api2/json`. It may contain shell wildcards, as in
        `/nodes/*/qemu/9000/clone`. `options` may contain `after=True` (process the request, then send the error),
        `delay_s` (wait before the error is sent), `body` (the body of the answer in base64) and `is_cut` (close the
        connection before the end of the body).
        """
        self.control("fail", method=method, path=path, status=status, text=text, times=times, **options)

    def is_holding(self) -> bool:
        """Return whether the stand-in delays the answer to an API request that it has processed.

        `control("hold", method=..., path=...)` selects the next request with this method and a path that matches the
        regular expression `path`. `control("hold_change", number=...)` selects a later POST, PUT or DELETE request: 1
        is the next one. `control("clear_faults")` ends the delay.
        """
        return bool(self._read_from_control_port("holding"))

    def fail_task(self, task_type: str, text: str, *, times: int = 1, vmid: int | None = None, **options: Any) -> None:
        """Make the next `times` Proxmox tasks of a type (qmclone, qmstart, resize, ...) fail with this error text.

        With `vmid`, only Proxmox tasks for this VM or container fail. `options` may contain `log` (lines that the
        failed Proxmox task writes to its log), `leaves_lock` (the lock that the guest has after the failure) and
        `after=True` (the Proxmox task does its work, then it fails). With `leaves_lock="destroyed"`, the configuration
        and the disks of the guest are removed, as if its deletion had been interrupted.
        """
        self.control("fail_task", type=task_type, text=text, times=times, vmid=vmid, **options)

    def use_certificate(
        self, *, names: Sequence[str] = (), from_day: float = -1, until_day: float = 30, is_ca_new: bool = False
    ) -> None:
        """Present another certificate in new connections. `names` are the hosts for which this certificate is valid.

        The certificate's validity starts `from_day` and ends `until_day` days from now. With `is_ca_new`, a new CA,
        which no client trusts, signs the certificate.
        """
        if self._authority is None:
            raise StandInError(
                "cannot replace the certificate: this object did not start the stand-in; "
                "call use_certificate of the ProxmoxStandIn object whose start method was called"
            )
        authority = self._authority
        if is_ca_new:
            folder = self.folder / "other-ca"
            folder.mkdir(exist_ok=True)
            authority = CertificateAuthority(folder)
        certificate, key = authority.issue(
            self.host, names or self._certificate_hosts, from_day=from_day, until_day=until_day, file_stem="server-2"
        )
        self.control("certificate", certificate=str(certificate), key=str(key))

    def control(self, verb: str, **values: Any) -> Any:
        """Call a verb of the control port with these values; return the verb's result. Raises StandInError.

        A verb is the name of a change of the cluster, such as `lock` or `add_template`. The methods `do_<verb>` in
        fakepve_server/verbs_cluster.py, verbs_guests.py and control.py implement and explain the verbs. After each
        verb, the nodes send their statistics, so the list of guests shows the change at once. If `values` contains
        `is_new=True` and a `vmid`, the nodes send no statistics of this guest, as if it had been created just now.
        """
        answer = requests.post(f"{self.control_url}/{verb}", json=values, timeout=CONTROL_TIMEOUT_S)
        body = answer.json()
        if answer.status_code != 200:
            raise StandInError(f"{verb}: {body.get('error')}")
        return body["done"]  # the result of the verb

    # --- the server process and its control port ---

    def _read_from_control_port(self, name: str) -> Any:
        answer = requests.get(f"{self.control_url}/{name}", timeout=CONTROL_TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()

    def _write_settings(self) -> Path:
        self._authority = CertificateAuthority(self.folder)
        certificate, key = self._authority.issue(self.host, self._certificate_hosts)
        settings = {
            "host": self.host,
            "port": self.port,
            "control_port": self.control_port,
            "ca": str(self.ca_bundle),
            "cert": str(certificate),
            "key": str(key),
            "user": self.user if self._has_user else "",
            "root_password": self.root_password,
            "token_id": self.token_id,
            "token_secret": self.token_secret,
            "time_scale": self.time_scale,
            "statistics_interval_s": self.statistics_interval_s,
            "delay_of_401_s": self.delay_of_401_s,
            "ready_file": str(self._ready_file),
            # The path of a file; empty for none. When the server stops, it adds a line to the file: the number of
            # successful POST, PUT and DELETE requests for each version of Proxmox VE that it has simulated.
            "changes_file": os.environ.get("LAB_CHANGES_FILE", ""),
        }
        self._ready_file.unlink(missing_ok=True)
        return write_private_file(self.folder / "settings.json", json.dumps(settings).encode())

    @property
    def _certificate_hosts(self) -> list[str]:
        """The host names and addresses for which the certificate is valid."""
        return [self.host, "localhost", "127.0.0.1"]

    @property
    def _ready_file(self) -> Path:
        return self.folder / "ready.json"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready_file.exists():
            if self._process is None or self._process.poll() is not None:
                raise StandInError(f"the Proxmox stand-in did not start:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise StandInError(
                    f"the Proxmox stand-in did not answer within {START_TIMEOUT_S:.0f} s:\n{self._log_tail()}"
                )
            time.sleep(0.05)
        ports = json.loads(self._ready_file.read_text())
        self.port, self.control_port = ports["port"], ports["control_port"]

    def _log_tail(self) -> str:
        log = self.folder / "server.log"
        return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:] if log.exists() else ""


@contextmanager
def running_stand_in(
    *,
    time_scale: float = 0.0,
    folder: Path | None = None,
    host: str = HOST,
    port: int = 0,
    control_port: int = 0,
    has_user: bool = True,
) -> Iterator[ProxmoxStandIn]:
    """Run a stand-in for the `with` block. Its files are in `folder`, by default in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="proxmox-stand-in-") as temporary:
        stand_in = ProxmoxStandIn(
            folder or Path(temporary),
            time_scale=time_scale,
            host=host,
            port=port,
            control_port=control_port,
            has_user=has_user,
        )
        try:
            yield stand_in.start()
        finally:
            stand_in.stop()


def _server_environment() -> dict[str, str]:
    """Return the environment variables that Python needs. The server must not get the secrets of this process."""
    return {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR") if key in os.environ}
