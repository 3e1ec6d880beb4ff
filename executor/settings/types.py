"""Defines the types of settings. Each type checks the text of a variable and converts it to the value of the setting.

The text of each ValueError continues a sentence that starts with the variable's name: "must …" or "is wrong, …". The
text shows only paths and entries of lists, and no other value: an operator may have put a secret into a wrong variable.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from executor.redaction import MIN_SECRET_LENGTH

#: The bounds of a VMID in Proxmox VE.
MIN_VMID, MAX_VMID = 100, 999_999_999
MAX_PORT = 65_535
MAX_VLAN = 4094
#: In a list of allowed bridges, VLANs, storages or tags, this entry allows every value.
ANY_VALUE = "*"
#: Matches the volume of a container template, such as local:vztmpl/debian-12-standard.tar.zst.
OS_TEMPLATE_VOLUME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:vztmpl/[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def _normalize_server_url(text: str) -> str:
    """Check the URL of a server. Return it without the path `/api/v1` and without slashes at its end."""
    url = _split_url(text)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("must start with http:// or https:// and name a host")
    if url.username is not None or url.query or url.fragment or " " in text:
        raise ValueError("must be without user, password, spaces, ? and #")
    return text.rstrip("/").removesuffix("/api/v1").rstrip("/")


def _split_url(text: str) -> SplitResult:
    """Return the parts of a URL. Raises ValueError if the text is not a valid URL."""
    try:
        url = urlsplit(text)
        _ = url.port  # raises ValueError for an invalid port
    except ValueError:
        raise ValueError("is wrong, it cannot be read as a URL") from None
    if not text.isprintable():
        raise ValueError("must be without line breaks and other control characters")
    return url


def _check_database_url(text: str) -> str:
    url = _split_url(text)
    # The scheme is the kind of database, with or without a driver, as in postgresql or postgresql+psycopg.
    if not re.fullmatch(r"(sqlite|postgresql)(\+\w+)?", url.scheme):
        raise ValueError("must start with sqlite:/// or postgresql://")
    lacks_file = bool(url.netloc) or url.path in {"", "/"} or ":memory:" in url.path
    if url.scheme.startswith("sqlite") and lacks_file:
        raise ValueError("must name a file; an absolute path needs four slashes: sqlite:////data/smith.db")
    return text


def _check_one_line_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if len(text) < MIN_SECRET_LENGTH:
        raise ValueError(f"is wrong, it is shorter than {MIN_SECRET_LENGTH} characters")
    if not text.isprintable():
        raise ValueError("is wrong, it contains a line break or another control character")
    return secret


def _check_token(secret: SecretStr) -> SecretStr:
    """Check that a token can be sent in an HTTP header and has no quotes around it.

    `docker --env-file` does not remove quotes around a value.
    """
    text = _check_one_line_secret(secret).get_secret_value()
    if not text.isascii() or " " in text:
        raise ValueError("is wrong, a token is one word of ASCII characters")
    if text[0] == text[-1] and text[0] in "'\"":
        raise ValueError("is wrong, the quotes around it would be part of the token")
    return secret


def _check_host(text: str) -> str:
    if "/" in text:
        raise ValueError("must be a host name or an address, without https:// and without a path")
    if text.count(":") == 1:
        raise ValueError("must be a host name or an address; the port belongs in PROXMOX_PORT")
    # The two alternatives are: a host name or an IPv4 address; an IPv6 address with or without brackets.
    if not re.fullmatch(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", text):
        raise ValueError("is wrong, it is neither a host name nor an address")
    return text


def _check_user(text: str) -> str:
    if "!" in text:
        raise ValueError("must not contain a '!': the token's name, which follows the '!', belongs in PROXMOX_TOKEN_ID")
    # The form is: the name of a user, `@`, the name of a realm.
    if not re.fullmatch(r"[^@\s:/]+@[A-Za-z][A-Za-z0-9._-]*", text):
        raise ValueError("must be a user with its realm, as in smith@pve")
    return text


def _check_token_id(text: str) -> str:
    if "!" in text:
        raise ValueError("must not contain a '!', since the user before it belongs in PROXMOX_USER")
    if "=" in text:
        raise ValueError("must not contain a '=', since the secret after it belongs in PROXMOX_TOKEN_SECRET")
    return _check_proxmox_name(text)


def _check_proxmox_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise ValueError("is wrong, it may contain letters, digits, dots, dashes and underscores")
    return text


def _check_name_with_slashes(text: str) -> str:
    """Check a name that may contain slashes, such as the name of a pool within another pool."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text):
        raise ValueError("is wrong, it may contain letters, digits, dots, dashes, underscores and slashes")
    return text


def _check_allowed_name(text: str) -> str:
    """Check the name of a bridge or a storage that services may use, or `*`, which allows every name."""
    return text if text == ANY_VALUE else _check_proxmox_name(text)


def _check_allowed_tag(text: str) -> str:
    """Check an allowed tag: a tag, `customer-*` for all tags with this beginning, or `*` for every tag."""
    if not re.fullmatch(r"\*|[a-z0-9_][a-z0-9_+.-]{0,31}\*?", text):
        raise ValueError(f"is wrong, {text!r} is neither a tag in lower case nor a tag prefix such as customer-*")
    return text


def _check_vlan_or_range(text: str) -> str:
    """Check a VLAN, a range of VLANs such as 100-199, or `*`, which allows every VLAN."""
    if text == ANY_VALUE:
        return text
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    if match is None:
        raise ValueError(f"is wrong, {text!r} is neither a VLAN nor a range such as 100-199")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise ValueError(f"is wrong, the range {text!r} must begin with the lower VLAN")
    if not 1 <= first <= last <= MAX_VLAN:
        raise ValueError(f"is wrong, {text!r} is not within 1 to {MAX_VLAN}")
    return text


def _check_star_is_alone(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse `*` together with other values, because the other values would have no effect."""
    if ANY_VALUE in values and len(values) > 1:
        raise ValueError("is wrong, `*` allows everything, so it must be the only value")
    return values


def _split_at_commas(value: Any) -> Any:
    """Turn the text `a, b` into a tuple. Return a value of another type unchanged: a tuple is already split."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _parse_templates(value: Any) -> Any:
    """Turn the text `debian-12=9000,ubuntu-24=9001` into a dict. Return a value of another type unchanged."""
    if not isinstance(value, str):
        return value
    vmid_by_name: dict[str, str] = {}  # pydantic converts each vmid to an int
    for entry in _split_at_commas(value):
        name, equals_sign, vmid = (part.strip() for part in entry.partition("="))
        is_vmid = re.fullmatch(r"[0-9]{3,9}", vmid) and int(vmid) >= MIN_VMID
        if not (name and equals_sign and is_vmid):
            raise ValueError(f"is wrong, {entry!r} is not of the form name=vmid with a VMID of {MIN_VMID} or more")
        if name in vmid_by_name:
            raise ValueError(f"is wrong, {name!r} occurs twice")
        vmid_by_name[name] = vmid
    return vmid_by_name


def _parse_os_templates(value: Any) -> Any:
    """Turn the text `debian-12=local:vztmpl/debian-12.tar.zst` into a dict.

    Returns a value of another type unchanged.
    """
    if not isinstance(value, str):
        return value
    volume_by_name: dict[str, str] = {}
    for entry in _split_at_commas(value):
        name, equals_sign, volume = (part.strip() for part in entry.partition("="))
        if not (name and equals_sign and OS_TEMPLATE_VOLUME.fullmatch(volume)):
            raise ValueError(f"is wrong, {entry!r} is not of the form name=storage:vztmpl/file")
        if name in volume_by_name:
            raise ValueError(f"is wrong, {name!r} occurs twice")
        volume_by_name[name] = volume
    return volume_by_name


def _absolute_path(value: Any) -> Any:
    """Return an absolute path, with `~` replaced by the home folder."""
    try:
        return Path(value).expanduser().absolute()
    except (RuntimeError, TypeError, ValueError):  # RuntimeError: `~user` for an unknown user
        raise ValueError("is wrong, it is not a usable path") from None


def _check_readable_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"is wrong, {path} is not a file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"is wrong, {path} is not readable for uid {os.getuid()}")
    return path


def _check_existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"is wrong, {path} is not a folder")
    return path


def _check_folder_or_missing(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ValueError(f"is wrong, {path} is not a folder")
    return path


def _check_listen_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    is_port = re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= MAX_PORT
    if text != "off" and not (host and is_port):
        raise ValueError("must be host:port, or off")
    return text


def is_local_address(address: str) -> bool:
    """Return whether only this machine can reach a server that listens on this address.

    The address has the form host:port, or is `off` (no server).
    """
    host = address.rpartition(":")[0].strip("[]")
    if address == "off" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a host name may resolve to any address


def _normalize_network(text: str) -> str:
    """Check one address or network of trusted reverse proxies, and return it in its normal form.

    Such a proxy sends the name of the user in a header, and the agent trusts this name.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("must be a list of addresses or networks, as in 192.0.2.7,10.8.0.0/24") from None
    if network.prefixlen == 0:
        raise ValueError("is wrong, it makes every address a trusted proxy, so any client could claim to be any user")
    return str(network)


def _check_header_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", text) or text.lower() in {"authorization", "host"}:
        raise ValueError("must be a header name of letters, digits and dashes, but not Authorization or Host")
    return text


def _to_lower_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


ServerUrl = Annotated[str, AfterValidator(_normalize_server_url)]
DatabaseUrl = Annotated[str, AfterValidator(_check_database_url)]
Token = Annotated[SecretStr, AfterValidator(_check_token)]
Password = Annotated[SecretStr, AfterValidator(_check_one_line_secret)]
ListenAddress = Annotated[str, AfterValidator(_check_listen_address)]
Host = Annotated[str, AfterValidator(_check_host)]
User = Annotated[str, AfterValidator(_check_user)]
TokenId = Annotated[str, AfterValidator(_check_token_id)]
#: The name of a node, a storage or a bridge in Proxmox.
ProxmoxName = Annotated[str, AfterValidator(_check_proxmox_name)]
ProxmoxNames = Annotated[tuple[ProxmoxName, ...], BeforeValidator(_split_at_commas)]
#: A name that may contain slashes.
NameWithSlashes = Annotated[str, AfterValidator(_check_name_with_slashes)]
#: The names of bridges or storages that services may use; `*` for every name.
AllowedNames = Annotated[
    tuple[Annotated[str, AfterValidator(_check_allowed_name)], ...],
    BeforeValidator(_split_at_commas),
    AfterValidator(_check_star_is_alone),
]
#: The tags that services may set. `customer-*` stands for all tags that begin with `customer-`, `*` for every tag.
AllowedTags = Annotated[
    tuple[Annotated[str, AfterValidator(_check_allowed_tag)], ...],
    BeforeValidator(_split_at_commas),
    AfterValidator(_check_star_is_alone),
]
#: The VLANs and ranges of VLANs that services may use; `*` for every VLAN.
AllowedVlans = Annotated[
    tuple[Annotated[str, AfterValidator(_check_vlan_or_range)], ...],
    BeforeValidator(_split_at_commas),
    AfterValidator(_check_star_is_alone),
]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_normalize_network)], ...], BeforeValidator(_split_at_commas)]
HeaderName = Annotated[str, AfterValidator(_check_header_name)]
Templates = Annotated[dict[str, int], BeforeValidator(_parse_templates)]
#: Container templates. Proxmox calls them OS templates.
OsTemplates = Annotated[dict[str, str], BeforeValidator(_parse_os_templates)]
#: An absolute path. There need not be a file or folder at this path.
AnyPath = Annotated[Path, BeforeValidator(_absolute_path)]
#: The path of a folder. The folder need not exist, but there must be no file at this path.
Folder = Annotated[AnyPath, AfterValidator(_check_folder_or_missing)]
ExistingFolder = Annotated[AnyPath, AfterValidator(_check_existing_folder)]
ReadableFile = Annotated[AnyPath, AfterValidator(_check_readable_file)]
#: Converts a text to lower case before it is checked.
CaseInsensitive = BeforeValidator(_to_lower_case)
