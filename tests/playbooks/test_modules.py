"""Wrong answers of community.proxmox modules, because of which the actions query Proxmox after each change.

When a version of the collection corrects one of them, its test fails, and an action may become simpler.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from play_bench import ANSIBLE_PLAYBOOK, ROOT, Bench

KVM = "community.proxmox.proxmox_kvm"


def run_module(bench: Bench, module: str, **arguments: Any) -> dict[str, Any]:
    """Run one module with `ansible`; the credentials are in the environment."""
    bundle = bench.pve.env()["PROXMOX_CA_BUNDLE"]
    variables = {"REQUESTS_CA_BUNDLE": bundle, "PROXMOX_CA_PATH": bundle, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    ran = subprocess.run(
        [str(Path(ANSIBLE_PLAYBOOK).with_name("ansible")), "proxmox", "-m", module, "-a", json.dumps(arguments)],
        env=bench.environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    status, _arrow, answer = ran.stdout.partition("=>")
    assert answer, ran.stdout + ran.stderr
    return {**json.loads(answer), "failed": "FAILED" in status}


def test_the_module_reports_a_clone_to_a_taken_vmid_as_ok_with_the_templates_vmid(bench: Bench) -> None:
    """So the actions never use the VMID of a module's result."""
    vm = bench.add_vm()
    answer = run_module(
        bench, KVM, state="present", clone="x", vmid=9000, newid=vm["vmid"], name="y", node="pve1", timeout=1
    )
    assert (answer["failed"], answer["changed"], int(answer["vmid"])) == (False, False, 9000)


def test_the_module_reports_state_absent_as_ok_for_a_running_vm_that_it_does_not_remove(bench: Bench) -> None:
    """So a deletion stops the VM first and verifies its absence."""
    vm = bench.add_vm(status="running")
    answer = run_module(bench, KVM, state="absent", vmid=vm["vmid"])
    assert (answer["failed"], answer["changed"]) == (False, False)
    assert bench.guest(vm)["status"] == "running"


def test_the_module_reports_state_absent_as_ok_for_a_vm_that_the_token_cannot_see(bench: Bench) -> None:
    """So the actions prove absence by privileges and by the VMID."""
    vm = bench.add_vm()
    bench.pve.control("revoke", path="/vms", privilege="VM.Audit")
    try:
        answer = run_module(bench, KVM, state="absent", vmid=vm["vmid"])
    finally:
        bench.pve.control("grant", path="/vms", privilege="VM.Audit")
    assert (answer["failed"], answer["changed"]) == (False, False)
    assert bench.guest(vm)


def test_the_module_does_not_detect_a_failed_proxmox_task(bench: Bench) -> None:
    """So the modules get a timeout of a second, and the actions wait for the Proxmox task."""
    vm = bench.add_vm()
    bench.pve.fail_task("qmstart", "start failed: no such bridge", vmid=vm["vmid"])
    answer = run_module(bench, KVM, state="started", vmid=vm["vmid"], timeout=2)
    assert answer["failed"]
    assert "Reached timeout" in answer["msg"]


def test_the_module_reports_a_restart_of_a_stopped_vm_as_ok(bench: Bench) -> None:
    """So a restart checks the status first."""
    answer = run_module(bench, KVM, state="restarted", vmid=bench.add_vm()["vmid"])
    assert (answer["failed"], answer["changed"]) == (False, False)
