"""Builds the name of a service's VM."""

from __future__ import annotations

import re

#: A VM's name ends with the first hexadecimal digits of the service id. This is the number of these digits.
SERVICE_ID_PART_LENGTH = 8
#: The maximum length of the first part of a VM's name. A dash and SERVICE_ID_PART_LENGTH digits follow this part. The
#: whole name must be a DNS label, which has at most 63 characters.
MAX_HOSTNAME_PART_LENGTH = 54


def vm_name(hostname: str, service_id: str) -> str:
    """Return the name of a VM: a first part made from `hostname`, a dash, and the first digits of the service id.

    `hostname` may be any text. For the first part, letters become lower case, characters outside ASCII are
    removed, and each sequence of characters that are neither letters nor digits becomes one dash. If no character of
    `hostname` is usable, the first part is `vm`.
    """
    ascii_hostname = hostname.lower().encode("ascii", "ignore").decode()
    hostname_with_dashes = re.sub(r"[^a-z0-9]+", "-", ascii_hostname)
    hostname_part = hostname_with_dashes[:MAX_HOSTNAME_PART_LENGTH].strip("-") or "vm"
    service_id_part = service_id.replace("-", "")[:SERVICE_ID_PART_LENGTH].lower()
    return f"{hostname_part}-{service_id_part}"
