"""Tests of the action `park` and of the playbook `report`, in the lab."""

from pathlib import Path

PLAYBOOKS = Path(__file__).parents[1] / "playbooks"


def test_park_takes_a_snapshot_and_stops_the_vm(lab_vm, run_action, proxmox):
    run_action("start", lab_vm)
    plan = run_action("park", lab_vm, check=True)
    assert plan.succeeded, plan.operator_message
    assert proxmox.snapshot_count(lab_vm["node"], lab_vm["vmid"]) == 0
    result = run_action("park", lab_vm)
    assert result.succeeded, result.operator_message
    assert result.vm["status"] == "stopped"
    assert proxmox.snapshot_count(lab_vm["node"], lab_vm["vmid"]) == 1


def test_park_refuses_the_vm_of_another_service(lab_vm, run_action):
    result = run_action("park", lab_vm, service_id="8f2c0a11-9b5e-4a1b-bc2d-6929e0105b7e")
    assert result.code == "VM_IDENTITY_MISMATCH"


def test_a_playbook_reads_the_vm(lab_vm, run_playbook):
    result = run_playbook(PLAYBOOKS / "report.yml", lab_vm)
    assert (result.vm["vmid"], result.vm["status"]) == (lab_vm["vmid"], "stopped"), result.operator_message


def test_a_service_is_ordered_and_deleted(fulcrum_core):
    service_id = fulcrum_core.order_service("shop")
    assert fulcrum_core.wait_for_jobs(service_id)["status"] == "Stopped"
    assert fulcrum_core.run_action(service_id, "delete")["status"] == "Completed"
