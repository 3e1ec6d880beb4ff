"""What a service says of its VM: FulcrumCore's JSON, checked member by member. Pure; used by `playbooks` (step 5 of 7).

A refusal names the member and never quotes the value: it may be a secret, and it is somebody else's text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from executor.model import GuestKind

SSH_KEY_PATTERN = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) "
    r"[A-Za-z0-9+/]+={0,3}( [^\r\n]*)?\Z"
)

Bridge = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,14}$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_][a-z0-9_+.-]{0,31}$")]
TemplateName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
UserName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Storage = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,63}$")]
Snippet = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,63}:snippets/[A-Za-z0-9_][A-Za-z0-9_.-]*$")
]
CpuType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
DiskName = Annotated[str, StringConstraints(pattern=r"^(scsi([12]?[0-9]|30)|virtio(1[0-5]|[0-9])|sata[0-5]|ide[0-3])$")]
Device = Annotated[str, StringConstraints(pattern=r"^(scsi|virtio|sata|ide|net)[0-9]{1,2}$")]
MacAddress = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$")]
Iso = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,63}:iso/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}$")
]
OsTemplate = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63}|[A-Za-z][A-Za-z0-9_.-]{1,63}:vztmpl/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200})$"
    ),
]
Domain = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$")]


Address = TypeVar("Address")


def _read_address(read: Callable[[str], Address], value: str) -> Address:
    """Return the address; unlike the library's, the error does not quote the value."""
    try:
        return read(value)
    except ValueError:
        raise ValueError("is not an IP address of the kind that is needed") from None


def _without_zone(value: str) -> str:
    if "%" in value:
        raise ValueError("holds an address with a zone: any text may stand there")
    return value


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


class _Properties(BaseModel):
    """FulcrumCore's JSON: camelCase, unknown members ignored, no guessing of types ("2" is not 2)."""

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, alias_generator=_camel, hide_input_in_errors=True
    )


class _AddressProperties(_Properties):
    """How a NIC gets its addresses."""

    ipv4_cidr: str | None = None
    ipv4_gateway: str | None = None
    ipv6_mode: Literal["dhcp", "slaac", "static"] | None = None
    ipv6_cidr: str | None = None
    ipv6_gateway: str | None = None

    @field_validator("ipv4_cidr")
    @classmethod
    def _is_host_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "/" not in value:
            raise ValueError("needs a prefix length, as in 192.0.2.10/24")
        interface = _read_address(ipaddress.IPv4Interface, value)
        network = interface.network
        if network.prefixlen < 31 and interface.ip in (network.network_address, network.broadcast_address):
            raise ValueError("is the network's or the broadcast address, not a host's")
        return interface.with_prefixlen  # Proxmox knows no other form; 192.0.2.10/255.255.255.0 is one, too

    @field_validator("ipv6_cidr")
    @classmethod
    def _is_ipv6_host_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "/" not in value:
            raise ValueError("needs a prefix length, as in 2001:db8::10/64")
        interface = _read_address(ipaddress.IPv6Interface, _without_zone(value))
        if interface.ip.is_multicast or interface.ip.is_unspecified:
            raise ValueError("is not a host's address")
        return interface.with_prefixlen

    @field_validator("ipv4_gateway")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        return None if value is None else str(_read_address(ipaddress.IPv4Address, value))

    @field_validator("ipv6_gateway")
    @classmethod
    def _is_ipv6_address(cls, value: str | None) -> str | None:
        return None if value is None else str(_read_address(ipaddress.IPv6Address, _without_zone(value)))

    @model_validator(mode="after")
    def _static_is_complete(self) -> _AddressProperties:
        if getattr(self, "mode", None) == "static" and self.ipv4_cidr is None:
            raise ValueError("mode static needs ipv4Cidr")
        if self.ipv6_mode == "static" and self.ipv6_cidr is None:
            raise ValueError("ipv6Mode static needs ipv6Cidr")
        if self.ipv4_cidr and self.ipv4_gateway:
            network = ipaddress.IPv4Interface(self.ipv4_cidr).network
            if ipaddress.IPv4Address(self.ipv4_gateway) not in network:
                raise ValueError("ipv4Gateway lies outside ipv4Cidr's network")
        if self.ipv6_cidr and self.ipv6_gateway:
            gateway = ipaddress.IPv6Address(self.ipv6_gateway)
            if not gateway.is_link_local and gateway not in ipaddress.IPv6Interface(self.ipv6_cidr).network:
                raise ValueError("ipv6Gateway lies outside ipv6Cidr's network")
        return self


class NetworkProperties(_AddressProperties):
    """The primary interface."""

    mode: Literal["dhcp", "static"] = "dhcp"
    bridge: Bridge | None = None
    vlan: int | None = Field(default=None, ge=1, le=4094)
    dns_servers: tuple[str, ...] = Field(default=(), max_length=3, strict=False)
    search_domains: tuple[Domain, ...] = Field(default=(), max_length=6, strict=False)

    @field_validator("dns_servers")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(_read_address(ipaddress.ip_address, _without_zone(server))) for server in value)


class NicProperties(_AddressProperties):
    """One of several interfaces, in order; what is not given stays as it is."""

    mode: Literal["dhcp", "static"] | None = None
    bridge: Bridge | None = None
    vlan: int | None = Field(default=None, ge=0, le=4094)  #: 0 takes the tag away
    firewall: bool | None = None
    rate_mbps: float | None = Field(default=None, ge=0, le=1_000_000)  #: megabits a second; 0 takes the limit away
    mac: MacAddress | None = None


class DiskProperties(_Properties):
    """One of several disks. New ones are added, others move and grow."""

    disk: DiskName
    size_gib: int | None = Field(default=None, alias="sizeGb", ge=1, le=131_072)
    storage: Storage | None = None


#: What a guest can be made of; a service names one.
SOURCES = ("image", "iso", "blank", "os_template")
#: Properties that say something to a virtual machine only.
VM_ONLY = (
    *("sockets", "cpu_type", "balloon_mib", "protection", "guest_agent", "boot_order", "ci_user", "vendor_snippet"),
    *("disks", "tags"),
)


class VmProperties(_Properties):
    """What a service says of its VM, or its container: `osTemplate` makes it one.

    Disk sizes are GiB and memory MiB, whatever the property is called.
    """

    cores: int = Field(ge=1, le=512)
    memory_mib: int = Field(alias="memoryMb", ge=16, le=16_777_216)
    disk_gib: int = Field(alias="diskGb", ge=1, le=131_072)
    sockets: int | None = Field(default=None, ge=1, le=16)
    cpu_type: CpuType | None = None
    balloon_mib: int | None = Field(default=None, alias="balloonMb", ge=0, le=16_777_216)
    onboot: bool | None = None
    protection: bool | None = None
    guest_agent: bool | None = None
    allow_reboot: bool = False
    boot_order: tuple[Device, ...] = Field(default=(), max_length=16, strict=False)
    image: TemplateName | None = None
    iso: Iso | None = None
    blank: bool = False
    os_template: OsTemplate | None = None
    swap_mib: int | None = Field(default=None, alias="swapMb", ge=0, le=16_777_216)
    hostname: HostName | None = None
    ci_user: UserName | None = None
    ci_password: str | None = Field(default=None, repr=False, max_length=4096)
    ssh_public_keys: tuple[str, ...] = Field(default=(), max_length=50, strict=False)
    vendor_snippet: Snippet | None = None
    network: NetworkProperties = NetworkProperties()
    networks: tuple[NicProperties, ...] = Field(default=(), max_length=32, strict=False)
    disks: tuple[DiskProperties, ...] = Field(default=(), max_length=32, strict=False)
    tags: tuple[Tag, ...] = Field(default=(), max_length=20, strict=False)

    @field_validator("ssh_public_keys")
    @classmethod
    def _are_public_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        cleaned = tuple(key.strip() for key in keys)
        if any("PRIVATE KEY" in key for key in cleaned):
            raise ValueError("holds a private key")
        if not all(SSH_KEY_PATTERN.match(key) and key.isprintable() and len(key) <= 8192 for key in cleaned):
            raise ValueError("holds something that is not an OpenSSH public key on one line")
        return cleaned

    @property
    def kind(self) -> GuestKind:
        """What serves the service."""
        return GuestKind.LXC if self.os_template else GuestKind.QEMU

    @property
    def is_sourced(self) -> bool:
        """True when it is said what the guest is to be made of."""
        return any(getattr(self, name) for name in SOURCES)

    @model_validator(mode="after")
    def _is_one_kind_of_guest(self) -> VmProperties:
        given = [name for name in SOURCES if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(map(property_name, given))} exclude each other")
        foreign = VM_ONLY if self.kind is GuestKind.LXC else ("swap_mib",)
        unfit = [property_name(name) for name in foreign if getattr(self, name) not in (None, ())]
        if unfit:
            raise ValueError(f"a {'container' if self.kind is GuestKind.LXC else 'VM'} takes no {', '.join(unfit)}")
        return self

    @field_validator("disks")
    @classmethod
    def _are_different_disks(cls, disks: tuple[DiskProperties, ...]) -> tuple[DiskProperties, ...]:
        if len({disk.disk for disk in disks}) < len(disks):
            raise ValueError("names one disk twice")
        return disks


def property_name(field: str) -> str:
    """Return what FulcrumCore calls a member."""
    return VmProperties.model_fields[field].alias or field
