"""`smith health`: asks the agent on this machine whether it is alive and ready for jobs.

A container's HEALTHCHECK runs `python -m executor.cli.health`, which needs a fraction of the time of `smith health`:
this module and the modules that it imports use only the standard library.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor.cli.help_text import examples
from executor.settings.sources import DEFAULT_HTTP_ADDR, gather_values

ADDRESS_SETTING = "SMITH_HTTP_ADDR"
#: The setting with the certificate of the agent's HTTP server. If it is set, the server uses TLS.
CERTIFICATE_SETTING = "SMITH_HTTP_TLS_CERTIFICATE"
TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 65_536
#: The loopback address for each wildcard address. If the setting has a wildcard address, the agent listens on all
#: interfaces, but a client cannot connect to a wildcard address.
LOOPBACK_BY_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (this module only connects)


class Unhealthy(Exception):
    """The agent is not healthy or does not answer. The text has the reason in one line."""


@examples(
    "smith health           exit code 0 if the agent on this machine is alive and ready for jobs",
    "smith health --live    exit code 0 if the agent is alive; if not, a restart may help",
)
def show_health(live: bool = False, json: bool = False) -> None:
    """Ask the agent on this machine for its health.

    The exit code is 0 if the agent is alive and ready for jobs, and 1 if not. With --live, the exit code is 0 if the
    agent is alive: its loops (for jobs, reports, leases and periodic work) make progress. If not, a restart may help.
    """
    # typer names an option after its parameter. So the parameter must be named `json`, which hides the module here.
    arguments = []
    if live:
        arguments.append("--live")
    if json:
        arguments.append("--json")
    raise SystemExit(main(arguments))


def main(arguments: Sequence[str]) -> int:
    """Print the agent's state in one line, and return the exit code. `arguments` may contain --live and --json."""
    paths = ("/livez",) if "--live" in arguments else ("/livez", "/readyz")
    try:
        address, tls_context = _read_address_and_tls_context()
        statuses = [_read_status(address, path, tls_context) for path in paths]
        text = " and ".join(statuses)
        exit_code = 0
    except Unhealthy as unhealthy:
        text = "".join(char if char.isprintable() else " " for char in str(unhealthy))
        exit_code = 1
    if "--json" in arguments:
        text = json.dumps({"ok": exit_code == 0, "text": text})
    print(text)
    return exit_code


def _read_address_and_tls_context() -> tuple[tuple[str, int], ssl.SSLContext | None]:
    """Return the host and the port of the agent's HTTP server, and the TLS settings of a connection (None without TLS).

    Only the two settings of the HTTP server are read, so this command also works when another setting is invalid.
    """
    names = (ADDRESS_SETTING, CERTIFICATE_SETTING)
    gathered = gather_values(names=names, secret_names=(), environ=os.environ, env_file=Path(".env"))
    address = gathered.values.get(ADDRESS_SETTING, DEFAULT_HTTP_ADDR)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or port == "0":
        raise Unhealthy(f"the agent has no HTTP server to ask: set {ADDRESS_SETTING}, which is {address}, to HOST:PORT")
    host = host.strip("[]")
    tls_context = _unverified_tls_context() if gathered.values.get(CERTIFICATE_SETTING) else None
    return (LOOPBACK_BY_WILDCARD.get(host, host), int(port)), tls_context


def _unverified_tls_context() -> ssl.SSLContext:
    """Return the TLS settings of a connection to the agent on this machine.

    The certificate is not verified: it does not name a loopback address, and an expired certificate must not make the
    agent look unhealthy. Nothing secret is sent.
    """
    tls_context = ssl.create_default_context()
    tls_context.check_hostname, tls_context.verify_mode = False, ssl.CERT_NONE
    return tls_context


def _read_status(address: tuple[str, int], path: str, tls_context: ssl.SSLContext | None) -> str:
    """Return the status that the agent reports at the path /livez or /readyz. Raises Unhealthy.

    http.client ignores a proxy in the environment (HTTP_PROXY). This is needed: a proxy on another machine cannot reach
    a loopback address of this machine.
    """
    connection: http.client.HTTPConnection
    if tls_context is None:
        connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    else:
        connection = http.client.HTTPSConnection(*address, timeout=TIMEOUT_S, context=tls_context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        report = json.loads(response.read(MAX_ANSWER_BYTES))
        if response.status != http.client.OK:
            raise Unhealthy(f"{report['status']}: {'; '.join(_describe_failed_checks(report['checks']))}")
        return str(report["status"])
    except (OSError, http.client.HTTPException) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
        remedy = "`smith status` shows whether an agent is running"
        raise Unhealthy(f"no answer from {address[0]}:{address[1]}{path}: {reason}; {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Unhealthy(f"the server at {address[0]}:{address[1]}{path} is not Agent Smith") from error
    finally:
        connection.close()


def _describe_failed_checks(checks: list[dict[str, Any]]) -> list[str]:
    """Return one text for each failed check: its name, reason and detail."""
    texts = []
    for check in checks:
        if not check["ok"]:
            texts.append(" ".join(str(check[key]) for key in ("name", "reason", "detail") if key in check))
    return texts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
