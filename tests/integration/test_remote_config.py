"""FulcrumCore's configuration over ours: what is taken, what is refused, and that a start never fails by it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simulator_world import World
from smith_lab.fulcrum_setup import load_type
from smith_lab.proxmox.certificates import make_certificates
from smith_lab.simulator.control import RunningSimulator, running_simulator

from executor.errors import SettingsError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.remote_config import wait_for_remote_settings
from executor.fulcrum.remote_members import CA_FILE, MEMBERS
from executor.redaction import redactor
from executor.settings.display import describe
from executor.settings.settings import Settings, load_settings

SECRET = "proxmox-secret-canary"
GIVE_UP_S = 60
#: Members of the agent type that are not ours to read: where FulcrumCore is, we must know before we ask.
KNOWN_BEFORE = {"fulcrumApiUrl", "fulcrumToken"}


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    with running_simulator() as sim:
        yield sim


@pytest.fixture
def world(simulator: RunningSimulator) -> Iterator[World]:
    simulator.clear_faults()
    simulator.switch(database_down=False, vault_off=False)
    world = World(simulator)
    yield world
    world.close()
    redactor.discard(SECRET)


Start = Callable[..., Settings]


@pytest.fixture
def start(world: World, tmp_path: Path) -> Start:
    """Return what an agent does at its start: its settings and FulcrumCore's, as the variables say."""

    def overlaid(pause: Callable[[float], None] | None = None, **variables: str) -> Settings:
        environ = {
            "FULCRUM_API_URL": world.sim.url,
            "FULCRUM_API_TOKEN": world.ids.agent_token,
            "SMITH_REMOTE_CONFIG": "true",
            "SMITH_DATA_DIR": str(tmp_path / "data"),
        }
        settings = load_settings(env_file=None, environ=environ | variables)
        client = FulcrumClient(settings.fulcrum_api_url, settings.fulcrum_api_token.get_secret_value)
        return wait_for_remote_settings(settings, client, sleep=pause or _no_pause)

    return overlaid


def _no_pause(_seconds: float) -> None:
    pytest.fail("nothing was to be waited for")


def configure(world: World, **members: Any) -> None:
    world.admin.call("PATCH", f"/agents/{world.ids.agent_id}", {"configuration": members})


def origin(settings: Settings, name: str) -> str:
    return next(row.origin for row in describe(settings) if row.name == name)


def refusal(start: Start, **variables: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        start(**variables)
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


# What is taken


def test_every_member_stands_over_file_and_environment(world: World, start: Start, tmp_path: Path) -> None:
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
    assert settings.smith_playbook_timeout_s == 160, "a default that depends on what came from there"
    assert settings.proxmox_ca_bundle == tmp_path / "data" / CA_FILE
    assert settings.proxmox_ca_bundle.read_text() == pem
    assert settings.proxmox_ca_bundle.stat().st_mode & 0o777 == 0o600
    assert {origin(settings, member.attribute.upper()) for member in MEMBERS} == {"FulcrumCore"}


def test_members_and_agent_type_name_the_same() -> None:
    """A member that the agent type drops could never arrive; one that nobody reads would be a trap."""
    properties = load_type("agent-type-proxmox.json")["configurationSchema"]["properties"]
    named = {
        f"{name}.{inner}" if "properties" in definition else name
        for name, definition in properties.items()
        for inner in definition.get("properties", {"": None})
    }
    assert named - KNOWN_BEFORE == {member.name for member in MEMBERS}


def test_what_is_set_nowhere_else_stays_as_this_machine_says(start: Start) -> None:
    settings = start(SMITH_CLUSTER="east", PROXMOX_POOL="ours")
    assert (settings.smith_cluster, origin(settings, "SMITH_CLUSTER")) == ("east", "environment")
    assert (settings.proxmox_pool, origin(settings, "PROXMOX_POOL")) == ("ours", "environment"), "it holds no pool"
    assert origin(settings, "SMITH_MAX_JOBS") == "default"


def test_without_leave_nothing_is_asked(world: World, start: Start) -> None:
    world.sim.clear_history()
    settings = start(SMITH_REMOTE_CONFIG="false", PROXMOX_HOST="pve1.local")
    assert settings.proxmox_host == "pve1.local"
    assert world.sim.history() == []


def test_a_token_from_there_takes_the_place_of_a_password_from_here(start: Start) -> None:
    settings = start(PROXMOX_USER="root@pam", PROXMOX_PASSWORD="the-password")
    assert settings.proxmox_password.get_secret_value() == ""
    assert settings.proxmox_token_id == "agent"
    assert origin(settings, "PROXMOX_PASSWORD") == "default"


def test_the_secret_is_masked_from_then_on(world: World, start: Start) -> None:
    configure(world, apiTokenSecret=SECRET)
    start()
    assert SECRET not in redactor.redact(f"Authorization: {SECRET}")


def test_members_that_nobody_knows_are_ignored(world: World, start: Start) -> None:
    """Another version's agent type may hold more than we read."""
    properties = load_type("agent-type-proxmox.json")["configurationSchema"]
    properties["properties"]["somethingNew"] = {"type": "string", "label": "new"}
    world.admin.call("PATCH", f"/agent-types/{world.ids.agent_type_id}", {"configurationSchema": properties})
    configure(world, somethingNew="x")
    assert start().proxmox_host == "pve.test"


# What is refused


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"apiHost": "https:pve"}, "apiHost from FulcrumCore's configuration (it stands for PROXMOX_HOST) must be"),
        ({"heartbeatIntervalSeconds": 60}, "heartbeatIntervalSeconds from FulcrumCore's configuration"),
        ({"vmidRange": {"min": 900, "max": 800}}, "vmidRange.max from FulcrumCore's configuration"),
        ({"caBundle": "no certificate"}, "caBundle from FulcrumCore's configuration (it stands for PROXMOX_CA_BUNDLE)"),
        ({"images": {"debian-12": "9000"}}, "'debian-12' does not name a VMID"),
        ({"images": {"debian 12": 9000}}, "images from FulcrumCore's configuration"),
        ({"storage": "a b"}, "storage from FulcrumCore's configuration (it stands for PROXMOX_STORAGE) is wrong"),
    ],
)
def test_a_wrong_member_is_named_with_its_place(
    members: dict[str, Any], words: str, world: World, start: Start
) -> None:
    configure(world, **members)
    lines = refusal(start)
    assert len(lines) == 1
    assert words in lines[0]


def test_several_wrong_members_are_named_at_once(world: World, start: Start) -> None:
    configure(world, images={"a": 1}, caBundle="no")
    assert [line.split()[0] for line in refusal(start)] == ["caBundle", "images"]


def test_a_setting_that_only_clashes_with_a_member_is_named_with_the_place_of_the_other(
    world: World, start: Start
) -> None:
    configure(world, jobDeadlineSeconds=100)
    (line,) = refusal(start, SMITH_PLAYBOOK_TIMEOUT_S="240")
    assert line.startswith("SMITH_PLAYBOOK_TIMEOUT_S is wrong")
    assert "FULCRUM_JOB_TIMEOUT_S" in line
    assert "from FulcrumCore's configuration" in line


def test_an_agent_without_configuration_takes_everything_from_here(world: World, start: Start) -> None:
    agent_id, _caller = world.sibling()
    token = world.admin.create_token("bare", "agent", agent_id)["value"]
    own = {"PROXMOX_HOST": "pve1.local", "PROXMOX_USER": "smith@pve", "PROXMOX_PASSWORD": "the-password"}
    assert start(FULCRUM_API_TOKEN=token, **own).proxmox_host == "pve1.local"
    (line,) = refusal(start, FULCRUM_API_TOKEN=token, PROXMOX_USER="smith@pve", PROXMOX_PASSWORD="the-password")
    assert line.startswith("PROXMOX_HOST is missing")


# A start never fails because FulcrumCore does not answer


class Pauses:
    """Counts the waiting, and changes the world after some of it."""

    def __init__(self, then: Callable[[], None], after: int = 3) -> None:
        self.asked_s: list[float] = []
        self._then = then
        self._after = after

    def __call__(self, seconds: float) -> None:
        self.asked_s.append(seconds)
        if len(self.asked_s) == self._after:
            self._then()
        assert len(self.asked_s) < 20, "waited for nothing"


def test_while_fulcrum_is_down_it_is_asked_again_ever_more_rarely(world: World, start: Start) -> None:
    world.sim.pause()
    pauses = Pauses(world.sim.resume, after=4)
    settings = start(pause=pauses)
    assert settings.proxmox_host == "pve.test"
    assert len(pauses.asked_s) == 4
    assert pauses.asked_s[3] > 2 * pauses.asked_s[0]


def test_a_refused_token_is_waited_out(world: World, start: Start) -> None:
    """FulcrumCore's database outage looks the same as a wrong token."""
    world.sim.switch(database_down=True)
    pauses = Pauses(lambda: world.sim.switch(database_down=False))
    assert start(pause=pauses).proxmox_host == "pve.test"
    assert len(pauses.asked_s) == 3


def test_a_secret_that_the_vault_does_not_give_is_waited_for_and_told_once(
    world: World, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    world.sim.delete_all_secrets()
    pauses = Pauses(lambda: configure(world, apiTokenSecret=SECRET))
    with caplog.at_level(logging.WARNING, logger="executor"):
        settings = start(pause=pauses)
    assert settings.proxmox_token_secret.get_secret_value() == SECRET
    assert len(pauses.asked_s) == 3
    assert caplog.text.count("remote_configuration_unavailable") == 1


def test_each_new_trouble_is_told_once(world: World, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    world.sim.switch(database_down=True)
    pauses = Pauses(lambda: None)
    turn = {3: lambda: (world.sim.switch(database_down=False), world.sim.switch(vault_off=True))}
    turn[6] = lambda: world.sim.switch(vault_off=False)

    def pause(seconds: float) -> None:
        pauses(seconds)
        turn.get(len(pauses.asked_s), lambda: None)()

    with caplog.at_level(logging.WARNING, logger="executor"):
        start(pause=pause)
    assert caplog.text.count("remote_configuration_unavailable") == 2


# The agent itself


def test_the_agent_works_with_what_it_is_told_and_leaves_with_code_3_when_that_is_wrong(
    world: World, tmp_path: Path
) -> None:
    configure(world, heartbeatIntervalSeconds=60)
    done = _run_smith(world, tmp_path, "run", "--once")
    assert done.returncode == 3
    assert "heartbeatIntervalSeconds from FulcrumCore's configuration" in done.stderr
    configure(world, heartbeatIntervalSeconds=5, maxConcurrentJobs=2)
    done = _run_smith(world, tmp_path, "run", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["concurrency"] for event in events if "concurrency" in event] == [2], done.stdout


def test_an_agent_that_waits_for_its_configuration_stops_when_it_is_told(world: World, tmp_path: Path) -> None:
    world.sim.pause()
    try:
        process = subprocess.Popen(_smith("run"), env=_environment(world, tmp_path), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        watchdog = threading.Timer(GIVE_UP_S, process.kill)
        watchdog.start()
        for line in process.stdout:
            if "remote_configuration_unavailable" in line:
                process.terminate()
        process.stdout.close()
        assert process.wait() == 0
        watchdog.cancel()
    finally:
        world.sim.resume()


def _run_smith(world: World, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _smith(*arguments),
        env=_environment(world, folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        check=False,
    )


def _smith(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "executor", *arguments]


def _environment(world: World, folder: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "FULCRUM_API_URL": world.sim.url,
        "FULCRUM_API_TOKEN": world.ids.agent_token,
        "SMITH_REMOTE_CONFIG": "true",
        "SMITH_DATA_DIR": str(folder / "data"),
        "SMITH_RUN_DIR": str(folder / "run"),
        "SMITH_HTTP_ADDR": "off",
    }
