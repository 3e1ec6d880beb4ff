"""`smith health`: asks the agent on this machine whether it is alive and ready.

A container's HEALTHCHECK calls `python -m executor.cli.health`. This module and its imports use only the standard
library, so that this call needs a fraction of the time of `smith health`.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor.cli.help_text import examples
from executor.settings.sources import DEFAULT_HTTP_ADDR, gather

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 65_536
#: The address to connect to when the agent listens on every interface.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (keys, not addresses to listen on)


class Unhealthy(Exception):
    """The agent is not healthy or does not answer. The text has the reason in one line."""


@examples(
    "smith health           exit code 0 if the agent here is alive and ready",
    "smith health --live    exit code 0 if its loops make progress; if not, a restart may help",
)
def show(live: bool = False, json: bool = False) -> None:
    """Ask the agent on this machine for its health.

    Exit code 0 if it is alive and ready, 1 if not. With --live, 0 if its loops make progress; if not, a restart may
    help.
    """
    raise SystemExit(main([*(["--live"] if live else []), *(["--json"] if json else [])]))


def main(arguments: Sequence[str]) -> int:
    """Print the agent's state in one line, and return the exit code. `arguments` may contain --live and --json."""
    pages = ("/livez",) if "--live" in arguments else ("/livez", "/readyz")
    try:
        address = _address()
        states = [_ask(address, page) for page in pages]
        text = " and ".join(states)
        code = 0
    except Unhealthy as unhealthy:
        text = "".join(char if char.isprintable() else " " for char in str(unhealthy))
        code = 1
    print(json.dumps({"ok": code == 0, "text": text}) if "--json" in arguments else text)
    return code


def _address() -> tuple[str, int]:
    """Return the host and the port of the agent's HTTP server.

    Only the setting SMITH_HTTP_ADDR is read, so that an invalid other setting does not make this command fail.
    """
    name = "SMITH_HTTP_ADDR"
    address = gather((name,), (), os.environ, Path(".env")).values.get(name, DEFAULT_HTTP_ADDR)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or port == "0":
        raise Unhealthy(f"unknown: {name} is {address}, so the agent has no HTTP server")
    host = host.strip("[]")
    return LOOPBACK.get(host, host), int(port)


def _ask(address: tuple[str, int], page: str) -> str:
    """Return the status on the page /livez or /readyz. Raises Unhealthy.

    http.client uses no proxy, which would not reach the agent on this machine.
    """
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", page)
        response = connection.getresponse()
        report = json.loads(response.read(MAX_ANSWER_BYTES))
        if response.status != 200:
            raise Unhealthy(f"{report['status']}: {'; '.join(_failed_checks(report['checks']))}")
        return str(report["status"])
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(f"no answer from {address[0]}:{address[1]}{page}: {error or type(error).__name__}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Unhealthy(f"the server at {address[0]}:{address[1]}{page} is not Agent Smith") from error
    finally:
        connection.close()


def _failed_checks(checks: list[dict[str, Any]]) -> list[str]:
    """Return one text for each failed check of the page: its name, reason and detail."""
    failed = [check for check in checks if not check["ok"]]
    return [" ".join(str(check[key]) for key in ("name", "reason", "detail") if key in check) for check in failed]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
