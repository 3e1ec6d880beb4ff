"""`smith init` creates its roles, user, token, pool and ACL entries in Proxmox once.

It sends the administrator's password only to the server whose certificate it has shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.privileges import PLACEMENT_NEED, find_unmet_needs, list_privilege_needs
from executor.proxmox.setup.admin_session import AdminSession
from executor.proxmox.setup.apply import apply_changes
from executor.proxmox.setup.certificate import find_ca, normalize_fingerprint, read_fingerprint
from executor.proxmox.setup.existing import read_existing_access
from executor.proxmox.setup.plan import NeededAccess, SetupPrevented, plan_changes
from executor.shared.error_codes import ErrorCode

NEEDS = (*list_privilege_needs(9, disk_storages=["local-lvm"], bridges={"vmbr0": "localnetwork"}), PLACEMENT_NEED)
USER, TOKEN = "smith@pve", "job"
TOKEN_PATH = f"/access/users/{USER}/token/{TOKEN}"
PATHS = ("/access/roles", "/access/users", "/pools", "/access/acl")


@pytest.fixture
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in(has_user=False) as running:
        yield running


@pytest.fixture(scope="module")
def shared_stand_in() -> Iterator[ProxmoxStandIn]:
    """A cluster that tests share, because none of them creates the user or the roles of `smith init` in it."""
    with running_stand_in(has_user=False) as running:
        yield running


@pytest.fixture
def session(stand_in: ProxmoxStandIn) -> AdminSession:
    return log_in(stand_in)


def log_in(stand_in: ProxmoxStandIn, password: str = "", ask_code: Callable[[], str] = str) -> AdminSession:
    fingerprint = read_fingerprint(stand_in.host, stand_in.port)
    session = AdminSession(stand_in.host, stand_in.port, "root@pam", fingerprint)
    session.log_in(password or stand_in.root_password, ask_code)
    return session


def build_needed_access(*, needs_new_token: bool) -> NeededAccess:
    return NeededAccess(user=USER, token_id=TOKEN, needs=NEEDS, pool="smith", needs_new_token=needs_new_token)


class Setup:
    """A set-up that stores the secret of the token as `smith init` does."""

    def __init__(self, session: AdminSession) -> None:
        self.session = session
        self.secret = ""
        self.applied: list[str] = []
        self.lost_paths: list[str] = []  #: the paths of the requests whose answer was lost

    def run(self) -> list[str]:
        """Create what is missing; return the texts of the changes."""
        changes = plan_changes(
            build_needed_access(needs_new_token=not self.secret), read_existing_access(self.session, USER)
        )
        for change in apply_changes(self.session, changes, record_token_creation=list, store_secret=self._store):
            self.applied.append(change.text)
        return [change.text for change in changes]

    def _store(self, secret: str) -> None:
        self.secret = secret


def count_lost_token_answers(setup: Setup) -> int:
    """Return how often the answer with the secret of a new token was lost."""
    return setup.lost_paths.count(TOKEN_PATH)


def test_the_token_has_every_needed_privilege_and_a_second_run_changes_nothing(
    stand_in: ProxmoxStandIn, session: AdminSession
) -> None:
    setup = Setup(session)
    setup.run()
    reader = ProxmoxReader(
        ProxmoxConnection(
            host=stand_in.host,
            port=stand_in.port,
            user=USER,
            token_id=TOKEN,
            token_secret=setup.secret,
            verify=stand_in.ca_bundle,
        )
    )
    assert find_unmet_needs(NEEDS, {need.path: reader.permissions(need.path) for need in NEEDS}) == {}
    assert "smith" in read_existing_access(session, USER).pools
    stand_in.reset_request_log()
    assert setup.run() == []
    assert stand_in.changing_requests() == []


def test_a_set_up_that_loses_the_answer_of_each_change_ends_with_the_same_result(
    stand_in: ProxmoxStandIn, session: AdminSession
) -> None:
    setup = Setup(session)
    lost_answer_count = 0
    for _ in range(40):
        stand_in.reset_request_log()
        for path in PATHS if count_lost_token_answers(setup) else (*PATHS, TOKEN_PATH):
            for method in ("POST", "PUT"):
                stand_in.fail(method, path, status=0, after=True, times=1)
        try:
            setup.run()
            break
        except JobError:
            lost_answer_count += 1
            setup.lost_paths += [request["path"] for request in stand_in.changing_requests()][-1:]
        finally:
            stand_in.control("clear_faults")
    complete = read_existing_access(session, USER)
    assert lost_answer_count == len({need.role for need in NEEDS}) + len(NEEDS) + len(("user", "pool", "token"))
    assert plan_changes(build_needed_access(needs_new_token=False), complete) == []
    assert sum(text == "create token smith@pve!job" for text in setup.applied) == 1


def test_the_password_goes_only_to_the_server_with_the_shown_certificate(shared_stand_in: ProxmoxStandIn) -> None:
    other_fingerprint = "AB:" * 31 + "AB"
    session = AdminSession(shared_stand_in.host, shared_stand_in.port, "root@pam", other_fingerprint)
    shared_stand_in.reset_request_log()
    with pytest.raises(JobError) as refusal:
        session.log_in("password", str)
    assert refusal.value.code is ErrorCode.PVE_TLS
    assert shared_stand_in.request_log() == []


def test_a_wrong_password_is_reported_and_a_second_factor_is_asked_for(shared_stand_in: ProxmoxStandIn) -> None:
    with pytest.raises(JobError) as refusal:
        log_in(shared_stand_in, "wrong-password")
    assert refusal.value.code is ErrorCode.PVE_AUTH
    shared_stand_in.control("second_factor", code="123456")
    assert read_existing_access(log_in(shared_stand_in, ask_code=lambda: "123456"), USER).users == {"root@pam": True}
    with pytest.raises(JobError):
        log_in(shared_stand_in, ask_code=lambda: "000000")
    shared_stand_in.control("second_factor", code="")


def test_a_token_of_an_administrator_may_log_in_too(shared_stand_in: ProxmoxStandIn) -> None:
    secret = log_in(shared_stand_in).send_change("POST", "/access/users/root@pam/token/setup", {"privsep": 0})["value"]
    token_session = AdminSession(
        shared_stand_in.host,
        shared_stand_in.port,
        "root@pam!setup",
        read_fingerprint(shared_stand_in.host, shared_stand_in.port),
    )
    token_session.log_in(secret, str)
    assert read_existing_access(token_session, USER).users == {"root@pam": True}


def test_the_ca_is_that_of_the_cluster_or_the_given_one(shared_stand_in: ProxmoxStandIn, tmp_path: Path) -> None:
    session = log_in(shared_stand_in)
    assert find_ca(session) == shared_stand_in.ca_bundle.read_text()
    assert find_ca(session, shared_stand_in.ca_bundle.read_text()) == shared_stand_in.ca_bundle.read_text()
    shared_stand_in.use_certificate(names=["pve1.example.net"])
    with pytest.raises(SetupPrevented, match="host name or an address for which the certificate is valid"):
        find_ca(log_in(shared_stand_in))
    shared_stand_in.use_certificate(is_ca_new=True)
    with pytest.raises(SetupPrevented, match="--ca-file FILE"):
        find_ca(log_in(shared_stand_in))
    shared_stand_in.use_certificate()


def test_fingerprints_are_compared_in_one_form() -> None:
    assert normalize_fingerprint("ab" * 32) == normalize_fingerprint("AB:" * 31 + "ab")
    for text in ("", "ab" * 31, "zz" * 32):
        with pytest.raises(ValueError, match=r"."):
            normalize_fingerprint(text)


def test_the_zones_of_vnets_are_read(shared_stand_in: ProxmoxStandIn) -> None:
    shared_stand_in.control("vnet", name="customers", zone="dc1")
    assert ProxmoxReader.from_session(log_in(shared_stand_in)).vnet_zones() == {"customers": "dc1"}
