"""The functions that decide for the action plugins what is allowed, which service owns a VM, and what changes."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import (
    allowed,
    configuration,
    creation,
    disks,
    guest_facts,
    identity,
    login,
    request_values,
)
from decision_facts import SERVICE, make_vm, make_vm_facts, text_line
from hypothesis import given, settings
from hypothesis import strategies as st

OTHER_SERVICE = "11111111-2222-4333-8444-555555555555"


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
    facts = make_vm_facts(**config)
    text = f"INVALID_REQUEST: {problem} by the provider" if problem else ""
    assert allowed.request_problem(facts, make_vm(allowed=ALLOWED, **requested), is_new=False) == text
    assert allowed.request_problem(facts, make_vm(**requested), is_new=False) == "", (
        "without the lists there is no limit"
    )
    everything = {name: ["*"] for name in ALLOWED}
    assert allowed.request_problem(facts, make_vm(allowed=everything, **requested), is_new=False) == ""


def test_a_new_guest_names_only_an_iso_image_on_an_offered_storage() -> None:
    vm = make_vm(allowed=ALLOWED, iso="local:iso/debian.iso")
    absent = guest_facts.facts_of_absent_guest(500)
    problem = "INVALID_REQUEST: the storage local is not offered by the provider"
    assert allowed.request_problem(absent, vm, is_new=True) == problem
    assert allowed.request_problem(absent, {**vm, "iso": "local-lvm:iso/debian.iso"}, is_new=True) == ""


def test_the_services_own_vm_is_accepted() -> None:
    assert identity.identity_problem(make_vm_facts(), make_vm()) == ""


def test_of_ten_thousand_random_vms_only_those_of_the_service_are_accepted() -> None:
    """A VM with any combination of mismatches is never accepted as the service's."""
    rng = random.Random(4711)  # noqa: S311 - the same cases in every run
    for _ in range(10_000):
        facts, is_ours = random_guest(rng)
        problem = identity.identity_problem(facts, make_vm())
        assert (problem == "") is is_ours, (facts, problem)
        assert is_ours or problem.split(":")[0] in ("VM_IDENTITY_MISMATCH", "VM_PROTECTED")


def random_guest(rng: random.Random) -> tuple[dict[str, Any], bool]:
    """Return the facts of a guest, and whether it is the service's VM and neither a template nor protected."""
    marker = rng.choice(
        [SERVICE, SERVICE.upper(), OTHER_SERVICE, str(uuid.UUID(int=rng.getrandbits(128))), SERVICE[:-1], ""]
    )
    name = rng.choice(["web-0f7e2c1a", "web-0f7e2c1b", "web", "WEB-0F7E2C1A", ""])
    prefix = rng.choice(["", "text\n", "smith-uid= \n", f"see smith-uid={OTHER_SERVICE}\n"])
    second = rng.choice(["", "", f"\nsmith-uid={OTHER_SERVICE}"])
    template, protection = rng.choice([None, None, 0, 1]), rng.choice([None, None, 0, 1])
    description = f"{prefix}smith-uid={marker}{second}" if marker else prefix
    facts = make_vm_facts(name=name, description=description, template=template, protection=protection)
    facts["kind"] = rng.choice(["qemu", "qemu", "qemu", "lxc"])
    is_ours = marker.lower() == SERVICE and not second and name == "web-0f7e2c1a" and facts["kind"] == "qemu"
    return facts, is_ours and not template and not protection


def test_a_missing_vm_is_accepted_only_if_allowed_and_proven_absent() -> None:
    absent = guest_facts.facts_of_absent_guest(500)
    proven_absent = absent | {"absence": {"is_proven": True, "code": "", "text": ""}}
    assert identity.identity_problem(absent, make_vm(), True).startswith("PVE_PERMISSION")
    assert identity.identity_problem(proven_absent, make_vm()).startswith("VM_NOT_FOUND")
    assert identity.identity_problem(proven_absent, make_vm(), True) == ""


def test_a_partial_clone_without_a_marker_is_accepted_for_deletion_by_its_name() -> None:
    clone, request = make_vm_facts(description="debian-12"), make_vm(half_made=True)
    assert identity.identity_problem(clone, request, True) == ""
    for facts, vm, may_be_absent in (
        (clone, request, False),  # every other action
        (clone, make_vm(), True),
        (make_vm_facts(description="debian-12", name="web"), request, True),
        (make_vm_facts(description=f"smith-uid={OTHER_SERVICE}"), request, True),
        (make_vm_facts(description="debian-12", template=1), request, True),
        (make_vm_facts(description="debian-12", protection=1), request, True),
    ):
        assert identity.identity_problem(facts, vm, may_be_absent).startswith(("VM_IDENTITY_MISMATCH", "VM_PROTECTED"))


@pytest.mark.parametrize("may_be_absent", [False, True])
def test_a_vm_whose_deletion_was_interrupted_has_an_error_code_of_its_own(may_be_absent: bool) -> None:
    """Such a VM has only a lock: no name and no marker."""
    facts = make_vm_facts(name=None, description=None, lock="destroyed", scsi0=None, ide2=None)
    problem = identity.identity_problem(facts, make_vm(), may_be_absent)
    assert problem.startswith("VM_HALF_DESTROYED: ")
    assert "`qm unlock 500` and `qm destroy 500`" in problem
    assert identity.lock_problem(facts) == problem
    assert identity.reserved_vmid_problem(facts, make_vm()).startswith("VM_ID_TAKEN")


#: The guest that has the reserved VMID: a description of it, its facts, and the code of the refusal.
RESERVATIONS = [
    ("free", guest_facts.facts_of_absent_guest(500), ""),
    ("ours by its marker", make_vm_facts(name="renamed"), ""),
    ("ours by its reserved name, the description still the template's", make_vm_facts(description="debian"), ""),
    ("another name, no marker", make_vm_facts(name="x", description=None), "VM_ID_TAKEN"),
    ("our name, another's marker", make_vm_facts(description=f"smith-uid={OTHER_SERVICE}"), "VM_ID_TAKEN"),
    ("our name, another's marker in capitals", make_vm_facts(description=f"SMITH-UID={OTHER_SERVICE}"), "VM_ID_TAKEN"),
    ("a template of our name", make_vm_facts(template=1), "VM_ID_TAKEN"),
    ("ours, protected", make_vm_facts(protection=1), "VM_PROTECTED"),
]


@pytest.mark.parametrize(("case", "facts", "code"), RESERVATIONS, ids=[case[0] for case in RESERVATIONS])
def test_a_reserved_vmid_may_be_free_or_that_of_the_services_vm(case: str, facts: dict[str, Any], code: str) -> None:
    assert identity.reserved_vmid_problem(facts, make_vm()).split(":")[0] == code


def test_an_equal_configuration_needs_no_change() -> None:
    facts = make_vm_facts(tags="smith;web", sockets=1)
    wanted = make_vm(cores=2, memory_mib=2048, disk_gib=8, tags=["Web"], network={"mode": "dhcp"})
    facts["config"]["ipconfig0"] = "ip=dhcp"
    assert configuration.differing_parameters(facts, wanted) == {}
    assert disks.disk_module_parameters(facts, wanted) == []


#: The requested members of `vm`, and the options that are sent for them.
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
    facts = make_vm_facts(tags="smith;web", net0="virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1")
    assert configuration.differing_parameters(facts, make_vm(**wanted)) == sent


@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=200)
def test_a_vm_with_any_description_has_exactly_one_marker(text: str, keys: list[str]) -> None:
    wanted = make_vm(description=text, cloud_init={"ssh_public_keys": keys})
    sent = configuration.differing_parameters(make_vm_facts(description="x"), wanted)
    after = make_vm_facts(description=sent["description"], tags=";".join(sent["tags"]), sshkeys=sent.get("sshkeys"))
    assert after["markers"] == [SERVICE]


def test_a_password_is_set_once_by_a_create_and_always_by_an_update() -> None:
    wanted = make_vm(cloud_init={"password": "swordfish"})
    vm_of_the_service, clone_of_the_template = (
        make_vm_facts(cipassword="**********"),
        make_vm_facts(cipassword="*", description="debian"),
    )
    assert "cipassword" not in configuration.differing_parameters(vm_of_the_service, wanted, True)
    assert configuration.differing_parameters(clone_of_the_template, wanted, True)["cipassword"] == "swordfish"
    assert configuration.differing_parameters(vm_of_the_service, wanted)["cipassword"] == "swordfish"
    assert "swordfish" not in str(configuration.planned_values(vm_of_the_service, wanted))


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
    facts, wanted = make_vm_facts(scsi0=f"local-lvm:vm-500-disk-0,size={size}"), make_vm(disk_gib=wanted_gib)
    assert [step["size"] for step in disks.disk_module_parameters(facts, wanted)] == ([growth] if growth else [])
    assert creation.request_problem(facts, wanted).startswith("INVALID_REQUEST") is is_refused


def test_members_that_are_missing_or_none_do_not_count_as_given() -> None:
    passed_members = {"cores": "2", "tags": None, "network": {"vlan": "7"}, "disks": [{"disk": "scsi1"}]}
    validated = {
        **{"cores": 2, "tags": None, "description": None, "sockets": None},
        **{"network": {"vlan": 7, "mode": None}, "disks": [{"disk": "scsi1", "size_gib": None}]},
    }
    expected = {"cores": 2, "network": {"vlan": 7}, "disks": [{"disk": "scsi1"}]}
    assert request_values.given_members(validated, passed_members) == expected
    assert request_values.given_members(validated, "{...}") == expected  # a text from a command line


@pytest.mark.parametrize("written", [False, "false", "no", "0", "off"])
def test_certificates_are_verified_unless_the_login_disables_this(written: Any) -> None:
    login_values = {"api_host": "pve", "api_port": "", "validate_certs": written}
    assert login.normalized_login(login_values) == {"api_host": "pve", "validate_certs": False}
    assert login.normalized_login({"api_host": "pve"}) == {"api_host": "pve", "validate_certs": True}


def test_the_login_of_a_variable_is_resolved_and_must_be_a_dictionary() -> None:
    resolved = {"api_host": "pve", "api_port": 8006, "validate_certs": False}
    expected = {"api_host": "pve", "api_port": "8006", "validate_certs": False}
    assert login.login_from_variables({"smith_login": "encrypted"}, lambda _value: resolved) == expected
    assert login.login_from_variables({}, str) == login.login_from_variables(None, str) == {}
    with pytest.raises(login.LoginError, match="INVALID_REQUEST: smith_login must be a dictionary"):
        login.login_from_variables({"smith_login": "text"}, str)


#: The requested tags, the offered ones, whether the VM is new, and the tag that is refused.
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
    """A request may name the tags that the VM has already. A new VM does not have the tags of its template."""
    vm = make_vm(tags=requested, allowed={"tags": offered})
    source = {**make_vm_facts(), "tags": ["web", "smith"]}
    problem = f"INVALID_REQUEST: the tag {refused} is not offered by the provider" if refused else ""
    assert allowed.request_problem(source, vm, is_new=is_new) == problem
    assert allowed.request_problem(source, make_vm(tags=requested), is_new=is_new) == ""
