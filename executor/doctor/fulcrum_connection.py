"""Checks the connection to FulcrumCore and the token, and names the remedy of each failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from urllib.parse import urlsplit

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.errors import FulcrumAuthFailing, FulcrumError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreAgent
from executor.settings.settings import Settings
from executor.settings.types import is_local_address

_RESULT = ResultFactory(Area.FULCRUM)
#: The command that creates a token of the agent.
NEW_TOKEN_HINT = "smith bootstrap core --agent … --provider … --new-token --token-file …"  # noqa: S105  (a command)
#: The hint for a URL whose host, port or path is wrong.
URL_HINT = "FULCRUM_API_URL=https://host[:port], without the path /api/v1"


def check_connection(client: FulcrumClient, settings: Settings) -> Generator[CheckResult, None, CoreAgent | None]:
    """Check the connection, its encryption and the token. Return the agent of the token, or None if a check fails."""
    try:
        agent = client.get_self()
    except FulcrumAuthFailing as error:
        yield from _check_tls(settings)
        yield _check_refused_token(client, error)
        return None
    except FulcrumError as error:
        if error.status is not None:  # the server has answered, so the TLS handshake has succeeded
            yield from _check_tls(settings)
        yield _RESULT.fail("reachable", str(error), *_hints_for(settings, error))
        return None
    yield from _check_tls(settings)
    yield _RESULT.ok("reachable", settings.fulcrum_api_url)
    return agent


def _check_tls(settings: Settings) -> Iterator[CheckResult]:
    """Check that the connection is encrypted, and that the certificate is verified. Call it after the handshake."""
    url = urlsplit(settings.fulcrum_api_url)
    address_with_any_port = f"{url.hostname}:0"  # `is_local_address` expects a port, but ignores it
    if url.scheme == "http" and not is_local_address(address_with_any_port):
        yield _RESULT.warn("tls", "http:// sends the token unencrypted", "FULCRUM_API_URL=https://…")
    elif url.scheme == "https" and not settings.fulcrum_verify_tls:
        yield _RESULT.warn("tls", "the certificate is not verified", "FULCRUM_VERIFY_TLS=true")
    else:
        text = "verified" if url.scheme == "https" else "not needed, because FulcrumCore is on this machine"
        yield _RESULT.ok("tls", text)


def _check_refused_token(client: FulcrumClient, refusal: FulcrumAuthFailing) -> CheckResult:
    """Return the cause of a refused token: FulcrumCore returns metric types to every valid token, also of users."""
    try:
        client.metric_types()
    except FulcrumError:
        text = f"{refusal}. The token is wrong, revoked or expired, or FulcrumCore's database is down"
        return _RESULT.fail("token", text, NEW_TOKEN_HINT, "check FulcrumCore's log for errors of its database")
    text = f"{refusal}. The token is valid, but it belongs to an administrator or a participant, not to an agent"
    return _RESULT.fail(
        "token", text, NEW_TOKEN_HINT, "FULCRUM_API_TOKEN_FILE=/path/to/the/file with the agent's token"
    )


def _hints_for(settings: Settings, error: FulcrumError) -> list[str]:
    """Return what the operator can do about a request that failed, but not because of its token."""
    text = str(error)
    host = urlsplit(settings.fulcrum_api_url).netloc
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return [f"FULCRUM_API_URL=http://{host}, because the server answers without TLS; or a port with TLS"]
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ["FULCRUM_CA_BUNDLE=/path/to/the/CA of FulcrumCore's certificate"]
    if error.status is None:
        return [URL_HINT, "check that FulcrumCore runs, and that a firewall allows the connection"]
    if error.status == 400 and settings.fulcrum_api_url.startswith("http://"):
        return [f"FULCRUM_API_URL=https://{host}, because the server may require TLS"]
    if error.status < 500:
        return [URL_HINT]
    return ["check FulcrumCore's log, and the proxy in front of it"]
