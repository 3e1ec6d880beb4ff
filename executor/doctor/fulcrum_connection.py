"""Checks the connection to FulcrumCore and the token, and returns remedies for each failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from urllib.parse import urlsplit

from executor.doctor import certificates
from executor.doctor.certificates import MIN_DAYS_LEFT, TlsProblem, TlsState
from executor.doctor.checks import CLOCK_REMEDY, Area, CheckResult, ResultFactory, quoted_setting_line
from executor.errors import FulcrumAuthError, FulcrumError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import FulcrumAgent
from executor.proxies import format_host_for_url
from executor.settings.settings import Settings
from executor.settings.types import is_local_address

_RESULT_FACTORY = ResultFactory(Area.FULCRUM)
#: The command that creates a token of the agent. In commands, `core` is FulcrumCore.
NEW_TOKEN_REMEDY = "smith bootstrap core --agent <agent> --provider <provider> --new-token --token-file <file>"  # noqa: S105
#: The setting that names the file with the agent's token.
TOKEN_FILE_REMEDY = "FULCRUM_API_TOKEN_FILE=<file>"  # noqa: S105  (a setting)
RENEW_REMEDY = "renew the certificate of FulcrumCore or of the proxy in front of it"


def check_connection(client: FulcrumClient, settings: Settings) -> Generator[CheckResult, None, FulcrumAgent | None]:
    """Check the connection, its encryption and the token. Return the token's agent, or None if it cannot be read."""
    try:
        agent = client.get_own_agent()
    except FulcrumAuthError as error:
        yield from _check_tls(settings)
        yield _check_refused_token(client, error)
        return None
    except FulcrumError as error:
        yield from _explain_failure(settings, error)
        return None
    yield from _check_tls(settings)
    yield _RESULT_FACTORY.ok("reachable", settings.fulcrum_api_url)
    return agent


def _check_tls(settings: Settings) -> Iterator[CheckResult]:
    """Check that the connection is encrypted, and that the client verifies the certificate.

    The caller has already received an answer from FulcrumCore. So if the client verifies the certificate, the
    certificate is valid.
    """
    url = urlsplit(settings.fulcrum_api_url)
    if url.scheme == "https" and not settings.fulcrum_verify_tls:
        yield _RESULT_FACTORY.warn("tls", "the certificate is not verified", "FULCRUM_VERIFY_TLS=true")
    elif url.scheme == "https":
        yield _check_days_left(settings)
    elif not is_local_address(f"{url.hostname}:0"):  # `is_local_address` expects a port, but ignores it
        yield _RESULT_FACTORY.warn("tls", "http:// sends the token unencrypted", "FULCRUM_API_URL=https://…")
    else:
        yield _RESULT_FACTORY.ok("tls", "not needed, because FulcrumCore is on this machine")


def _check_days_left(settings: Settings) -> CheckResult:
    """Check for how many days the certificate is still valid. The client has already verified the certificate."""
    certificate = certificates.read_certificate(*_host_and_port(settings))
    if certificate is None:  # the connection that `read_certificate` opened has failed
        return _RESULT_FACTORY.ok("tls", "verified")
    text = f"verified; {certificates.describe_validity(certificate)}"
    if certificate.days_left < MIN_DAYS_LEFT:
        return _RESULT_FACTORY.warn("tls", text, RENEW_REMEDY)
    return _RESULT_FACTORY.ok("tls", text)


def _check_refused_token(client: FulcrumClient, refusal: FulcrumAuthError) -> CheckResult:
    """Return a failed check with the cause for which FulcrumCore refused the token.

    To find the cause, this function requests the metric types, which every valid token may read.
    """
    try:
        client.metric_types()
    except FulcrumError:
        text = f"{refusal}. The token is wrong, revoked or expired, or FulcrumCore's database is down"
        log_remedy = "check FulcrumCore's log for errors of its database"
        return _RESULT_FACTORY.fail("token", text, NEW_TOKEN_REMEDY, TOKEN_FILE_REMEDY, log_remedy)
    # A participant in FulcrumCore is a provider or a consumer (customer) of services.
    owner = "an administrator or a participant (a provider or a consumer), not to an agent"
    text = f"{refusal}. The token is valid, but it belongs to {owner}"
    return _RESULT_FACTORY.fail("token", text, NEW_TOKEN_REMEDY, TOKEN_FILE_REMEDY)


def _explain_failure(settings: Settings, error: FulcrumError) -> Iterator[CheckResult]:
    """Yield results that explain why a request failed for another reason than a refused token."""
    url = urlsplit(settings.fulcrum_api_url)
    state = _tls_state(settings, error)
    if error.status is not None:  # the server has answered; `_check_tls` expects this
        yield from _check_tls(settings)
    # If the client does not verify certificates, a problem with the certificate cannot be the cause of the error.
    can_tls_explain_error = state.problem is TlsProblem.NO_TLS or settings.fulcrum_verify_tls
    if url.scheme == "https" and state.problem is not None and can_tls_explain_error:
        yield _explain_tls_failure(settings, state, error)
    elif url.scheme == "http" and state.problem is not TlsProblem.NO_TLS and state.certificate is not None:
        text = f"{settings.fulcrum_api_url}: the server requires TLS"
        yield _RESULT_FACTORY.fail("reachable", text, f"FULCRUM_API_URL=https://{url.netloc}")
    else:
        yield _RESULT_FACTORY.fail("reachable", str(error), *_remedies_for_failed_request(settings, error))


def _tls_state(settings: Settings, error: FulcrumError) -> TlsState:
    """Return the result of an attempt to connect with TLS.

    If TLS cannot be the cause of the error, make no attempt, and return a state without a problem. If the server has
    answered the failed request over https, TLS is not the cause. If the server has answered it over http, TLS can be
    the cause only if the status is 400: a server that expects TLS answers an http request with this status.
    """
    is_https = settings.fulcrum_api_url.startswith("https:")
    if (is_https and error.status is not None) or (not is_https and error.status not in (None, 400)):
        return TlsState(None)
    ca_bundle = settings.fulcrum_ca_bundle if settings.fulcrum_verify_tls else None  # None: the system's CA bundle
    return certificates.read_tls_state(*_host_and_port(settings), ca_bundle)


def _explain_tls_failure(settings: Settings, state: TlsState, error: FulcrumError) -> CheckResult:
    url = urlsplit(settings.fulcrum_api_url)
    text = certificates.describe_certificate_problem(str(url.hostname), state) or str(error)
    if state.problem is TlsProblem.NO_TLS:
        text = f"{settings.fulcrum_api_url}: the server answers without TLS"
        return _RESULT_FACTORY.fail("reachable", text, f"FULCRUM_API_URL=http://{url.netloc}")
    if state.problem is TlsProblem.UNKNOWN_CA:
        return _RESULT_FACTORY.fail("reachable", text, "FULCRUM_CA_BUNDLE=<file with the CA certificate>")
    if state.problem is TlsProblem.EXPIRED:
        return _RESULT_FACTORY.fail("reachable", text, RENEW_REMEDY, CLOCK_REMEDY)
    if state.problem is TlsProblem.NOT_YET_VALID:
        return _RESULT_FACTORY.fail("reachable", text, CLOCK_REMEDY)
    if state.problem is TlsProblem.WRONG_HOST and state.certificate and state.certificate.names:
        # `preferred_host_name` is a host name for which the certificate is valid, if possible not `localhost`.
        remedy = quoted_setting_line(
            "FULCRUM_API_URL", f"https://{_with_port(state.certificate.preferred_host_name, url.port)}"
        )
        return _RESULT_FACTORY.fail("reachable", text, remedy, RENEW_REMEDY)
    return _RESULT_FACTORY.fail("reachable", str(error), *_remedies_for_failed_request(settings, error))


def _remedies_for_failed_request(settings: Settings, error: FulcrumError) -> list[str]:
    """Return the remedies for a failed request if the TLS state does not explain the failure."""
    url = urlsplit(settings.fulcrum_api_url)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        # The client has refused a certificate that `_tls_state` has accepted with the system's CA bundle. The likely
        # cause: without FULCRUM_CA_BUNDLE, the client uses the file in REQUESTS_CA_BUNDLE or the bundle of Python's
        # `requests`.
        return [quoted_setting_line("FULCRUM_CA_BUNDLE", certificates.system_ca_bundle())]
    if "cannot be resolved" in str(error):
        remedy = f"FULCRUM_API_URL={url.scheme}://{_with_port('<host>', url.port)}"
        return [remedy, "check the name server: /etc/resolv.conf"]
    if error.status is None:
        remedy = f"FULCRUM_API_URL={url.scheme}://{_with_port(str(url.hostname), '<port>')}"
        return [remedy, "check that FulcrumCore runs, and that a firewall allows the connection"]
    if error.status < 500 and error.status != 400:
        has_path = url.path not in ("", "/")
        return [f"FULCRUM_API_URL={url.scheme}://{url.netloc}" if has_path else "FULCRUM_API_URL=<URL of FulcrumCore>"]
    return ["check FulcrumCore's log, and the proxy in front of it"]


def _with_port(host: str, port: int | str | None) -> str:
    """Return the host and the port in the form for a URL: with brackets around an IPv6 address."""
    return f"{format_host_for_url(host)}:{port}" if port else format_host_for_url(host)


def _host_and_port(settings: Settings) -> tuple[str, int]:
    url = urlsplit(settings.fulcrum_api_url)
    return str(url.hostname), url.port or (443 if url.scheme == "https" else 80)
