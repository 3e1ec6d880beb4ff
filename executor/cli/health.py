"""`smith health`: is the agent on this machine alive and ready? For a container's HEALTHCHECK and for people.

Standard library only: `python -m executor.cli.health` answers in a fraction of the time that the command line takes.
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
MOST_ANSWER_BYTES = 65_536
#: Listening everywhere includes here.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (asked, not listened on)


class Unhealthy(Exception):
    """The answer is no; the text says why, in one line."""


@examples(
    "smith health           exit code 0 if the agent here is alive and ready",
    "smith health --live    only whether its loops move: what a restart could cure",
)
def show(live: bool = False, json: bool = False) -> None:
    """Ask the agent on this machine for its health: exit code 0 if it is alive and ready, 1 if not.

    With --live only whether its loops move: what a restart could cure.
    """
    raise SystemExit(main([*(["--live"] if live else []), *(["--json"] if json else [])]))


def main(arguments: Sequence[str]) -> int:
    """Print one line; return the exit code."""
    pages = ("/livez",) if "--live" in arguments else ("/livez", "/readyz")
    try:
        place = _place()
        said = [_ask(place, page) for page in pages]
        text = " and ".join(said)
        code = 0
    except Unhealthy as unhealthy:
        text = "".join(char if char.isprintable() else " " for char in str(unhealthy))
        code = 1
    print(json.dumps({"ok": code == 0, "text": text}) if "--json" in arguments else text)
    return code


def _place() -> tuple[str, int]:
    """Return where the pages are: the one setting that matters, whatever may be wrong with the others."""
    name = "SMITH_HTTP_ADDR"
    address = gather((name,), (), os.environ, Path(".env")).values.get(name, DEFAULT_HTTP_ADDR)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or port == "0":
        raise Unhealthy(f"unknown: {name} is {address}, so there is nobody to ask")
    host = host.strip("[]")
    return EVERYWHERE.get(host, host), int(port)


def _ask(place: tuple[str, int], page: str) -> str:
    """Return what the page says. No proxy is used, whatever the environment names: it is this machine."""
    connection = http.client.HTTPConnection(*place, timeout=TIMEOUT_S)
    try:
        connection.request("GET", page)
        answer = connection.getresponse()
        verdict = json.loads(answer.read(MOST_ANSWER_BYTES))
        if answer.status != 200:
            raise Unhealthy(f"{verdict['status']}: {'; '.join(_trouble(verdict['checks']))}")
        return str(verdict["status"])
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(f"no answer from {place[0]}:{place[1]}{page}: {error or type(error).__name__}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Unhealthy(f"what answers at {place[0]}:{place[1]}{page} is not Agent Smith") from error
    finally:
        connection.close()


def _trouble(checks: list[dict[str, Any]]) -> list[str]:
    bad = [check for check in checks if not check["ok"]]
    return [" ".join(str(check[key]) for key in ("name", "reason", "detail") if key in check) for check in bad]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
