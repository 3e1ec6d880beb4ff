"""Defines the types of settings. Each type checks the text of a variable and converts it to the value of the setting.

The text of each ValueError continues a sentence that starts with the variable's name: "must …" or "is wrong, …". It
never shows a value that could be a secret, because an operator may have put a secret into the wrong variable.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from executor.redaction import MIN_LENGTH

#: The bounds of a VMID in Proxmox VE.
MIN_VMID, MAX_VMID = 100, 999_999_999
#: The volume of a container template, such as local:vztmpl/debian-12-standard.tar.zst.
OS_TEMPLATE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:vztmpl/[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def _server_url(text: str) -> str:
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


def _database_url(text: str) -> str:
    url = _split_url(text)
    if not re.fullmatch(r"(sqlite|postgresql)(\+\w+)?", url.scheme):
        raise ValueError("must start with sqlite:/// or postgresql://")
    if url.scheme.startswith("sqlite") and (url.netloc or url.path in {"", "/"} or ":memory:" in url.path):
        raise ValueError("must name a file, which takes four slashes for an absolute path: sqlite:////data/smith.db")
    return text


def _one_line_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if len(text) < MIN_LENGTH:
        raise ValueError(f"is wrong, it is shorter than {MIN_LENGTH} characters")
    if not text.isprintable():
        raise ValueError("is wrong, it contains a line break or another control character")
    return secret


def _token(secret: SecretStr) -> SecretStr:
    """Check that a token can be sent in an HTTP header and has no quotes around it.

    `docker --env-file` does not remove quotes around a value.
    """
    text = _one_line_secret(secret).get_secret_value()
    if not text.isascii() or " " in text:
        raise ValueError("is wrong, a token is one word of ASCII characters")
    if text[0] == text[-1] and text[0] in "'\"":
        raise ValueError("is wrong, the quotes around it would be part of the token")
    return secret


def _host(text: str) -> str:
    if "/" in text:
        raise ValueError("must be a host name or an address, without https:// and without a path")
    if text.count(":") == 1:
        raise ValueError("must be a host name or an address; its port belongs in PROXMOX_PORT")
    if not re.fullmatch(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", text):
        raise ValueError("is wrong, it is neither a host name nor an address")
    return text


def _user(text: str) -> str:
    if "!" in text:
        raise ValueError("must not contain a '!', since the token's name belongs in PROXMOX_TOKEN_ID")
    if not re.fullmatch(r"[^@\s:/]+@[A-Za-z][A-Za-z0-9._-]*", text):
        raise ValueError("must be a user with its realm, as in smith@pve")
    return text


def _token_id(text: str) -> str:
    if "!" in text:
        raise ValueError("must not contain a '!', since the user before it belongs in PROXMOX_USER")
    if "=" in text:
        raise ValueError("must not contain a '=', since the secret after it belongs in PROXMOX_TOKEN_SECRET")
    return _proxmox_name(text)


def _proxmox_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text):
        raise ValueError("is wrong, it may contain letters, digits, dots, dashes and underscores")
    return text


def _comma_list(value: Any) -> Any:
    """Turn `a, b` into a tuple. A value that is not text, such as a tuple from the code, is returned unchanged."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _templates(value: Any) -> Any:
    """Turn `debian-12=9000,ubuntu-24=9001` into a dict."""
    if not isinstance(value, str):
        return value
    templates: dict[str, str] = {}
    for part in _comma_list(value):
        name, equals, vmid = (piece.strip() for piece in part.partition("="))
        if not (name and equals and re.fullmatch(r"[0-9]{3,9}", vmid)) or int(vmid) < MIN_VMID:
            raise ValueError(f"is wrong, {part!r} is not of the form name=vmid")
        if name in templates:
            raise ValueError(f"is wrong, {name!r} occurs twice")
        templates[name] = vmid
    return templates


def _os_templates(value: Any) -> Any:
    """Turn `debian-12=local:vztmpl/debian-12-standard.tar.zst` into a dict."""
    if not isinstance(value, str):
        return value
    found: dict[str, str] = {}
    for part in _comma_list(value):
        name, equals, volume = (piece.strip() for piece in part.partition("="))
        if not (name and equals and OS_TEMPLATE.fullmatch(volume)):
            raise ValueError(f"is wrong, {part!r} is not of the form name=storage:vztmpl/file")
        if name in found:
            raise ValueError(f"is wrong, {name!r} occurs twice")
        found[name] = volume
    return found


def _path(value: Any) -> Any:
    """Return an absolute path, with `~` replaced by the home folder."""
    try:
        return Path(value).expanduser().absolute()
    except (RuntimeError, TypeError, ValueError):  # RuntimeError: `~user` for an unknown user
        raise ValueError("is wrong, it is not a usable path") from None


def _readable_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"is wrong, {path} is not a file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"is wrong, {path} is not readable for uid {os.getuid()}")
    return path


def _existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"is wrong, {path} is not a folder")
    return path


def _folder_or_missing(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ValueError(f"is wrong, {path} is not a folder")
    return path


def _listen_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if text != "off" and not (host and colon and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65_536):
        raise ValueError("must be host:port, or off")
    return text


def is_local(address: str) -> bool:
    """Return whether only this machine can reach a server that listens on this address."""
    host = address.rpartition(":")[0].strip("[]")
    if address == "off" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a host name may resolve to any address


def _network(text: str) -> str:
    """Check one address or network, and return it in its normal form."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("must be addresses, or networks as in 10.8.0.0/24, with commas between them") from None
    if network.prefixlen == 0:
        raise ValueError("is wrong, it contains every address, so that any client could claim to be any user")
    return str(network)


def _header_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", text) or text.lower() in {"authorization", "host"}:
        raise ValueError("must be the name of a header of letters, digits and dashes, as in X-Forwarded-User")
    return text


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


ServerUrl = Annotated[str, AfterValidator(_server_url)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
Token = Annotated[SecretStr, AfterValidator(_token)]
Password = Annotated[SecretStr, AfterValidator(_one_line_secret)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
Host = Annotated[str, AfterValidator(_host)]
User = Annotated[str, AfterValidator(_user)]
TokenId = Annotated[str, AfterValidator(_token_id)]
Name = Annotated[str, AfterValidator(_proxmox_name)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_comma_list)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_comma_list)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
Templates = Annotated[dict[str, int], BeforeValidator(_templates)]
OsTemplates = Annotated[dict[str, str], BeforeValidator(_os_templates)]
#: An absolute path. There need not be a file or folder at this path.
AnyPath = Annotated[Path, BeforeValidator(_path)]
#: The path of a folder that exists or can be created later.
Folder = Annotated[AnyPath, AfterValidator(_folder_or_missing)]
ExistingFolder = Annotated[AnyPath, AfterValidator(_existing_folder)]
ReadableFile = Annotated[AnyPath, AfterValidator(_readable_file)]
#: Converts a text to lower case before it is checked.
AnyCase = BeforeValidator(_lower)
