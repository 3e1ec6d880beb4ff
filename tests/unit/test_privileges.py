"""The table of needs, and the commands that grant what is missing."""

from __future__ import annotations

from pathlib import Path

from executor.proxmox.privileges import needs, pveum_lines, unmet_needs


def test_the_guest_agents_privilege_has_another_name_before_version_9() -> None:
    """Naming one that a version does not know makes `pveum role add` fail."""
    (eight,), (nine,) = needs(8, storages=[]), needs(9, storages=[])
    assert eight.privileges - nine.privileges == {"VM.Monitor"}
    assert nine.privileges - eight.privileges == {"VM.GuestAgent.Audit"}


def test_each_storage_is_needed_once_and_the_bridge_only_when_used() -> None:
    assert [need.path for need in needs(9, storages=["b", "a", "b"])] == ["/vms", "/storage/a", "/storage/b"]
    paths = [need.path for need in needs(9, storages=[], bridge="vmbr0")]
    assert paths == ["/vms", "/sdn/zones/localnetwork"]


def test_images_are_seen_and_backups_written_where_the_operator_has_them() -> None:
    more = needs(9, storages=["a"], images=["local", "a"], backups="nfs")[2:]
    assert [(need.path, need.role) for need in more] == [
        ("/storage/local", "SmithImages"),
        ("/vms", "SmithBackup"),
        ("/storage/nfs", "SmithStore"),
    ]


def test_what_is_held_is_not_missing() -> None:
    vms, storage = needs(9, storages=["local"])
    held = {"/vms": vms.privileges | {"VM.Console"}, "/storage/local": frozenset({"Datastore.Audit"})}
    assert unmet_needs([vms, storage], held) == {storage: {"Datastore.AllocateSpace"}}


def test_a_role_is_made_or_widened_or_left_alone() -> None:
    _vms, storage = needs(9, storages=["local"])
    made, *grants = pveum_lines([storage], {}, user="smith@pve", token_id="job")
    assert made == "pveum role add SmithStore --privs Datastore.AllocateSpace,Datastore.Audit"
    assert grants == [
        "pveum acl modify /storage/local --users smith@pve --roles SmithStore",
        "pveum acl modify /storage/local --tokens 'smith@pve!job' --roles SmithStore",
    ]
    half = {"SmithStore": frozenset({"Datastore.Audit"})}
    widened = pveum_lines([storage], half, user="smith@pve", token_id="job")
    assert widened == ["pveum role modify SmithStore --append 1 --privs Datastore.AllocateSpace", *grants]
    assert pveum_lines([storage], {"SmithStore": storage.privileges}, user="smith@pve", token_id="job") == grants


def test_a_login_by_password_needs_no_line_for_a_token() -> None:
    lines = pveum_lines(needs(9, storages=[]), {}, user="root@pam")
    assert not any("--tokens" in line for line in lines)


def test_no_line_stands_twice_and_odd_names_are_quoted() -> None:
    lines = pveum_lines(needs(9, storages=["a", "b; rm -rf /"]), {}, user="smith@pve")
    assert len([line for line in lines if line.startswith("pveum role add SmithStore")]) == 1
    assert "pveum acl modify '/storage/b; rm -rf /' --users smith@pve --roles SmithStore" in lines


def test_the_manual_has_the_same_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = {cells[2].strip(): cells[3] for line in page.splitlines() if len(cells := line.split("|")) == 5}
    for version in (8, 9):
        for need in needs(version, storages=["a"], bridge="vmbr0", images=["local"], backups="b"):
            assert need.privileges <= set(rows[need.role].replace(",", " ").split()), need.role
