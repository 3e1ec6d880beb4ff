"""A play is killed after any of its Ansible tasks: the next run completes the request.

The next run knows only Proxmox and the same variables, so only tasks that change Proxmox matter. Its state is recorded
after each task; for each task that changes it, a play is killed there and run again.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from play_bench import ROOT, Bench

Guest = dict[str, Any] | None


def run(bench: Bench, action: str, vm: dict[str, Any], cut_after: int = 0) -> tuple[int, list[tuple[str, Guest]]]:
    """Run a play in its own process group; return its exit code, and each task with the VM's state after it."""
    record = bench.folder / f"cut-{vm['vmid']}-{cut_after}"
    record.unlink(missing_ok=True)
    guests = f"{bench.pve.control_url}/guests"
    cut = json.dumps({"guests": guests, "vmid": vm["vmid"], "record": str(record), "after": cut_after})
    command = bench.command(action, vm)
    code = bench.warm.play(command, cut=cut).rc if bench.warm else run_by_hand(bench, command, cut)
    lines = [json.loads(line) for line in Path(record).read_text().splitlines()]
    return code, [(line["task"], line["guest"]) for line in lines]


def run_by_hand(bench: Bench, command: list[str], cut: str) -> int:
    file = bench.folder / f"{uuid.uuid4().hex}.json"
    file.write_text(cut)
    env = bench.environment(ANSIBLE_CALLBACKS_ENABLED="cutter", CUT_FILE=str(file))
    ended = subprocess.run(command, env=env, cwd=ROOT, start_new_session=True, capture_output=True, check=False)
    return 128 - ended.returncode if ended.returncode < 0 else ended.returncode  # as a shell, and a warm run, says it


def kill_points(states: list[tuple[str, Guest]], before: Guest) -> list[int]:
    """Return the number of the first task and of each task that changes Proxmox."""
    points, seen = [], before
    for number, (_task, guest) in enumerate(states, start=1):
        if guest != seen:
            points.append(number)
        seen = guest
    return sorted({1, *points})


def comparable(guest: Guest, vm: dict[str, Any]) -> str:
    """Return a VM's state as text, without the values that differ between two VMs."""
    text = json.dumps(guest, sort_keys=True)
    for own in (vm["service_id"], vm["name"], str(vm["vmid"])):
        text = text.replace(own, "-")
    return re.sub(r"([0-9A-F]{2}:){5}[0-9A-F]{2}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "?", text)


def wish(bench: Bench, action: str) -> dict[str, Any]:
    nic = [{"bridge": "vmbr1", "mac": "BC:24:11:0A:0B:0C"}]
    disks = [{"disk": "scsi1", "size_gib": 1, "storage": "ceph"}, {"disk": "scsi2", "size_gib": 1, "storage": "ceph"}]
    if action == "create":
        return bench.vm(disk_gib=9, disks=disks, networks=nic, cloud_init={"user": "admin"})
    vm = bench.add_vm(status="running")
    if action == "update":
        return {**vm, "cores": 4, "disk_gib": 9, "disks": disks, "networks": nic, "allow_reboot": True}
    return {**vm, "final_backup": "backups"}


#: The minimum number of states of each play: an empty record fails.
MIN_STATES = {"create": 5, "update": 6, "delete": 3}


@pytest.mark.parametrize("action", ["create", "update", pytest.param("delete", marks=pytest.mark.by_hand)])
def test_a_play_killed_after_any_task_is_completed_by_the_next_run(bench: Bench, action: str) -> None:
    whole = wish(bench, action)
    rc, states = run(bench, action, whole)
    assert rc == 0
    points = kill_points(states, bench.pve.guest(whole["vmid"]) if action == "create" else states[0][1])
    assert len(points) >= MIN_STATES[action], [states[point - 1][0] for point in points]
    asked = comparable(states[-1][1], whole)
    for point in points:
        vm = wish(bench, action)
        rc, cut = run(bench, action, vm, cut_after=point)
        assert (rc, len(cut)) == (128 + signal.SIGKILL, point), cut
        assert comparable(cut[-1][1], vm) == comparable(states[point - 1][1], whole)
        again = bench.play(action, vm)
        assert again.rc == 0, (states[point - 1][0], again.output)
        assert comparable(bench.pve.guest(vm["vmid"]), vm) == asked, states[point - 1][0]
