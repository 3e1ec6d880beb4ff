"""Defines and checks the properties of a service, which FulcrumCore sends as JSON. All functions are pure.

An error message names the wrong property. It never quotes the value, which may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from executor.errors import ErrorCode, JobError
from executor.model import GuestKind
from executor.runs.network_properties import NetworkProperties, NicProperties, Properties

SSH_KEY_PATTERN = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) "
    r"[A-Za-z0-9+/]+={0,3}( [^\r\n]*)?\Z"
)

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
Iso = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,63}:iso/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}$")
]
OsTemplate = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63}|[A-Za-z][A-Za-z0-9_.-]{1,63}:vztmpl/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200})$"
    ),
]


class DiskProperties(Properties):
    """One disk of the list `disks`. A disk that does not exist is added. An existing disk is moved or enlarged."""

    disk: DiskName
    size_gib: int | None = Field(default=None, alias="sizeGb", ge=1, le=131_072)
    storage: Storage | None = None


#: The properties that name what a guest is created from. A service has at most one of these properties.
SOURCES = ("image", "iso", "blank", "os_template")
#: Properties that containers do not support.
VM_ONLY = (
    *("sockets", "cpu_type", "balloon_mib", "protection", "guest_agent", "boot_order", "ci_user", "vendor_snippet"),
    *("disks", "tags"),
)


class VmProperties(Properties):
    """The properties of a guest. The guest is a container if `osTemplate` is given, else a VM.

    Disk sizes are in GiB and memory sizes in MiB, although FulcrumCore's names of these properties end in Gb and Mb.
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
            raise ValueError("contains a private key")
        if not all(SSH_KEY_PATTERN.match(key) and key.isprintable() and len(key) <= 8192 for key in cleaned):
            raise ValueError("contains text that is not an OpenSSH public key on one line")
        return cleaned

    @property
    def kind(self) -> GuestKind:
        """The kind of guest that the properties describe."""
        return GuestKind.LXC if self.os_template else GuestKind.QEMU

    @property
    def has_source(self) -> bool:
        """True when a property names what the guest is created from."""
        return any(getattr(self, name) for name in SOURCES)

    @model_validator(mode="after")
    def _is_one_kind_of_guest(self) -> VmProperties:
        given = [name for name in SOURCES if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(map(property_name, given))} exclude each other")
        excluded = VM_ONLY if self.kind is GuestKind.LXC else ("swap_mib",)
        unsupported = [property_name(name) for name in excluded if getattr(self, name) not in (None, ())]
        if unsupported:
            raise ValueError(
                f"a {'container' if self.kind is GuestKind.LXC else 'VM'} does not support {', '.join(unsupported)}"
            )
        return self

    @field_validator("disks")
    @classmethod
    def _are_different_disks(cls, disks: tuple[DiskProperties, ...]) -> tuple[DiskProperties, ...]:
        if len({disk.disk for disk in disks}) < len(disks):
            raise ValueError("has the same disk twice")
        return disks


def property_name(field: str) -> str:
    """Return FulcrumCore's name of a property."""
    return VmProperties.model_fields[field].alias or field


def read_properties(properties: Mapping[str, Any]) -> VmProperties:
    """Check a service's properties and return them. Raises JobError INVALID_REQUEST."""
    try:
        return VmProperties.model_validate(dict(properties))
    except ValidationError as error:
        problems = [f"{'.'.join(str(part) for part in item['loc'])} {_reason(item)}" for item in error.errors()]
        raise JobError(ErrorCode.INVALID_REQUEST, "; ".join(problem.strip() for problem in problems)[:400]) from None
    except RecursionError:
        raise JobError(ErrorCode.INVALID_REQUEST, "properties are nested too deeply") from None


def _reason(item: Mapping[str, Any]) -> str:
    return "is missing" if item["type"] == "missing" else str(item["msg"]).removeprefix("Value error, ")
