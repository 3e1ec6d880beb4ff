"""Runs playbooks with the executor's runner, on the stand-in of Proxmox that the manual runs of the tests use too."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from play_bench import ROOT
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from executor.model import JobResult, PlaybookRun
from executor.redaction import Redactor
from executor.runs import results
from executor.runs.request import PlaybookSettings
from executor.runs.runner import Runner, RunnerPaths

#: Within this time the servers of warm runs must have started.
WARM_WITHIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ExecutorBench:
    """The executor's runner with a token for the stand-in."""

    pve: ProxmoxStandIn
    runner: Runner

    @classmethod
    def at(cls, pve: ProxmoxStandIn, folder: Path) -> ExecutorBench:
        login = credentials_of(pve)
        # A short path: ansible-core 2.21 creates a socket in a run's folder, and the path of a socket has a maximum
        # length of 107 characters.
        run_dir = Path(tempfile.mkdtemp(prefix="smith-"))
        paths = RunnerPaths(collection_folder=ROOT, run_dir=run_dir, artifacts_dir=folder / "artifacts")
        atexit.register(shutil.rmtree, run_dir, ignore_errors=True)
        return cls(pve=pve, runner=Runner(paths, lambda: login, ca_bundle=pve.ca_bundle, redactor=Redactor()))

    def warm_up(self) -> None:
        """Start the servers of warm runs. All further runs are forks of these servers and cost less CPU."""
        self.runner.start_warm_server(are_warm_runs_required=True)
        limit = time.monotonic() + WARM_WITHIN_S
        while not self.runner.warm_server_pid():
            assert time.monotonic() < limit, "the servers of warm runs did not start"
            time.sleep(0.05)

    def execute(self, run: PlaybookRun) -> JobResult:
        """Execute a planned run and return its result."""
        return results.read_result(self.runner.run(run))

    def play(self, action: str, vm: Mapping[str, Any]) -> JobResult:
        """Run the playbook of an action with the extra var `vm`."""
        ident = f"{action}-{uuid.uuid4().hex[:12]}"
        playbook = ROOT / "playbooks" / f"{action}.yml"
        return self.execute(
            PlaybookRun(ident=ident, action=action, playbook=playbook, vm=dict(vm), timeout_s=float(vm["timeout_s"]))
        )


def credentials_of(pve: ProxmoxStandIn) -> dict[str, Any]:
    """Return the credentials that the executor writes for a run."""
    return {
        "api_host": pve.host,
        "api_port": pve.port,
        "api_user": pve.user,
        "api_token_id": pve.token_id,
        "api_token_secret": pve.token_secret,
        "validate_certs": True,
        "ca_bundle": str(pve.ca_bundle),
    }


def playbook_settings(**more: Any) -> PlaybookSettings:
    """Return the operator's settings for the stand-in."""
    usual: dict[str, Any] = {
        "cluster": "default",
        "templates": {"debian-12": 9000},
        "os_templates": {"debian-12": "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"},
        "storage": "ceph",
        "backup_storage": "backups",
        "bridge": "vmbr0",
        "pool": "",
        "node": "",
        "playbook_folders": [ROOT / "playbooks"],
        "playbook_timeout_s": 60.0,
        "shutdown_timeout_s": 5.0,
        "address_timeout_s": 2.0,
    }
    return PlaybookSettings(**(usual | more))
