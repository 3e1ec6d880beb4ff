"""Reading Proxmox's lists, and the marker of a VM."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import NodeRow, VmRow, node_rows, vm_rows

SERVICE_ID = "e5b72a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
OTHER_SERVICE_ID = "0aa42a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"


def raw_vm(**members: Any) -> dict[str, Any]:
    """Return a row of `/cluster/resources?type=vm`, with the given members replaced."""
    row = {
        "id": "qemu/100",
        "type": "qemu",
        "vmid": 100,
        "node": "pve1",
        "name": "web-1",
        "status": "running",
        "template": 0,
        "cpu": 0.25,
        "maxcpu": 4,
        "mem": 1024,
        "maxmem": 4096,
        "disk": 0,
        "maxdisk": 8192,
        "netin": 1,
        "netout": 2,
        "diskread": 3,
        "diskwrite": 4,
        "uptime": 77,
        "tags": "smith;web",
        "lock": "backup",
    }
    return row | members


def test_every_member_of_a_row_is_read() -> None:
    assert vm_rows([raw_vm()]) == [
        VmRow(
            vmid=100,
            node="pve1",
            name="web-1",
            status="running",
            is_template=False,
            kind="qemu",
            cpu_usage=0.25,
            cores=4,
            memory_bytes=1024,
            max_memory_bytes=4096,
            disk_bytes=0,
            max_disk_bytes=8192,
            net_in_bytes=1,
            net_out_bytes=2,
            disk_read_bytes=3,
            disk_write_bytes=4,
            uptime_s=77,
            tags=("smith", "web"),
            lock="backup",
        )
    ]


def test_numbers_sent_as_text_are_read_as_numbers() -> None:
    raw = raw_vm(vmid="100", template="1", cpu="0.5", maxcpu="2", mem="1e3", netin=str(2**60 + 1), uptime=77.9)
    (row,) = vm_rows([raw])
    assert (row.vmid, row.is_template, row.cpu_usage, row.cores) == (100, True, 0.5, 2)
    assert (row.memory_bytes, row.net_in_bytes, row.uptime_s) == (1000, 2**60 + 1, 77)


def test_a_row_with_only_vmid_and_node_is_read() -> None:
    """Proxmox lists a VM of an offline node like this."""
    assert vm_rows([{"vmid": 100, "node": "pve1", "type": "qemu", "status": "unknown"}]) == [
        VmRow(vmid=100, node="pve1", status="unknown", has_statistics=False)
    ]


def test_containers_and_templates_are_distinguished_and_storages_are_left_out() -> None:
    rows = vm_rows([raw_vm(type="lxc"), raw_vm(vmid=101, template=1), {"type": "storage", "vmid": 5, "node": "pve1"}])
    assert [(row.vmid, row.kind, row.is_template) for row in rows] == [(100, "lxc", False), (101, "qemu", True)]


@pytest.mark.parametrize("row", [None, 7, "web-1", [], {}, raw_vm(vmid=None), raw_vm(vmid="x"), raw_vm(node=None)])
def test_a_row_of_a_guest_without_a_vmid_or_node_is_left_out(row: Any) -> None:
    assert [found.vmid for found in vm_rows([row, raw_vm(vmid=101)])] == [101]


def test_null_is_an_empty_list_and_any_other_value_that_is_not_a_list_is_an_error() -> None:
    assert vm_rows(None) == []
    for answer in ({"data": []}, "text", 7):
        with pytest.raises(JobError, match=r"^PVE_API_ERROR: "):
            vm_rows(answer)


@pytest.mark.parametrize(
    ("text", "tags"), [("a;b", ("a", "b")), ("a,b", ("a", "b")), (" a  b; ", ("a", "b")), ("", ()), (None, ())]
)
def test_tags_are_read_with_every_separator_that_proxmox_has_used(text: str | None, tags: tuple[str, ...]) -> None:
    assert vm_rows([raw_vm(tags=text)])[0].tags == tags


@settings(deadline=None)  # a slow machine must not fail the test
@given(
    st.dictionaries(
        st.sampled_from(list(raw_vm())),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_a_row_with_any_values_is_read(members: dict[str, Any]) -> None:
    for row in vm_rows([raw_vm(**members)]):
        assert math.isfinite(row.cpu_usage)


def test_a_node_that_is_down_has_only_its_name() -> None:
    rows = [{"node": "pve1", "status": "online", "maxcpu": 8, "cpu": 0.5}, {"node": "pve2", "status": "offline"}, {}]
    assert node_rows(rows) == [NodeRow("pve1", True, cpu_usage=0.5, cores=8), NodeRow("pve2", False)]


@pytest.mark.parametrize(
    "description",
    [
        f"smith-uid={SERVICE_ID}",
        f"Made by Agent Smith\nsmith-uid={SERVICE_ID}\n",
        f"smith-uid={SERVICE_ID.upper()}  \r\nordered by Acme",
        f"smith-uid={SERVICE_ID}\n\nsmith-uid={SERVICE_ID}",
    ],
)
def test_the_marker_is_found_on_any_line_of_the_description(description: str) -> None:
    assert ProxmoxReader.service_id_in_marker({"description": description}) == SERVICE_ID


@pytest.mark.parametrize(
    "description",
    [
        None,
        7,
        "",
        "web server",
        f"do not copy smith-uid={SERVICE_ID}",
        f"smith-uid={SERVICE_ID}0",
        f"smith-uid={SERVICE_ID} and more",
        "smith-uid=",
        f"smith-uid={SERVICE_ID}\nsmith-uid={OTHER_SERVICE_ID}",
    ],
)
def test_a_vm_without_exactly_one_marker_belongs_to_no_service(description: Any) -> None:
    assert ProxmoxReader.service_id_in_marker({"description": description}) == ""
    assert ProxmoxReader.service_id_in_marker({}) == ""


def test_the_repr_of_a_connection_does_not_contain_its_secrets() -> None:
    text = repr(ProxmoxConnection(host="pve", user="smith@pve", token_secret="hunter2!", password="hunter3!"))
    assert "smith@pve" in text
    assert "hunter" not in text


@pytest.mark.parametrize("node", ["", "../access", "pve1/qemu", "pve 1", "pve1?x=1", ".."])
def test_an_invalid_node_name_never_becomes_part_of_a_path(node: str) -> None:
    reader = ProxmoxReader(ProxmoxConnection(host="192.0.2.1", user="smith@pve", token_id="job", token_secret="x" * 8))
    with pytest.raises(JobError, match=r"^INVALID_REQUEST: "):
        reader.vm_config(node, 100)


@pytest.mark.parametrize("vmid", [-1, 0, 99, 10**9])
def test_an_invalid_vmid_is_refused_without_a_request(vmid: int) -> None:
    """Proxmox answers 400 to an invalid VMID, and also to a VMID that is in use."""
    reader = ProxmoxReader(ProxmoxConnection(host="192.0.2.1", user="smith@pve", token_id="job", token_secret="x" * 8))
    with pytest.raises(JobError, match=r"^INVALID_REQUEST: "):
        reader.is_vmid_free(vmid)
