# SPDX-License-Identifier: Apache-2.0
"""Replaces the error texts of Python's libraries about failed connections by texts for operators. Pure functions."""

from __future__ import annotations

import re

#: What an operator reads instead of a library's text, by a pattern in that text. The first one that matches is used.
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
#: The host and the port in a text of urllib3.
_ADDRESS = re.compile(r"host='([^']+)', port=(\d+)")
#: The number of an operating system's error, which Python puts before its text.
_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")


def text_for_operators(text: str) -> str:
    """Return a text for operators. It begins with the host and the port if the library's text names them.

    A text about another failure is not replaced; only error numbers are removed from it.
    """
    cause = next((cause for pattern, cause in CAUSES if pattern.search(text)), "")
    if not cause:
        return _ERROR_NUMBER.sub("", text)
    address = _ADDRESS.search(text)
    return f"{address[1]}:{address[2]}: {cause}" if address else cause
