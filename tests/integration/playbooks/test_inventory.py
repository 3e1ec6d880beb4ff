"""The inventory for operators who run Ansible on the VMs. The installed collection reads it from the stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "inventory" / "smith.proxmox.yml"
#: To test another Ansible installation, the variable names its ansible-playbook.
ANSIBLE_PLAYBOOK = os.environ.get("TEST_ANSIBLE_PLAYBOOK", str(Path(sys.executable).with_name("ansible-playbook")))
SERVICE_ID = "0d5d5bd1-2f7e-4b8a-9e0c-7f5a2c1b3d4e"


@pytest.fixture(scope="module")
def pve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("inventory")) as running:
        marked_config = {"description": f"A shop\nsmith-uid={SERVICE_ID}", "tags": "gold;smith", "agent": "enabled=1"}
        net = {"net0": "virtio=BC:24:11:00:11:22,bridge=vmbr0", "ipconfig0": "ip=192.0.2.10/24"}
        running.control(
            "add", vmid=700, name="shop-0d5d5bd1", node="pve1", status="running", config=marked_config | net
        )
        running.control("add", vmid=701, name="idle-0d5d5bd2", node="pve2", config={"tags": "smith"})
        running.control("add", vmid=702, name="stranger", node="pve1", status="running", config={"tags": "gold"})
        running.control("add", vmid=703, name="untagged", node="pve1", config={})
        yield running


def read_inventory(pve: ProxmoxStandIn, **env: str) -> dict[str, Any]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    more = {"ANSIBLE_INVENTORY_ENABLED": "community.proxmox.proxmox", "REQUESTS_CA_BUNDLE": str(pve.ca_bundle)}
    done = subprocess.run(
        [str(Path(ANSIBLE_PLAYBOOK).with_name("ansible-inventory")), "-i", str(INVENTORY), "--list"],
        env=inherited | more | pve.env() | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout, object_hook=unwrap_unsafe_value)
    return parsed


def unwrap_unsafe_value(value: dict[str, Any]) -> Any:
    """Return a value without the mark by which Ansible does not evaluate it as a template."""
    return value.get("__ansible_unsafe", value)


def hosts_of_group(parsed_inventory: dict[str, Any], group: str) -> list[str]:
    return sorted(parsed_inventory.get(group, {}).get("hosts", []))


def test_our_vms_are_listed_by_node_tag_and_status(pve: ProxmoxStandIn) -> None:
    parsed_inventory = read_inventory(pve)
    shop, idle = "shop-0d5d5bd1", "idle-0d5d5bd2"
    assert sorted(parsed_inventory["_meta"]["hostvars"]) == [idle, shop]
    assert (hosts_of_group(parsed_inventory, "node_pve1"), hosts_of_group(parsed_inventory, "node_pve2")) == (
        [shop],
        [idle],
    )
    assert (hosts_of_group(parsed_inventory, "tag_smith"), hosts_of_group(parsed_inventory, "tag_gold")) == (
        [idle, shop],
        [shop],
    )
    assert (hosts_of_group(parsed_inventory, "status_running"), hosts_of_group(parsed_inventory, "status_stopped")) == (
        [shop],
        [idle],
    )
    facts = parsed_inventory["_meta"]["hostvars"][shop]
    assert (facts["smith_service_id"], facts["proxmox_vmid"], facts["ansible_host"]) == (SERVICE_ID, 700, "192.0.2.10")
    unmarked = parsed_inventory["_meta"]["hostvars"][idle]
    assert (unmarked["smith_service_id"], unmarked["ansible_host"]) == ("", idle)


def test_reading_the_inventory_changes_nothing_and_shows_no_secret(pve: ProxmoxStandIn) -> None:
    pve.reset_request_log()
    parsed_inventory = read_inventory(pve)
    assert pve.changing_requests() == []
    assert pve.token_secret not in json.dumps(parsed_inventory)


def test_a_certificate_of_an_unknown_ca_is_not_accepted(pve: ProxmoxStandIn) -> None:
    with pytest.raises(AssertionError, match="CERTIFICATE_VERIFY_FAILED"):
        read_inventory(pve, REQUESTS_CA_BUNDLE="")


def test_the_inventory_reads_the_service_from_a_marker_as_the_executor_does(pve: ProxmoxStandIn) -> None:
    cases = json.loads((ROOT / "tests" / "data" / "markers.json").read_text())
    for number, case in enumerate(cases):
        config = {"description": case["description"], "tags": "smith"}
        pve.control("add", vmid=800 + number, name=f"case-{number}", config=config)
    variables = read_inventory(pve)["_meta"]["hostvars"]
    for number in range(len(cases)):
        pve.control("remove", vmid=800 + number)
    read = {case["title"]: variables[f"case-{number}"]["smith_service_id"] for number, case in enumerate(cases)}
    assert read == {case["title"]: case["service"] for case in cases}
