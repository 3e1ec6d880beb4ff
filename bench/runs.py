"""Workload (a): the same playbooks by plain ansible-runner and by Agent Smith's runner, each in its own process."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measuring import ROOT, WorkloadBroke
from executor.lab.proxmox_stand_in import ProxmoxStandIn

Json = dict[str, Any]
_vmids: Iterator[int] = itertools.count(200_000, 10_000)


def measure(stand_in: ProxmoxStandIn, folder: Path, mode: str, **amount: int) -> Json:
    """Run `rounds` lives, then `burst` creates, `slots` at once; return the figures. Raises WorkloadBroke."""
    order, out = folder / f"{mode}.order", folder / f"{mode}.json"
    order.write_text(json.dumps({"mode": mode, "first_vmid": next(_vmids), **amount}), encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PROXMOX_", "SMITH_"))}
    done = subprocess.run(
        [sys.executable, "-m", "bench.one_mode", str(order), str(out)],
        env={**own, **stand_in.env(), "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WorkloadBroke(f"{mode}: {done.stderr[-3000:]}")
    return dict(json.loads(out.read_text(encoding="utf-8")))
