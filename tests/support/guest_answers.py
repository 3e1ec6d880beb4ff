"""What a hostile guest may answer when Proxmox asks it for its addresses.

FORGED is in every text that is no address, so that a test finds such a text wherever it is stored or sent. ADDRESSES
are the addresses that an answer may report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

FORGED = "F0RGED"
ADDRESSES = ("192.0.2.66", "2001:db8::66")
MAC = "bc:24:11:00:11:22"


@dataclass(frozen=True, kw_only=True)
class GuestAnswer:
    """One answer of Proxmox to the request for the guest's addresses."""

    body: bytes
    status: int = 200
    reason: str = "OK"
    is_cut: bool = False  #: the connection closes before the end of the body
    delay_s: float = 0.0


def _data(value: Any) -> GuestAnswer:
    """Return an answer with the value as its data."""
    return GuestAnswer(body=json.dumps({"data": value}).encode())


def _nics(*nics: Any) -> GuestAnswer:
    return _data({"result": list(nics)})


def _nic(**members: Any) -> dict[str, Any]:
    """Return an interface of the VM with a valid address. `members` replace its members."""
    members_as_sent = {name.replace("_", "-"): value for name, value in members.items()}
    return {"name": "eth0", "hardware-address": MAC, "ip-addresses": [{"ip-address": ADDRESSES[0]}]} | members_as_sent


def _addresses(*texts: Any) -> GuestAnswer:
    return _nics(_nic(ip_addresses=[{"ip-address": text} for text in texts]))


def _raw(body: bytes) -> GuestAnswer:
    return GuestAnswer(body=body)


def _error(status: int, reason: str, delay_s: float = 0.0) -> GuestAnswer:
    body = json.dumps({"data": None, "message": f"{reason}\n"}).encode()
    return GuestAnswer(body=body, status=status, reason=reason, delay_s=delay_s)


def _nested(depth: int) -> bytes:
    return b'{"data":{"result":' + b"[" * depth + b"]" * depth + b"}}"


GUEST_ANSWERS: dict[str, GuestAnswer] = {
    "only texts": _data({"result": [FORGED]}),
    "a text": _data(FORGED),
    "null": _data(None),
    "a number": _data(7),
    "a list": _data([FORGED, {}]),
    "true as the result": _data({"result": True}),
    "an object as the result": _data({"result": {"name": FORGED}}),
    "lists as interfaces": _nics([FORGED], [], [[_nic()]]),
    "nulls as interfaces": _nics(None, None, _nic()),
    "numbers as addresses": _nics(_nic(ip_addresses=[1, 2.5, True])),
    "a text as addresses": _nics(_nic(ip_addresses=FORGED)),
    "addresses without an address": _nics(_nic(ip_addresses=[{}, {"ip-address": None}, {"ip-address-type": FORGED}])),
    "an integer as an address": _addresses(3_221_225_985, -1, 2**200),
    "an object as an address": _addresses({"ip-address": FORGED}, [FORGED]),
    "an object as a MAC address": _nics(_nic(hardware_address={FORGED: 1})),
    "a list as a name": _nics(_nic(name=[FORGED])),
    "HTML": _addresses(f"<img src=x onerror={FORGED}>", ADDRESSES[0]),
    "escape sequences": _addresses(f"\x1b]0;{FORGED}\x07", f"\x1b[2J{FORGED}"),
    "NUL": _addresses(f"192.0.2.1\x00{FORGED}", "\x00"),
    "unpaired surrogates": _raw(rb'{"data":{"result":[{"name":"\ud800","ip-addresses":[{"ip-address":"\udfff"}]}]}}'),
    "line feeds": _addresses(f"192.0.2.1\n{FORGED}", f"smith-uid={FORGED}"),
    "templates": _addresses("{{ lookup('pipe', 'echo F0' ~ 'RGED') }}", "{% F0RGED %}"),
    "an IPv6 address with a zone": _addresses(f"2001:db8::5%{FORGED}", f"fe80::1%{FORGED}"),
    "an address with a prefix": _addresses(f"192.0.2.1/{FORGED}", "192.0.2.1/24"),
    "other digits": _addresses("１９２.０.２.１", "٠.٠.٠.٠"),  # noqa: RUF001
    "addresses of the machine itself": _addresses("127.0.0.1", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "0.0.0.0"),  # noqa: S104
    "5,000 addresses": _addresses(*(ADDRESSES * 2_500)),
    "5,000 different texts": _addresses(*(f"{FORGED}{number}" for number in range(5_000))),
    "5,000 interfaces": _nics(*[_nic()] * 5_000),
    "70 kB in one address": _addresses(FORGED * 12_000),
    "a megabyte of text": _data({"result": FORGED * 170_000}),
    "100 levels": _raw(_nested(100)),
    "50,000 levels": _raw(_nested(50_000)),
    "duplicate keys": _raw(b'{"data":{"result":[]},"data":{"result":["F0RGED"],"result":"F0RGED"}}'),
    "invalid UTF-8": _raw(b'{"data":{"result":[{"name":"\xff\xfe F0RGED"}]}}'),
    "no JSON": _raw(b"<html>F0RGED</html>"),
    "an empty body": _raw(b""),
    "not a number": _raw(b'{"data":{"result":[{"ip-addresses":[{"ip-address":NaN}]}]}}'),
    "a number of 5,000 digits": _raw(b'{"data":{"result":' + b"9" * 5_000 + b"}}"),
    "no data": _raw(b'{"F0RGED":1}'),
    "a cut answer": GuestAnswer(body=b'{"data":{"result":["F0RGED"]}}', is_cut=True),
    "a time-out of the guest": _error(500, f"VM qga command failed - got timeout {FORGED}", delay_s=1.0),
    "an error": _error(500, f"VM_NOT_FOUND: {FORGED}"),
    "a refusal": _error(403, f"Permission check failed {FORGED}"),
    "a node that does not answer": _error(595, f"No route to host {FORGED}"),
    "a valid answer": _addresses(*ADDRESSES),
}
