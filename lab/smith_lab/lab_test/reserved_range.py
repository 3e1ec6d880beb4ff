"""Defines the VMIDs, names and markers by which the guests of a run of lab tests are recognized.

A run reserves a range of VMIDs by a lease: a text in the notes of a stopped VM without disks, which has the first VMID
of the range and exists only for this purpose.

The marker of a guest is a line in its notes: `smith-uid=<service id>`. The action `create` adds the marker when it
first changes the configuration of the clone. A service id of the lab has a special form. It contains the run's token
(six hexadecimal digits that identify the run) and the time at which the run's lease expires:

    8f2c0a11-1ab0-8a1b-bc2d-6929e0105b7e
    |        |     |    |   |       random
    |        |     |    |   expiry, in seconds since 1970
    |        |     token, here a1bc2d: the last three digits of the third and of the fourth group
    |        the same digits in each service id of the lab
    random
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass

#: The second group of each service id of the lab.
LAB_SERVICE_ID_GROUP = "1ab0"
TOKEN_LENGTH = 6
_LAB_SERVICE_ID = re.compile(
    rf"[0-9a-f]{{8}}-{LAB_SERVICE_ID_GROUP}-8(?P<start>[0-9a-f]{{3}})-b(?P<end>[0-9a-f]{{3}})-(?P<until>[0-9a-f]{{8}})[0-9a-f]{{4}}"
)
#: The four patterns match the lines of a lease: the token of the run, the expiry, the last VMID, and the token of an
#: expired ("former") run.
_TOKEN_LINE = re.compile(rf"^smith-lab=([0-9a-f]{{{TOKEN_LENGTH}}})[ \t]*$", re.MULTILINE)
_UNTIL_LINE = re.compile(r"^smith-lab-until=(\d{1,10})\b", re.MULTILINE)
_LAST_VMID_LINE = re.compile(r"^smith-lab-last=(\d{1,9})[ \t]*$", re.MULTILINE)
_EXPIRED_RUN_LINE = re.compile(rf"^smith-lab-former=([0-9a-f]{{{TOKEN_LENGTH}}})[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The reservation of a range for one run, as written in the notes of the VM with the range's first VMID.

    Each service id of the run contains the token and the expiry of the lease.
    """

    token: str  #: identifies the run
    expires_at_s: int  #: when the reservation expires, in seconds since 1970 by the clock of the lab's Proxmox
    last_vmid: int = 0  #: the last VMID of the range; 0 if the notes or the service id do not contain it
    tokens_of_expired_runs: tuple[str, ...] = ()  #: the tokens of expired runs whose guests may still be in the range

    def notes(self) -> str:
        """Return the notes of the VM that reserves the range."""
        lines = [
            "Reserves VMIDs for a run of lab tests. `smith lab-sweep` removes this VM after the time smith-lab-until.",
            f"smith-lab={self.token}",
            f"smith-lab-until={self.expires_at_s} ({utc_text(self.expires_at_s)})",
            *([f"smith-lab-last={self.last_vmid}"] if self.last_vmid else []),
            *(f"smith-lab-former={token}" for token in self.tokens_of_expired_runs),
        ]
        return "\n\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ReservedRange:
    """The VMIDs and the name prefix of one run."""

    vmids: range  #: the VM that reserves the range has the first VMID; the others are for guests
    lease: Lease
    #: The beginning of the names of the guests of all runs: the value of the variable LAB_PROXMOX_NAME_PREFIX.
    lab_name_prefix: str

    @property
    def prefix(self) -> str:
        """The prefix of the names of the run's guests."""
        return f"{self.lab_name_prefix}-{self.lease.token}"

    @property
    def lease_name(self) -> str:
        """The name of the VM that reserves the range."""
        return f"{self.prefix}-lease"

    @property
    def guest_vmids(self) -> range:
        """The VMIDs for guests."""
        return self.vmids[1:]

    def new_service_id(self) -> str:
        """Return a new service id, which contains the token and the expiry of this run's lease."""
        return new_service_id(self.lease)


def new_lease(expires_at_s: float, last_vmid: int = 0, tokens_of_expired_runs: tuple[str, ...] = ()) -> Lease:
    """Return a lease with a new token."""
    token = secrets.token_hex(TOKEN_LENGTH // 2)
    return Lease(
        token=token, expires_at_s=int(expires_at_s), last_vmid=last_vmid, tokens_of_expired_runs=tokens_of_expired_runs
    )


def lease_in_notes(notes: str) -> Lease | None:
    """Return the lease in the notes of a VM; None if the notes contain no lease."""
    token, expiry = _TOKEN_LINE.search(notes), _UNTIL_LINE.search(notes)
    if not token or not expiry:
        return None
    last_vmid = _LAST_VMID_LINE.search(notes)
    return Lease(
        token=token[1],
        expires_at_s=int(expiry[1]),
        last_vmid=int(last_vmid[1]) if last_vmid else 0,
        tokens_of_expired_runs=tuple(_EXPIRED_RUN_LINE.findall(notes)),
    )


def new_service_id(lease: Lease) -> str:
    """Return a new service id with the token and the expiry of a lease."""
    start, end = lease.token[:3], lease.token[3:]
    return (
        f"{secrets.token_hex(4)}-{LAB_SERVICE_ID_GROUP}-8{start}-b{end}-{lease.expires_at_s:08x}{secrets.token_hex(2)}"
    )


def lease_in_service_id(service_id: str) -> Lease | None:
    """Return the lease (token and expiry) in a service id; None if no run of lab tests has made the id."""
    found = _LAB_SERVICE_ID.fullmatch(service_id)
    return Lease(token=found["start"] + found["end"], expires_at_s=int(found["until"], 16)) if found else None


def utc_text(time_s: float) -> str:
    """Return a time, which is given in seconds since 1970, as a text in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_s))


def token_in_name(name: str, lab_name_prefix: str) -> str:
    """Return the token in the name of a guest of the lab; '' if the name has another form."""
    found = re.fullmatch(rf"{re.escape(lab_name_prefix)}-([0-9a-f]{{{TOKEN_LENGTH}}})-[A-Za-z0-9.-]+", name)
    return found[1] if found else ""
