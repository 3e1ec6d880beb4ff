"""A change may contain the digest of the configuration that its sender has read.

The Proxmox stand-in refuses the change if the configuration has another digest when the change is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import proxmoxer
import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

VMID = 710


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


def new_api(stand_in: ProxmoxStandIn) -> Any:
    return proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )


@pytest.mark.proxmox(
    behaviour="of two changes with one `digest`, the second is refused: checksum mismatch (file change by other user?)",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, update_vm_api",
    reaction="a run of lab tests takes over a lease with the digest it has read; if refused, it tries another range",
)
def test_of_two_changes_with_the_same_digest_that_wait_for_the_lock_one_is_refused(stand_in: ProxmoxStandIn) -> None:
    stand_in.control("add", vmid=VMID, name="leased", node="pve1")
    config = new_api(stand_in).nodes("pve1").qemu(VMID).config
    digest = config.get()["digest"]
    stand_in.control("time_scale", scale=0.2)
    new_api(stand_in).nodes("pve1").qemu(VMID).status.start.post()  # holds the lock of the configuration until its end

    def change_description(text: str) -> str:
        vm = new_api(stand_in).nodes("pve1").qemu(VMID)
        try:
            vm.config.put(description=text, digest=digest)
        except proxmoxer.ResourceException as exc:
            return str(exc)
        return ""

    with ThreadPoolExecutor() as pool:
        answers = dict(zip(("first", "second"), pool.map(change_description, ("first", "second")), strict=True))
    stand_in.control("time_scale", scale=0)
    applied = [text for text, answer in answers.items() if not answer]
    refused = [answer for answer in answers.values() if answer]
    assert len(applied) == 1, answers
    assert "checksum mismatch (file change by other user?)" in refused[0]
    assert config.get()["description"] == applied[0]
