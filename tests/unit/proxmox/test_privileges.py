"""The privileges that the settings need, and the commands that grant those that the token lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.proxmox.privileges import find_unmet_needs, list_privilege_needs, make_pveum_commands
from executor.proxmox.template_needs import privilege_needs_of_template, root_only_devices


def test_the_guest_agents_privilege_has_another_name_before_version_9() -> None:
    """`pveum role add` fails for a privilege that its version does not know."""
    (eight,), (nine,) = list_privilege_needs(8, disk_storages=[]), list_privilege_needs(9, disk_storages=[])
    assert eight.privileges - nine.privileges == {"VM.Monitor"}
    assert nine.privileges - eight.privileges == {"VM.GuestAgent.Audit"}


def test_a_storage_that_is_named_twice_is_needed_once_and_a_bridge_only_if_it_is_named() -> None:
    assert [need.path for need in list_privilege_needs(9, disk_storages=["b", "a", "b"])] == [
        "/vms",
        "/storage/a",
        "/storage/b",
    ]
    paths = [need.path for need in list_privilege_needs(9, disk_storages=[], bridges={"vmbr0": "localnetwork"})]
    assert paths == ["/vms", "/sdn/zones/localnetwork/vmbr0"]


def test_image_and_backup_storages_need_privileges_of_their_own() -> None:
    additional_needs = list_privilege_needs(
        9, disk_storages=["a"], iso_and_vztmpl_storages=["local", "a"], backup_storage="nfs"
    )[2:]
    assert [(need.path, need.role) for need in additional_needs] == [
        ("/storage/local", "SmithImages"),
        ("/vms", "SmithBackup"),
        ("/storage/nfs", "SmithStore"),
    ]


def test_a_need_that_the_token_meets_is_not_returned() -> None:
    vms, storage = list_privilege_needs(9, disk_storages=["local"])
    privileges_by_path = {"/vms": vms.privileges | {"VM.Console"}, "/storage/local": frozenset({"Datastore.Audit"})}
    assert find_unmet_needs([vms, storage], privileges_by_path) == {storage: {"Datastore.AllocateSpace"}}


def test_the_commands_add_a_role_extend_it_or_leave_it_unchanged() -> None:
    _vms, storage = list_privilege_needs(9, disk_storages=["local"])
    added, *grants = make_pveum_commands([storage], {}, user="smith@pve", token_id="job")
    assert added == "pveum role add SmithStore --privs Datastore.AllocateSpace,Datastore.Audit"
    assert grants == [
        "pveum acl modify /storage/local --users smith@pve --roles SmithStore",
        "pveum acl modify /storage/local --tokens 'smith@pve!job' --roles SmithStore",
    ]
    incomplete = {"SmithStore": frozenset({"Datastore.Audit"})}
    extended = make_pveum_commands([storage], incomplete, user="smith@pve", token_id="job")
    assert extended == ["pveum role modify SmithStore --append 1 --privs Datastore.AllocateSpace", *grants]
    assert (
        make_pveum_commands([storage], {"SmithStore": storage.privileges}, user="smith@pve", token_id="job") == grants
    )


def test_a_login_by_password_needs_no_command_for_a_token() -> None:
    lines = make_pveum_commands(list_privilege_needs(9, disk_storages=[]), {}, user="root@pam")
    assert not any("--tokens" in line for line in lines)


def test_no_command_is_repeated_and_names_are_quoted() -> None:
    lines = make_pveum_commands(list_privilege_needs(9, disk_storages=["a", "b; rm -rf /"]), {}, user="smith@pve")
    assert len([line for line in lines if line.startswith("pveum role add SmithStore")]) == 1
    assert "pveum acl modify '/storage/b; rm -rf /' --users smith@pve --roles SmithStore" in lines


def test_the_table_of_privileges_in_the_documentation_has_every_privilege() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = {cells[2].strip(): cells[3] for line in page.splitlines() if len(cells := line.split("|")) == 5}
    for version in (8, 9):
        needs = list_privilege_needs(
            version,
            disk_storages=["a"],
            bridges={"vmbr0": "localnetwork"},
            iso_and_vztmpl_storages=["local"],
            backup_storage="b",
        )
        for need in [*needs, *privilege_needs_of_template({"rng0": "/dev/hwrng", "ide0": "cdrom,media=cdrom"})]:
            assert need.privileges <= set(rows[need.role].replace(",", " ").split()), need.role


def test_storages_may_be_given_by_an_iterator_that_is_read_once() -> None:
    storages = {"iso_and_vztmpl_storages": ["local", "a"], "backup_storage": "a"}
    expected = list_privilege_needs(9, disk_storages=["b", "a"], **storages)
    assert list_privilege_needs(9, disk_storages=iter(["b", "a"]), **storages) == expected
    assert not [need for need in expected if need.path == "/storage/a" and need.role == "SmithImages"]


@pytest.mark.parametrize(
    ("config", "paths"),
    [
        ({"scsi0": "local-lvm:base-9000-disk-0,size=8G", "ide2": "local-lvm:vm-9000-cloudinit,media=cdrom"}, []),
        ({"hostpci0": "mapping=gpu,pcie=1", "hostpci1": "mapping=gpu"}, ["/mapping/pci/gpu"]),
        ({"usb0": "mapping=key,usb3=1", "usb1": "spice"}, ["/mapping/usb/key"]),
        ({"virtiofs0": "share,cache=auto", "virtiofs1": "dirid=other"}, ["/mapping/dir/share", "/mapping/dir/other"]),
        ({"rng0": "source=/dev/hwrng,max_bytes=1024", "rng1": "source=/dev/urandom"}, ["/mapping/hwrng"]),
        ({"cpu": "custom-slow,flags=+aes"}, ["/mapping/cpu/slow"]),
        ({"cpu": "cputype=custom-slow"}, ["/mapping/cpu/slow"]),
        ({"cpu": "host", "name": "custom-slow"}, []),
        ({"ide0": "cdrom,media=cdrom", "ide1": "none,media=cdrom"}, ["/"]),
        ({"vmstatestorage": "nfs"}, ["/storage/nfs"]),
    ],
)
def test_a_template_needs_privileges_for_its_devices(config: dict[str, str], paths: list[str]) -> None:
    assert [need.path for need in privilege_needs_of_template(config)] == paths
    assert root_only_devices(config) == []


def test_only_root_may_clone_a_template_with_a_device_that_has_no_mapping() -> None:
    config = {
        "hostpci0": "0000:01:00.0,pcie=1",
        "hostpci1": "host=0000:02:00",
        "usb0": "host=1-2",
        "usb1": "host=spice",
    }
    assert root_only_devices(config) == ["hostpci0", "hostpci1", "usb0"]
    assert privilege_needs_of_template(config) == []
