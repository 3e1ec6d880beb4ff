"""The changes that `smith init` plans in Proxmox: only what is missing, each object after those that it needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from executor.proxmox.privileges import PLACEMENT_NEED, list_privilege_needs
from executor.proxmox.setup.plan import AclEntry, ChangeKind, ExistingAccess, NeededAccess, SetupPrevented, plan_changes

NEEDS = (*list_privilege_needs(9, disk_storages=["local-lvm"], bridges={"vmbr0": "localnetwork"}), PLACEMENT_NEED)
WANTED_WITH_NEW_TOKEN = NeededAccess(user="smith@pve", token_id="job", needs=NEEDS, pool="smith")
USER_AND_TOKEN = ("smith@pve", "smith@pve!job")
COMPLETE = ExistingAccess(
    roles={need.role: need.privileges for need in NEEDS},
    users={"smith@pve": True},
    token_comments={"job": "Agent Smith"},
    acl_entries=frozenset(
        AclEntry(need.path, user_or_token, need.role) for need in NEEDS for user_or_token in USER_AND_TOKEN
    ),
    pools=frozenset({"smith"}),
)
WANTED_WITH_STORED_SECRET = dataclasses.replace(WANTED_WITH_NEW_TOKEN, needs_new_token=False)


def texts(wanted: NeededAccess, **changes_of_existing: Any) -> list[str]:
    return [change.text for change in plan_changes(wanted, dataclasses.replace(COMPLETE, **changes_of_existing))]


def test_on_an_empty_cluster_everything_is_created_in_the_order_of_its_dependencies() -> None:
    changes = plan_changes(WANTED_WITH_NEW_TOKEN, ExistingAccess())
    kinds = list(dict.fromkeys(change.kind for change in changes))
    assert kinds == [ChangeKind.ROLE, ChangeKind.USER, ChangeKind.POOL, ChangeKind.TOKEN, ChangeKind.ACL]
    entries = {
        (change.body["path"], change.body[kind], change.body["roles"])
        for change in changes
        if change.kind is ChangeKind.ACL
        for kind in ("users", "tokens")
    }
    assert entries == {(need.path, user_or_token, need.role) for need in NEEDS for user_or_token in USER_AND_TOKEN}
    created_roles = {
        change.body["roleid"]: change.body["privs"] for change in changes if change.kind is ChangeKind.ROLE
    }
    assert created_roles == {need.role: ",".join(sorted(need.privileges)) for need in NEEDS}


def test_nothing_is_changed_where_everything_exists() -> None:
    assert plan_changes(WANTED_WITH_STORED_SECRET, COMPLETE) == []


def test_only_missing_privileges_and_entries_are_added() -> None:
    roles = {**COMPLETE.roles, "SmithStore": frozenset({"Datastore.Audit", "Datastore.Allocate"})}
    assert texts(WANTED_WITH_STORED_SECRET, roles=roles) == [
        "add privileges to role SmithStore: Datastore.AllocateSpace"
    ]
    entries = COMPLETE.acl_entries - {AclEntry("/vms", "smith@pve!job", "SmithVM")}
    assert texts(WANTED_WITH_STORED_SECRET, acl_entries=entries) == ["grant role SmithVM on /vms to smith@pve!job"]
    assert texts(WANTED_WITH_STORED_SECRET, pools=frozenset()) == ["create pool smith"]


def test_a_token_without_a_stored_secret_is_replaced_with_all_its_entries() -> None:
    changes = texts(WANTED_WITH_NEW_TOKEN)
    assert changes[:2] == [
        "delete token smith@pve!job, because Agent Smith does not know its secret",
        "create token smith@pve!job",
    ]
    assert len(changes) == 2 + len({(need.path, need.role) for need in NEEDS})
    assert all(text.endswith("to smith@pve!job") for text in changes[2:])


def test_two_needs_of_one_role_make_one_role_and_two_entries() -> None:
    needs = tuple(list_privilege_needs(8, disk_storages=["a", "b"]))
    changes = plan_changes(dataclasses.replace(WANTED_WITH_NEW_TOKEN, needs=needs), ExistingAccess())
    assert [change.text for change in changes if "SmithStore" in change.text] == [
        "create role SmithStore: Datastore.AllocateSpace,Datastore.Audit",
        "grant role SmithStore on /storage/a to smith@pve and smith@pve!job",
        "grant role SmithStore on /storage/b to smith@pve and smith@pve!job",
    ]


def test_a_disabled_user_is_refused_and_the_error_names_the_remedy() -> None:
    with pytest.raises(SetupPrevented, match="pveum user modify smith@pve --enable 1"):
        texts(WANTED_WITH_NEW_TOKEN, users={"smith@pve": False})
