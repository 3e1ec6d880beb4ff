"""Runs playbooks as `Bench.play` does, forked from warm servers: 0.4 CPU seconds per play instead of 1.5 to 4.

The command line is that of an operator. The process is forked as in a run of the executor, with the executor's
environment and the recorder of the tests. `test_same_result.py` checks that a forked play and a play run by hand have
the same result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from executor_bench import credentials_of
from play_bench import ROOT, Outcome, read_record
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from executor.model import PlaybookRun
from executor.runs.private_folder import write_credentials
from executor.runs.runner_config import run_environment
from executor.runs.warm.servers import WarmServerKeeper

#: The longest time that the servers may need to start.
START_WITHIN_S = 300.0


class WarmPlays:
    """Runs plays with servers of warm runs. Each play has a private folder."""

    def __init__(self, pve: ProxmoxStandIn) -> None:
        self._pve = pve
        self._folder = Path(tempfile.mkdtemp(prefix="smith-plays-"))
        servers = self._folder / "warm"
        servers.mkdir()
        self._servers = WarmServerKeeper(servers, ROOT, lambda: self._environment(servers, "warm"))

    def start(self) -> None:
        """Start the servers and wait until they accept plays."""
        self._servers.start()
        start_deadline = time.monotonic() + START_WITHIN_S
        while not self._servers.pid():
            assert time.monotonic() < start_deadline, "the servers of warm runs did not start"
            time.sleep(0.02)

    def close(self) -> None:
        self._servers.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def play(self, command: list[str]) -> Outcome:
        """Run an `ansible-playbook` command whose playbook is ours and comes last."""
        with self._private_folder() as folder:
            env = self._environment(folder, folder.name)
            write_credentials(folder / "credentials.yml", credentials_of(self._pve))
            lifeline, write_end = os.pipe()  # closing `write_end` ends the play
            with open(lifeline, "rb") as stdin, open(write_end, "wb"):
                ran = subprocess.run(
                    self._servers.make_command(command, env["PATH"]),
                    env=env,
                    cwd=ROOT,
                    stdin=stdin,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            return read_record(Path(env["PLAY_RECORD"]), ran.returncode, ran.stdout + ran.stderr)

    @contextlib.contextmanager
    def _private_folder(self) -> Iterator[Path]:
        folder = self._folder / uuid.uuid4().hex[:12]
        for part in (folder, folder / "home", folder / "tmp"):
            part.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def _environment(self, folder: Path, ident: str) -> dict[str, str]:
        run = PlaybookRun(ident=ident, action="", playbook=Path("none.yml"), vm={}, timeout_s=0)
        return run_environment(folder, run, ROOT, self._pve.ca_bundle) | {
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "PLAY_RECORD": str(folder / "record"),
        }
