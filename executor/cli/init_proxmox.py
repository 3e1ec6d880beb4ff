"""Connects `smith init` to Proxmox as an administrator, and creates the agent's user, token, permissions and pool."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import typer

from executor.cli.init_answers import Prompter
from executor.cli.init_core import TokenInUse
from executor.cli.init_files import SecretFile
from executor.cli.init_proposal import Cluster, read_cluster
from executor.cli.output import show_text
from executor.doctor.proxmox_context import ProxmoxContext
from executor.doctor.proxmox_privileges import privilege_needs_of_settings
from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.privileges import PLACEMENT_NEED, PrivilegeNeed
from executor.proxmox.setup.admin_session import AdminSession
from executor.proxmox.setup.apply import apply_changes
from executor.proxmox.setup.certificate import (
    find_ca,
    is_certificate_verifiable,
    normalize_fingerprint,
    read_fingerprint,
)
from executor.proxmox.setup.existing import read_existing_access
from executor.proxmox.setup.plan import COMMENT_ON_CREATED_OBJECTS, Change, NeededAccess, plan_changes
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

#: The environment variable with the administrator's password. It does not begin with PROXMOX_, because variables with
#: this prefix are the agent's settings, and the agent must not have this password.
ADMIN_PASSWORD_VARIABLE = "PVE_ADMIN_PASSWORD"  # noqa: S105 (the name of a variable, not a secret)


@dataclass(frozen=True, kw_only=True)
class AdminLogin:
    """The values of the options for the administrator's connection to Proxmox. An option that is not set is None."""

    user: str | None
    password_file: Path | None
    fingerprint: str | None
    ca_file: Path | None


@dataclass
class ProxmoxAdminConnection:
    """The administrator's connection to Proxmox: reads what exists, and plans the changes. The login is not stored."""

    session: AdminSession
    ca_pem: str  #: the CA of Proxmox's certificate; '' if the system trusts the certificate

    @cached_property
    def cluster(self) -> Cluster:
        """The nodes, storages, bridges, VNets and VM templates in Proxmox. They are read at the first access."""
        return read_cluster(ProxmoxReader.from_session(self.session))

    def needed_privileges(self, settings: Settings) -> tuple[PrivilegeNeed, ...]:
        """Return the privileges that the agent needs with these settings. `smith doctor` checks the same privileges.

        If the agent may use several nodes, PLACEMENT_NEED is added: an optional privilege, to read the nodes' load.
        """
        # ProxmoxContext, which the checks of `smith doctor` use, finds out which nodes and bridges the settings allow.
        context = ProxmoxContext(settings, ProxmoxReader.from_session(self.session))
        needs = privilege_needs_of_settings(
            context, {bridge: self.cluster.zone_of(bridge) for bridge in context.allowed_bridges}
        )
        return (*needs, PLACEMENT_NEED) if len(context.allowed_nodes) > 1 else tuple(needs)

    def _is_secret_valid(self, full_token_id: str, secret: str) -> bool:
        """Return whether Proxmox accepts the secret for this token. Raises JobError if another error occurs."""
        if not secret:
            return False
        connection = self.session.connection
        # An AdminSession can use any login: here it uses the token instead of the administrator's login.
        session = AdminSession(connection.host, connection.port, full_token_id, self.session.fingerprint)
        try:
            session.log_in(secret, ask_code=str)  # A token has no second factor, so `ask_code` is not called.
        except JobError as error:
            if error.code is ErrorCode.PVE_AUTH:
                return False
            raise
        return True

    def make_plan(self, settings: Settings, secret_file: SecretFile, *, replaces_token: bool) -> ProxmoxPlan:
        """Plan the changes that create the missing objects in Proxmox.

        Raises JobError, and SetupPrevented if the agent's user is disabled. Raises TokenInUse if the token exists in
        Proxmox, and `secret_file` does not contain its secret: another installation perhaps uses the token. If
        `replaces_token` is True, or if an interrupted `smith init` created the token, the token is replaced instead.
        """
        # the roles, users, tokens, permissions and pools that exist in Proxmox
        existing_access = read_existing_access(self.session, settings.proxmox_user)
        token_id, comment_by_token_id = settings.proxmox_token_id, existing_access.token_comments
        full_token_id = f"{settings.proxmox_user}!{token_id}"
        # `smith init` stores the token's comment in a record before it creates the token, and deletes the record after
        # the secret is stored. If a record exists, an earlier `smith init` was interrupted.
        creation_record = secret_file.read_record()
        is_stored_secret_valid = token_id in comment_by_token_id and self._is_secret_valid(
            full_token_id, secret_file.read()
        )
        needs_new_token = creation_record is not None or not is_stored_secret_valid
        found_comment = comment_by_token_id.get(token_id)
        is_token_of_interrupted_init = creation_record is not None and found_comment == creation_record.get("comment")
        if (
            needs_new_token
            and token_id in comment_by_token_id
            and not (replaces_token or is_stored_secret_valid or is_token_of_interrupted_init)
        ):
            raise TokenInUse(
                f"the token {full_token_id} exists in Proxmox, and its secret is not stored in {secret_file.path}: "
                "another installation may use this token. Use --replace-tokens to replace it, or choose another --token"
            )
        # COMMENT_ON_CREATED_OBJECTS is "Agent Smith".
        token_comment = f"{COMMENT_ON_CREATED_OBJECTS}, made by smith init {secrets.token_hex(4)}"
        needed_access = NeededAccess(
            user=settings.proxmox_user,
            token_id=token_id,
            needs=self.needed_privileges(settings),
            pool=settings.proxmox_pool,
            token_comment=token_comment,
            needs_new_token=needs_new_token,
        )
        return ProxmoxPlan(self.session, plan_changes(needed_access, existing_access), secret_file, token_comment)


@dataclass(frozen=True)
class ProxmoxPlan:
    """The planned changes in Proxmox, and the file for the secret of the token that one of the changes may create."""

    session: AdminSession
    changes: list[Change]
    secret_file: SecretFile
    token_comment: str  #: the comment of a new token; by this comment, a later `smith init` recognizes the token

    def make_changes(self) -> Iterator[str]:
        """Make the changes, and yield the text of each change after it is made. Raises JobError."""
        for change in apply_changes(
            self.session,
            self.changes,
            record_token_creation=lambda: self.secret_file.write_record({"comment": self.token_comment}),
            store_secret=self.secret_file.store_secret,
        ):
            yield change.text


def log_in_as_administrator(
    prompter: Prompter, host: str, port: int, login: AdminLogin, stored_ca_file: Path
) -> ProxmoxAdminConnection:
    """Show Proxmox's certificate, log in as administrator, find the CA, and return the connection.

    For the login, the certificate is accepted if its fingerprint equals --fingerprint. Without this option, it is
    accepted if a CA (from --ca-file, an earlier `smith init` or the system) verifies it, or if the operator confirms
    it. For the agent, a CA must verify the certificate. If no other CA does, the cluster's CA, which is read after the
    login, is tried.

    Raises JobError, and SetupPrevented if no CA verifies the certificate.
    """
    option_ca_pem = login.ca_file.read_text("utf-8") if login.ca_file else ""
    fingerprint = read_fingerprint(host, port)
    show_text(f"Proxmox at {host}:{port} presents the certificate with the SHA-256 fingerprint\n  {fingerprint}")
    # the CA of --ca-file or of an earlier `smith init`; '' if there is neither: then the CAs of this system are used
    given_ca_pem = option_ca_pem or (stored_ca_file.read_text("utf-8") if stored_ca_file.exists() else "")
    is_certificate_verified = is_certificate_verifiable(host, port, given_ca_pem)
    if login.fingerprint is not None:
        _require_same_fingerprint(login.fingerprint, fingerprint)
    elif is_certificate_verified:
        verifier = login.ca_file or stored_ca_file if given_ca_pem else "the CAs of this system"
        show_text(f"  The certificate is verified by {verifier}.")
    elif prompter.is_interactive:
        show_text("  `pvenode cert info` on a node of the cluster shows the fingerprint, too.")
        if not prompter.ask_yes_or_no("Is this the certificate of your Proxmox?", default=False):
            raise typer.Exit(1)
    else:
        raise typer.BadParameter(
            f"the certificate is not verified: if its fingerprint is right, use --fingerprint {fingerprint}"
        )
    user = prompter.ask_text("Administrator of Proxmox", option="--admin", option_value=login.user, default="root@pam")
    password = prompter.ask_secret(
        f"Password of {user} (it is not stored)",
        file=login.password_file,
        variable=ADMIN_PASSWORD_VARIABLE,
        option="--admin-password-file",
    )
    session = AdminSession(host, port, user, fingerprint)
    session.log_in(password, prompter.ask_code)
    # The CA of --ca-file is always passed, and `find_ca` raises SetupPrevented if this CA does not verify the
    # certificate. The CA of an earlier `smith init` is passed only if it verifies the certificate. If '' is passed,
    # `find_ca` tries the system's CAs, and then the cluster's CA.
    return ProxmoxAdminConnection(session, find_ca(session, given_ca_pem if is_certificate_verified else option_ca_pem))


def _require_same_fingerprint(option_value: str, fingerprint: str) -> None:
    try:
        is_same = normalize_fingerprint(option_value) == fingerprint
    except ValueError:
        raise typer.BadParameter(f"--fingerprint {option_value}: not a SHA-256 fingerprint") from None
    if not is_same:
        raise typer.BadParameter(
            f"--fingerprint {option_value}: Proxmox's certificate has another fingerprint, {fingerprint}"
        )
