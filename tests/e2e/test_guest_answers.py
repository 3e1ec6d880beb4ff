"""Of all that a guest agent answers, only addresses reach FulcrumCore."""

from __future__ import annotations

import base64
import json
from typing import Any

from smith_lab.system import LabSystem, outcome_of
from support.guest_answers import ADDRESSES, FORGED, GUEST_ANSWERS, MAC

#: The network interfaces of all answers in `GUEST_ANSWERS`, as one list.
INTERFACES = [
    interface
    for answer in GUEST_ANSWERS.values()
    if answer.body.startswith(b'{"data": {"result": [')
    for interface in json.loads(answer.body)["data"]["result"]
]


def all_texts_at_core(lab: LabSystem, service_id: str) -> str:
    """Return as text the service in FulcrumCore and all requests that FulcrumCore has received."""
    service: dict[str, Any] = lab.admin.call("GET", f"/services/{service_id}")
    return json.dumps([service, *lab.core.history()])


def test_only_the_addresses_in_a_guest_agents_answer_reach_fulcrumcore(lab: LabSystem) -> None:
    service_id = lab.order_service("hostile")
    lab.wait_for_jobs(service_id)
    (vm,) = lab.guests_of(service_id)
    mac = str(vm["config"]["net0"]).partition("=")[2].partition(",")[0]
    body = json.dumps({"data": {"result": INTERFACES}}).replace(MAC, mac).encode()
    path = f"/nodes/*/qemu/{vm['vmid']}/agent/network-get-interfaces"
    lab.proxmox.fail("GET", path, status=200, times=-1, body=base64.b64encode(body).decode())

    outcomes = [outcome_of(lab.run_action(service_id, action)) for action in ("start", "restart", "stop", "delete")]

    assert outcomes == ["Completed"] * 4
    at_core = all_texts_at_core(lab, service_id)
    assert FORGED not in at_core
    assert ADDRESSES[0] in at_core
    assert lab.guests_of(service_id) == []
