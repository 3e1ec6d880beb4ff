"""A play is killed after any of its changes at Proxmox: the next run completes the request.

The next run knows only the state of Proxmox and the same variables. So it is enough to kill a play after each request
that changes Proxmox: the stand-in holds back the answer to the n-th such request, the play is killed while it waits for
this answer, and then a new play runs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from typing import Any

import pytest
from play_bench import ROOT, Bench

Guest = dict[str, Any] | None
#: How long a play may need to send the request at which it is killed.
HOLD_TIMEOUT_S = 60.0


def kill_after_change(bench: Bench, action: str, vm: dict[str, Any], number: int) -> Guest:
    """Kill a play while it waits for the answer to its change `number`; return the VM's state then."""
    bench.pve.control("hold_change", number=number)
    play = subprocess.Popen(
        bench.command(action, vm),
        env=bench.environment(),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + HOLD_TIMEOUT_S
        while not bench.pve.is_holding():
            assert play.poll() is None, f"the play ended before its change {number}"
            assert time.monotonic() < deadline, f"the play did not send its change {number}"
            time.sleep(0.05)
        guest = bench.pve.guest(vm["vmid"])
    finally:
        # This kills ansible-playbook, but not the process of the action plugin, which is in a session of its own: that
        # process must end by itself, without another change.
        os.killpg(play.pid, signal.SIGKILL)
        play.wait()
        bench.pve.control("clear_faults")
    return guest


def make_comparable_text(guest: Guest, vm: dict[str, Any]) -> str:
    """Return a VM's state as text, without the values that differ between two VMs."""
    text = json.dumps(guest, sort_keys=True)
    for identity_value in (vm["service_id"], vm["name"], str(vm["vmid"])):
        text = text.replace(identity_value, "-")
    return re.sub(r"([0-9A-F]{2}:){5}[0-9A-F]{2}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "?", text)


def make_request(bench: Bench, action: str) -> dict[str, Any]:
    """Return the variables of a request that needs several changes; except for create, of a VM that is added here."""
    nic = [{"bridge": "vmbr1", "mac": "BC:24:11:0A:0B:0C"}]
    disks = [{"disk": "scsi1", "size_gib": 1, "storage": "ceph"}, {"disk": "scsi2", "size_gib": 1, "storage": "ceph"}]
    if action == "create":
        return bench.vm(disk_gib=9, disks=disks, networks=nic, cloud_init={"user": "admin"})
    vm = bench.add_vm(status="running")
    if action == "update":
        return {**vm, "cores": 4, "disk_gib": 9, "disks": disks, "networks": nic, "allow_reboot": True}
    return {**vm, "final_backup": "backups"}


#: The number of requests with which each play changes Proxmox.
CHANGES = {"create": 5, "update": 5, "delete": 3}


@pytest.mark.parametrize("action", CHANGES)
def test_a_play_killed_after_any_change_is_completed_by_the_next_run(bench: Bench, action: str) -> None:
    uninterrupted_vm = make_request(bench, action)
    done, changes = bench.changing_requests(lambda: bench.play(action, uninterrupted_vm))
    assert (done.rc, len(changes)) == (0, CHANGES[action]), changes
    requested_state = make_comparable_text(bench.pve.guest(uninterrupted_vm["vmid"]), uninterrupted_vm)
    states = set()
    for number in range(1, len(changes) + 1):
        vm = make_request(bench, action)
        states.add(make_comparable_text(kill_after_change(bench, action, vm, number), vm))
        again = bench.play(action, vm)
        assert again.rc == 0, (changes[number - 1], again.output)
        assert make_comparable_text(bench.pve.guest(vm["vmid"]), vm) == requested_state, changes[number - 1]
    assert len(states) >= len(changes) - 1, "the play was not killed at different states of the VM"
