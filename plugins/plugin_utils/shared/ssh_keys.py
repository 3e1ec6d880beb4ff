# SPDX-License-Identifier: Apache-2.0
"""Checks SSH public keys by the same rules as `ssh-keygen -l`, which Proxmox calls for each key. Pure functions."""

from __future__ import annotations

import base64
import binascii
import re

#: Matches the type and the data of a key in a line. Options may precede the type, a comment may follow the data.
_TYPE_AND_DATA = re.compile(r"(?:^|[ \t])((?:sk-)?(?:ssh|ecdsa)-[\w@.-]+)[ \t]+([A-Za-z0-9+/]+=*)(?=[ \t\r]|$)")
#: The number of fields in the data of a key, by its type. The first field is the type itself.
_FIELD_COUNTS = {
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}
#: The size of an Ed25519 key in bytes.
_ED25519_BYTES = 32
#: The curves of ECDSA keys (FIPS 186): the number of bytes of a coordinate, and p and b in y² = x³ - 3x + b (mod p).
_CURVES = {
    b"nistp256": (
        32,
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    b"nistp384": (
        48,
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    ),
    b"nistp521": (
        66,
        2**521 - 1,
        0x0051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
    ),
}
#: The minimum size of an RSA key; `ssh-keygen` refuses a smaller key.
_MIN_RSA_BITS = 1024


def is_public_key(line: str) -> bool:
    """Return True if the line contains a complete public key. The key's data must name the same type as the line."""
    found = _TYPE_AND_DATA.search(line)
    if not found or line.lstrip().startswith("#"):
        return False
    key_type, data = found.groups()
    try:
        fields = _fields_of(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return False
    if len(fields) < 2 or fields[0] != key_type.encode():
        return False
    return _has_expected_fields(key_type, fields)


def _has_expected_fields(key_type: str, fields: list[bytes]) -> bool:
    """Return True if the fields fit this type of key. If the type is unknown, it is enough that no field is empty."""
    if len(fields) != _FIELD_COUNTS.get(key_type, len(fields)) or not all(fields[1:]):
        return False
    if key_type not in _FIELD_COUNTS:
        return True
    if "ed25519" in key_type:
        return len(fields[1]) == _ED25519_BYTES
    if "ecdsa" in key_type:
        return f"-{fields[1].decode('latin-1')}" in key_type and _is_on_curve(fields[1], fields[2])
    return int.from_bytes(fields[2], "big").bit_length() >= _MIN_RSA_BITS


def _is_on_curve(curve: bytes, point: bytes) -> bool:
    """Return True if the uncompressed point (one byte with the value 4, then two coordinates) is on the curve."""
    if curve not in _CURVES:
        return False
    coordinate_bytes, p, b = _CURVES[curve]
    x, y = int.from_bytes(point[1 : coordinate_bytes + 1], "big"), int.from_bytes(point[coordinate_bytes + 1 :], "big")
    is_valid_point = len(point) == 2 * coordinate_bytes + 1 and point[0] == 4 and max(x, y) < p
    return is_valid_point and (y * y - x**3 + 3 * x - b) % p == 0


def _fields_of(data: bytes) -> list[bytes]:
    """Return the fields in the data of a key. 4 bytes before each field contain its size. Raises ValueError."""
    fields = []
    while data:
        field_bytes = int.from_bytes(data[:4], "big")
        if len(data) < 4 + field_bytes:
            raise ValueError("the key is cut off")
        fields.append(data[4 : 4 + field_bytes])
        data = data[4 + field_bytes :]
    return fields
