"""The Proxmox stand-in stores users, tokens, roles and access control entries, and applies them as Proxmox does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import proxmoxer
import pytest
from proxmoxer import AuthenticationError, ResourceException
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

USER, TOKEN = "smith@pve", "job"


@pytest.fixture(scope="module")
def running() -> Iterator[ProxmoxStandIn]:
    with running_stand_in(has_user=False) as stand_in:
        yield stand_in


@pytest.fixture
def stand_in(running: ProxmoxStandIn) -> Iterator[ProxmoxStandIn]:
    """Yield a stand-in without roles and tokens of Agent Smith. Afterwards, remove those that the test has made."""
    yield running
    root = log_in(running)
    running.control("version", version="9.0.10")
    running.control("quorum", quorate=True)
    for role in root.access.roles.get():
        if not role["special"]:
            root.access.roles(role["roleid"]).delete()
    with contextlib.suppress(ResourceException):
        root.access.users(USER).token(TOKEN).delete()


@pytest.fixture
def root(stand_in: ProxmoxStandIn) -> Any:
    return log_in(stand_in)


def log_in(stand_in: ProxmoxStandIn, user: str = "root@pam", password: str = "") -> Any:
    return proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=user,
        password=password or stand_in.root_password,
        verify_ssl=str(stand_in.ca_bundle),
    )


def connect_with_token(stand_in: ProxmoxStandIn, secret: str) -> Any:
    return proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=USER,
        token_name=TOKEN,
        token_value=secret,
        verify_ssl=str(stand_in.ca_bundle),
    )


def create_token(root: Any) -> str:
    with contextlib.suppress(ResourceException):  # fails if an earlier test has made the user
        root.access.users.post(userid=USER)
    return str(root.access.users(USER).token(TOKEN).post(comment="Agent Smith")["value"])


def refusal_of(request: Any, **values: Any) -> tuple[int, str]:
    """Send a request that must be refused; return the status and the text of the response."""
    with pytest.raises(ResourceException) as refusal:
        request(**values)
    return refusal.value.status_code, str(refusal.value)


def test_a_role_can_be_made_once_and_then_extended_or_replaced(root: Any) -> None:
    root.access.roles.post(roleid="SmithNet", privs="SDN.Use")
    root.access.roles("SmithNet").put(privs="SDN.Audit", append=1)
    assert root.access.roles("SmithNet").get() == {"SDN.Audit": 1, "SDN.Use": 1}
    status, text = refusal_of(root.access.roles.post, roleid="SmithNet", privs="SDN.Use")
    assert (status, "create role failed: role 'SmithNet' already exists" in text) == (500, True)
    root.access.roles("SmithNet").put(privs="SDN.Use")
    assert root.access.roles("SmithNet").get() == {"SDN.Use": 1}


def test_a_privilege_that_only_another_version_has_is_refused(stand_in: ProxmoxStandIn, root: Any) -> None:
    assert refusal_of(root.access.roles.post, roleid="SmithVM", privs="VM.Monitor")[0] == 400
    stand_in.control("version", version="8.4.1")
    assert "VM.GuestAgent.Audit" in refusal_of(root.access.roles.post, roleid="SmithVM", privs="VM.GuestAgent.Audit")[1]
    root.access.roles.post(roleid="SmithVM", privs="VM.Monitor")


def test_a_role_name_beginning_with_pve_and_changes_of_proxmoxs_own_roles_are_refused(root: Any) -> None:
    assert refusal_of(root.access.roles.post, roleid="pveSmith", privs="VM.Audit")[0] == 400
    assert "cannot be modified" in refusal_of(root.access.roles("Administrator").put, privs="VM.Audit")[1]
    assert "cannot be deleted" in refusal_of(root.access.roles("PVEAuditor").delete)[1]


def test_a_token_can_be_made_once_and_only_that_response_contains_its_secret(
    stand_in: ProxmoxStandIn, root: Any
) -> None:
    secret = create_token(root)
    assert connect_with_token(stand_in, secret).version.get()["release"] == "9.0"
    assert refusal_of(root.access.users(USER).token(TOKEN).post)[0] == 400
    assert root.access.users(USER).token.get() == [{"tokenid": TOKEN, "privsep": 1, "comment": "Agent Smith"}]
    root.access.users(USER).token(TOKEN).delete()
    assert refusal_of(connect_with_token(stand_in, secret).version.get)[0] == 401
    assert "no such token 'job' for user 'smith@pve'" in refusal_of(root.access.users(USER).token(TOKEN).delete)[1]


def test_a_token_has_only_privileges_that_its_user_also_has(stand_in: ProxmoxStandIn, root: Any) -> None:
    api = connect_with_token(stand_in, create_token(root))
    root.access.roles.post(roleid="SmithVM", privs="VM.Audit,VM.Clone")
    root.access.acl.put(path="/vms", roles="SmithVM", tokens=f"{USER}!{TOKEN}")
    assert api.access.permissions.get(path="/vms") == {"/vms": {}}
    root.access.acl.put(path="/vms", roles="SmithVM", users=USER)
    assert api.access.permissions.get(path="/vms/100") == {"/vms/100": {"VM.Audit": 1, "VM.Clone": 1}}
    root.access.users(USER).token(TOKEN).delete()
    assert [(row["type"], row["path"]) for row in root.access.acl.get()] == [("user", "/vms")]


def test_entries_on_a_path_replace_the_entries_that_it_would_inherit(stand_in: ProxmoxStandIn, root: Any) -> None:
    api = connect_with_token(stand_in, create_token(root))
    user_and_token = {"users": USER, "tokens": f"{USER}!{TOKEN}"}
    root.access.roles.post(roleid="SmithVM", privs="VM.Audit,VM.Clone")
    root.access.roles.post(roleid="SmithOther", privs="VM.Audit")
    root.access.acl.put(path="/vms", roles="SmithVM", **user_and_token)
    root.access.acl.put(path="/vms/9000", roles="SmithOther", **user_and_token)
    assert api.access.permissions.get(path="/vms/9000") == {"/vms/9000": {"VM.Audit": 1}}
    root.access.acl.put(path="/vms/9000", roles="SmithOther", delete=1, **user_and_token)
    root.access.acl.put(path="/vms", roles="SmithVM", propagate=0, **user_and_token)
    assert api.access.permissions.get(path="/vms/9000") == {"/vms/9000": {}}


def test_an_entry_needs_a_known_path_role_user_and_token(root: Any) -> None:
    create_token(root)
    root.access.roles.post(roleid="SmithVM", privs="VM.Audit")
    assert refusal_of(root.access.acl.put, path="/vm", roles="SmithVM", users=USER)[0] == 400
    assert refusal_of(root.access.acl.put, path="/vms", roles="SmithVM")[0] == 400
    assert "role 'None' does not exist" in refusal_of(root.access.acl.put, path="/vms", roles="None", users=USER)[1]
    assert "user 'no@pve' does" in refusal_of(root.access.acl.put, path="/vms", roles="SmithVM", users="no@pve")[1]
    assert "no such token 'xx'" in refusal_of(root.access.acl.put, path="/vms", roles="SmithVM", tokens=f"{USER}!xx")[1]


def test_without_quorum_or_without_the_privileges_a_change_is_refused(stand_in: ProxmoxStandIn, root: Any) -> None:
    stand_in.control("quorum", quorate=False)
    assert "quorum" in refusal_of(root.access.roles.post, roleid="SmithVM", privs="VM.Audit")[1]
    stand_in.control("quorum", quorate=True)
    stand_in.control("add_user", user="audit@pve", password="password", privileges=["Sys.Audit"])
    auditor = log_in(stand_in, "audit@pve", "password")
    assert "Sys.Modify" in refusal_of(auditor.access.roles.post, roleid="SmithVM", privs="VM.Audit")[1]
    assert "Realm.AllocateUser" in refusal_of(auditor.access.users.post, userid="x@pve")[1]


def test_a_login_without_the_second_factor_or_of_a_disabled_user_is_refused(stand_in: ProxmoxStandIn) -> None:
    stand_in.control("second_factor", code="123456")
    try:
        with pytest.raises(AuthenticationError):
            log_in(stand_in)
        login = {"user": "root@pam", "password": stand_in.root_password, "port": stand_in.port}
        api = proxmoxer.ProxmoxAPI(stand_in.host, **login, otp="123456", verify_ssl=str(stand_in.ca_bundle))
        assert api.version.get()["release"] == "9.0"
    finally:
        stand_in.control("second_factor", code="")
    stand_in.control("add_user", user="former@pve", password="password")
    stand_in.control("user", user="former@pve", enabled=False)
    with pytest.raises(AuthenticationError):
        log_in(stand_in, "former@pve", "password")
    stand_in.control("user", user="former@pve", enabled=True)
    assert log_in(stand_in, "former@pve", "password").version.get()["release"] == "9.0"


def test_root_can_read_the_ca_certificate_and_the_vnets(stand_in: ProxmoxStandIn, root: Any) -> None:
    stand_in.control("vnet", name="custom", zone="dc1")
    assert [(row["vnet"], row["zone"]) for row in root.cluster.sdn.vnets.get()] == [("custom", "dc1")]
    assert root.cluster.sdn.vnets("custom").get()["zone"] == "dc1"
    stand_in.control("vnet", name="custom", zone="")
    status, text = refusal_of(root.cluster.sdn.vnets("custom").get)
    assert (status, "sdn vnet 'custom' does not exist" in text) == (500, True)
    assert refusal_of(root.cluster.sdn.vnets("vmbr0.5").get)[0] == 400
    by_name = {row["filename"]: row for row in root.nodes("pve1").certificates.info.get()}
    assert by_name["pve-root-ca.pem"]["pem"] == stand_in.ca_bundle.read_text()
    assert by_name["pve-ssl.pem"]["fingerprint"].count(":") == 31
