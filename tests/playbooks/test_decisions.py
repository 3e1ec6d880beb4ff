"""The decisions of the roles, as Python functions without Ansible: tables of cases and generated cases."""

from __future__ import annotations

import hashlib
import random
import re
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import (
    allowed,
    cloud_init,
    configuration,
    creation,
    deletion,
    disks,
    failures,
    guest_facts,
    hardware,
    identity,
    login,
    notes,
    preconditions,
    proxmox_tasks,
    request_values,
    volumes,
)
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.shared import guest_disks, marker
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1024**3
SERVICE = "0f7e2c1a-1111-4222-8333-944455556666"
OTHER = "11111111-2222-4333-8444-555555555555"


def make_vm(**more: Any) -> dict[str, Any]:
    return {"service_id": SERVICE, "vmid": 500, "name": "web-0f7e2c1a", **more}


def make_found(status: str = "stopped", **config: Any) -> dict[str, Any]:
    """Return the facts that a look-up derives from a configuration."""
    base = {"name": "web-0f7e2c1a", "description": f"smith-uid={SERVICE}", "cores": 2, "memory": "2048"}
    disks = {"scsi0": "local-lvm:vm-500-disk-0,size=8G", "ide2": "local-lvm:vm-500-cloudinit,media=cdrom"}
    rows = [{"key": key, "value": value} for key, value in {**base, **disks, **config}.items() if value is not None]
    return {
        **{"exists": True, "kind": "qemu", "vmid": 500, "node": "pve1", "template": {}},
        **guest_facts.read_settings(rows, {"status": status}),
    }


def text_line(text: str) -> str:
    """Return the line of the notes that says which text is the service's."""
    return f"smith-text={len(text.split(chr(10)))}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# ---------------------------------------------------------------------- what the provider offers

ALLOWED = {"bridges": ["vmbr0"], "vlans": ["20", "100-199"], "storages": ["local-lvm"], "backup_storages": []}
NIC = "virtio=BC:24:11:00:11:22,bridge=vmbr7,tag=7"


@pytest.mark.parametrize(
    ("requested", "config", "problem"),
    [
        ({}, {}, ""),
        ({"bridge": "vmbr0"}, {}, ""),
        ({"bridge": "vmbr7"}, {}, "the bridge vmbr7 is not offered"),
        ({"bridge": "vmbr7"}, {"net0": NIC}, ""),  # the VM has it already
        ({"network": {"vlan": 7}}, {"net0": NIC}, ""),
        ({"network": {"vlan": 20}}, {}, ""),
        ({"network": {"vlan": 100}}, {}, ""),
        ({"network": {"vlan": 199}}, {}, ""),
        ({"network": {"vlan": 200}}, {}, "the VLAN 200 is not offered"),
        ({"network": {"vlan": 0}}, {"net0": NIC}, ""),
        ({"network": {"bridge": "vmbr0"}}, {"net0": NIC}, "the VLAN 7 is not offered"),  # another bridge, the same tag
        ({"network": {"bridge": "vmbr0", "vlan": 20}}, {"net0": NIC}, ""),
        ({"networks": [{}, {"bridge": "vmbr1"}]}, {}, "the bridge vmbr1 is not offered"),
        ({"storage": "ceph"}, {}, "the storage ceph is not offered"),
        ({"disks": [{"disk": "scsi1", "size_gib": 1, "storage": "ceph"}]}, {}, "the storage ceph is not offered"),
        ({"disks": [{"disk": "scsi1", "storage": "ceph"}]}, {"scsi1": "ceph:vm-500-disk-1,size=1G"}, ""),
        ({"disks": [{"disk": "scsi0", "storage": "ceph"}]}, {}, "the storage ceph is not offered"),
        ({"cloud_init": {"vendor_snippet": "local:snippets/a.yml"}}, {}, "the storage local is not offered"),
        (
            {"cloud_init": {"vendor_snippet": "local:snippets/a.yml"}},
            {"cicustom": "user=local:snippets/u.yml,vendor=local:snippets/a.yml"},
            "",
        ),
    ],
)
def test_a_request_may_name_what_is_offered_and_what_the_vm_has(requested: Any, config: Any, problem: str) -> None:
    found = make_found(**config)
    text = f"INVALID_REQUEST: {problem}" if problem else ""
    assert allowed.problem(found, make_vm(allowed=ALLOWED, **requested), is_new=False) == text
    assert allowed.problem(found, make_vm(**requested), is_new=False) == "", "without the lists there is no limit"
    everything = {name: ["*"] for name in ALLOWED}
    assert allowed.problem(found, make_vm(allowed=everything, **requested), is_new=False) == ""


def test_a_new_guest_names_only_an_iso_image_on_an_offered_storage() -> None:
    vm = make_vm(allowed=ALLOWED, iso="local:iso/debian.iso")
    absent = guest_facts.absent(500)
    assert allowed.problem(absent, vm, is_new=True) == "INVALID_REQUEST: the storage local is not offered"
    assert allowed.problem(absent, {**vm, "iso": "local-lvm:iso/debian.iso"}, is_new=True) == ""


# ---------------------------------------------------------------------- identity


def test_the_services_own_vm_is_accepted() -> None:
    assert identity.identity_problem(make_found(), make_vm()) == ""


def test_ten_thousand_vms_of_other_owners_are_refused() -> None:
    """A VM with any combination of mismatches is never accepted as the service's."""
    rng = random.Random(4711)  # noqa: S311 - the same cases in every run
    for _ in range(10_000):
        found, is_ours = foreign_guest(rng)
        problem = identity.identity_problem(found, make_vm())
        assert (problem == "") is is_ours, (found, problem)
        assert is_ours or problem.split(":")[0] in ("VM_IDENTITY_MISMATCH", "VM_PROTECTED")


def foreign_guest(rng: random.Random) -> tuple[dict[str, Any], bool]:
    marker = rng.choice([SERVICE, SERVICE.upper(), OTHER, str(uuid.UUID(int=rng.getrandbits(128))), SERVICE[:-1], ""])
    name = rng.choice(["web-0f7e2c1a", "web-0f7e2c1b", "web", "WEB-0F7E2C1A", ""])
    prefix = rng.choice(["", "text\n", "smith-uid= \n", f"see smith-uid={OTHER}\n"])
    second = rng.choice(["", "", f"\nsmith-uid={OTHER}"])
    template, protection = rng.choice([None, None, 0, 1]), rng.choice([None, None, 0, 1])
    description = f"{prefix}smith-uid={marker}{second}" if marker else prefix
    found = make_found(name=name, description=description, template=template, protection=protection)
    found["kind"] = rng.choice(["qemu", "qemu", "qemu", "lxc"])
    is_ours = marker.lower() == SERVICE and not second and name == "web-0f7e2c1a" and found["kind"] == "qemu"
    return found, is_ours and not template and not protection


def test_a_missing_vm_is_accepted_only_if_allowed_and_proven_absent() -> None:
    gone = guest_facts.absent(500)
    proven = gone | {"absence": {"is_proven": True, "code": "", "text": ""}}
    assert identity.identity_problem(gone, make_vm(), True).startswith("PVE_PERMISSION")
    assert identity.identity_problem(proven, make_vm()).startswith("VM_NOT_FOUND")
    assert identity.identity_problem(proven, make_vm(), True) == ""


def test_a_partial_clone_without_a_marker_is_accepted_for_deletion_by_its_name() -> None:
    clone, wish = make_found(description="debian-12"), make_vm(half_made=True)
    assert identity.identity_problem(clone, wish, True) == ""
    for found, vm, may_be_absent in (
        (clone, wish, False),  # every other action
        (clone, make_vm(), True),
        (make_found(description="debian-12", name="web"), wish, True),
        (make_found(description=f"smith-uid={OTHER}"), wish, True),
        (make_found(description="debian-12", template=1), wish, True),
        (make_found(description="debian-12", protection=1), wish, True),
    ):
        assert identity.identity_problem(found, vm, may_be_absent).startswith(("VM_IDENTITY_MISMATCH", "VM_PROTECTED"))


@pytest.mark.parametrize("may_be_absent", [False, True])
def test_a_vm_whose_deletion_was_interrupted_has_a_code_of_its_own(may_be_absent: bool) -> None:
    """Such a VM has only a lock: no name and no marker."""
    found = make_found(name=None, description=None, lock="destroyed", scsi0=None, ide2=None)
    problem = identity.identity_problem(found, make_vm(), may_be_absent)
    assert problem.startswith("VM_HALF_DESTROYED: ")
    assert "`qm unlock 500` and `qm destroy 500`" in problem
    assert identity.lock_problem(found) == problem
    assert identity.reservation_problem(found, make_vm()).startswith("VM_ID_TAKEN")


RESERVATIONS = [
    ("free", guest_facts.absent(500), ""),
    ("ours by its marker", make_found(name="renamed"), ""),
    ("ours by its reserved name, the description still the template's", make_found(description="debian"), ""),
    ("another name, no marker", make_found(name="x", description=None), "VM_ID_TAKEN"),
    ("our name, another's marker", make_found(description=f"smith-uid={OTHER}"), "VM_ID_TAKEN"),
    ("our name, another's marker in capitals", make_found(description=f"SMITH-UID={OTHER}"), "VM_ID_TAKEN"),
    ("a template of our name", make_found(template=1), "VM_ID_TAKEN"),
    ("ours, protected", make_found(protection=1), "VM_PROTECTED"),
]


@pytest.mark.parametrize(("what", "found", "code"), RESERVATIONS, ids=[case[0] for case in RESERVATIONS])
def test_a_reservation_accepts_the_services_vm_only(what: str, found: dict[str, Any], code: str) -> None:
    assert identity.reservation_problem(found, make_vm()).split(":")[0] == code


# ---------------------------------------------------------------------- changes


def test_an_equal_configuration_needs_no_change() -> None:
    found = make_found(tags="smith;web", sockets=1)
    wanted = make_vm(cores=2, memory_mib=2048, disk_gib=8, tags=["Web"], network={"mode": "dhcp"})
    found["config"]["ipconfig0"] = "ip=dhcp"
    assert configuration.changes(found, wanted) == {}
    assert disks.disk_steps(found, wanted) == []


DIFFERENCES = [
    ({"cores": 4}, {"cores": 4}),
    ({"cores": "4"}, {"cores": 4}),  # -e k=v by hand
    ({"memory_mib": 4096}, {"memory": 4096}),
    ({"tags": []}, {}),
    ({"tags": [], "previous_tags": ["web"]}, {"tags": ["smith"]}),
    ({"tags": [], "previous_tags": ["web", "smith", "x"], "allowed": {"tags": ["x"]}}, {}),
    ({"tags": ["B", "a"]}, {"tags": ["a", "b", "smith", "web"]}),
    ({"tags": ["b"], "previous_tags": ["web", "b"]}, {"tags": ["b", "smith"]}),
    ({"description": "hi"}, {"description": f"hi\n\n{text_line('hi')}\nsmith-uid={SERVICE}"}),
    ({"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24"}}, {"ipconfig": {"ipconfig0": "ip=192.0.2.9/24"}}),
    ({"network": {"dns_servers": ["192.0.2.53"]}}, {"nameservers": ["192.0.2.53"]}),
    ({"cloud_init": {"user": "root"}}, {"ciuser": "root"}),
    ({"cloud_init": {"ssh_public_keys": ["a b\r\n", "", "c d"]}}, {"sshkeys": "a b\nc d"}),
    ({"bridge": "vmbr1"}, {"net": {"net0": "virtio=BC:24:11:00:00:01,firewall=1,bridge=vmbr1"}}),
    (
        {"network": {"bridge": "vmbr1", "vlan": 5}},
        {"net": {"net0": "virtio=BC:24:11:00:00:01,firewall=1,bridge=vmbr1,tag=5"}},
    ),
]


@pytest.mark.parametrize(("wanted", "sent"), DIFFERENCES)
def test_only_differing_options_are_sent(wanted: dict[str, Any], sent: dict[str, Any]) -> None:
    found = make_found(tags="smith;web", net0="virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1")
    assert configuration.changes(found, make_vm(**wanted)) == sent


@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=200)
def test_a_vm_with_any_description_has_exactly_one_marker(text: str, keys: list[str]) -> None:
    wanted = make_vm(description=text, cloud_init={"ssh_public_keys": keys})
    sent = configuration.changes(make_found(description="x"), wanted)
    after = make_found(description=sent["description"], tags=";".join(sent["tags"]), sshkeys=sent.get("sshkeys"))
    assert after["markers"] == [SERVICE]


def test_a_password_is_set_once_by_a_create_and_always_by_an_update() -> None:
    wanted = make_vm(cloud_init={"password": "swordfish"})
    ours, templates = make_found(cipassword="**********"), make_found(cipassword="*", description="debian")
    assert "cipassword" not in configuration.changes(ours, wanted, True)
    assert configuration.changes(templates, wanted, True)["cipassword"] == "swordfish"
    assert configuration.changes(ours, wanted)["cipassword"] == "swordfish"
    assert "swordfish" not in str(configuration.planned(ours, wanted))


@pytest.mark.parametrize(
    ("size", "wanted_gib", "growth", "is_refused"),
    [
        ("8G", 8, "", False),
        ("8192M", 8, "", False),
        ("2252M", 3, "3G", False),
        ("8G", 9, "9G", False),
        ("8G", 7, "", True),
    ],
)
def test_a_disk_grows_and_never_shrinks(size: str, wanted_gib: int, growth: str, is_refused: bool) -> None:
    found, wanted = make_found(scsi0=f"local-lvm:vm-500-disk-0,size={size}"), make_vm(disk_gib=wanted_gib)
    assert [step["size"] for step in disks.disk_steps(found, wanted)] == ([growth] if growth else [])
    assert creation.request_problem(found, wanted).startswith("INVALID_REQUEST") is is_refused


# ---------------------------------------------------------------------- what is read


def test_pending_values_count_as_the_configuration() -> None:
    rows = [{"key": "cores", "value": 2, "pending": 4}, {"key": "balloon", "value": 512, "delete": 1}]
    found = guest_facts.read_settings([*rows, {"key": "name", "value": "x"}], {"status": "running"})
    assert (found["cores"], found["pending"], "balloon" in found["config"]) == (4, ["balloon", "cores"], False)
    assert configuration.is_restart_needed(found)


BOOT_DISKS = [
    ({"boot": "order=virtio0;scsi0", "scsi0": "a:1,size=1G", "virtio0": "a:2,size=2G"}, "virtio0"),
    ({"boot": "order=ide2;net0", "ide2": "a:iso,media=cdrom", "scsi1": "a:1,size=1G"}, "scsi1"),
    ({"bootdisk": "sata0", "scsi0": "a:1", "sata0": "a:2"}, "sata0"),
    ({"ide0": "a:vm-1-cloudinit,media=cdrom"}, ""),
    ({}, ""),
]


@pytest.mark.parametrize(("config", "disk"), BOOT_DISKS)
def test_the_first_disk_is_the_boot_disk(config: dict[str, str], disk: str) -> None:
    assert guest_disks.boot_disk(config) == disk


def test_loopback_and_link_local_addresses_are_not_reported() -> None:
    addresses = ["127.0.0.1", "169.254.1.1", "fe80::1", "2001:db8::5", "192.0.2.7", "::1"]
    nic = {"name": "eth0", "ip-addresses": [{"ip-address": ip} for ip in addresses]}
    loopback = {"name": "lo", "ip-addresses": [{"ip-address": "192.0.2.99"}]}
    assert guest_facts.usable_addresses([loopback, nic, {"name": "eth1"}], []) == ["192.0.2.7", "2001:db8::5"]


def test_only_addresses_of_the_vms_nics_are_reported_in_nic_order() -> None:
    """A guest may have further bridges and tunnels; a VLAN or a bridge on a NIC has the NIC's MAC address."""
    config = {"net10": "virtio=BC:24:11:00:00:10,bridge=b", "net2": "virtio=BC:24:11:00:00:02,bridge=b", "netx": "no"}
    macs = guest_facts.macs_of(config)
    assert macs == ["BC:24:11:00:00:02", "BC:24:11:00:00:10"]

    def nic(name: str, mac: str, *addresses: str) -> dict[str, Any]:
        return {"name": name, "hardware-address": mac, "ip-addresses": [{"ip-address": ip} for ip in addresses]}

    guest = [
        nic("docker0", "02:42:00:00:00:01", "172.17.0.1"),
        nic("eth1", "bc:24:11:00:00:10", "198.51.100.7", "2001:db8::7"),
        nic("tun0", "", "203.0.113.9"),
        nic("br0", "bc:24:11:00:00:02", "192.0.2.7", "2001:db8::2"),
    ]
    assert guest_facts.usable_addresses(guest, macs) == ["192.0.2.7", "198.51.100.7", "2001:db8::2", "2001:db8::7"]


TASK_STATES = [
    (None, True, False),
    ("RUNNING", True, False),
    ("OK", False, False),
    ("WARNINGS: 1", False, False),
    ("clone failed: x", False, True),
    ("OKAY not", False, True),
]


def test_of_two_proxmox_tasks_of_the_same_second_the_later_one_is_newer() -> None:
    """A container's stop and start fit into a second; the start's failure must be seen."""
    stop = {"type": "vzstop", "starttime": 1_700_000_000, "pstart": 7_000, "status": "OK"}
    start = {"type": "vzstart", "starttime": 1_700_000_000, "pstart": 7_007, "status": "start broke"}
    older = {"type": "vzcreate", "starttime": 1_699_999_999, "pstart": 9_000, "status": "OK"}
    for tasks in ([stop, start, older], [start, older, stop], [older, stop, start]):
        assert [task["type"] for task in proxmox_tasks.newest_first(tasks)] == ["vzstart", "vzstop", "vzcreate"]


@pytest.mark.parametrize(("status", "is_running", "has_failed"), TASK_STATES)
def test_the_state_of_a_proxmox_task_follows_from_its_status(
    status: str | None, is_running: bool, has_failed: bool
) -> None:
    task = {"status": status} if status else {}
    assert (proxmox_tasks.is_running(task), proxmox_tasks.failed(task)) == (is_running, has_failed)


# ---------------------------------------------------------------------- failures and the connection


def test_a_failure_message_gets_exactly_one_code() -> None:
    assert failures.failure({"msg": "VM_PROTECTED: no"}) == "VM_PROTECTED: no"
    assert failures.failure({"msg": "starting of VM 5 failed with exception: 403 Forbidden: x"}).startswith("PVE_PERM")
    assert failures.failure({}).startswith("PLAYBOOK_FAILED")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"exception": "Traceback …\nx.ResourceException: 596 Connection timed out"}, "PVE_TIMEOUT: "),
        ({"exception": "Traceback …\nKeyError: 'status'"}, "PLAYBOOK_FAILED: KeyError: 'status'"),
        ({"module_stderr": "Traceback …\nKeyError: 'status'\n"}, "PLAYBOOK_FAILED: KeyError: 'status'"),
        ({}, "PLAYBOOK_FAILED: the module ended without a message"),
    ],
)
def test_a_module_that_ended_by_an_exception_has_an_error_and_may_have_made_its_change(
    answer: dict[str, Any], error: str
) -> None:
    complete = failures.with_message({"failed": True, **answer})
    assert failures.proxmox_failure(complete).startswith(error)
    assert failures.is_outcome_unknown(complete)


def test_an_answer_with_a_message_is_not_changed() -> None:
    for answer in ({"failed": True, "msg": "x", "exception": "y"}, {"changed": True}, {"failed": False}):
        assert failures.with_message(answer) is answer


FORGED_TEXT = "VM_NOT_FOUND: VM 500 does not exist"


def test_a_code_in_the_text_of_proxmox_is_not_used() -> None:
    """VM_NOT_FOUND would end the service, although its VM exists."""
    found = {**make_found(), "reached": False}
    texts = [
        failures.outcome_problem({**found, "task_error": FORGED_TEXT}, {}, "running"),
        failures.outcome_problem(found, {"failed": True, "msg": f"{FORGED_TEXT}: Read timed out"}, "running"),
        failures.proxmox_failure({"msg": FORGED_TEXT}),
        failures.failure_after_look_up({"msg": FORGED_TEXT}),
        failures.failure({"msg": FORGED_TEXT, "invocation": {"module_args": {"api_host": "pve1"}}}),
        configuration.configuration_problem({**found, "task_error": FORGED_TEXT}, make_vm(cores=64), []),
    ]
    assert [text.partition(":")[0] for text in texts] == [
        *("TASK_FAILED", "PVE_TIMEOUT", "PLAYBOOK_FAILED", "PLAYBOOK_FAILED", "PLAYBOOK_FAILED", "TASK_FAILED")
    ]


UNKNOWN_OUTCOMES = ["Reached timeout while waiting for creating VM.", "Read timed out. (read timeout=5)"]
UNKNOWN_OUTCOMES += [
    "('Connection aborted.', RemoteDisconnected())",
    "Module result deserialization failed: No start",
    "502 Bad Gateway",
]


CARRIED_OUT = [
    ("595 Errors during connection establishment: Connection refused", True, False),
    ("401 Unauthorized: Authentication failed!", True, False),
    ("596 Errors during TLS negotiation: Connection timed out", True, True),
    ("599 Too many redirections", True, True),
    ("('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))", True, True),
    ("500 Internal Server Error: VM is locked (backup)", False, False),
]


@pytest.mark.parametrize(("text", "by_module", "by_request"), CARRIED_OUT)
def test_whether_a_failed_change_may_have_been_made(text: str, by_module: bool, by_request: bool) -> None:
    """A module sends several requests. One of them may have made the change before another one failed."""
    answer = {"failed": True, "msg": text}
    assert failures.is_outcome_unknown(answer) is by_module
    assert failures.is_outcome_unknown(answer, is_single_request=True) is by_request


def test_a_login_that_is_accepted_again_was_refused_only_for_a_moment() -> None:
    answer = {"failed": True, "msg": "401 Unauthorized: Authentication failed!"}
    problem = failures.outcome_problem({**make_found(), "reached": False}, answer, "running")
    assert problem == "PVE_UNREACHABLE: 401 Unauthorized: Authentication failed!"


@pytest.mark.parametrize("text", UNKNOWN_OUTCOMES)
def test_the_outcome_of_a_change_without_a_response_is_unknown(text: str) -> None:
    assert failures.is_outcome_unknown({"failed": True, "msg": text})


@pytest.mark.parametrize(
    "answer",
    [
        {"failed": True, "msg": "403 Forbidden: x"},
        {"failed": True, "msg": "500 Internal Server Error: VM is locked (backup)"},
        {"failed": False, "msg": "VM 5 started"},
        {"msg": ""},
    ],
)
def test_the_outcome_of_a_change_that_proxmox_made_or_refused_is_known(answer: dict[str, Any]) -> None:
    assert not failures.is_outcome_unknown(answer)


def test_the_certificate_is_verified_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert login.connection("")["validate_certs"] is True
    monkeypatch.setenv("PROXMOX_VALIDATE_CERTS", "False")
    monkeypatch.setenv("PROXMOX_PORT", "")
    assert login.connection("") == {"validate_certs": False}
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"api_host": "pve", "api_password": "", "ca_bundle": "/ca"}))
    assert login.connection(str(tmp_path / "c.yml")) == {"api_host": "pve", "validate_certs": True}
    assert login.ca_bundle(str(tmp_path / "c.yml")) == "/ca"


# ---------------------------------------------------------------------- hardware

OPTIONS = [
    ({"sockets": 2}, {}, {"sockets": 2}),
    ({"cores": 2, "sockets": 2}, {}, {"sockets": 2}),
    ({"cores": 2}, {"sockets": 2}, {"sockets": 1}),
    ({"cpu_type": "host"}, {"cpu": "cputype=host,flags=+aes"}, {}),
    ({"cpu_type": "host"}, {"cpu": "kvm64,flags=+aes"}, {"cpu": "host,flags=+aes"}),
    ({"balloon_mib": 0}, {}, {"balloon": 0}),
    ({"balloon_mib": 512}, {"balloon": "512"}, {}),
    ({"onboot": "yes"}, {}, {"onboot": True}),
    ({"onboot": False}, {}, {}),
    ({"guest_agent": True}, {"agent": "1,fstrim_cloned_disks=1"}, {}),
    ({"guest_agent": False}, {"agent": "enabled=1,type=virtio"}, {"agent": "enabled=0,type=virtio"}),
    ({"boot_order": ["scsi0", "ide2"]}, {}, {"boot": "order=scsi0;ide2"}),
    ({"boot_order": ["scsi0"]}, {"boot": "order=scsi0"}, {}),
    ({"protection": True}, {}, {"protection": True, "tags": ["smith", "smith-protected", "web"]}),
    (
        {"protection": False},
        {"protection": 1, "tags": "smith;smith-protected"},
        {"protection": False, "tags": ["smith"]},
    ),
    ({"tags": ["a", "smith-protected"]}, {}, {"tags": ["a", "smith", "web"]}),
    ({"tags": ["a"]}, {"protection": 1, "tags": "smith;smith-protected"}, {"tags": ["a", "smith", "smith-protected"]}),
    ({"network": {"search_domains": ["example.net"]}}, {}, {"searchdomains": ["example.net"]}),
    ({"cloud_init": {"vendor_snippet": "local:snippets/v.yml"}}, {}, {"cicustom": "vendor=local:snippets/v.yml"}),
    (
        {"cloud_init": {"vendor_snippet": "local:snippets/v.yml"}},
        {"cicustom": "user=local:snippets/u.yml,vendor=x:snippets/x"},
        {"cicustom": "user=local:snippets/u.yml,vendor=local:snippets/v.yml"},
    ),
]


@pytest.mark.parametrize(("asked", "config", "sent"), OPTIONS)
def test_an_option_is_sent_when_it_differs(asked: dict[str, Any], config: dict[str, Any], sent: dict[str, Any]) -> None:
    found = make_found(**{"tags": "smith;web", "sockets": 1, **config})
    assert configuration.changes(found, make_vm(**asked)) == sent


NICS = [
    ("virtio=BC:24:11:00:00:01,bridge=vmbr0", {"vlan": 5}, "virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5"),
    ("virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5", {"vlan": 0}, "virtio=BC:24:11:00:00:01,bridge=vmbr0"),
    ("e1000=BC:24:11:00:00:01,bridge=vmbr0,firewall=0", {"firewall": False}, None),
    ("virtio=BC:24:11:00:00:01,bridge=b", {"firewall": "yes"}, "virtio=BC:24:11:00:00:01,bridge=b,firewall=1"),
    ("virtio=BC:24:11:00:00:01,bridge=b,firewall=1", {"firewall": 0}, "virtio=BC:24:11:00:00:01,bridge=b"),
    ("virtio=BC:24:11:00:00:01,bridge=b", {"rate_mbps": 100}, "virtio=BC:24:11:00:00:01,bridge=b,rate=12.5"),
    ("virtio=BC:24:11:00:00:01,bridge=b,rate=12.50", {"rate_mbps": 100}, None),
    ("virtio=BC:24:11:00:00:01,bridge=b,rate=1", {"rate_mbps": 0}, "virtio=BC:24:11:00:00:01,bridge=b"),
    ("virtio=BC:24:11:00:00:01,bridge=b", {"mac": "bc:24:11:00:00:09"}, "virtio=BC:24:11:00:00:09,bridge=b"),
    ("virtio=bc:24:11:00:00:09,bridge=b", {"mac": "BC:24:11:00:00:09"}, None),
    ("", {"bridge": "vmbr2"}, "virtio,bridge=vmbr2"),
    ("", {"bridge": "vmbr2", "mac": "BC:24:11:00:00:09"}, "virtio=BC:24:11:00:00:09,bridge=vmbr2"),
]


@pytest.mark.parametrize(("current", "nic", "value"), NICS)
def test_a_nic_keeps_the_options_that_are_not_requested(current: str, nic: dict[str, Any], value: str | None) -> None:
    found = make_found(tags="smith", net0=current or None)
    sent = configuration.changes(found, make_vm(networks=[nic]))
    assert sent == ({} if value is None else {"net": {"net0": value}})


def test_a_new_nic_uses_the_bridge_of_the_first_nic() -> None:
    found = make_found(tags="smith", net0="virtio=BC:24:11:00:00:01,bridge=vmbr3")
    assert configuration.changes(found, make_vm(networks=[{}, {"vlan": 7}])) == {
        "net": {"net1": "virtio,bridge=vmbr3,tag=7"}
    }


ADDRESSES = [
    ("", {"mode": "dhcp"}, "ip=dhcp"),
    ("ip=dhcp", {"ipv6_mode": "slaac"}, "ip=dhcp,ip6=auto"),
    ("ip=dhcp,ip6=auto", {"ipv6_mode": "dhcp"}, "ip=dhcp,ip6=dhcp"),
    (
        "ip=192.0.2.9/24,gw=192.0.2.1",
        {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/64", "ipv6_gateway": "fe80::1"},
        "ip=192.0.2.9/24,gw=192.0.2.1,ip6=2001:db8::9/64,gw6=fe80::1",
    ),
    ("ip=192.0.2.9/24,gw=192.0.2.1", {"mode": "dhcp", "ipv4_gateway": "192.0.2.1"}, "ip=dhcp"),
]


@pytest.mark.parametrize(("current", "network", "value"), ADDRESSES)
def test_changing_one_address_family_keeps_the_other(current: str, network: dict[str, Any], value: str) -> None:
    assert cloud_init.ip_config(current, network) == value


DISKS = [
    ([{"disk": "scsi1", "size_gib": 5}], [{"disk": "scsi1", "state": "present", "storage": "local-lvm", "size": 5}]),
    (
        [{"disk": "virtio0", "size_gib": "5", "storage": "ceph"}],
        [{"disk": "virtio0", "state": "present", "storage": "ceph", "size": 5}],
    ),
    ([{"disk": "scsi0", "storage": "ceph"}], [{"disk": "scsi0", "state": "moved", "storage": "ceph"}]),
    (
        [{"disk": "scsi0", "storage": "ceph", "size_gib": 9}],
        [
            {"disk": "scsi0", "state": "moved", "storage": "ceph"},
            {"disk": "scsi0", "state": "resized", "size": "9G"},
        ],
    ),
    ([{"disk": "scsi0", "storage": "local-lvm", "size_gib": 8}], []),
]


@pytest.mark.parametrize(("requested", "steps"), DISKS)
def test_a_disk_is_added_moved_and_grown(requested: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    assert hardware.problem(make_found(), make_vm(disks=requested)) == ""
    assert disks.disk_steps(make_found(), make_vm(disks=requested)) == steps


IMPOSSIBLE = [
    {"disks": [{"disk": "scsi0", "size_gib": 7}]},
    {"disks": [{"disk": "scsi31", "size_gib": 7}]},
    {"disks": [{"disk": "scsi1"}]},
    {"disks": [{"disk": "ide2", "size_gib": 1}]},
    {"disks": [{"disk": "unused0", "size_gib": 1}]},
    {"disks": [{"disk": "scsi0"}, {"disk": "scsi0", "storage": "ceph"}]},
    {"networks": [{}, {"vlan": 1}]},
    {"networks": [{"mac": "FF:FF:FF:FF:FF:FF"}]},
    {"networks": [{"mac": "BC:24:11:00:00:01,bridge=other"}]},
    {"networks": [{"ipv6_mode": "static"}]},
    {"boot_order": ["scsi7"]},
    {"balloon_mib": 4096},
    {"disk_gib": 20, "disks": [{"disk": "scsi0", "size_gib": 10}]},
    {"network": {"mode": "dhcp", "ipv4_cidr": "192.0.2.9/24"}},
    {"network": {"ipv4_cidr": "192.0.2.9/24"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/255.255.255.0"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.255/24"}},
    {"network": {"mode": "static", "ipv4_cidr": "224.0.0.1/24"}},
    {"network": {"mode": "static", "ipv4_cidr": "2001:db8::9/64"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "192.0.2.9"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "198.51.100.1"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "gateway"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/64", "ipv6_gateway": "2001:db9::1"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "fe80::1%eth0/64"}},
    {"network": {"dns_servers": ["dns.example.net"]}},
    {"networks": [{}, {"mode": "dhcp", "bridge": "vmbr0", "ipv4_gateway": "192.0.2.1"}]},
    {"cloud_init": {"ssh_public_keys": []}},
    {"cloud_init": {"password": ""}},
    {"cloud_init": {"ssh_public_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2Jh me@host"]}},
    {"cloud_init": {"vendor_snippet": "local:snippets/../etc/passwd"}},
    {"cloud_init": {"vendor_snippet": "local:snippets/a,user=local:snippets/b"}},
    {"cloud_init": {"ssh_public_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}},
]


@pytest.mark.parametrize("asked", IMPOSSIBLE, ids=str)
def test_an_impossible_request_is_refused(asked: dict[str, Any]) -> None:
    assert creation.request_problem(make_found(), make_vm(**asked)).startswith("INVALID_REQUEST")


RARE = [
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/32", "ipv4_gateway": "198.51.100.1"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.8/31", "ipv4_gateway": "192.0.2.9"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/128", "ipv6_gateway": "2001:db9::1"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/64", "ipv6_gateway": "fe80::1"}},
    {"network": {"dns_servers": ["2001:db8::53", "192.0.2.53"], "search_domains": []}},
    {"disk_gib": 10, "disks": [{"disk": "scsi0", "size_gib": 10}]},
    {"balloon_mib": 2048},
    {"balloon_mib": 0, "memory_mib": 16},
]


@pytest.mark.parametrize("asked", RARE, ids=str)
def test_a_rare_but_possible_request_is_accepted(asked: dict[str, Any]) -> None:
    assert creation.request_problem(make_found(), make_vm(**asked)) == ""


def test_the_balloon_of_a_template_must_not_exceed_the_requested_memory() -> None:
    template = make_found(template=1, balloon=1024)
    source = {**guest_facts.absent(500), "template": template}
    refused = creation.request_problem(source, make_vm(memory_mib=512))
    assert refused == "INVALID_REQUEST: balloon_mib 1024, which the template has, is more than memory_mib, 512"
    assert creation.request_problem(source, make_vm(memory_mib=512, balloon_mib=0)) == ""
    assert creation.request_problem(source, make_vm(memory_mib=1024)) == ""


def test_a_guest_without_a_cloud_init_drive_cannot_get_name_servers() -> None:
    without = make_found(ide2=None)
    for network in ({"dns_servers": ["192.0.2.53"]}, {"search_domains": ["example.net"]}):
        assert creation.request_problem(without, make_vm(network=network)).startswith("INVALID_REQUEST")
    assert creation.request_problem(without, make_vm(network={"mode": "dhcp", "dns_servers": []})) == ""


COMMENTS = ["", " me@host", " a+b/c%20@host", " Zoë Ω 鍵", " with\ttab and  blanks", " a\u2028b\x85c", ' "q" \\ #;&=']


def test_fifty_ssh_keys_with_unusual_comments_are_read_back_unchanged() -> None:
    """The module encodes them, a look-up decodes them."""
    keys = [f"ssh-ed25519 AAAA{number:04d}+/=={COMMENTS[number % len(COMMENTS)]}" for number in range(50)]
    sent = configuration.changes(
        make_found(tags="smith"), make_vm(cloud_init={"ssh_public_keys": [f"{k}\r\n" for k in keys]})
    )
    after = make_found(tags="smith", sshkeys=urllib.parse.quote(sent["sshkeys"], safe=""))
    assert after["ssh_public_keys"] == keys
    assert configuration.changes(after, make_vm(cloud_init={"ssh_public_keys": keys})) == {}


def test_only_protection_by_an_operator_prevents_an_update() -> None:
    theirs, ours = make_found(protection=1, tags="smith"), make_found(protection=1, tags="smith;smith-protected")
    assert identity.identity_problem(theirs, make_vm()).startswith("VM_PROTECTED")
    assert identity.identity_problem(ours, make_vm()) == ""
    assert identity.identity_problem(ours, make_vm(), True).startswith("VM_PROTECTED")  # a deletion


# ---------------------------------------------------------------------- deletion and growth

DELETIONS = [
    ("", 0, ("destroy", 0)),
    ("", 60, ("mark", 1060)),
    ("smith-delete-1060", 60, ("wait", 1060)),
    ("smith-delete-1060", 0, ("destroy", 0)),
    ("smith-delete-1000", 60, ("destroy", 1000)),
    ("smith-delete-5;smith-delete-2000", 60, ("wait", 2000)),
    ("smith-delete-x", 60, ("mark", 1060)),
]


@pytest.mark.parametrize(("tags", "grace_s", "decision"), DELETIONS)
def test_a_vm_is_destroyed_when_its_grace_period_has_ended(tags: str, grace_s: int, decision: tuple[str, int]) -> None:
    found = make_found(tags=f"smith;{tags}") | {"looked_at": 1000}
    assert deletion.deletion(found, make_vm(grace_s=grace_s)) == dict(zip(("step", "at"), decision, strict=True))


def test_a_deletion_mark_is_one_tag_and_an_update_of_the_tags_removes_it() -> None:
    found = make_found(tags="smith;web")
    wish = deletion.deletion_mark(make_vm(cores=9, tags=["x"]), 1060)
    assert configuration.changes(found, wish) == {"tags": ["smith", "smith-delete-1060", "web"]}
    marked = make_found(tags="smith;smith-delete-1060;web")
    assert configuration.changes(marked, wish) == {}
    assert configuration.changes(marked, make_vm(cores=2)) == {}
    assert configuration.changes(marked, make_vm(tags=["web"])) == {"tags": ["smith", "web"]}
    assert configuration.changes(marked, make_vm(cancel_deletion=True)) == {"tags": ["smith", "web"]}
    assert configuration.changes(found, make_vm(cancel_deletion=True)) == {}


DUE = [("", ("keep", 0)), ("smith-delete-1060", ("wait", 1060)), ("smith-delete-1000", ("destroy", 1000))]


@pytest.mark.parametrize(("tag", "decision"), DUE)
def test_a_deletion_that_is_due_keeps_a_vm_without_a_deletion_mark(tag: str, decision: tuple[str, int]) -> None:
    found = make_found(tags=f"smith;{tag}") | {"looked_at": 1000}
    wish = make_vm(only_when_due=True, grace_s=5)
    assert deletion.deletion(found, wish) == dict(zip(("step", "at"), decision, strict=True))
    assert deletion.deletion(guest_facts.absent(500), wish)["step"] == "destroy"


AGENT = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
FORMER_AGENT = "22222222-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("current", "wanted", "after"),
    [
        ("a shop\n\nsmith-uid={0}", {"agent_id": AGENT}, "a shop\n\nsmith-agent={1}\nsmith-uid={0}"),
        ("smith-agent={2}\nsmith-uid={0}", {"agent_id": AGENT}, "smith-agent={1}\nsmith-uid={0}"),
        ("smith-agent={1}\nsmith-uid={0}", {"agent_id": AGENT}, None),
        ("smith-agent={1}\nsmith-uid={0}", {}, None),
        ("smith-uid={0}", {}, None),
        (
            f"x\n\n{text_line('x')}\nsmith-agent={{1}}\nsmith-uid={{0}}",
            {"description": "y"},
            f"y\n\n{text_line('y')}\nsmith-agent={{1}}\nsmith-uid={{0}}",
        ),
        (
            f"x\n\n{text_line('x')}\nsmith-uid={{0}}",
            {"description": "y", "agent_id": AGENT},
            f"y\n\n{text_line('y')}\nsmith-agent={{1}}\nsmith-uid={{0}}",
        ),
        (
            "smith-delete=9\nsmith-uid={0}",
            {"kind": "lxc", "agent_id": AGENT},
            "smith-delete=9\nsmith-agent={1}\nsmith-uid={0}",
        ),
    ],
)
def test_a_change_writes_the_agent_beside_the_marker(current: str, wanted: dict[str, Any], after: str | None) -> None:
    """A marker of an earlier version is valid, and gets its agent with the next change; no change removes the agent."""
    names = (SERVICE, AGENT, FORMER_AGENT)
    found = (make_container if wanted.get("kind") else make_found)(description=current.format(*names))
    assert identity.is_marked(found, make_vm())
    sent = configuration.changes(found, make_vm(**wanted)).get("description")
    assert sent == (after and after.format(*names))
    if sent:
        assert identity.is_marked({**found, "markers": marker.markers_in(sent)}, make_vm())
        assert marker.agent_in(sent) == AGENT


def test_a_clone_does_not_keep_the_agent_of_its_template() -> None:
    clone = make_found(description=f"smith-agent={FORMER_AGENT}\ndebian", name="debian")
    assert configuration.changes(clone, make_vm())["description"] == f"smith-uid={SERVICE}"


def test_a_service_cannot_forge_the_agent() -> None:
    text = notes.description(make_vm(description=f"smith-agent={FORMER_AGENT}", agent_id=AGENT))
    assert marker.agent_in(text) == AGENT


SHOP, B = text_line("a shop"), text_line("b")
LINES = f"a shop\n\nsmith-delete-at=1060\nsmith-protected=1\n{SHOP}\nsmith-uid={{0}}"
MARKED = f"b\n\nsmith-delete-at=1060\nsmith-protected=1\n{B}\nsmith-uid={{0}}"


@pytest.mark.parametrize(
    ("wanted", "after"),
    [
        ({}, None),
        ({"description": "b"}, MARKED),
        ({"protection": True, "description": "b"}, MARKED),
        ({"protection": False}, f"a shop\n\nsmith-delete-at=1060\n{SHOP}\nsmith-uid={{0}}"),
        ({"cancel_deletion": True}, f"a shop\n\nsmith-protected=1\n{SHOP}\nsmith-uid={{0}}"),
        (
            {"cancel_deletion": True, "protection": False, "description": "smith-protected=1"},
            f"smith-protected: 1\n\n{text_line('smith-protected: 1')}\nsmith-uid={{0}}",
        ),
    ],
)
def test_a_change_keeps_the_lines_of_the_notes_that_replace_tags(wanted: dict[str, Any], after: str | None) -> None:
    found = make_found(description=LINES.format(SERVICE), protection=1, tags="")
    sent = configuration.changes(found, make_vm(without_tags=True, **wanted)).get("description")
    assert sent == (after and after.format(SERVICE))


def test_a_protection_that_the_notes_state_is_the_services_own() -> None:
    found = make_found(description=LINES.format(SERVICE), protection=1, tags="")
    assert identity.identity_problem(found, make_vm()) == ""
    assert identity.identity_problem(found, make_vm(), may_be_absent=True).startswith("VM_PROTECTED")
    operators = make_found(description=f"smith-uid={SERVICE}", protection=1, tags="")
    assert identity.identity_problem(operators, make_vm()).startswith("VM_PROTECTED")


def test_a_containers_deletion_mark_is_a_description_line_that_a_service_cannot_forge() -> None:
    found = make_container(description=f"a shop\n\nsmith-uid={SERVICE}")
    wish = deletion.deletion_mark(make_vm(kind="lxc", cores=9), 1060)
    sent = configuration.changes(found, wish)
    assert sent == {"description": f"a shop\n\nsmith-delete=1060\nsmith-uid={SERVICE}"}
    marked = make_container(**sent)
    assert (deletion.deletion_due_at(marked), configuration.changes(marked, wish)) == (1060, {})
    assert configuration.changes(marked, make_vm(kind="lxc", cancel_deletion=True)) == {
        "description": f"a shop\n\nsmith-uid={SERVICE}"
    }
    forged = notes.description(make_vm(kind="lxc", description="smith-delete=1\nx"))
    assert deletion.deletion_due_at(make_container(description=forged)) == 0
    assert deletion.deletion_due_at(make_found(description=f"smith-delete=1\nsmith-uid={SERVICE}")) == 0


@pytest.mark.parametrize(
    ("asked", "is_refused"),
    [
        ({"disk_gib": 9}, False),
        ({"disk_gib": 7}, True),
        ({}, True),
        ({"disks": [{"disk": "scsi1", "size_gib": 1}]}, True),
        ({"disks": [{"disk": "scsi0", "storage": "ceph"}]}, True),
    ],
)
def test_a_resize_only_grows_existing_disks(asked: dict[str, Any], is_refused: bool) -> None:
    wish = configuration.growth_only(make_vm(cores=9, **asked))
    assert "cores" not in wish
    assert creation.request_problem(make_found(), wish).startswith("INVALID_REQUEST") is is_refused


# ---------------------------------------------------------------------- a VM without a template

BLANK: dict[str, Any] = {"node": "pve1", "storage": "ceph", "cores": 2, "memory_mib": 512, "disk_gib": 4}


def test_a_vm_without_a_template_is_created_with_its_marker_and_disks() -> None:
    wish = make_vm(**BLANK, iso="local:iso/d.iso", disks=[{"disk": "virtio1", "size_gib": 2}], bridge="vmbr0")
    found = guest_facts.absent(500) | {"template": {}}
    assert creation.request_problem(found, wish) == ""
    made = creation.blank(found, wish)
    assert (made["scsi"], made["virtio"]) == ({"scsi0": "ceph:4"}, {"virtio1": "ceph:2"})
    assert (made["ide"], made["boot"]) == ({"ide2": "local:iso/d.iso,media=cdrom"}, "order=scsi0;ide2")
    assert (made["net"], made["tags"]) == ({"net0": "virtio,bridge=vmbr0"}, ["smith"])
    assert made["description"] == f"smith-uid={SERVICE}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"node": ""},
        {"storage": ""},
        {"template_vmid": 9000},
        {"iso": "local:iso/../x"},
        {"iso": "local:iso/x,size=9"},
        {"cloud_init": {"user": "x"}},
    ],
    ids=str,
)
def test_an_invalid_request_for_a_vm_without_a_template_is_refused(wrong: dict[str, Any]) -> None:
    wish = make_vm(**{**BLANK, "iso": "local:iso/d.iso", **wrong})
    assert creation.request_problem(guest_facts.absent(500) | {"template": {}}, wish).startswith("INVALID_REQUEST")


# ---------------------------------------------------------------------- containers


def make_container(**config: Any) -> dict[str, Any]:
    base = {"hostname": "web-0f7e2c1a", "description": f"smith-uid={SERVICE}", "cores": 2, "memory": 512, "swap": 0}
    disks = {"rootfs": "ceph:vm-500-disk-0,size=4G", "net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp"}
    rows = [{"key": key, "value": value} for key, value in {**base, **disks, "tags": "smith", **config}.items()]
    return {
        **{"exists": True, "kind": "lxc", "vmid": 500, "node": "pve1", "template": {}},
        **guest_facts.read_container(rows, {"status": "running"}),
    }


CONTAINER_CHANGES = [
    ({"cores": 2, "memory_mib": 512, "disk_gib": 4, "swap_mib": 0}, {}),
    ({"cores": 4, "memory_mib": 1024}, {"cores": 4, "memory": 1024}),
    (
        {"networks": [{"vlan": 5, "mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "192.0.2.1"}]},
        {"netif": {"net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=192.0.2.9/24,tag=5,gw=192.0.2.1"}},
    ),
    ({"network": {"mode": "dhcp"}}, {}),
    ({"networks": [{}, {"bridge": "vmbr1"}]}, {"netif": {"net1": "name=eth1,bridge=vmbr1"}}),
    ({"network": {"dns_servers": ["192.0.2.53", "192.0.2.54"]}}, {"nameserver": "192.0.2.53 192.0.2.54"}),
]


@pytest.mark.parametrize(("asked", "sent"), CONTAINER_CHANGES)
def test_only_differing_options_are_sent_to_a_container(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    found = make_container()
    assert identity.identity_problem(found, make_vm(kind="lxc")) == ""
    assert creation.request_problem(found, make_vm(kind="lxc", **asked)) == ""
    assert configuration.changes(found, make_vm(kind="lxc", **asked)) == sent


def test_a_container_and_a_vm_are_never_mistaken_for_each_other() -> None:
    assert identity.identity_problem(make_container(), make_vm()).startswith("VM_IDENTITY_MISMATCH")
    assert identity.identity_problem(make_found(), make_vm(kind="lxc")).startswith("VM_IDENTITY_MISMATCH")
    assert identity.reservation_problem(make_container(), make_vm()).startswith("VM_ID_TAKEN")


@pytest.mark.parametrize(
    "asked",
    [{"disk_gib": 5}, {"disks": [{"disk": "scsi1", "size_gib": 1}]}, {"template_vmid": 9000}, {"cpu_type": "host"}],
    ids=str,
)
def test_a_change_that_no_module_supports_for_containers_is_refused(asked: dict[str, Any]) -> None:
    assert creation.request_problem(make_container(), make_vm(kind="lxc", **asked)).startswith("INVALID_REQUEST")


def test_a_containers_addresses_exclude_loopback_link_local_and_other_nics() -> None:
    nics = [{"name": "lo", "inet": "127.0.0.1/8"}, {"name": "eth0", "inet6": "fe80::1/64", "inet": "192.0.2.9/24"}]
    assert guest_facts.container_addresses(nics, []) == ["192.0.2.9"]
    nics = [
        {"name": "eth0", "hwaddr": "bc:24:11:00:00:01", "inet": "192.0.2.9/24"},
        {"name": "x", "inet": "10.0.0.1/8"},
    ]
    assert guest_facts.container_addresses(nics, guest_facts.macs_of(make_container()["config"])) == ["192.0.2.9"]


def test_a_containers_login_is_set_at_its_creation_only_and_its_migration_is_refused() -> None:
    wish = make_vm(kind="lxc", cloud_init={"password": "swordfish"}, target_node="pve2")
    assert creation.request_problem(make_container(), wish, True) == ""
    assert creation.request_problem(make_container(), wish, False).startswith("INVALID_REQUEST")
    assert preconditions.migration_problem(make_container(), wish).startswith("INVALID_REQUEST")
    assert creation.request_problem(make_container(), make_vm(kind="lxc", tags=["a"])).startswith("INVALID_REQUEST")


# ---------------------------------------------------------------------- the request and the login


def test_members_that_are_missing_or_none_do_not_count_as_given() -> None:
    given = {"cores": "2", "tags": None, "network": {"vlan": "7"}, "disks": [{"disk": "scsi1"}]}
    validated = {
        **{"cores": 2, "tags": None, "description": None, "sockets": None},
        **{"network": {"vlan": 7, "mode": None}, "disks": [{"disk": "scsi1", "size_gib": None}]},
    }
    expected = {"cores": 2, "network": {"vlan": 7}, "disks": [{"disk": "scsi1"}]}
    assert request_values.given_members(validated, given) == expected
    assert request_values.given_members(validated, "{...}") == expected  # a text from a command line


@pytest.mark.parametrize("written", [False, "false", "no", "0", "off"])
def test_certificates_are_verified_unless_the_login_says_no(written: Any) -> None:
    login_values = {"api_host": "pve", "api_port": "", "validate_certs": written}
    assert login.normalized(login_values) == {"api_host": "pve", "validate_certs": False}
    assert login.normalized({"api_host": "pve"}) == {"api_host": "pve", "validate_certs": True}


def test_the_login_of_a_variable_is_resolved_and_must_be_a_dictionary() -> None:
    resolved = {"api_host": "pve", "api_port": 8006, "validate_certs": False}
    expected = {"api_host": "pve", "api_port": "8006", "validate_certs": False}
    assert login.login_variable({"smith_login": "encrypted"}, lambda _value: resolved) == expected
    assert login.login_variable({}, str) == login.login_variable(None, str) == {}
    with pytest.raises(login.LoginError, match="INVALID_REQUEST: smith_login must be a dictionary"):
        login.login_variable({"smith_login": "text"}, str)


OUTCOMES = [
    ({"reached": True}, "Reached timeout", ""),
    ({"task_error": "start failed", "running_tasks": ["UPID:x"]}, "Reached timeout", "TASK_FAILED: start failed"),
    ({"running_tasks": ["UPID:x"]}, "Reached timeout", "TASK_TIMEOUT: Proxmox task UPID:x has not ended in time"),
    # The running Proxmox task belongs to another job, so the module's error is the cause.
    ({"running_tasks": ["UPID:x"]}, "VM 500 already exists on node 'pve1'", "VM_ID_TAKEN: "),
    ({}, "Reached timeout while waiting", "TASK_TIMEOUT: Reached timeout while waiting"),
    ({"lock": "backup"}, "", "VM_LOCKED: "),
    ({}, "", "TASK_FAILED: VM 500 is stopped, not running, although Proxmox reported no error"),
]


@pytest.mark.parametrize(("facts", "message", "problem"), OUTCOMES)
def test_the_cause_of_a_failed_change_is_the_first_that_is_known(
    facts: dict[str, Any], message: str, problem: str
) -> None:
    change = {"failed": True, "msg": message} if message else {}
    found = failures.outcome_problem({**make_found(), "reached": False, **facts}, change, "running")
    assert found.startswith(problem)
    assert bool(found) is bool(problem)


def test_an_unexpected_exception_is_named_without_its_text() -> None:
    try:
        raise KeyError("a secret")
    except KeyError as exc:
        text = failures.location_of(exc)
    assert re.fullmatch(r"KeyError in test_decisions\.py:\d+", text)


LOGS = [
    (["creating a clone of VM 9000 with ID 501"], {501}),
    (["create full clone of drive scsi0 (lvm:base-9000-disk-0)", 'Logical volume "vm-501-disk-0" created.'], {501}),
    (["create full clone of drive scsi0 (ceph:base-9000-disk-0)", "transferred 8.0 GiB of 8.0 GiB (100.00%)"], set()),
]


@pytest.mark.parametrize(("log", "vmids"), LOGS)
def test_only_names_of_guests_in_a_log_are_vmids(log: list[str], vmids: set[int]) -> None:
    assert proxmox_tasks.vmids_in(log) == vmids


#: The status of a failed Proxmox task, the end of its log, the cause in it, and the code.
CAUSES = [
    (
        "start failed: QEMU exited with code 1",
        ["kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory"],
        "cannot set up guest memory 'pc.ram': Cannot allocate memory",
        "CAPACITY",
    ),
    (
        "migration aborted",
        [
            "2026-11-27 04:00:00 starting migration of VM 500 to node 'pve2' (10.0.0.2)",
            "2026-11-27 04:00:01 ERROR: migration aborted (duration 00:00:01): storage 'nfs' is not available",
        ],
        "storage 'nfs' is not available",
        "STORAGE_UNAVAILABLE",
    ),
    (
        "migration problems",
        ["2026-11-27 04:00:01 ERROR: command '/usr/bin/ssh' failed: exit code 255", "migration finished with problems"],
        "command '/usr/bin/ssh' failed: exit code 255",
        "TASK_FAILED",
    ),
    ("job errors", ["ERROR: Backup of VM 500 failed - VM is locked (clone)"], "VM is locked (clone)", "VM_LOCKED"),
    (
        "unexpected status",
        ["ERROR: can't acquire lock '/var/run/vzdump.lock' - got timeout"],
        "can't acquire lock '/var/run/vzdump.lock' - got timeout",
        "VM_LOCKED",
    ),
    (
        "startup for container '500' failed",
        ["run_buffer: 571 Script exited with status 19", "storage 'nfs' is not online"],
        "storage 'nfs' is not online",
        "STORAGE_UNAVAILABLE",
    ),
    ("unexpected status", ["half of a line"], "", "PVE_TIMEOUT"),
    ("clone failed: No space left on device", ["ERROR: VM is locked (backup)"], "", "CAPACITY"),
]


@pytest.mark.parametrize(("status", "end", "cause", "code"), CAUSES)
def test_the_cause_of_a_failed_proxmox_task_is_read_from_the_end_of_its_log(
    status: str, end: list[str], cause: str, code: str
) -> None:
    log = [*(f"transferred {n} %" for n in range(100)), *end, f"TASK ERROR: {status}"]
    text = proxmox_tasks.error_with_cause(status, log) if proxmox_tasks.needs_log(status) else status
    assert text.startswith(status if code != "VM_LOCKED" or status == "job errors" else cause)
    assert text.endswith(cause)
    assert failures.failure({"msg": text}).split(":")[0] == code


@pytest.mark.parametrize(
    ("task", "is_ours"),
    [
        ({"user": "smith@pve!job"}, True),
        ({"user": "smith@pve", "tokenid": "job"}, True),
        ({"user": "smith@pve", "tokenid": "other"}, False),
        ({"user": "smith@pve!other"}, False),
        ({"user": "smith@pve"}, False),
        ({"user": "root@pam"}, False),
    ],
)
def test_only_a_proxmox_task_of_the_same_token_is_ours(task: dict[str, str], is_ours: bool) -> None:
    """Proxmox lists the Proxmox tasks of every user and token to a login with Sys.Audit."""
    assert proxmox_tasks.is_started_by(task, "smith@pve!job") is is_ours


@pytest.mark.parametrize(
    "status", ["unexpected status", "interrupted by signal", "unable to get last line from task log - x"]
)
def test_a_proxmox_task_that_was_killed_or_has_no_log_ended_in_an_unknown_way(status: str) -> None:
    assert proxmox_tasks.is_end_unknown({"status": status})
    assert not proxmox_tasks.is_end_unknown({"status": "start failed"})
    assert not proxmox_tasks.is_end_unknown({"status": "RUNNING"})


def test_what_a_guest_reports_is_no_address_if_it_is_not_one() -> None:
    """The guest agent's answer comes from inside the guest."""
    reported = ["<script>", "192.0.2.7", "999.1.1.1", "2001:db8::7", *(f"198.51.100.{n}" for n in range(200))]
    nic = {
        "name": "eth0",
        "hardware-address": "bc:24:11:00:00:10",
        "ip-addresses": [{"ip-address": ip} for ip in reported],
    }
    found = guest_facts.usable_addresses([nic], ["BC:24:11:00:00:10"])
    assert found[:2] == ["192.0.2.7", "198.51.100.0"]
    assert len(found) == guest_facts.MAX_ADDRESSES


def test_an_answer_without_a_proxmox_task_is_no_backup() -> None:
    """Proxmox answers OK if the guest has moved to another node."""
    problem = preconditions.backup_start_problem({"vmid": 500, "node": "pve1"}, {"data": "OK"})
    assert problem == "PVE_CONFLICT: VM 500 is not on node pve1 any more, so no backup was started"
    for answer in ({"data": "UPID:pve1:1:2:3:vzdump:500:smith@pve!job:"}, {"failed": True, "msg": "Read timed out"}):
        assert preconditions.backup_start_problem({"vmid": 500, "node": "pve1"}, answer) == ""


def test_the_notes_of_an_archive_are_one_line_with_the_marker() -> None:
    """Proxmox refuses a template with a line feed, and replaces the two characters of an escape sequence by one."""
    assert preconditions.backup_notes(make_vm()) == rf"{{{{guestname}}}}\nsmith-uid={SERVICE}"


VOLUMES = [
    ({"scsi0": "local-lvm:vm-500-disk-0,size=8G", "ide2": "local-lvm:vm-500-cloudinit,media=cdrom"}, 2),
    ({"unused0": "files:500/vm-500-disk-1.qcow2", "efidisk0": "ceph:vm-500-disk-2,size=1M"}, 2),
    ({"rootfs": "volume=ceph:subvol-500-disk-0,size=4G", "mp0": "ceph:vm-500-disk-1,mp=/data"}, 2),
    ({"scsi0": "files:9000/base-9000-disk-0.qcow2/500/vm-500-disk-0.qcow2"}, 1),
    (
        {"scsi1": "ceph:vm-501-disk-0", "ide2": "local:iso/vm-500-x.iso,media=cdrom", "description": "a:vm-500-disk-9"},
        0,
    ),
    ({"scsi0": "/dev/sdb", "scsi1": "none,media=cdrom", "vmstate": "local-lvm:vm-500-state-s1"}, 1),
]


@pytest.mark.parametrize(("config", "count"), VOLUMES)
def test_the_volumes_of_a_vmid_are_found_in_a_configuration(config: dict[str, str], count: int) -> None:
    found = volumes.volumes_in(config.items(), 500)
    assert len(found) == count
    assert all(":" in volume and "," not in volume for volume in found)


TAG_CASES = [
    (["gold"], [], True, "gold"),
    (["customer-a"], ["gold", "customer-*"], True, ""),
    (["customer"], ["customer-*"], True, "customer"),
    (["gold"], ["gold"], True, ""),
    (["goldfish"], ["gold"], True, "goldfish"),
    (["anything"], ["*"], True, ""),
    (["WEB"], [], False, ""),
    (["web", "backup-gold"], [], False, "backup-gold"),
]


@pytest.mark.parametrize(("requested", "offered", "is_new", "refused"), TAG_CASES)
def test_only_offered_tags_may_be_requested(
    requested: list[str], offered: list[str], is_new: bool, refused: str
) -> None:
    """A VM keeps the tags that it has. A template's tags are not those of its clone."""
    vm = make_vm(tags=requested, allowed={"tags": offered})
    source = {**make_found(), "tags": ["web", "smith"]}
    problem = f"INVALID_REQUEST: the tag {refused} is not offered" if refused else ""
    assert allowed.problem(source, vm, is_new=is_new) == problem
    assert allowed.problem(source, make_vm(tags=requested), is_new=is_new) == ""
