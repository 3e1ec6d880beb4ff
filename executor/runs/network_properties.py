"""Defines and checks the network properties of a service, which FulcrumCore sends as JSON. All functions are pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from executor.shared.addresses import cidr_problem, gateway_problem

# `StringConstraints(pattern=…)` accepts a text that contains a match, so each pattern begins with ^ and ends with $.
Bridge = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,14}$")]
# The second digit of a MAC address must be even, because an odd digit there makes it a multicast address.
MacAddress = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$")]
Domain = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$")]

Address = TypeVar("Address")


def _read_address(make_address: Callable[[str], Address], value: str, expected: str) -> Address:
    """Return `make_address(value)`. `make_address` is a class or a function of the module `ipaddress`.

    Raises ValueError if the value is invalid. The text of this error contains `expected`, such as `an IPv4 address`.
    It does not quote the value, which may be confidential.
    """
    try:
        return make_address(value)
    except ValueError:
        raise ValueError(f"is not {expected}") from None


def _refuse_ipv6_zone(value: str) -> str:
    """Return the value. Raises ValueError when it contains an IPv6 zone, as in `fe80::1%eth0`.

    Zones are refused, because `ipaddress` accepts any text as a zone.
    """
    if "%" in value:
        raise ValueError("contains an address with an IPv6 zone, which is not allowed")
    return value


def _require_valid_cidr(cidr: str, version: int) -> str:
    """Return `cidr`, an address with its prefix length. Raises ValueError if a guest cannot have this address."""
    if problem := cidr_problem(cidr, version):
        raise ValueError(problem)
    return cidr


def to_camel_case(name: str) -> str:
    """Return FulcrumCore's name of a property: `dns_servers` becomes `dnsServers`."""
    first_word, *other_words = name.split("_")
    return first_word + "".join(word.capitalize() for word in other_words)


class Properties(BaseModel):
    """The base class of the models that define properties.

    Each property has a camelCase name in JSON. Unknown members are ignored. Types are not converted: the text "2" is
    refused where a number is required.
    """

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, alias_generator=to_camel_case, hide_input_in_errors=True
    )


class AddressProperties(Properties):
    """The properties with the IP configuration of a NIC. The subclasses add the property `mode`, the mode of IPv4."""

    #: True if an address or a gateway may be given although the property `mode` (or `ipv6Mode` for IPv6) is missing.
    MAY_LACK_MODE: ClassVar[bool] = False

    ipv4_cidr: str | None = None
    ipv4_gateway: str | None = None
    ipv6_mode: Literal["dhcp", "slaac", "static"] | None = None
    ipv6_cidr: str | None = None
    ipv6_gateway: str | None = None

    @field_validator("ipv4_cidr")
    @classmethod
    def _check_ipv4_cidr(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "/" not in value:
            raise ValueError("needs a prefix length, as in 192.0.2.10/24")
        # `with_prefixlen` is the form 192.0.2.10/24. Proxmox refuses the form 192.0.2.10/255.255.255.0.
        interface = _read_address(ipaddress.IPv4Interface, value, "an IPv4 address with a valid prefix length")
        return _require_valid_cidr(interface.with_prefixlen, 4)

    @field_validator("ipv6_cidr")
    @classmethod
    def _check_ipv6_cidr(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "/" not in value:
            raise ValueError("needs a prefix length, as in 2001:db8::10/64")
        address = _refuse_ipv6_zone(value)
        interface = _read_address(ipaddress.IPv6Interface, address, "an IPv6 address with a valid prefix length")
        return _require_valid_cidr(interface.with_prefixlen, 6)

    @field_validator("ipv4_gateway")
    @classmethod
    def _check_ipv4_gateway(cls, value: str | None) -> str | None:
        return None if value is None else str(_read_address(ipaddress.IPv4Address, value, "an IPv4 address"))

    @field_validator("ipv6_gateway")
    @classmethod
    def _check_ipv6_gateway(cls, value: str | None) -> str | None:
        if value is None:
            return None
        return str(_read_address(ipaddress.IPv6Address, _refuse_ipv6_zone(value), "an IPv6 address"))

    @model_validator(mode="after")
    def _check_addresses(self) -> AddressProperties:
        ipv4_mode = getattr(self, "mode", None)
        if ipv4_mode == "static" and self.ipv4_cidr is None:
            raise ValueError("needs ipv4Cidr, because mode is static")
        if self.ipv6_mode == "static" and self.ipv6_cidr is None:
            raise ValueError("needs ipv6Cidr, because ipv6Mode is static")
        for name, gateway, cidr, version in (
            ("ipv4Gateway", self.ipv4_gateway, self.ipv4_cidr, 4),
            ("ipv6Gateway", self.ipv6_gateway, self.ipv6_cidr, 6),
        ):
            # If no address is requested, the second argument is '': then only the gateway itself is checked.
            if gateway and (problem := gateway_problem(gateway, cidr or "", version)):
                raise ValueError(f"{name} {problem}")
        for mode, mode_name, properties in (
            (ipv4_mode, "mode", {"ipv4Cidr": self.ipv4_cidr, "ipv4Gateway": self.ipv4_gateway}),
            (self.ipv6_mode, "ipv6Mode", {"ipv6Cidr": self.ipv6_cidr, "ipv6Gateway": self.ipv6_gateway}),
        ):
            given_property = next((name for name, value in properties.items() if value is not None), "")
            if given_property and mode != "static" and not (mode is None and self.MAY_LACK_MODE):
                raise ValueError(f"{given_property} is only allowed if {mode_name} is static")
        return self


class NetworkProperties(AddressProperties):
    """The property `network`, which configures the first network interface of a guest."""

    mode: Literal["dhcp", "static"] = "dhcp"
    bridge: Bridge | None = None
    vlan: int | None = Field(default=None, ge=0, le=4094)  #: 0 removes the VLAN tag
    # strict=False accepts a JSON list, which pydantic converts to a tuple.
    dns_servers: tuple[str, ...] = Field(default=(), max_length=3, strict=False)
    search_domains: tuple[Domain, ...] = Field(default=(), max_length=6, strict=False)

    @field_validator("dns_servers")
    @classmethod
    def _check_dns_servers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        addresses = (_read_address(ipaddress.ip_address, _refuse_ipv6_zone(text), "an IP address") for text in value)
        return tuple(str(address) for address in addresses)


class NicProperties(AddressProperties):
    """One network interface of the list `networks`, which configures all interfaces of a guest, including the first.

    For the first interface, `networks` has precedence over the property `network`. An update leaves the values of
    missing members unchanged.
    """

    #: The mode of the first NIC may be in the property `network` instead. The class `VmProperties`, which contains
    #: `network` and all NICs, checks the mode.
    MAY_LACK_MODE: ClassVar[bool] = True

    mode: Literal["dhcp", "static"] | None = None
    bridge: Bridge | None = None
    vlan: int | None = Field(default=None, ge=0, le=4094)  #: 0 removes the VLAN tag
    firewall: bool | None = None
    rate_mbps: float | None = Field(default=None, ge=0, le=1_000_000)  #: Mbit/s; 0 removes the limit
    mac: MacAddress | None = None
