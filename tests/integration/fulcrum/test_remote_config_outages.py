"""The configuration that FulcrumCore stores for an agent, while FulcrumCore does not answer."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.remote_configuration import SECRET, Start, configure, no_sleep
from support.simulator_world import World

from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.remote_config import wait_for_remote_settings
from executor.redaction import redactor
from executor.settings.settings import Settings, load_settings

PROCESS_TIMEOUT_S = 60


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


# Waiting for FulcrumCore


class RecordedSleeps:
    """Replaces `sleep`: records each wait, and calls `then` at the wait with the number `after`."""

    def __init__(self, then: Callable[[], None], after: int = 3) -> None:
        self.slept_s: list[float] = []
        self._then = then
        self._after = after

    def __call__(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        if len(self.slept_s) == self._after:
            self._then()
        assert len(self.slept_s) < 20, "waited too often"


def test_the_request_is_retried_with_a_growing_backoff_while_fulcrumcore_is_down(world: World, start: Start) -> None:
    world.sim.pause()
    sleeps = RecordedSleeps(world.sim.resume, after=4)
    settings = start(sleep=sleeps)
    assert settings.proxmox_host == "pve.test"
    assert len(sleeps.slept_s) == 4
    assert sleeps.slept_s[3] > 2 * sleeps.slept_s[0]


def test_the_request_is_retried_after_a_refused_token(world: World, start: Start) -> None:
    """FulcrumCore refuses a valid token while its database is down."""
    world.sim.set_switches(database_down=True)
    sleeps = RecordedSleeps(lambda: world.sim.set_switches(database_down=False))
    assert start(sleep=sleeps).proxmox_host == "pve.test"
    assert len(sleeps.slept_s) == 3


def test_the_request_is_retried_and_its_failure_logged_once_while_the_vault_lacks_the_secret(
    world: World, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    world.sim.delete_all_secrets()
    sleeps = RecordedSleeps(lambda: configure(world, apiTokenSecret=SECRET))
    with caplog.at_level(logging.WARNING, logger="executor"):
        settings = start(sleep=sleeps)
    assert settings.proxmox_token_secret.get_secret_value() == SECRET
    assert len(sleeps.slept_s) == 3
    assert caplog.text.count("remote_configuration_unavailable") == 1


def test_each_new_reason_is_logged_once(world: World, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    world.sim.set_switches(database_down=True)
    sleeps = RecordedSleeps(lambda: None)
    changes = {3: lambda: (world.sim.set_switches(database_down=False), world.sim.set_switches(vault_off=True))}
    changes[6] = lambda: world.sim.set_switches(vault_off=False)

    def sleep(seconds: float) -> None:
        sleeps(seconds)
        changes.get(len(sleeps.slept_s), lambda: None)()

    with caplog.at_level(logging.WARNING, logger="executor"):
        start(sleep=sleep)
    assert caplog.text.count("remote_configuration_unavailable") == 2


# The agent itself


def test_the_agent_uses_the_remote_configuration_and_exits_with_3_if_it_is_invalid(
    world: World, tmp_path: Path
) -> None:
    configure(world, pollIntervalSeconds=290)
    done = _run_smith(world, tmp_path, "run", "--once")
    assert done.returncode == 3
    assert "pollIntervalSeconds from FulcrumCore's configuration" in done.stderr
    configure(world, pollIntervalSeconds=5, maxConcurrentJobs=2)
    done = _run_smith(world, tmp_path, "run", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["concurrency"] for event in events if "concurrency" in event] == [2], done.stdout


def test_an_agent_that_waits_for_its_configuration_stops_on_a_signal(world: World, tmp_path: Path) -> None:
    world.sim.pause()
    try:
        process = subprocess.Popen(
            _smith_command("run"), env=_environment(world, tmp_path), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        watchdog = threading.Timer(PROCESS_TIMEOUT_S, process.kill)
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
        _smith_command(*arguments),
        env=_environment(world, folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        check=False,
    )


def _smith_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "executor", *arguments]


def _environment(world: World, folder: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "FULCRUM_API_URL": world.sim.url,
        "FULCRUM_API_TOKEN": world.ids.agent_token,
        "SMITH_REMOTE_CONFIG": "true",
        "SMITH_DATA_DIR": str(folder / "data"),
        "SMITH_RUN_DIR": str(folder / "run"),
        "SMITH_HTTP_ADDR": "off",
    }
