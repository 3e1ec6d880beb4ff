# SPDX-License-Identifier: Apache-2.0
"""Replaces error texts of Python libraries about failed connections by texts for operators. Pure functions."""

from __future__ import annotations

import re

#: Each row: a pattern that is searched in the library's text, and the text for operators. The first row that matches is
#: used.
CAUSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"Connection refused"), "the connection is refused: no server listens there, or a firewall refuses it"),
    (
        re.compile(r"NameResolutionError|Failed to resolve|Name or service not known|name resolution|getaddrinfo"),
        "the host name cannot be resolved",
    ),
    (re.compile(r"No route to host|Network is unreachable|Host is down"), "there is no route to the host"),
    (
        re.compile(r"ConnectTimeout|[Cc]onnect timeout|Connection to .* timed out"),
        "the host does not answer: it is down, or a firewall drops the packets",
    ),
    (re.compile(r"[Rr]ead timed out|read timeout"), "the server has not answered in time"),
    (
        re.compile(r"Connection reset|RemoteDisconnected|Connection aborted|closed connection without response"),
        "the server has closed the connection",
    ),
)
#: Matches the host and the port in a text of urllib3.
_ADDRESS = re.compile(r"host='([^']+)', port=(\d+)")
#: Matches the error number that Python puts before the text of an operating system's error.
_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")


def text_for_operators(text: str) -> str:
    """Return a text for operators in place of the library's error text.

    The returned text begins with the host and the port if `text` names them. If `text` is not about a failed
    connection, it is returned without error numbers.
    """
    cause = next((cause for pattern, cause in CAUSES if pattern.search(text)), "")
    if not cause:
        return _ERROR_NUMBER.sub("", text)
    address = _ADDRESS.search(text)
    return f"{address[1]}:{address[2]}: {cause}" if address else cause
