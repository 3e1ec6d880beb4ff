"""`smith init`: what it proposes, which settings it writes, and the units that it makes from the units in `deploy/`."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from executor.cli.init_files import SecretFile, SetupFolder
from executor.cli.init_proposal import Cluster, FoundTemplate, propose_settings, why_template_unusable
from executor.cli.init_settings import InitSettings, parse_address, parse_assignments
from executor.cli.init_units import UnitKind, make_unit
from executor.errors import SettingsError
from executor.placement.templates import parse_template
from executor.proxmox.rows import StorageRow, VmRow

FIT = {"name": "debian-12", "template": 1, "scsi0": "local-lvm:base-9000-disk-0", "ide2": "local-lvm:vm-9000-cloudinit"}


def template_with(vmid: int, name: str, **changes: Any) -> FoundTemplate:
    config = {**FIT, **changes}
    facts = parse_template(VmRow(vmid=vmid, node="pve1", name=name), config)
    return FoundTemplate(template=facts, problem=why_template_unusable(facts, config))


def storages(nodes: Sequence[str], name: str, **changes: Any) -> list[StorageRow]:
    values = {"is_available": True, "content": frozenset({"images"}), **changes}
    return [StorageRow(name=name, node=node, **values) for node in nodes]


def cluster(**changes: Any) -> Cluster:
    both = ("pve1", "pve2")
    rows = [*storages(both, "ceph"), *storages(both, "local-lvm"), *storages(["pve1"], "only-on-pve1")]
    values: dict[str, Any] = {
        "nodes": both,
        "storages": (
            *rows,
            *storages(both, "backups", content=frozenset({"backup"})),
            *storages(both, "a", is_available=False),
        ),
        "bridges_by_node": {
            "pve1": frozenset({"vmbr0", "vmbr1", "customers"}),
            "pve2": frozenset({"vmbr0", "vmbr2", "customers"}),
        },
        "zone_by_vnet": {"customers": "dc1"},
        "templates": (template_with(9000, "debian-12"), template_with(9001, "ubuntu-24.04")),
    }
    return Cluster(**{**values, **changes})


def test_only_storages_and_bridges_that_every_online_node_has_are_proposed() -> None:
    assert propose_settings(cluster()) == {
        "PROXMOX_NODES": "pve1,pve2",
        "PROXMOX_STORAGE": "local-lvm",
        "PROXMOX_STORAGES": "ceph",
        "PROXMOX_BRIDGE": "vmbr0",
        "PROXMOX_BRIDGES": "customers",
        "PROXMOX_TEMPLATES": "debian-12=9000,ubuntu-24.04=9001",
        "PROXMOX_POOL": "agent-smith",
    }


def test_an_empty_cluster_leads_to_an_empty_proposal() -> None:
    proposal_for_empty_cluster = propose_settings(Cluster(nodes=(), storages=(), bridges_by_node={}))
    assert {name for name, value in proposal_for_empty_cluster.items() if value} == {"PROXMOX_POOL"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ide2": "none,media=cdrom"}, "cloud-init drive"),
        ({"hostpci0": "0000:01:00.0"}, "hostpci0"),
        ({"sata2": "cdrom,media=cdrom"}, "qm set 9000 --sata2 none,media=cdrom"),
        ({"description": "smith-uid=0e9f6c5e-1f5b-4f1e-9d5c-0d2b7c1f3a11"}, "marker"),
    ],
)
def test_an_unsuitable_template_is_not_proposed_and_the_reason_is_named(changes: dict[str, Any], reason: str) -> None:
    unsuitable_template = template_with(9000, "debian-12", **changes)
    assert reason in unsuitable_template.problem
    assert propose_settings(cluster(templates=(unsuitable_template,)))["PROXMOX_TEMPLATES"] == ""
    assert "name has characters" in template_with(9000, "a b").problem


def test_two_templates_with_the_same_name_are_proposed_once() -> None:
    cluster_with_equal_names = cluster(templates=(template_with(9000, "debian-12"), template_with(9010, "debian-12")))
    assert propose_settings(cluster_with_equal_names)["PROXMOX_TEMPLATES"] == "debian-12=9000"


def test_values_of_an_earlier_smith_init_and_of_options_replace_the_proposed_ones() -> None:
    proposal = {"PROXMOX_NODES": "pve1", "PROXMOX_POOL": "agent-smith", "PROXMOX_STORAGE": "ceph"}
    assert InitSettings({}, {}).proposal_with_earlier_values(proposal) == proposal
    assert InitSettings({}, {"PROXMOX_POOL": ""}).proposal_with_earlier_values(proposal) == {
        **proposal,
        "PROXMOX_POOL": "",
    }
    merged = InitSettings({"PROXMOX_NODES": "pve2"}, {"PROXMOX_STORAGE": "zfs"}).proposal_with_earlier_values(proposal)
    assert merged == {"PROXMOX_NODES": "pve2", "PROXMOX_POOL": "", "PROXMOX_STORAGE": "zfs"}


def test_an_option_cannot_set_a_secret() -> None:
    assert parse_assignments(["PROXMOX_TEMPLATES=debian-12=9000"]) == {"PROXMOX_TEMPLATES": "debian-12=9000"}
    for text in ("FULCRUM_API_TOKEN=x", "PROXMOX_NODE=pve1", "PROXMOX_NODES"):
        with pytest.raises(typer.BadParameter):
            parse_assignments([text])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("pve1.example.net", ("pve1.example.net", 8006)),
        ("192.0.2.1:443", ("192.0.2.1", 443)),
        ("[2001:db8::1]:443", ("[2001:db8::1]", 443)),
        ("2001:db8::1", ("2001:db8::1", 8006)),
    ],
)
def test_a_host_may_have_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, 8006) == address


def test_lines_of_the_operator_stay_in_the_settings_file(tmp_path: Path) -> None:
    folder = SetupFolder(tmp_path / "agent-smith")
    folder.create_folders()
    folder.settings_file.write_text("# ours\nSMITH_LOG_LEVEL=debug\nPROXMOX_HOST=old\nPROXMOX_PORT=8007\n")
    values = {"PROXMOX_HOST": "pve1", "PROXMOX_PORT": "", "PROXMOX_NODES": "pve1,pve2"}
    assert folder.write_settings(values)
    assert folder.settings_file.read_text() == (
        "# ours\nSMITH_LOG_LEVEL=debug\nPROXMOX_HOST=pve1\nPROXMOX_NODES=pve1,pve2\n"
    )
    assert folder.find_changed_settings(values) == {}
    assert folder.read_settings()["SMITH_LOG_LEVEL"] == "debug"
    with pytest.raises(SettingsError, match="PROXMOX_HOST"):
        folder.find_changed_settings({"PROXMOX_HOST": "pve1 #x"})


def test_a_setting_in_quotes_that_an_operator_has_written_stays_as_it_is(tmp_path: Path) -> None:
    folder = SetupFolder(tmp_path / "agent-smith")
    folder.create_folders()
    folder.settings_file.write_text("SMITH_ACTIONS_PATH='/srv/our plays'\n")
    values = folder.read_settings()
    assert values == {"SMITH_ACTIONS_PATH": "/srv/our plays"}
    assert folder.write_settings({**values, "PROXMOX_HOST": "pve1"})
    assert folder.settings_file.read_text() == "SMITH_ACTIONS_PATH='/srv/our plays'\nPROXMOX_HOST=pve1\n"


def test_the_agent_can_enter_the_folder_that_smith_init_has_made_with_a_strict_umask(tmp_path: Path) -> None:
    existing = tmp_path / "etc"
    existing.mkdir(mode=0o750)
    folder = SetupFolder(existing / "new" / "agent-smith")
    before = os.umask(0o077)
    try:
        folder.create_folders()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.path, folder.path.parent, existing)]
    assert modes == [0o755, 0o755, 0o750]
    assert stat.S_IMODE(folder.secrets_folder.stat().st_mode) == 0o700


def test_a_second_smith_init_keeps_the_user_and_the_token_of_the_first() -> None:
    first = InitSettings({}, {})
    first.set_connection(host="pve1", port=8006, user="ops@pve", token_id="dc1")
    second = InitSettings({name: first.get(name) for name in ("PROXMOX_USER", "PROXMOX_TOKEN_ID")}, {})
    second.set_connection(host="pve1", port=8006, user=None, token_id=None)
    assert (second.get("PROXMOX_USER"), second.get("PROXMOX_TOKEN_ID")) == ("ops@pve", "dc1")
    default = InitSettings({}, {})
    default.set_connection(host="pve1", port=8006, user=None, token_id=None)
    assert (default.get("PROXMOX_USER"), default.get("PROXMOX_TOKEN_ID")) == ("smith@pve", "job")


def test_a_secret_file_is_private_and_its_record_is_removed_when_the_secret_is_stored(tmp_path: Path) -> None:
    secret = SecretFile(tmp_path / "proxmox_token_secret")
    secret.write_record({"comment": "made by run 1"})
    assert (secret.read(), secret.read_record()) == ("", {"comment": "made by run 1"})
    secret.store_secret("0f0e0d0c-aaaa")
    assert (secret.read(), secret.read_record()) == ("0f0e0d0c-aaaa", None)
    assert stat.S_IMODE(secret.path.stat().st_mode) == 0o600


def test_each_unit_reads_the_settings_and_secrets_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    (systemd,) = make_unit(UnitKind.SYSTEMD, folder, None, has_ca_file=True).files.values()
    assert f"EnvironmentFile={folder}/agent-smith.env\n" in systemd
    for name in ("fulcrum_api_token", "proxmox_token_secret"):
        assert f"LoadCredential={name}:{folder}/secrets/{name}\n" in systemd
    quadlet = make_unit(UnitKind.QUADLET, folder, None, has_ca_file=True).files
    text = quadlet[Path("/etc/containers/systemd/agent-smith.container")]
    assert f"EnvironmentFile={folder}/agent-smith.env\n" in text
    assert f"Volume={folder}/secrets:/run/secrets:ro\n" in text
    assert f"Volume={folder}/proxmox-ca.pem:/etc/agent-smith/proxmox-ca.pem:ro\n" in text
    assert "Secret=" not in text
    assert Path("/etc/containers/systemd/agent-smith.volume") in quadlet


def test_the_compose_file_has_the_agent_only(tmp_path: Path) -> None:
    unit = make_unit(UnitKind.COMPOSE, tmp_path, None, has_ca_file=True)
    document = yaml.safe_load(unit.files[tmp_path / "compose.yaml"])
    assert list(document["services"]) == ["agent-smith"]
    agent = document["services"]["agent-smith"]
    assert agent["env_file"] == [{"path": f"{tmp_path}/agent-smith.env"}]
    assert f"{tmp_path}/proxmox-ca.pem:/etc/agent-smith/proxmox-ca.pem:ro" in agent["volumes"]
    assert document["volumes"] == {"data": {}}
    assert document["secrets"]["fulcrum_api_token"] == {"file": f"{tmp_path}/secrets/fulcrum_api_token"}
    without_ca = make_unit(UnitKind.COMPOSE, tmp_path, None, has_ca_file=False).files[tmp_path / "compose.yaml"]
    assert yaml.safe_load(without_ca)["services"]["agent-smith"]["volumes"] == ["data:/data"]


def test_a_container_has_a_fixed_path_of_the_ca_and_no_settings_for_its_folders(tmp_path: Path) -> None:
    files = SetupFolder(tmp_path)
    by_hand = InitSettings({}, {}).values_for_agent(files, UnitKind.NONE, has_ca_file=True)
    assert by_hand["SMITH_SECRETS_DIR"] == str(tmp_path / "secrets")
    assert by_hand["PROXMOX_CA_BUNDLE"] == str(tmp_path / "proxmox-ca.pem")
    in_container = InitSettings(by_hand, {}).values_for_agent(files, UnitKind.QUADLET, has_ca_file=True)
    assert in_container["PROXMOX_CA_BUNDLE"] == "/etc/agent-smith/proxmox-ca.pem"
    assert (in_container["SMITH_SECRETS_DIR"], in_container["SMITH_DATA_DIR"]) == ("", "")
