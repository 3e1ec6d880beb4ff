"""The Proxmox stand-in (built on fakepve) behaves as Proxmox where fakepve does not. The tests call its API."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import proxmoxer
import pytest
import requests
from smith_lab.proxmox import stand_in as stand_in_module
from smith_lab.proxmox.stand_in import ProxmoxStandIn, StandInError, running_stand_in
from smith_lab.system import wait_for


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def api(stand_in: ProxmoxStandIn) -> Any:
    return connect(stand_in)


@pytest.fixture
def vm(stand_in: ProxmoxStandIn, api: Any) -> Iterator[int]:
    """Yield the VMID of a new clone of the template 9000 on pve1."""
    clone(api, 700)
    yield 700
    stand_in.control("clear_faults")
    if stand_in.guest(700):
        stand_in.control("remove", vmid=700)


def connect(stand_in: ProxmoxStandIn, secret: str | None = None) -> Any:
    return proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=secret or stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )


def clone(api: Any, vmid: int, **more: Any) -> str:
    """Clone the template 9000; return how the Proxmox task ended."""
    return end_of_task(
        api, "pve1", api.nodes("pve1").qemu(9000).clone.post(newid=vmid, name=f"vm-{vmid}", full=1, **more)
    )


def end_of_task(api: Any, node: str, upid: str) -> str:
    """Return how the Proxmox task ended: "OK" or its error."""
    return str(api.nodes(node).tasks(upid).status.get()["exitstatus"])


def test_the_templates_are_on_two_nodes(api: Any) -> None:
    found = {vm["vmid"]: (vm["name"], vm["node"], vm["template"]) for vm in api.cluster.resources.get(type="vm")}
    assert found[9000] == ("debian-12", "pve1", 1)
    assert found[9001] == ("ubuntu-24.04", "pve2", 1)


def test_a_guest_that_another_client_has_deleted_leaves_no_volume(stand_in: ProxmoxStandIn, api: Any) -> None:
    before = stand_in.storages()
    clone(api, 701)
    assert stand_in.storages() != before
    stand_in.control("remove", vmid=701)
    assert stand_in.storages() == before


def test_the_certificate_is_verified_against_the_generated_ca(stand_in: ProxmoxStandIn) -> None:
    url = f"https://{stand_in.host}:{stand_in.port}/api2/json/version"
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(url, timeout=10)
    context = ssl.create_default_context(cafile=str(stand_in.ca_bundle))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
    assert requests.get(url, timeout=10, verify=str(stand_in.ca_bundle)).status_code == 401


def test_a_wrong_token_is_refused(stand_in: ProxmoxStandIn) -> None:
    with pytest.raises(proxmoxer.ResourceException, match="401"):
        connect(stand_in, secret="wrong").version.get()


def test_the_token_has_only_the_granted_privileges(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    stand_in.control("revoke", path="/vms", privilege="VM.PowerMgmt")
    try:
        with pytest.raises(proxmoxer.ResourceException, match=r"VM\.PowerMgmt"):
            api.nodes("pve1").qemu(vm).status.start.post()
    finally:
        stand_in.control("grant", path="/vms", privilege="VM.PowerMgmt")


def test_the_permissions_of_a_path_are_listed_under_this_path(api: Any, vm: int) -> None:
    assert "VM.Audit" in api.access.permissions.get(path=f"/vms/{vm}")[f"/vms/{vm}"]


def test_resize_changes_the_size_of_the_disk(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    assert end_of_task(api, "pve1", api.nodes("pve1").qemu(vm).resize.set(disk="scsi0", size="20G")) == "OK"
    assert "size=20G" in api.nodes("pve1").qemu(vm).config.get()["scsi0"]


def test_a_resize_to_a_smaller_size_fails(api: Any, vm: int) -> None:
    upid = api.nodes("pve1").qemu(vm).resize.set(disk="scsi0", size="1G")
    assert end_of_task(api, "pve1", upid) == "shrinking disks is not supported"


def test_resize_fails_on_a_locked_vm(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    stand_in.control("lock", vmid=vm, lock="backup")
    upid = api.nodes("pve1").qemu(vm).resize.set(disk="scsi0", size="20G")
    assert end_of_task(api, "pve1", upid) == "VM is locked (backup)"


def test_migrate_moves_the_vm(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    assert end_of_task(api, "pve1", api.nodes("pve1").qemu(vm).migrate.post(target="pve2")) == "OK"
    guest = stand_in.guest(vm)
    assert guest
    assert guest["node"] == "pve2"


def test_move_disk_changes_the_storage(api: Any, vm: int) -> None:
    upid = api.nodes("pve1").qemu(vm).move_disk.post(disk="scsi0", storage="ceph", delete=1)
    assert end_of_task(api, "pve1", upid) == "OK"
    assert api.nodes("pve1").qemu(vm).config.get()["scsi0"].startswith("ceph:")


def test_a_new_disk_is_allocated_and_a_removed_one_is_kept_as_unused(api: Any, vm: int) -> None:
    config = api.nodes("pve1").qemu(vm).config
    config.set(scsi1="local-lvm:4")
    assert config.get()["scsi1"].endswith("size=4G")
    config.set(delete="scsi1")
    assert "scsi1" not in config.get()
    assert "unused0" in config.get()


def test_the_configuration_contains_pending_values_unless_only_current_values_are_requested(
    stand_in: ProxmoxStandIn, api: Any, vm: int
) -> None:
    qemu = api.nodes("pve1").qemu(vm)
    qemu.status.start.post()
    qemu.config.set(cores=4)
    assert (qemu.config.get()["cores"], qemu.config.get(current=1)["cores"]) == (4, 1)


def test_a_pending_value_that_is_set_back_is_no_longer_pending(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    qemu = api.nodes("pve1").qemu(vm)
    qemu.status.start.post()
    qemu.config.set(cores=4)
    qemu.config.set(cores=1)
    guest = stand_in.guest(vm)
    assert guest
    assert guest["pending"] == {}


def test_a_clone_has_its_own_cloud_init_drive(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    assert f"vm-{vm}-cloudinit" in api.nodes("pve1").qemu(vm).config.get()["ide2"]
    end_of_task(api, "pve1", api.nodes("pve1").qemu.delete(vm))
    template = stand_in.guest(9000)
    assert template
    assert "vm-9000-cloudinit" in template["config"]["ide2"]


def test_the_guest_agent_answers_after_the_start_with_the_nics_mac(api: Any, vm: int) -> None:
    qemu = api.nodes("pve1").qemu(vm)
    with pytest.raises(proxmoxer.ResourceException, match=f"VM {vm} is not running"):
        qemu.agent("network-get-interfaces").get()
    qemu.config.set(ipconfig0="ip=192.0.2.77/24,gw=192.0.2.1")
    qemu.status.start.post()
    interfaces = qemu.agent("network-get-interfaces").get()["result"]
    assert interfaces[1]["hardware-address"].upper() in qemu.config.get()["net0"]
    assert interfaces[1]["ip-addresses"][0]["ip-address"] == "192.0.2.77"


def test_the_password_is_shown_as_stars(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    qemu = api.nodes("pve1").qemu(vm)
    qemu.config.set(cipassword="swordfish")
    assert qemu.config.get()["cipassword"] == "**********"
    assert "swordfish" not in str(stand_in.request_log()) + str(stand_in.guests()) + str(qemu.pending.get())


def test_an_injected_error_answers_one_request_which_changes_nothing(
    stand_in: ProxmoxStandIn, api: Any, vm: int
) -> None:
    stand_in.fail("PUT", "/nodes/*/qemu/700/config", status=502, text="Bad Gateway")
    with pytest.raises(proxmoxer.ResourceException, match="502"):
        api.nodes("pve1").qemu(vm).config.set(cores=8)
    assert api.nodes("pve1").qemu(vm).config.get()["cores"] == 1
    api.nodes("pve1").qemu(vm).config.set(cores=8)
    assert api.nodes("pve1").qemu(vm).config.get()["cores"] == 8


def test_a_fault_with_the_parameter_after_lets_a_request_be_processed_but_not_answered(
    stand_in: ProxmoxStandIn, api: Any, vm: int
) -> None:
    stand_in.fail("PUT", "/nodes/*/qemu/700/config", status=0, after=True)
    with pytest.raises(requests.ConnectionError):
        api.nodes("pve1").qemu(vm).config.set(cores=8)
    assert api.nodes("pve1").qemu(vm).config.get()["cores"] == 8


def test_after_a_clone_that_failed_no_vm_exists(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.fail_task("qmclone", "clone failed: No space left on device")
    assert "No space left" in clone(api, 701)
    assert stand_in.guest(701) is None


def test_the_control_verb_recycle_puts_another_vm_without_a_marker_at_the_vmid(
    stand_in: ProxmoxStandIn, vm: int
) -> None:
    stand_in.control("recycle", vmid=vm, name="theirs")
    guest = stand_in.guest(vm)
    assert guest
    assert (guest["name"], guest["status"], guest["config"].get("description")) == ("theirs", "running", None)


def test_an_unknown_control_verb_is_an_error(stand_in: ProxmoxStandIn) -> None:
    with pytest.raises(StandInError, match="unknown verb"):
        stand_in.control("explode")


def test_the_request_log_separates_reads_from_changes(stand_in: ProxmoxStandIn, api: Any, vm: int) -> None:
    stand_in.reset_request_log()
    api.nodes("pve1").qemu(vm).config.get()
    assert stand_in.changing_requests() == []
    api.nodes("pve1").qemu(vm).config.set(cores=2)
    assert [entry["path"] for entry in stand_in.changing_requests()] == [f"/nodes/pve1/qemu/{vm}/config"]


def test_stopping_ends_the_process_and_closes_the_port() -> None:
    with running_stand_in() as running:
        pid = running.pid
        url = f"https://{running.host}:{running.port}/api2/json/version"
    assert pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in_module, "SERVER_MODULE", "smith_lab.proxmox.missing_server")
    with pytest.raises(StandInError, match=r"did not start(.|\n)*missing_server"):
        ProxmoxStandIn(tmp_path).start()


def test_files_with_secrets_have_mode_0600(tmp_path: Path) -> None:
    with running_stand_in(folder=tmp_path) as running:
        modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("settings.json", "server.key")}
        assert running.token_secret not in " ".join(Path(f"/proc/{running.pid}/cmdline").read_text().split("\0"))
    assert modes == {"settings.json": 0o600, "server.key": 0o600}


def test_a_held_request_is_processed_and_answered_when_faults_are_cleared(
    stand_in: ProxmoxStandIn, api: Any, vm: int
) -> None:
    stand_in.control("hold", method="POST", path="/nodes/[^/]+/qemu/[0-9]+/status/start")
    with ThreadPoolExecutor() as pool:
        status_request = pool.submit(api.nodes("pve1").qemu(vm).status.current.get)
        assert status_request.result(30)["vmid"] == vm
        assert not stand_in.is_holding()
        started = pool.submit(api.nodes("pve1").qemu(vm).status.start.post)
        wait_for(stand_in.is_holding, 30, "the held request")
        assert (stand_in.guest(vm) or {})["status"] == "running"
        assert not started.done()
        stand_in.control("clear_faults")
        assert started.result(30).startswith("UPID:")
