"""The properties of a service: which numbers, texts, keys and networks are accepted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plan_requests import INJECTIONS, KEY, MINIMAL, make_request

from executor.errors import JobError
from executor.runs.plan import plan
from executor.runs.request import PlaybookSettings
from executor.runs.vm_properties import read_properties
from executor.shared.error_codes import ErrorCode

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


def why_refused(**changed: Any) -> str:
    """Return the error for changed properties; a value of ... removes the member."""
    properties = {name: value for name, value in (MINIMAL | changed).items() if value is not ...}
    with pytest.raises(JobError) as caught:
        read_properties(properties)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value.detail


NUMBERS = {"cores": (1, 512), "memoryMb": (16, 16_777_216), "diskGb": (1, 131_072)}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [..., None, "", "2", "2 GB", True, [2], {"a": 2}, 1.5, 2.0, 0, -1, 1e309, float("nan"), 2**63, 10**400],
    ids=str,
)
def test_the_error_for_an_invalid_number_begins_with_the_name_of_its_member(name: str, value: Any) -> None:
    detail = why_refused(**{name: value})
    assert detail.startswith(f"{name} ")
    assert detail.isprintable()
    assert (detail == f"{name} is missing") == (value is ...)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_smallest_and_the_greatest_allowed_number_are_accepted(name: str) -> None:
    low, high = NUMBERS[name]
    for value in (low, high):
        read_properties(MINIMAL | {name: value})
    for value in (low - 1, high + 1):
        assert why_refused(**{name: value}).startswith(f"{name} Input should be ")


def test_a_member_with_another_unit_in_its_name_does_not_replace_the_required_member() -> None:
    """memoryGb must never be read as memoryMb, nor diskMb as diskGb."""
    detail = why_refused(memoryMb=..., memoryGb=2, diskGb=..., diskMb=10240)
    assert detail == "memoryMb is missing; diskGb is missing"


def test_the_member_names_of_the_extra_vars_are_not_accepted_as_properties() -> None:
    assert why_refused(memoryMb=..., memory_mib=2048) == "memoryMb is missing"


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
def test_the_error_for_a_member_of_the_wrong_type_or_form_begins_with_its_name(name: str, value: Any) -> None:
    detail = why_refused(**{name: value})
    assert detail.startswith(name)
    assert detail.isprintable()
    assert len(detail) <= 400


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("name", ["image", "hostname", "ciUser"])
def test_a_name_with_an_injection_is_refused(name: str, injection: str) -> None:
    if injection == "yes":
        return  # an ordinary word, which is accepted
    if injection == "0777" and name != "ciUser":
        return
    why_refused(**{name: injection})


def test_an_error_names_all_wrong_members_and_no_value() -> None:
    canary = "Canary1234"
    network = {"mode": canary, "bridge": canary * 3, "ipv4Cidr": canary, "ipv4Gateway": canary, "dnsServers": [canary]}
    detail = why_refused(
        cores=canary,
        memoryMb=canary,
        hostname=canary,
        ciUser=canary,
        ciPassword=canary * 1000,
        sshPublicKeys=[canary],
        tags=[canary],
        network=network,
    )
    assert canary not in detail
    assert detail.startswith("cores ")
    assert "; memoryMb " in detail
    for part in ({"ipv4Cidr": f"{canary}/24"}, {"ipv4Gateway": canary}, {"dnsServers": [canary]}):
        assert canary not in why_refused(network=part)


def test_deeply_nested_properties_are_ignored_or_refused() -> None:
    deep: Any = {}
    for _ in range(1000):
        deep = {"network": deep}
    read_properties(MINIMAL | {"unknown": deep})
    why_refused(network={"mode": deep})
    why_refused(cores=deep)


@given(st.dictionaries(st.sampled_from(["cores", "memoryMb", "image", "network", "tags", "hostname"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)))  # fmt: skip
def test_any_properties_are_accepted_or_refused_as_an_invalid_request(properties: dict[str, Any]) -> None:
    try:
        read_properties(MINIMAL | properties)
    except JobError as error:
        assert (error.code, error.detail.isprintable()) == (ErrorCode.INVALID_REQUEST, True)  # noqa: PT017  both ways are good


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
    detail = why_refused(sshPublicKeys=[KEY, key])
    assert detail.startswith("sshPublicKeys contains ")
    assert ("private key" in detail) == ("PRIVATE" in key)


def test_fifty_keys_are_accepted_and_one_more_is_refused() -> None:
    assert len(read_properties(MINIMAL | {"sshPublicKeys": [KEY] * 50}).ssh_public_keys) == 50
    why_refused(sshPublicKeys=[KEY] * 51)


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
def test_the_property_network_becomes_the_first_network_interface_of_the_run(
    settings: PlaybookSettings, network: dict[str, Any], expected: dict[str, Any]
) -> None:
    run = plan(make_request(properties=MINIMAL | {"network": network}), settings)
    assert run.vm["network"] == expected


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ({"mode": "static"}, "needs ipv4Cidr, because mode is static"),
        ({"mode": "bridge"}, "network.mode"),
        ({"mode": True}, "network.mode"),
        ({"vlan": -1}, "network.vlan"),
        ({"vlan": 4095}, "network.vlan"),
        ({"vlan": "20"}, "network.vlan"),
        ({"bridge": "vmbr0,firewall=0"}, "network.bridge"),
        ({"bridge": "x" * 16}, "network.bridge"),
        ({"ipv4Cidr": "192.0.2.10"}, "needs a prefix length"),
        ({"ipv4Cidr": "dhcp"}, "needs a prefix length"),
        ({"ipv4Cidr": "dhcp/24"}, "is not an IPv4 address"),
        ({"ipv4Cidr": "192.0.2.10/33"}, "is not an IPv4 address"),
        ({"ipv4Cidr": "192.0.2.256/24"}, "is not an IPv4 address"),
        ({"ipv4Cidr": "2001:db8::1/64"}, "is not an IPv4 address"),
        ({"ipv4Cidr": "192.0.2.0/24"}, "is the address of the network"),
        ({"ipv4Cidr": "192.0.2.255/24"}, "is the address of the network or the broadcast"),
        ({"ipv4Cidr": "192.0.2.10/24,gw=192.0.2.1"}, "is not an IPv4 address"),
        ({"ipv4Cidr": "192.0.2.10/24", "ipv4Gateway": "198.51.100.1"}, "ipv4Gateway is outside"),
        ({"ipv4Cidr": "192.0.2.10/24", "ipv4Gateway": "192.0.2.10"}, "ipv4Gateway is the address of the guest itself"),
        ({"ipv4Cidr": "192.0.2.10/24"}, "ipv4Cidr is only allowed if mode is static"),
        ({"mode": "dhcp", "ipv4Gateway": "192.0.2.1"}, "ipv4Gateway is only allowed if mode is static"),
        ({"ipv6Cidr": "2001:db8::10/64"}, "ipv6Cidr is only allowed if ipv6Mode is static"),
        ({"ipv6Mode": "slaac", "ipv6Gateway": "fe80::1"}, "ipv6Gateway is only allowed if ipv6Mode is static"),
        ({"ipv4Gateway": "2001:db8::1"}, "is not an IPv4 address"),
        ({"dnsServers": ["192.0.2.1"] * 4}, "network.dnsServers"),
        ({"dnsServers": ["dns.example.net"]}, "is not an IP address"),
        ({"dnsServers": ["fe80::1%\neth0 evil"]}, "an address with an IPv6 zone"),
        ({"dnsServers": "192.0.2.1"}, "network.dnsServers"),
        ({"dnsServers": [3232235521]}, "network.dnsServers"),
    ],
)
def test_an_invalid_network_is_refused(network: dict[str, Any], reason: str) -> None:
    detail = why_refused(network=network)
    assert detail.startswith("network")
    assert reason in detail
