"""Checks the connection to Proxmox: certificate, login and version. Returns remedies for each failure."""

from __future__ import annotations

from collections.abc import Iterator

from executor.doctor import certificates
from executor.doctor.certificates import MIN_DAYS_LEFT, TlsProblem, TlsState
from executor.doctor.checks import CLOCK_REMEDY, Area, CheckResult, ResultFactory, command_line, quoted_setting_line
from executor.errors import JobError
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
#: The major versions of Proxmox VE with which this release is tested.
TESTED_MAJOR_VERSIONS = ("8", "9")
#: The error codes of a request to which Proxmox has given no valid answer. TLS may be the cause of such an error.
CONNECTION_ERROR_CODES = (ErrorCode.PVE_TLS, ErrorCode.PVE_UNREACHABLE, ErrorCode.PVE_TIMEOUT, ErrorCode.PVE_API_ERROR)


def explain_failure(error: JobError, settings: Settings) -> CheckResult:
    """Return a failed check that explains why the first request to Proxmox failed."""
    if error.code is ErrorCode.PVE_AUTH:
        return _explain_refused_login(settings)
    if error.code not in CONNECTION_ERROR_CODES:
        return _RESULT_FACTORY.fail(
            "reachable", str(error), "on a node: journalctl -u pveproxy -u pvedaemon --since -1h"
        )
    state = certificates.read_tls_state(settings.proxmox_host, settings.proxmox_port, settings.proxmox_ca_bundle)
    if state.problem is TlsProblem.NO_TLS:
        text = f"{_address(settings)}: the server answers without TLS, so it is not Proxmox's API"
        return _RESULT_FACTORY.fail("reachable", text, "PROXMOX_PORT=<port>")
    text = certificates.describe_certificate_problem(settings.proxmox_host, state)
    if text and error.code is ErrorCode.PVE_TLS:
        return _RESULT_FACTORY.fail("reachable", f"{error.code}: {text}", *_certificate_remedies(state, settings))
    return _RESULT_FACTORY.fail("reachable", str(error), *_connection_remedies(error))


def _explain_refused_login(settings: Settings) -> CheckResult:
    """Return the result for a login that Proxmox refuses. Proxmox's log names the cause, but its response does not."""
    log_remedy = (
        "the cause is in the log of the node: journalctl -u pveproxy --since -1h | grep 'authentication failure'"
    )
    user, token = settings.proxmox_user, settings.proxmox_token_id
    user_remedy = command_line("pveum", "user", "modify", user, "--enable", "1", "--expire", "0")
    if not token:
        text = f"Proxmox refuses the password of {user}: it is wrong, or the user is disabled or has expired"
        return _RESULT_FACTORY.fail("reachable", text, log_remedy, user_remedy, "PROXMOX_PASSWORD=<password>")
    text = f"Proxmox refuses the token {user}!{token}: "
    remove_command = command_line("pveum", "user", "token", "remove", user, token)
    return _RESULT_FACTORY.fail(
        "reachable",
        f"{text}the token's secret is wrong, or the token or its user has expired, is disabled or does not exist",
        log_remedy,
        user_remedy,
        command_line("pveum", "user", "token", "modify", user, token, "--expire", "0"),
        f"{remove_command} && {command_line('pveum', 'user', 'token', 'add', user, token, '--privsep', '1')}",
        "PROXMOX_TOKEN_SECRET_FILE=<file with its secret>",
    )


def _certificate_remedies(state: TlsState, settings: Settings) -> list[str]:
    """Return the remedies for a certificate that cannot be verified."""
    # `preferred_host_name` is a host name for which the certificate is valid, if possible not `localhost`.
    host_name = state.certificate.preferred_host_name if state.certificate else ""
    remedies = {
        TlsProblem.EXPIRED: [command_to_renew_certificate(settings), CLOCK_REMEDY],
        TlsProblem.NOT_YET_VALID: [CLOCK_REMEDY],
        TlsProblem.WRONG_HOST: [quoted_setting_line("PROXMOX_HOST", host_name), command_to_renew_certificate(settings)],
        TlsProblem.UNKNOWN_CA: ["PROXMOX_CA_BUNDLE=<copy of /etc/pve/pve-root-ca.pem of a node>"],
    }
    return remedies.get(state.problem, []) if state.problem else []


def command_to_renew_certificate(settings: Settings) -> str:
    """Return the command that renews a certificate that the cluster's CA has issued."""
    return f"on {settings.proxmox_host}: pvecm updatecerts --force && systemctl restart pveproxy"


def _connection_remedies(error: JobError) -> list[str]:
    if error.code is ErrorCode.PVE_TLS:
        # The failed request was sent with `requests`, which has refused the certificate. `explain_failure` has found no
        # problem of the certificate. The likely cause: PROXMOX_CA_BUNDLE is not set. Then `explain_failure` uses the
        # system's CA bundle, but `requests` uses the file in REQUESTS_CA_BUNDLE or its own bundle.
        return [quoted_setting_line("PROXMOX_CA_BUNDLE", certificates.system_ca_bundle())]
    host_remedy = "PROXMOX_HOST=<name or address of a node>"
    if "cannot be resolved" in str(error):
        return [host_remedy, "check the name server: /etc/resolv.conf"]
    return [
        "PROXMOX_PORT=<port>",
        host_remedy,
        "check that pveproxy runs on the node, and that a firewall allows the connection",
    ]


def check_connection(version: str, settings: Settings) -> Iterator[CheckResult]:
    """Check the certificate and the version. The caller has already made a successful request to Proxmox."""
    yield _RESULT_FACTORY.ok("reachable", _address(settings))
    yield _check_tls(settings)
    if version.partition(".")[0] in TESTED_MAJOR_VERSIONS:
        yield _RESULT_FACTORY.ok("version", f"Proxmox VE {version}")
    else:
        tested_versions = " and ".join(TESTED_MAJOR_VERSIONS)
        text = (
            f"Proxmox VE {version or 'of unknown version'}; Agent Smith is tested with the versions {tested_versions}"
        )
        yield _RESULT_FACTORY.warn("version", text, "docs/support.md lists the tested versions")


def _check_tls(settings: Settings) -> CheckResult:
    if not settings.proxmox_validate_certs:
        return _RESULT_FACTORY.warn("tls", "the certificate is not verified", "PROXMOX_VALIDATE_CERTS=true")
    certificate = certificates.read_certificate(settings.proxmox_host, settings.proxmox_port)
    if certificate is None:  # not readable now, but the caller's successful request has verified it
        return _RESULT_FACTORY.ok("tls", "verified")
    text = f"verified; {certificates.describe_validity(certificate)}"
    if certificate.days_left < MIN_DAYS_LEFT:
        acme_remedy = f"on {settings.proxmox_host}, for a certificate of an ACME CA: pvenode acme cert renew --force"
        return _RESULT_FACTORY.warn("tls", text, command_to_renew_certificate(settings), acme_remedy)
    return _RESULT_FACTORY.ok("tls", text)


def _address(settings: Settings) -> str:
    return f"{settings.proxmox_host}:{settings.proxmox_port}"
