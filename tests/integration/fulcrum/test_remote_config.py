"""The configuration that FulcrumCore stores for an agent: which local settings it overrides, and which it does not.

A member is one value of this configuration, for example `apiHost`. The agent type declares the members.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Le
from pydantic import ValidationError
from smith_lab.fulcrum_setup import read_type_file
from smith_lab.proxmox.certificates import make_certificates
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.remote_configuration import SECRET, Start, configure, no_sleep
from support.simulator_world import World

from executor.agent.reloadable_secrets import ReloadableSecrets
from executor.errors import SettingsError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.remote_config import fetch_remote_settings, wait_for_remote_settings
from executor.fulcrum.remote_members import CA_FILE_NAME, CONFIGURATION_MEMBERS, MemberReader
from executor.redaction import redactor
from executor.settings.display import setting_rows
from executor.settings.settings import FIELDS, Settings, load_settings

#: Members that the agent does not read from FulcrumCore, because it needs them to connect to FulcrumCore.
NEEDED_TO_CONNECT = {"fulcrumApiUrl", "fulcrumToken"}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    with running_simulator() as sim:
        yield sim


@pytest.fixture
def world(simulator: SimulatorThread) -> Iterator[World]:
    simulator.clear_faults()
    simulator.set_switches(database_down=False, vault_off=False)
    world = World(simulator)
    yield world
    world.close()
    redactor.discard(SECRET)


@pytest.fixture
def start(world: World, tmp_path: Path) -> Start:
    """Return a function that loads settings from its arguments and applies FulcrumCore's configuration."""

    def settings_at_start(sleep: Callable[[float], None] | None = None, **variables: str) -> Settings:
        environ = {
            "FULCRUM_API_URL": world.sim.url,
            "FULCRUM_API_TOKEN": world.ids.agent_token,
            "SMITH_REMOTE_CONFIG": "true",
            "SMITH_DATA_DIR": str(tmp_path / "data"),
        }
        settings = load_settings(env_file=None, environ=environ | variables)
        client = FulcrumClient(settings.fulcrum_api_url, settings.fulcrum_api_token.get_secret_value)
        return wait_for_remote_settings(settings, client, sleep=sleep or no_sleep)

    return settings_at_start


def origin(settings: Settings, name: str) -> str:
    """Return where the value of a setting comes from."""
    return next(row.origin for row in setting_rows(settings) if row.name == name)


def problems_at_start(start: Start, **variables: str) -> list[str]:
    """Return the lines of the error with which the start fails."""
    with pytest.raises(SettingsError) as caught:
        start(**variables)
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


# Overridden settings


def test_every_member_overrides_file_and_environment(world: World, start: Start, tmp_path: Path) -> None:
    make_certificates(tmp_path, "pve.test")
    pem = (tmp_path / "ca.pem").read_text()
    configure(
        world,
        apiHost="pve9.example.net",
        apiPort=443,
        apiUser="other@pve",
        apiTokenId="other",
        apiTokenSecret=SECRET,
        verifyTls=True,
        caBundle=pem,
        nodes=["pve1", "pve2"],
        storage="ceph",
        bridge="vmbr7",
        resourcePool="customers",
        vmidRange={"min": 5000, "max": 5999},
        images={"debian-12": 9000, "ubuntu-24.04": 9001},
        pollIntervalSeconds=7,
        heartbeatIntervalSeconds=11,
        metricsIntervalSeconds=0,
        maxConcurrentJobs=3,
        jobDeadlineSeconds=200,
    )
    settings = start(PROXMOX_HOST="pve1.local", PROXMOX_PORT="8006", SMITH_CONCURRENCY="9", PROXMOX_STORAGE="local")
    assert (settings.proxmox_host, settings.proxmox_port) == ("pve9.example.net", 443)
    assert (settings.proxmox_user, settings.proxmox_token_id) == ("other@pve", "other")
    assert settings.proxmox_token_secret.get_secret_value() == SECRET
    assert settings.proxmox_nodes == ("pve1", "pve2")
    assert (settings.proxmox_storage, settings.proxmox_bridge, settings.proxmox_pool) == ("ceph", "vmbr7", "customers")
    assert (settings.proxmox_vmid_min, settings.proxmox_vmid_max) == (5000, 5999)
    assert settings.proxmox_templates == {"debian-12": 9000, "ubuntu-24.04": 9001}
    assert (settings.fulcrum_poll_interval_s, settings.fulcrum_heartbeat_interval_s) == (7, 11)
    assert (settings.smith_metrics_interval_s, settings.smith_concurrency) == (0, 3)
    assert settings.fulcrum_job_timeout_s == 200
    assert settings.smith_playbook_timeout_s == 160, "a default that depends on a remote value"
    assert settings.proxmox_ca_bundle == tmp_path / "data" / CA_FILE_NAME
    assert settings.proxmox_ca_bundle.read_text() == pem
    assert settings.proxmox_ca_bundle.stat().st_mode & 0o777 == 0o600
    assert {origin(settings, member.settings_attribute.upper()) for member in CONFIGURATION_MEMBERS} == {"FulcrumCore"}


def test_the_agent_type_declares_the_members_that_the_agent_reads() -> None:
    """A member that the agent type lacks cannot be set; a member that the agent does not read has no effect."""
    properties = read_type_file("agent-type-proxmox.json")["configurationSchema"]["properties"]
    declared_names = {
        f"{name}.{inner}" if "properties" in definition else name
        for name, definition in properties.items()
        for inner in definition.get("properties", {"": None})
    }
    assert declared_names - NEEDED_TO_CONNECT == {member.name for member in CONFIGURATION_MEMBERS}


def bounds_of_member(definition: dict[str, Any]) -> tuple[int, int]:
    """Return the bounds that the agent type declares for a number."""
    bounds = {item["type"]: item["config"]["value"] for item in definition["validators"]}
    return bounds["min"], bounds["max"]


def bounds_of_setting(name: str) -> tuple[int, int]:
    """Return the smallest and the largest whole number that a setting accepts."""
    metadata = FIELDS[name].metadata
    (lower,) = (item.ge for item in metadata if isinstance(item, Ge))
    (upper,) = (item.le for item in metadata if isinstance(item, Le))
    return math.ceil(lower), math.floor(upper)  # type: ignore[arg-type]


def test_the_agent_type_has_the_bounds_of_the_settings() -> None:
    """An administrator then cannot enter a number in FulcrumCore that the agent would not accept."""
    definitions = read_type_file("agent-type-proxmox.json")["configurationSchema"]["properties"]
    definitions |= {f"vmidRange.{name}": inner for name, inner in definitions["vmidRange"]["properties"].items()}
    numbers = {
        member.name: member.settings_attribute.upper()
        for member in CONFIGURATION_MEMBERS
        if member.read is MemberReader.read_number
    }
    assert {name for name, definition in definitions.items() if definition["type"] == "integer"} == set(numbers)
    declared = {name: bounds_of_member(definitions[name]) for name in numbers}
    assert declared == {name: bounds_of_setting(setting) for name, setting in numbers.items()}


def test_the_agent_type_has_the_defaults_of_the_settings() -> None:
    """FulcrumCore fills in the agent type's defaults, which override the settings, so both must be equal."""
    definitions = read_type_file("agent-type-proxmox.json")["configurationSchema"]["properties"]
    definitions |= {f"vmidRange.{name}": inner for name, inner in definitions["vmidRange"]["properties"].items()}
    declared = {name: item["default"] for name, item in definitions.items() if item.get("default") not in (None, {})}
    settings = {member.name: FIELDS[member.settings_attribute.upper()].default for member in CONFIGURATION_MEMBERS}
    assert declared == {name: settings[name] for name in declared}
    assert {"pollIntervalSeconds", "maxConcurrentJobs", "jobDeadlineSeconds"} <= declared.keys()


@pytest.mark.parametrize("user", ["smith", "smith@", "smith@pve!agent", "smith@1pve", "a:b@pve", "a/b@pve", "a b@pve"])
def test_the_agent_type_refuses_a_user_that_the_settings_refuse(user: str) -> None:
    definition = read_type_file("agent-type-proxmox.json")["configurationSchema"]["properties"]["apiUser"]
    (pattern,) = (item["config"]["pattern"] for item in definition["validators"])
    assert not re.search(pattern, user)
    assert re.search(pattern, "smith@pve")
    with pytest.raises(ValidationError):
        Settings(proxmox_user=user)


def test_settings_that_fulcrumcore_does_not_have_keep_their_local_value(start: Start) -> None:
    settings = start(SMITH_CLUSTER="east", PROXMOX_POOL="ours")
    assert (settings.smith_cluster, origin(settings, "SMITH_CLUSTER")) == ("east", "environment")
    assert (settings.proxmox_pool, origin(settings, "PROXMOX_POOL")) == ("ours", "environment"), (
        "FulcrumCore has no pool"
    )
    assert origin(settings, "SMITH_MAX_JOBS") == "default"


def test_no_request_is_sent_unless_remote_config_is_enabled(world: World, start: Start) -> None:
    world.sim.clear_history()
    settings = start(SMITH_REMOTE_CONFIG="false", PROXMOX_HOST="pve1.local")
    assert settings.proxmox_host == "pve1.local"
    assert world.sim.history() == []


def test_a_remote_token_replaces_a_local_password(start: Start) -> None:
    settings = start(PROXMOX_USER="root@pam", PROXMOX_PASSWORD="the-password")
    assert settings.proxmox_password.get_secret_value() == ""
    assert settings.proxmox_token_id == "agent"
    assert origin(settings, "PROXMOX_PASSWORD") == "default"


def test_the_remote_secret_is_masked(world: World, start: Start) -> None:
    configure(world, apiTokenSecret=SECRET)
    start()
    assert SECRET not in redactor.redact(f"Authorization: {SECRET}")


def test_unknown_members_are_ignored(world: World, start: Start) -> None:
    """The agent type of another version may have more members."""
    properties = read_type_file("agent-type-proxmox.json")["configurationSchema"]
    properties["properties"]["somethingNew"] = {"type": "string", "label": "new"}
    world.admin.call("PATCH", f"/agent-types/{world.ids.agent_type_id}", {"configurationSchema": properties})
    configure(world, somethingNew="x")
    assert start().proxmox_host == "pve.test"


# A FulcrumCore that an attacker controls


def withdraw_token(world: World, **members: Any) -> None:
    """Configure the agent in FulcrumCore without `apiTokenId` and `apiTokenSecret`."""
    schema = read_type_file("agent-type-proxmox.json")["configurationSchema"]
    for name in ("apiTokenId", "apiTokenSecret"):
        del schema["properties"][name]
    world.admin.call(
        "PATCH",
        f"/agent-types/{world.ids.agent_type_id}",
        {"configurationSchema": schema, "configTemplate": "-", "cmdTemplate": "{{.configUrl}} {{.authToken}}"},
    )
    configure(world, **members)


@pytest.mark.parametrize(
    "local",
    [
        {"PROXMOX_TOKEN_ID": "ours", "PROXMOX_TOKEN_SECRET": "local-secret-canary"},
        {"PROXMOX_PASSWORD": "local-secret-canary"},
    ],
)
def test_a_local_secret_is_not_sent_to_an_address_from_fulcrumcore(
    local: dict[str, str], world: World, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    withdraw_token(world, apiHost="attacker.test", apiPort=9, verifyTls=False)
    settings = start(PROXMOX_HOST="pve1.local", PROXMOX_USER="smith@pve", **local)
    assert (settings.proxmox_host, settings.proxmox_port) == ("pve1.local", 8006)
    assert settings.proxmox_validate_certs
    assert ["apiHost", "apiPort", "verifyTls"] in [
        getattr(record, "msg", {}).get("members") for record in caplog.records if isinstance(record.msg, dict)
    ]


def test_without_a_local_address_the_secret_of_this_machine_is_not_used(world: World, start: Start) -> None:
    withdraw_token(world, apiHost="attacker.test")
    (line,) = problems_at_start(start, PROXMOX_USER="smith@pve", PROXMOX_PASSWORD="the-password")
    assert line.startswith("apiHost from FulcrumCore's configuration (the setting PROXMOX_HOST) is used only if")


@pytest.mark.parametrize(
    "local",
    [{"PROXMOX_VALIDATE_CERTS": "true"}, {"PROXMOX_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt"}],
)
def test_a_local_tls_setting_takes_precedence(local: dict[str, str], world: World, start: Start) -> None:
    configure(world, verifyTls=False, apiTokenSecret=SECRET)
    settings = start(**local)
    assert settings.proxmox_validate_certs
    assert settings.proxmox_host == "pve.test", "the address belongs to the token from FulcrumCore"


def test_certificates_are_verified_by_a_local_ca_even_if_fulcrumcore_names_another(
    world: World, start: Start, tmp_path: Path
) -> None:
    make_certificates(tmp_path, "pve.test")
    configure(world, caBundle=(tmp_path / "ca.pem").read_text(), apiTokenSecret=SECRET)
    local_bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    assert start(PROXMOX_CA_BUNDLE=str(local_bundle)).proxmox_ca_bundle == local_bundle


def test_a_reload_does_not_send_a_local_secret_to_the_address_from_fulcrumcore(
    world: World, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """FulcrumCore first names an address with its own token, and later withdraws the token."""
    local = {"PROXMOX_HOST": "pve1.local", "PROXMOX_USER": "smith@pve", "PROXMOX_PASSWORD": "local-secret-canary"}
    environ = {
        "FULCRUM_API_URL": world.sim.url,
        "FULCRUM_API_TOKEN": world.ids.agent_token,
        "SMITH_REMOTE_CONFIG": "true",
        "SMITH_DATA_DIR": str(tmp_path / "data"),
        **local,
    }

    def load_local() -> Settings:
        return load_settings(env_file=None, environ=environ)

    client = FulcrumClient(world.sim.url, lambda: world.ids.agent_token)
    configure(world, apiHost="attacker.test", apiTokenId="theirs", apiTokenSecret=SECRET)
    secrets = ReloadableSecrets(load_local(), load_local)
    secrets.use_remote_settings(start(**local), lambda settings: fetch_remote_settings(settings, client))
    assert secrets.proxmox_credentials()["api_host"] == "attacker.test"
    withdraw_token(world)
    assert secrets.reload() == ()
    assert "local-secret-canary" not in str(secrets.proxmox_credentials())
    assert "restart the agent" in caplog.text


# Invalid members


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"apiHost": "https:pve"}, "apiHost from FulcrumCore's configuration (the setting PROXMOX_HOST) must be"),
        ({"pollIntervalSeconds": 290}, "pollIntervalSeconds from FulcrumCore's configuration"),
        ({"vmidRange": {"min": 900, "max": 800}}, "vmidRange.max from FulcrumCore's configuration"),
        ({"caBundle": "no certificate"}, "caBundle from FulcrumCore's configuration (the setting PROXMOX_CA_BUNDLE)"),
        ({"images": {"debian-12": "9000"}}, "has no VMID for the image 'debian-12'"),
        ({"images": {"debian 12": 9000}}, "images from FulcrumCore's configuration"),
        ({"storage": "a b"}, "storage from FulcrumCore's configuration (the setting PROXMOX_STORAGE) is wrong"),
    ],
)
def test_an_invalid_member_is_named_with_its_source(
    members: dict[str, Any], text: str, world: World, start: Start
) -> None:
    configure(world, **members)
    lines = problems_at_start(start)
    assert len(lines) == 1
    assert text in lines[0]


def test_all_invalid_members_are_named_at_once(world: World, start: Start) -> None:
    configure(world, images={"a": 1}, caBundle="no")
    assert [line.split()[0] for line in problems_at_start(start)] == ["caBundle", "images"]


def test_a_local_setting_that_conflicts_with_a_member_is_named_with_both_sources(world: World, start: Start) -> None:
    configure(world, jobDeadlineSeconds=100)
    (line,) = problems_at_start(start, SMITH_PLAYBOOK_TIMEOUT_S="240")
    assert line.startswith("SMITH_PLAYBOOK_TIMEOUT_S is wrong")
    assert "FULCRUM_JOB_TIMEOUT_S" in line
    assert "from FulcrumCore's configuration" in line


def test_an_agent_without_remote_configuration_uses_the_local_settings(world: World, start: Start) -> None:
    agent_id, _caller = world.other_agent()
    token = world.admin.create_token("bare", "agent", agent_id)["value"]
    local = {"PROXMOX_HOST": "pve1.local", "PROXMOX_USER": "smith@pve", "PROXMOX_PASSWORD": "the-password"}
    assert start(FULCRUM_API_TOKEN=token, **local).proxmox_host == "pve1.local"
    (line,) = problems_at_start(
        start, FULCRUM_API_TOKEN=token, PROXMOX_USER="smith@pve", PROXMOX_PASSWORD="the-password"
    )
    assert line.startswith("PROXMOX_HOST is missing")
