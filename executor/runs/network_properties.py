"""Defines and checks the network properties of a service, which FulcrumCore sends as JSON. All functions are pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

# `StringConstraints(pattern=…)` accepts a text that contains a match, so each pattern begins with ^ and ends with $.
Bridge = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,14}$")]
# The second digit of a MAC address is even, because an address with an odd digit there is a multicast address.
MacAddress = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$")]
Domain = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$")]

Address = TypeVar("Address")


def _read_address(make_address: Callable[[str], Address], value: str) -> Address:
    """Return the address that `make_address`, a class or function of `ipaddress`, makes from the value.

    Raises a ValueError whose text does not quote the value. The text of `ipaddress` would quote it.
    """
    try:
        return make_address(value)
    except ValueError:
        raise ValueError("is not an IP address of the required version") from None


def _refuse_zone(value: str) -> str:
    """Return the value. Raises ValueError when it contains an IPv6 zone, as in `fe80::1%eth0`.

    Zones are refused, because `ipaddress` accepts any text as a zone.
    """
    if "%" in value:
        raise ValueError("contains an address with an IPv6 zone, which is not allowed")
    return value


def _to_camel_case(name: str) -> str:
    """Return FulcrumCore's name of a property: `dns_servers` becomes `dnsServers`."""
    first_word, *other_words = name.split("_")
    return first_word + "".join(word.capitalize() for word in other_words)


class Properties(BaseModel):
    """The base class of all properties.

    Each property has its camelCase name in JSON. Unknown members are ignored. Types are not converted: the text "2" is
    refused where a number is required.
    """

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, alias_generator=_to_camel_case, hide_input_in_errors=True
    )


class AddressProperties(Properties):
    """The properties by which a NIC gets its IP addresses."""

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
        interface = _read_address(ipaddress.IPv4Interface, value)
        network = interface.network
        # A network with the prefix length 31 or 32 has no network address and no broadcast address.
        if network.prefixlen < 31 and interface.ip in (network.network_address, network.broadcast_address):
            raise ValueError("is the address of the network or the broadcast address, not of a host")
        return interface.with_prefixlen  # in the form 192.0.2.10/24, because Proxmox refuses 192.0.2.10/255.255.255.0

    @field_validator("ipv6_cidr")
    @classmethod
    def _check_ipv6_cidr(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "/" not in value:
            raise ValueError("needs a prefix length, as in 2001:db8::10/64")
        interface = _read_address(ipaddress.IPv6Interface, _refuse_zone(value))
        if interface.ip.is_multicast or interface.ip.is_unspecified:
            raise ValueError("is not the address of a host")
        return interface.with_prefixlen

    @field_validator("ipv4_gateway")
    @classmethod
    def _check_ipv4_gateway(cls, value: str | None) -> str | None:
        return None if value is None else str(_read_address(ipaddress.IPv4Address, value))

    @field_validator("ipv6_gateway")
    @classmethod
    def _check_ipv6_gateway(cls, value: str | None) -> str | None:
        return None if value is None else str(_read_address(ipaddress.IPv6Address, _refuse_zone(value)))

    @model_validator(mode="after")
    def _check_addresses(self) -> AddressProperties:
        ipv4_mode = getattr(self, "mode", None)  # the subclasses define `mode`
        if ipv4_mode == "static" and self.ipv4_cidr is None:
            raise ValueError("mode static needs ipv4Cidr")
        if self.ipv6_mode == "static" and self.ipv6_cidr is None:
            raise ValueError("ipv6Mode static needs ipv6Cidr")
        if self.ipv4_cidr and self.ipv4_gateway:
            network = ipaddress.IPv4Interface(self.ipv4_cidr).network
            if ipaddress.IPv4Address(self.ipv4_gateway) not in network:
                raise ValueError("ipv4Gateway is outside the network of ipv4Cidr")
        if self.ipv6_cidr and self.ipv6_gateway:
            ipv6_gateway = ipaddress.IPv6Address(self.ipv6_gateway)
            ipv6_network = ipaddress.IPv6Interface(self.ipv6_cidr).network
            if not ipv6_gateway.is_link_local and ipv6_gateway not in ipv6_network:
                raise ValueError("ipv6Gateway is outside the network of ipv6Cidr")
        return self


class NetworkProperties(AddressProperties):
    """The property `network`, which configures the first network interface of a guest."""

    mode: Literal["dhcp", "static"] = "dhcp"
    bridge: Bridge | None = None
    vlan: int | None = Field(default=None, ge=1, le=4094)
    dns_servers: tuple[str, ...] = Field(default=(), max_length=3, strict=False)
    search_domains: tuple[Domain, ...] = Field(default=(), max_length=6, strict=False)

    @field_validator("dns_servers")
    @classmethod
    def _check_dns_servers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(_read_address(ipaddress.ip_address, _refuse_zone(server))) for server in value)


class NicProperties(AddressProperties):
    """One network interface of the list `networks`, which configures all interfaces of a guest, including the first.

    An update leaves the values of missing members unchanged.
    """

    mode: Literal["dhcp", "static"] | None = None
    bridge: Bridge | None = None
    vlan: int | None = Field(default=None, ge=0, le=4094)  #: 0 removes the VLAN tag
    firewall: bool | None = None
    rate_mbps: float | None = Field(default=None, ge=0, le=1_000_000)  #: Mbit/s; 0 removes the limit
    mac: MacAddress | None = None
