"""Checks the connection to Proxmox: certificate, login and version. Returns remedies for each failure."""

from __future__ import annotations

from collections.abc import Iterator

from executor.doctor import certificates
from executor.doctor.certificates import MIN_DAYS_LEFT, TlsProblem, TlsState
from executor.doctor.checks import CLOCK_HINT, Area, CheckResult, ResultFactory, command_line, setting_line
from executor.errors import JobError
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

_RESULT = ResultFactory(Area.PROXMOX)
#: The major versions of Proxmox VE with which this release is tested.
TESTED_MAJOR_VERSIONS = ("8", "9")
#: The error codes of a request to which Proxmox has given no valid answer. TLS may be the cause of such an error.
CONNECTION_ERRORS = (ErrorCode.PVE_TLS, ErrorCode.PVE_UNREACHABLE, ErrorCode.PVE_TIMEOUT, ErrorCode.PVE_API_ERROR)


def explain_failure(error: JobError, settings: Settings) -> CheckResult:
    """Return a failed check that explains why the first request to Proxmox failed."""
    if error.code is ErrorCode.PVE_AUTH:
        return _refused_login(settings)
    if error.code not in CONNECTION_ERRORS:
        return _RESULT.fail("reachable", str(error), "on a node: journalctl -u pveproxy -u pvedaemon --since -1h")
    state = certificates.read_tls_state(settings.proxmox_host, settings.proxmox_port, settings.proxmox_ca_bundle)
    if state.problem is TlsProblem.NO_TLS:
        text = f"{_address(settings)}: the server answers without TLS, so it is not Proxmox's API"
        return _RESULT.fail("reachable", text, "PROXMOX_PORT=<port>")
    text = certificates.describe_problem(settings.proxmox_host, state)
    if text and error.code is ErrorCode.PVE_TLS:
        return _RESULT.fail("reachable", f"{error.code}: {text}", *_certificate_hints(state, settings))
    return _RESULT.fail("reachable", str(error), *_connection_hints(error))


def _refused_login(settings: Settings) -> CheckResult:
    """Return the result for a login that Proxmox refuses. Only the log of Proxmox names the cause, not its response."""
    log_hint = "the cause is in the log of the node: journalctl -u pveproxy --since -1h | grep 'authentication failure'"
    user, token = settings.proxmox_user, settings.proxmox_token_id
    user_hint = command_line("pveum", "user", "modify", user, "--enable", "1", "--expire", "0")
    if not token:
        text = f"Proxmox refuses the password of {user}: it is wrong, or the user is disabled or has expired"
        return _RESULT.fail("reachable", text, log_hint, user_hint, "PROXMOX_PASSWORD=<password>")
    text = f"Proxmox refuses the token {user}!{token}: "
    remove_command = command_line("pveum", "user", "token", "remove", user, token)
    return _RESULT.fail(
        "reachable",
        f"{text}the token's secret is wrong, or the token or its user has expired, is disabled or does not exist",
        log_hint,
        user_hint,
        command_line("pveum", "user", "token", "modify", user, token, "--expire", "0"),
        f"{remove_command} && {command_line('pveum', 'user', 'token', 'add', user, token, '--privsep', '1')}",
        "PROXMOX_TOKEN_SECRET_FILE=<file with its secret>",
    )


def _certificate_hints(state: TlsState, settings: Settings) -> list[str]:
    """Return the remedies for a certificate that cannot be verified."""
    host_name = state.certificate.name_for_other_machines if state.certificate else ""
    hints = {
        TlsProblem.EXPIRED: [renew_hint(settings), CLOCK_HINT],
        TlsProblem.NOT_YET_VALID: [CLOCK_HINT],
        TlsProblem.WRONG_HOST: [setting_line("PROXMOX_HOST", host_name), renew_hint(settings)],
        TlsProblem.UNKNOWN_CA: ["PROXMOX_CA_BUNDLE=<copy of /etc/pve/pve-root-ca.pem of a node>"],
    }
    return hints.get(state.problem, []) if state.problem else []


def renew_hint(settings: Settings) -> str:
    """Return the command that renews a certificate of the cluster's own CA."""
    return f"on {settings.proxmox_host}: pvecm updatecerts --force && systemctl restart pveproxy"


def _connection_hints(error: JobError) -> list[str]:
    if error.code is ErrorCode.PVE_TLS:  # the system knows the CA, but the client used another CA bundle
        return [setting_line("PROXMOX_CA_BUNDLE", certificates.system_bundle())]
    host_hint = "PROXMOX_HOST=<name or address of a node>"
    if "cannot be resolved" in str(error):
        return [host_hint, "check the name server: /etc/resolv.conf"]
    return [
        "PROXMOX_PORT=<port>",
        host_hint,
        "check that pveproxy runs on the node, and that a firewall allows the connection",
    ]


def check_connection(version: str, settings: Settings) -> Iterator[CheckResult]:
    """Check the certificate and the version. The caller has already made a successful request to Proxmox."""
    yield _RESULT.ok("reachable", _address(settings))
    yield _check_tls(settings)
    if version.partition(".")[0] in TESTED_MAJOR_VERSIONS:
        yield _RESULT.ok("version", f"Proxmox VE {version}")
    else:
        tested = " and ".join(TESTED_MAJOR_VERSIONS)
        text = f"Proxmox VE {version or 'of unknown version'}; Agent Smith is tested with the versions {tested}"
        yield _RESULT.warn("version", text, "docs/support.md lists the tested versions")


def _check_tls(settings: Settings) -> CheckResult:
    if not settings.proxmox_validate_certs:
        return _RESULT.warn("tls", "the certificate is not verified", "PROXMOX_VALIDATE_CERTS=true")
    certificate = certificates.read_certificate(settings.proxmox_host, settings.proxmox_port)
    if certificate is None:
        return _RESULT.ok("tls", "verified")
    text = f"verified; {certificates.describe_validity(certificate)}"
    if certificate.days_left < MIN_DAYS_LEFT:
        acme_hint = f"on {settings.proxmox_host}, for a certificate of an ACME CA: pvenode acme cert renew --force"
        return _RESULT.warn("tls", text, renew_hint(settings), acme_hint)
    return _RESULT.ok("tls", text)


def _address(settings: Settings) -> str:
    return f"{settings.proxmox_host}:{settings.proxmox_port}"
