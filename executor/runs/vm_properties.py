"""Defines and checks the properties of a service, which FulcrumCore sends as JSON. All functions are pure.

An error message names the wrong property. It never quotes the value, which may be a secret. The base class
`Properties` gives each property a camelCase name in JSON and refuses values of a wrong type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from executor.errors import JobError
from executor.model import GuestKind
from executor.runs.network_properties import NetworkProperties, NicProperties, Properties, to_camel_case
from executor.shared.error_codes import ErrorCode
from executor.shared.ssh_keys import is_public_key

#: Matches an OpenSSH public key on one line: its type, its base64 text, and an optional comment.
SSH_KEY_PATTERN = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) "
    r"[A-Za-z0-9+/]+={0,3}( [^\r\n]*)?\Z"
)

#: The largest sizes and lengths that are accepted.
MAX_SSH_KEY_LENGTH = 8192
MAX_PASSWORD_LENGTH = 4096
MAX_DISK_GIB = 128 * 1024
MAX_MEMORY_MIB = 16 * 1024 * 1024
#: Maximum length of an error message about wrong properties.
MAX_MESSAGE_LENGTH = 400

TAG_PATTERN = re.compile(r"[a-z0-9_][a-z0-9_+.-]{0,31}")
Tag = Annotated[str, StringConstraints(pattern=f"^{TAG_PATTERN.pattern}$")]
TemplateName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
UserName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
StorageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,63}$")]
#: The volume of a cloud-init snippet, such as `local:snippets/vendor.yml`.
SnippetVolume = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,63}:snippets/[A-Za-z0-9_][A-Za-z0-9_.-]*$")
]
#: A type of virtual CPU, such as `host` or `x86-64-v2-AES`.
CpuType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
#: The name of a disk: scsi0 to scsi30, virtio0 to virtio15, sata0 to sata5, or ide0 to ide3.
DiskName = Annotated[str, StringConstraints(pattern=r"^(scsi([12]?[0-9]|30)|virtio(1[0-5]|[0-9])|sata[0-5]|ide[0-3])$")]
#: The name of a device from which a VM can boot: a disk or a NIC, such as `net0`.
BootDevice = Annotated[str, StringConstraints(pattern=r"^(scsi|virtio|sata|ide|net)[0-9]{1,2}$")]
#: The volume of an ISO image, such as `local:iso/debian.iso`.
IsoVolume = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,63}:iso/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}$")
]
#: The name of a container's OS template, or its volume, such as `local:vztmpl/debian.tar.zst`.
OsTemplate = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63}|[A-Za-z][A-Za-z0-9_.-]{1,63}:vztmpl/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200})$"
    ),
]


class DiskProperties(Properties):
    """One disk of the list `disks`. A disk that does not exist is added.

    An existing disk is enlarged to `size_gib` and moved to `storage`. If `size_gib` is None, the disk keeps its size.
    If `storage` is None, the disk stays on its storage.
    The size of a disk is in GiB, although FulcrumCore's name of this property ends in Gb.
    """

    disk: DiskName
    size_gib: int | None = Field(default=None, alias="sizeGb", ge=1, le=MAX_DISK_GIB)
    storage: StorageName | None = None


#: The properties that name the source from which a guest is created. A service may set only one of these properties.
SOURCE_PROPERTIES = ("image", "iso", "blank", "os_template")
#: Properties that only VMs support, not containers.
VM_ONLY_PROPERTIES = (
    *("sockets", "cpu_type", "balloon_mib", "protection", "guest_agent", "boot_order", "ci_user", "vendor_snippet"),
    *("disks", "tags"),
)
#: Properties that only containers support, not VMs.
CONTAINER_ONLY_PROPERTIES: tuple[str, ...] = ("swap_mib",)


#: The names of the properties with the mode, the address and the gateway of a NIC, for each IP version.
IPV4_AND_IPV6_NIC_PROPERTY_NAMES = (("mode", "ipv4_cidr", "ipv4_gateway"), ("ipv6_mode", "ipv6_cidr", "ipv6_gateway"))


class VmProperties(Properties):
    """The properties of a service. They describe its guest: a container if `osTemplate` is given, else a VM.

    Disk sizes are in GiB and memory sizes in MiB, although FulcrumCore's names of these properties end in Gb and Mb.
    The base class `Properties` makes fields strict. A strict field of type tuple would refuse a list from JSON, so
    fields of type tuple have `strict=False`.
    """

    cores: int = Field(ge=1, le=512)
    memory_mib: int = Field(alias="memoryMb", ge=16, le=MAX_MEMORY_MIB)
    disk_gib: int = Field(alias="diskGb", ge=1, le=MAX_DISK_GIB)  #: the size of the first disk
    sockets: int | None = Field(default=None, ge=1, le=16)
    cpu_type: CpuType | None = None
    balloon_mib: int | None = Field(default=None, alias="balloonMb", ge=0, le=MAX_MEMORY_MIB)
    onboot: bool | None = None
    protection: bool | None = None
    guest_agent: bool | None = None
    allow_reboot: bool = False  #: an update may restart the guest if values take effect only after a restart
    boot_order: tuple[BootDevice, ...] = Field(default=(), max_length=16, strict=False)
    image: TemplateName | None = None
    iso: IsoVolume | None = None
    blank: bool = False  #: create the VM with empty disks
    os_template: OsTemplate | None = None
    swap_mib: int | None = Field(default=None, alias="swapMb", ge=0, le=MAX_MEMORY_MIB)
    hostname: HostName | None = None
    ci_user: UserName | None = None
    ci_password: str | None = Field(default=None, repr=False, max_length=MAX_PASSWORD_LENGTH)
    ssh_public_keys: tuple[str, ...] = Field(default=(), max_length=50, strict=False)
    vendor_snippet: SnippetVolume | None = None
    network: NetworkProperties = NetworkProperties()  #: the first NIC; the values in `networks[0]` have precedence
    networks: tuple[NicProperties, ...] = Field(default=(), max_length=32, strict=False)  #: all NICs, also the first
    disks: tuple[DiskProperties, ...] = Field(default=(), max_length=32, strict=False)
    tags: tuple[Tag, ...] = Field(default=(), max_length=20, strict=False)

    @field_validator("ssh_public_keys")
    @classmethod
    def _check_ssh_public_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        stripped_keys = tuple(key.strip() for key in keys)
        if any("PRIVATE KEY" in key for key in stripped_keys):
            raise ValueError("contains a private key")
        if not all(_has_form_of_public_key(key) for key in stripped_keys):
            raise ValueError("contains text that is not an OpenSSH public key on one line")
        if not all(is_public_key(key) for key in stripped_keys):
            raise ValueError("contains a key that is cut off, or whose data does not match its type")
        return stripped_keys

    @property
    def kind(self) -> GuestKind:
        """The kind of guest that the properties describe."""
        return GuestKind.LXC if self.os_template else GuestKind.QEMU

    @property
    def total_cores(self) -> int:
        """The number of cores of all sockets together."""
        return self.cores * (self.sockets or 1)

    @property
    def has_source(self) -> bool:
        """True when a property names the source from which the guest is created."""
        return any(getattr(self, name) for name in SOURCE_PROPERTIES)

    @model_validator(mode="after")
    def _check_source_and_kind(self) -> VmProperties:
        sources = [fulcrum_name(name) for name in SOURCE_PROPERTIES if getattr(self, name)]
        if len(sources) > 1:
            raise ValueError(f"set only one of {' and '.join(sources)}")
        is_container = self.kind is GuestKind.LXC
        guest = "container" if is_container else "VM"
        excluded_properties: tuple[str, ...] = VM_ONLY_PROPERTIES if is_container else CONTAINER_ONLY_PROPERTIES
        unsupported = [fulcrum_name(name) for name in excluded_properties if getattr(self, name) not in (None, ())]
        if unsupported:
            raise ValueError(f"a {guest} does not support {', '.join(unsupported)}")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> VmProperties:
        if self.balloon_mib is not None and self.balloon_mib > self.memory_mib:
            raise ValueError("balloonMb is more than memoryMb")
        return self

    @model_validator(mode="after")
    def _check_modes_of_nics(self) -> VmProperties:
        """Refuse an address or a gateway without the mode `static`. The mode of the first NIC may be in `network`."""
        for number, nic in enumerate(self.networks):
            network = self.network if number == 0 else None
            for mode_name, cidr_name, gateway_name in IPV4_AND_IPV6_NIC_PROPERTY_NAMES:
                is_static = "static" in (getattr(nic, mode_name), getattr(network, mode_name, None))
                given_property = next(
                    (name for name in (cidr_name, gateway_name) if getattr(nic, name) is not None), ""
                )
                if given_property and not is_static:
                    raise ValueError(
                        f"networks.{number}: {to_camel_case(given_property)} is only allowed "
                        f"if {to_camel_case(mode_name)} is static"
                    )
        return self

    @field_validator("disks")
    @classmethod
    def _check_disks_differ(cls, disks: tuple[DiskProperties, ...]) -> tuple[DiskProperties, ...]:
        if len({disk.disk for disk in disks}) < len(disks):
            raise ValueError("has the same disk twice")
        return disks


def fulcrum_name(name: str) -> str:
    """Return FulcrumCore's name of the property that VmProperties calls `name`."""
    return VmProperties.model_fields[name].alias or name


def read_properties(properties: Mapping[str, Any]) -> VmProperties:
    """Check a service's properties and return them. Raises JobError INVALID_REQUEST when a property is wrong."""
    try:
        return VmProperties.model_validate(dict(properties))
    except ValidationError as error:
        problems = [_problem_text(details) for details in error.errors()]
        raise JobError(ErrorCode.INVALID_REQUEST, "; ".join(problems)[:MAX_MESSAGE_LENGTH]) from None
    except RecursionError:
        raise JobError(ErrorCode.INVALID_REQUEST, "properties are nested too deeply") from None


def _has_form_of_public_key(text: str) -> bool:
    """True if the text has the form of a public key on one line. `is_public_key` also checks the data of the key."""
    return bool(SSH_KEY_PATTERN.match(text)) and text.isprintable() and len(text) <= MAX_SSH_KEY_LENGTH


def _problem_text(details: Mapping[str, Any]) -> str:
    """Return the path of a wrong property and the reason, from one of pydantic's error details."""
    path = ".".join(str(part) for part in details["loc"])
    if details["type"] == "missing":
        return f"{path} is missing"
    reason = str(details["msg"]).removeprefix("Value error, ")
    return f"{path} {reason}".strip()
