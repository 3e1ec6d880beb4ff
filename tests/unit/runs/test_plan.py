"""Planning a run from an action and properties: valid cases, refused ones, and attempts at injection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import JobError
from executor.runs.actions import ansible_home
from executor.runs.extra_vars import MAX_DESCRIPTION_LENGTH, make_description
from executor.runs.plan import find_playbook, plan
from executor.runs.private_folder import write_extra_vars
from executor.runs.request import PlanSettings, RunRequest
from executor.runs.vm_properties import read_properties
from executor.shared.error_codes import ErrorCode
from executor.shared.marker import markers_in, service_in

SERVICE = "0a1b2c3d-1111-4000-8000-000000000001"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv me@example.net"
RSA_DATA = (
    "AAAAB3NzaC1yc2EAAAADAQABAAAAgQDBZm9vYmFyMTJmb29iYXIxMmZvb2JhcjEyZm9vYmFyMTJmb29iYXIxMmZvb2JhcjEyZm9v"
    "YmFyMTJmb29iYXIxMmZvb2JhcjEyZm9vYmFyMTJmb29iYXIxMmZvb2JhcjEyZm9vYmFyMTJmb29iYXIxMmZvb2JhcjEyZm9vYmFy"
    "MQ=="
)
ECDSA_DATA = (
    "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBErmDXGppB03+wsrEwPOPUb+8ElB+zwsXYjuQklQw/iyY1Cz"
    "6aVN3RGFkB04iub3HSCVZM6a3waU0RGflF2njsw="
)
SK_DATA = "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvAAAABHNzaDo="
MINIMAL = {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}
ACTIONS = ("create", "update", "start", "stop", "restart", "delete", "snapshot", "rollback")
#: Texts that a template engine, YAML, a shell or SQL would interpret.
INJECTIONS = (
    "{{ lookup('pipe', 'id') }}",
    "{% raw %}",
    "!unsafe x",
    "!vault |",
    "yes",
    "0777",
    "&a *a",
    "- a\n- b",
    "$(id)",
    "'; DROP TABLE jobs; --",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a playbook for each of our actions."""
    for action in ACTIONS:
        (tmp_path / f"{action}.yml").write_text("---\n[]\n")
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> PlanSettings:
    """Return the settings with our playbooks and two templates."""
    return make_settings(folder)


def make_settings(*folders: Path, **wanted: Any) -> PlanSettings:
    values: dict[str, Any] = {
        "cluster": "default",
        "templates": {"debian-12": 9000, "ubuntu-24.04": 9001},
        "storage": "local-zfs",
        "bridge": "vmbr0",
        "pool": "",
        "node": "",
        "playbook_folders": folders,
        "playbook_timeout_s": 240.0,
        "shutdown_timeout_s": 60.0,
    }
    return PlanSettings(**(values | wanted))


def make_request(action: str = "create", properties: dict[str, Any] | None = None, **wanted: Any) -> RunRequest:
    values: dict[str, Any] = {
        "action": action,
        "service_id": SERVICE,
        "service_name": "web",
        "properties": MINIMAL if properties is None else properties,
        "vmid": 101,
        "vm_name": "web-0a1b2c3d",
        "time_left_s": 280.0,
    }
    return RunRequest(**(values | wanted))


def refusal(**changed: Any) -> str:
    """Return the error for changed properties; a value of ... removes the member."""
    properties = {name: value for name, value in (MINIMAL | changed).items() if value is not ...}
    with pytest.raises(JobError) as caught:
        read_properties(properties)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value.detail


# --- the playbook of an action ------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_the_playbook_of_its_name(folder: Path, action: str) -> None:
    assert find_playbook(action, [folder]) == folder / f"{action}.yml"


@pytest.mark.parametrize(
    "action",
    [
        "",
        "?",
        "unknown",
        "Create",
        "CREATE",
        "create\n",
        "create;rm",
        "create.yml",
        "../../x",
        "../create",
        "./create",
        "/etc/passwd",
        "create\x00",
        "-create",
        "1create",
        "a" * 51,
        "\u217dreate",  # a Roman numeral that looks like c
        "\u0441reate",  # a Cyrillic one
        "\uff43reate",  # a wide one
        "cre\u200bate",
        "create ",
    ],
)
def test_an_invalid_action_name_has_no_playbook(folder: Path, action: str) -> None:
    nested = folder / "nested"
    nested.mkdir()
    (folder / "x.yml").touch()
    for name in (action[:60], action.lower()[:60]):
        if name and "/" not in name and "\x00" not in name and name not in ACTIONS and name != "unknown":
            (nested / f"{name}.yml").touch()
    with pytest.raises(JobError, match="no playbook for the action") as caught:
        find_playbook(action, [nested, folder])
    assert caught.value.code is ErrorCode.UNSUPPORTED_ACTION
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 300


def test_an_action_name_may_have_fifty_characters(tmp_path: Path) -> None:
    action = "a" + "b-_1" * 12 + "c"
    (tmp_path / f"{action}.yml").touch()
    assert (len(action), find_playbook(action, [tmp_path]).stem) == (50, action)


def test_the_providers_own_playbook_comes_before_ours(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "create.yml").touch()
    assert find_playbook("create", [own, folder]) == own / "create.yml"
    assert find_playbook("delete", [own, folder]) == folder / "delete.yml"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.yml"])
def test_a_link_out_of_a_providers_folder_is_refused(tmp_path: Path, folder: Path, target: str) -> None:
    """It is refused, and ours is not run in its place: the provider wanted another."""
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "outside.yml").touch()
    (own / "create.yml").symlink_to(target)
    with pytest.raises(JobError, match="UNSUPPORTED_ACTION"):
        find_playbook("create", [own, folder])


def test_a_link_to_a_folder_is_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert find_playbook("create", [tmp_path / "link"]).is_file()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("create.yml"), lambda path: None])
def test_a_folder_a_loop_and_a_broken_link_are_no_playbooks(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "create.yml")
    for folders in ([tmp_path, tmp_path / "missing"], [tmp_path / "missing", tmp_path]):
        with pytest.raises(JobError, match="UNSUPPORTED_ACTION"):
            find_playbook("create", folders)


def test_every_action_of_ours_has_a_playbook_in_the_project() -> None:
    assert {find_playbook(action, [ansible_home() / "playbooks"]).stem for action in ACTIONS} == set(ACTIONS)


# --- properties ---------------------------------------------------------------------------------------------------

NUMBERS = {"cores": (1, 512), "memoryMb": (16, 16_777_216), "diskGb": (1, 131_072)}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [..., None, "", "2", "2 GB", True, [2], {"a": 2}, 1.5, 2.0, 0, -1, 1e309, float("nan"), 2**63, 10**400],
    ids=str,
)
def test_an_invalid_number_is_refused_by_its_name(name: str, value: Any) -> None:
    words = refusal(**{name: value})
    assert words.startswith(f"{name} ")
    assert words.isprintable()
    assert (words == f"{name} is missing") == (value is ...)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_bounds_of_a_number_are_valid(name: str) -> None:
    low, high = NUMBERS[name]
    for value in (low, high):
        read_properties(MINIMAL | {name: value})
    for value in (low - 1, high + 1):
        assert refusal(**{name: value}).startswith(f"{name} Input should be ")


def test_a_number_in_another_unit_is_a_missing_member() -> None:
    """memoryGb or diskMb must never be taken for what they are not."""
    words = refusal(memoryMb=..., memoryGb=2, diskGb=..., diskMb=10240)
    assert words == "memoryMb is missing; diskGb is missing"


def test_our_own_names_of_members_are_not_accepted() -> None:
    assert refusal(memoryMb=..., memory_mib=2048) == "memoryMb is missing"


def test_unknown_members_are_ignored() -> None:
    known = read_properties(MINIMAL | {"vmid": 1, "node": "pve1", "force": True, "": None, "cores2": "x"})
    assert known == read_properties(MINIMAL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", ""),
        ("image", "../9000"),
        ("image", "x" * 65),
        ("image", "debian-12\n"),
        ("image", 9000),
        ("hostname", ""),
        ("hostname", "Web"),
        ("hostname", "web.example.net"),
        ("hostname", "-web"),
        ("hostname", "web-"),
        ("hostname", "w" * 64),
        ("hostname", "web\n"),
        ("hostname", "wéb"),
        ("hostname", "\u202eweb"),
        ("ciUser", "Root"),
        ("ciUser", "a b"),
        ("ciUser", "x" * 33),
        ("ciUser", "root:x"),
        ("ciPassword", 1234),
        ("ciPassword", "x" * 4097),
        ("ciPassword", {"value": "x"}),
        ("tags", "web"),
        ("tags", ["Web"]),
        ("tags", ["a;b"]),
        ("tags", ["a b"]),
        ("tags", [""]),
        ("tags", ["x" * 33]),
        ("tags", ["a"] * 21),
        ("tags", [1]),
        ("tags", None),
        ("network", None),
        ("network", "dhcp"),
        ("network", []),
        ("sshPublicKeys", KEY),
        ("sshPublicKeys", [None]),
        ("sshPublicKeys", {"a": KEY}),
    ],
)
def test_a_member_of_the_wrong_type_or_form_is_refused_by_its_name(name: str, value: Any) -> None:
    words = refusal(**{name: value})
    assert words.startswith(name)
    assert words.isprintable()
    assert len(words) <= 400


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("name", ["image", "hostname", "ciUser"])
def test_a_name_with_an_injection_is_refused(name: str, injection: str) -> None:
    if injection == "yes":
        return  # a word like any other
    if injection == "0777" and name != "ciUser":
        return
    refusal(**{name: injection})


def test_an_error_names_all_wrong_members_and_no_value() -> None:
    canary = "Canary1234"
    network = {"mode": canary, "bridge": canary * 3, "ipv4Cidr": canary, "ipv4Gateway": canary, "dnsServers": [canary]}
    words = refusal(
        cores=canary,
        memoryMb=canary,
        hostname=canary,
        ciUser=canary,
        ciPassword=canary * 1000,
        sshPublicKeys=[canary],
        tags=[canary],
        network=network,
    )
    assert canary not in words
    assert words.startswith("cores ")
    assert "; memoryMb " in words
    for part in ({"ipv4Cidr": f"{canary}/24"}, {"ipv4Gateway": canary}, {"dnsServers": [canary]}):
        assert canary not in refusal(network=part)


def test_deeply_nested_properties_are_ignored_or_refused() -> None:
    deep: Any = {}
    for _ in range(1000):
        deep = {"network": deep}
    read_properties(MINIMAL | {"unknown": deep})
    refusal(network={"mode": deep})
    refusal(cores=deep)


@given(st.dictionaries(st.sampled_from(["cores", "memoryMb", "image", "network", "tags", "hostname"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)))  # fmt: skip
def test_any_properties_are_accepted_or_refused(properties: dict[str, Any]) -> None:
    try:
        read_properties(MINIMAL | properties)
    except JobError as error:
        assert (error.code, error.detail.isprintable()) == (ErrorCode.INVALID_REQUEST, True)  # noqa: PT017  both ways are good


# --- ssh keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        KEY.rsplit(" ", 1)[0],
        f"{KEY}\r\n",
        f"  {KEY}  ",
        f"ssh-rsa {RSA_DATA} host:22 and: more",
        f"ecdsa-sha2-nistp256 {ECDSA_DATA}",
        f"sk-ssh-ed25519@openssh.com {SK_DATA} key",
        f"{KEY} {{{{ lookup('pipe', 'id') }}}}",
    ],
)
def test_a_public_key_on_one_line_is_accepted_and_stripped(key: str) -> None:
    assert read_properties(MINIMAL | {"sshPublicKeys": [key]}).ssh_public_keys == (key.strip(),)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "me@example.net",
        f"{KEY}\n{KEY}",
        f"{KEY}\r\n{KEY}",
        f"{KEY}\x0b{KEY}",
        f"{KEY}\u2028{KEY}",
        f"{KEY}\x00",
        f"{KEY}\x1b[2J",
        f'command="rm -rf /" {KEY}',
        KEY.split(maxsplit=1)[0] + " " + KEY.split()[1][:-4],
        f"ssh-rsa {KEY.split()[1]}",
        f"ecdsa-sha2-nistp256 {ECDSA_DATA[:-8]}AAAAAAA=",
        "ssh-dss AAAAB3NzaC1kc3MAAACBAP",
        "ssh-ed25519 not*base64",
        f"ssh-rsa {'A' * 9000}",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_other_text_is_not_accepted_as_a_key(key: str) -> None:
    words = refusal(sshPublicKeys=[KEY, key])
    assert words.startswith("sshPublicKeys contains ")
    assert ("private key" in words) == ("PRIVATE" in key)


def test_fifty_keys_are_accepted_and_one_more_is_refused() -> None:
    assert len(read_properties(MINIMAL | {"sshPublicKeys": [KEY] * 50}).ssh_public_keys) == 50
    refusal(sshPublicKeys=[KEY] * 51)


# --- network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ({}, {"mode": "dhcp", "bridge": "vmbr0"}),
        ({"mode": "dhcp", "vlan": 4094}, {"mode": "dhcp", "bridge": "vmbr0", "vlan": 4094}),
        ({"bridge": "vmbr1.20"}, {"mode": "dhcp", "bridge": "vmbr1.20"}),
        (
            {"mode": "static", "ipv4Cidr": "192.0.2.10/24", "ipv4Gateway": "192.0.2.1", "dnsServers": ["2001:DB8::1"]},
            {
                "mode": "static",
                "bridge": "vmbr0",
                "ipv4_cidr": "192.0.2.10/24",
                "ipv4_gateway": "192.0.2.1",
                "dns_servers": ["2001:db8::1"],
            },
        ),
        (
            {"mode": "static", "ipv4Cidr": "192.0.2.10/255.255.255.0"},
            {"mode": "static", "bridge": "vmbr0", "ipv4_cidr": "192.0.2.10/24"},
        ),
        (
            {"mode": "static", "ipv4Cidr": "192.0.2.0/31"},
            {"mode": "static", "bridge": "vmbr0", "ipv4_cidr": "192.0.2.0/31"},
        ),
        (
            {"mode": "static", "ipv4Cidr": "192.0.2.10/32", "ipv4Gateway": "198.51.100.1"},
            {"mode": "static", "bridge": "vmbr0", "ipv4_cidr": "192.0.2.10/32", "ipv4_gateway": "198.51.100.1"},
        ),
        ({"vlan": 0, "dnsServers": []}, {"mode": "dhcp", "bridge": "vmbr0", "vlan": 0, "dns_servers": []}),
    ],
)
def test_the_primary_interface(settings: PlanSettings, network: dict[str, Any], expected: dict[str, Any]) -> None:
    run = plan(make_request(properties=MINIMAL | {"network": network}), settings)
    assert run.vm["network"] == expected


@pytest.mark.parametrize(
    ("network", "word"),
    [
        ({"mode": "static"}, "mode static needs ipv4Cidr"),
        ({"mode": "bridge"}, "network.mode"),
        ({"mode": True}, "network.mode"),
        ({"vlan": -1}, "network.vlan"),
        ({"vlan": 4095}, "network.vlan"),
        ({"vlan": "20"}, "network.vlan"),
        ({"bridge": "vmbr0,firewall=0"}, "network.bridge"),
        ({"bridge": "x" * 16}, "network.bridge"),
        ({"ipv4Cidr": "192.0.2.10"}, "needs a prefix length"),
        ({"ipv4Cidr": "dhcp"}, "needs a prefix length"),
        ({"ipv4Cidr": "dhcp/24"}, "is not an IP address"),
        ({"ipv4Cidr": "192.0.2.10/33"}, "is not an IP address"),
        ({"ipv4Cidr": "192.0.2.256/24"}, "is not an IP address"),
        ({"ipv4Cidr": "2001:db8::1/64"}, "is not an IP address"),
        ({"ipv4Cidr": "192.0.2.0/24"}, "is the address of the network"),
        ({"ipv4Cidr": "192.0.2.255/24"}, "is the address of the network or the broadcast"),
        ({"ipv4Cidr": "192.0.2.10/24,gw=192.0.2.1"}, "is not an IP address"),
        ({"ipv4Cidr": "192.0.2.10/24", "ipv4Gateway": "198.51.100.1"}, "ipv4Gateway is outside"),
        ({"ipv4Cidr": "192.0.2.10/24", "ipv4Gateway": "192.0.2.10"}, "ipv4Gateway is the address of the guest itself"),
        ({"ipv4Cidr": "192.0.2.10/24"}, "ipv4Cidr needs mode static"),
        ({"mode": "dhcp", "ipv4Gateway": "192.0.2.1"}, "ipv4Gateway needs mode static"),
        ({"ipv6Cidr": "2001:db8::10/64"}, "ipv6Cidr needs ipv6Mode static"),
        ({"ipv6Mode": "slaac", "ipv6Gateway": "fe80::1"}, "ipv6Gateway needs ipv6Mode static"),
        ({"ipv4Gateway": "2001:db8::1"}, "is not an IP address"),
        ({"dnsServers": ["192.0.2.1"] * 4}, "network.dnsServers"),
        ({"dnsServers": ["dns.example.net"]}, "is not an IP address"),
        ({"dnsServers": ["fe80::1%\neth0 evil"]}, "an address with an IPv6 zone"),
        ({"dnsServers": "192.0.2.1"}, "network.dnsServers"),
        ({"dnsServers": [3232235521]}, "network.dnsServers"),
    ],
)
def test_an_invalid_network_is_refused(network: dict[str, Any], word: str) -> None:
    words = refusal(network=network)
    assert words.startswith("network")
    assert word in words


# --- plan ---------------------------------------------------------------------------------------------------------


def test_the_ident_of_a_long_action_name_leaves_room_for_a_sockets_path(folder: Path) -> None:
    action = "a" * 50
    (folder / f"{action}.yml").write_text("---\n[]\n")
    run = plan(make_request(action), make_settings(folder, folder))
    assert len(run.ident) <= 29
    assert run.action == action


def test_a_create_has_the_whole_configuration_of_the_vm(settings: PlanSettings) -> None:
    properties = MINIMAL | {"ciUser": "admin", "ciPassword": "open-sesame", "sshPublicKeys": [KEY], "tags": ["web"]}
    run = plan(make_request(properties=properties, secrets=("open-sesame",)), settings)
    assert run.vm == {
        "service_id": SERVICE,
        "vmid": 101,
        "name": "web-0a1b2c3d",
        "cluster": "default",
        "node": "",
        "timeout_s": 240,
        "shutdown_timeout_s": 60,
        "address_timeout_s": 10,
        "cores": 2,
        "memory_mib": 2048,
        "disk_gib": 10,
        "tags": ["web"],
        "description": "web",
        "template_vmid": 9000,
        "storage": "local-zfs",
        "pool": "",
        "network": {"mode": "dhcp", "bridge": "vmbr0"},
        "cloud_init": {"user": "admin", "password": "open-sesame", "ssh_public_keys": [KEY]},
    }
    assert (run.action, run.playbook.name, run.timeout_s) == ("create", "create.yml", 240.0)
    assert run.secrets == ("open-sesame",)
    assert "open-sesame" not in repr(run)
    assert "open-sesame" not in repr(make_request(properties=properties, secrets=("open-sesame",)))


@pytest.mark.parametrize("action", [action for action in ACTIONS if action not in ("create", "update")])
def test_our_other_actions_get_the_identity_only(settings: PlanSettings, action: str) -> None:
    run = plan(make_request(action, {"cores": "nonsense", "secret": "x"}, node="pve2"), settings)
    limits = {"timeout_s", "shutdown_timeout_s", "address_timeout_s"}
    assert set(run.vm) == {"service_id", "vmid", "name", "cluster", "node"} | limits
    assert run.vm["node"] == "pve2"


def test_a_providers_own_action_gets_the_properties_too(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "resize-gpu.yml").touch()
    (own / "stop.yml").touch()
    settings = make_settings(own, folder)
    for action in ("resize-gpu", "stop"):
        assert plan(make_request(action, {"gpu": 2}), settings).vm["properties"] == {"gpu": 2}
    assert "properties" not in plan(make_request("start", {"gpu": 2}), settings).vm


@pytest.mark.parametrize(
    ("known", "requested", "used"), [("pve1", "", "pve1"), ("pve1", "pve2", "pve2"), ("", "", ""), ("", "pve2", "pve2")]
)
def test_the_node_of_the_mapping_takes_precedence_over_the_sites(
    folder: Path, known: str, requested: str, used: str
) -> None:
    assert plan(make_request("stop", node=requested), make_settings(folder, node=known)).vm["node"] == used


@pytest.mark.parametrize(
    ("time_left_s", "timeout_s", "shutdown_timeout_s"), [(280.0, 240, 60), (100.9, 100, 50), (10.0, 10, 5), (0.5, 0, 1)]
)
def test_the_timeout_of_a_run_is_within_the_jobs_deadline(
    settings: PlanSettings, time_left_s: float, timeout_s: int, shutdown_timeout_s: int
) -> None:
    run = plan(make_request("stop", time_left_s=time_left_s), settings)
    assert (run.vm["timeout_s"], run.vm["shutdown_timeout_s"]) == (timeout_s, shutdown_timeout_s)
    assert run.timeout_s == min(time_left_s, 240.0)


def test_each_run_has_a_unique_ident_that_can_name_a_folder(settings: PlanSettings) -> None:
    idents = {plan(make_request("stop"), settings).ident for _ in range(50)}
    assert len(idents) == 50
    assert all(ident.startswith("stop-") and ident.replace("-", "").isalnum() for ident in idents)


def test_an_image_without_a_template_is_not_found(settings: PlanSettings, folder: Path) -> None:
    with pytest.raises(JobError, match=r"PROXMOX_TEMPLATES has no template arch \(it has: debian-12, ubuntu") as caught:
        plan(make_request(properties=MINIMAL | {"image": "arch"}), settings)
    assert caught.value.detail == "no template is called arch"
    with pytest.raises(JobError, match=r"NOT_FOUND: .*it has: none"):
        plan(make_request(), make_settings(folder, templates={}))


@pytest.mark.parametrize("image", [None, ...])
def test_a_create_without_an_image_is_refused(settings: PlanSettings, image: Any) -> None:
    properties = {name: value for name, value in (MINIMAL | {"image": image}).items() if value is not ...}
    with pytest.raises(JobError, match="INVALID_REQUEST: image is missing"):
        plan(make_request(properties=properties), settings)


def test_an_unsupported_action_is_refused_before_its_properties(settings: PlanSettings) -> None:
    with pytest.raises(JobError, match="UNSUPPORTED_ACTION"):
        plan(make_request("explode", {"cores": "nonsense"}), settings)


# --- update -------------------------------------------------------------------------------------------------------

FULL = MINIMAL | {
    "ciUser": "admin",
    "ciPassword": "one",
    "sshPublicKeys": [KEY],
    "network": {"mode": "dhcp", "vlan": 20},
    "hostname": "web",
}


@pytest.mark.parametrize(
    ("changed", "shape"),
    [
        ({}, {}),
        ({"cores": 4}, {}),
        ({"image": "unknown-image", "hostname": "db"}, {}),
        ({"network": {"mode": "dhcp"}}, {"network": {"mode": "dhcp", "bridge": "vmbr0"}}),
        ({"ciUser": "root"}, {"cloud_init": {"user": "root"}}),
        ({"ciPassword": "two"}, {"cloud_init": {"password": "two"}}),
        ({"sshPublicKeys": [KEY, KEY]}, {"cloud_init": {"ssh_public_keys": [KEY, KEY]}}),
        ({"ciUser": "root", "ciPassword": "two"}, {"cloud_init": {"user": "root", "password": "two"}}),
    ],
    ids=str,
)
def test_an_update_changes_network_and_logins_only_where_they_differ(
    settings: PlanSettings, changed: dict[str, Any], shape: dict[str, Any]
) -> None:
    run = plan(make_request("update", FULL | changed, previous_properties=FULL), settings)
    assert {name: run.vm[name] for name in ("network", "cloud_init") if name in run.vm} == shape
    assert run.vm["cores"] == changed.get("cores", 2)
    assert not {"template_vmid", "storage", "pool"} & set(run.vm)


def test_an_update_that_removes_all_keys_is_refused(settings: PlanSettings) -> None:
    with pytest.raises(JobError, match="INVALID_REQUEST: sshPublicKeys cannot be emptied"):
        plan(make_request("update", FULL | {"sshPublicKeys": []}, previous_properties=FULL), settings)


def test_an_update_without_a_login_does_not_change_it(settings: PlanSettings) -> None:
    run = plan(make_request("update", MINIMAL, previous_properties=FULL), settings)
    assert not {"network", "cloud_init"} & set(run.vm)


@pytest.mark.parametrize("changed", [{"cores": "4"}, {"memoryMb": 0}, {"network": {"mode": "static"}}], ids=str)
def test_an_update_is_checked_like_a_create(settings: PlanSettings, changed: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="INVALID_REQUEST"):
        plan(make_request("update", FULL | changed, previous_properties=FULL), settings)


# --- text from outside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("injection", INJECTIONS)
def test_text_with_an_injection_reaches_ansible_unchanged(
    settings: PlanSettings, tmp_path: Path, injection: str
) -> None:
    """Through the plan and the file that Ansible reads: marked unsafe, it is never evaluated as a template."""
    properties = MINIMAL | {"ciPassword": injection, "sshPublicKeys": [f"{KEY} {injection.splitlines()[0]}"]}
    run = plan(make_request(properties=properties, service_name=injection), settings)
    assert run.vm["cloud_init"]["password"] == injection
    write_extra_vars(tmp_path / "vm.yml", run.vm)
    assert read_extra_vars(tmp_path / "vm.yml") == run.vm
    assert run.vm["description"] == make_description(injection)


def read_extra_vars(file: Path) -> Any:
    """Return the extra vars. `vm` as a whole must be marked unsafe, which Ansible applies to everything inside."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_mapping(node, deep=True))
    text = file.read_text()
    assert text.startswith('"vm": !unsafe')
    return yaml.load(text, Loader=Loader)["vm"]  # noqa: S506  a SafeLoader with one more tag


# --- the description ----------------------------------------------------------------------------------------------

VICTIM = "ffffffff-2222-4000-8000-000000000002"


@pytest.mark.parametrize(
    "name",
    [
        f"smith-uid={VICTIM}",
        f"SMITH-UID={VICTIM}",
        f"web\nsmith-uid={VICTIM}",
        f"web\r\nsmith-uid={VICTIM}\n",
        f"web\u2028smith-uid={VICTIM}",
        f"web\u0085smith-uid={VICTIM}",
        f"  smith-uid={VICTIM}  ",
        f"smith-uid ={VICTIM}",
        f"smith-\x00uid={VICTIM}",
        f"smith-uid=smith-uid={VICTIM}",
    ],
)
def test_a_name_cannot_forge_the_marker_of_another_service(name: str) -> None:
    """A description, also with more lines, must not identify a VM of another service."""
    assert service_in(f"smith-uid={VICTIM}")
    assert not markers_in(make_description(name))
    assert not markers_in(f"{make_description(name)}\nsmith")


@given(st.text())
def test_a_description_is_one_short_printable_line(name: str) -> None:
    described = make_description(name)
    assert described.isprintable()
    assert len(described) <= MAX_DESCRIPTION_LENGTH
    assert described == described.strip()


def test_an_ordinary_name_is_the_description() -> None:
    assert make_description("Web server (Zürich) 😀") == "Web server (Zürich) 😀"


def test_only_a_delete_gets_half_made(folder: Path) -> None:
    given = {
        action: plan(make_request(action=action, may_be_partial_clone=True), make_settings(folder)).vm.get("half_made")
        for action in ("start", "stop", "delete")
    }
    assert given == {"start": None, "stop": None, "delete": True}
    assert "half_made" not in plan(make_request(action="delete"), make_settings(folder)).vm
