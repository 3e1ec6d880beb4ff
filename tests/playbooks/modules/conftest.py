"""Fixtures for tests of modules and action plugins. `make test` runs them separately, with pytest-ansible's plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from module_runner import ModuleRunner
from play_bench import Bench
from plugin_sources import LINKED_CHECKOUT

#: The warnings that pytest-ansible 26.10 and its use of Ansible cause in every test.
EXPECTED_WARNINGS = (
    "ignore:Host management is deprecated and will be removed in a future release:DeprecationWarning",
    "ignore:AnsibleCollectionFinder has already been configured:UserWarning",
    # Each module run leaves an open temporary file of Ansible, which the garbage collector closes.
    r"ignore:unclosed file <_io.(BufferedRandom|FileIO) name=\d+:ResourceWarning",
    # Ansible forks a worker for each module, also beside threads of its own. Python 3.12 and later warn about that.
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)


def _has_plugin(config: pytest.Config) -> bool:
    """Return whether this run has pytest-ansible's plugin."""
    return bool(config.pluginmanager.has_plugin("pytest_ansible.plugin"))


def pytest_configure(config: pytest.Config) -> None:
    """Ignore the plugin's warnings, only in a run that has the plugin."""
    if _has_plugin(config):
        for line in EXPECTED_WARNINGS:
            config.addinivalue_line("filterwarnings", line)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore these tests in a run without the plugin: their fixtures are missing there."""
    return None if _has_plugin(config) else True


@pytest.fixture(scope="session", autouse=True)
def no_linked_checkout() -> Iterator[None]:
    """Fail at the end of the session if the plugin has linked the checkout into a folder `collections`."""
    yield
    assert not LINKED_CHECKOUT.exists()


@pytest.fixture(scope="session")
def warm_plays() -> None:
    """Start no servers of warm runs, because the tests of this folder run no playbook."""


@pytest.fixture
def modules(ansible_module: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> ModuleRunner:
    """Run modules of community.proxmox. They get the login as parameters, and the CA from the environment."""
    environment = bench.pve.env()
    for name in ("REQUESTS_CA_BUNDLE", "PROXMOX_CA_PATH"):
        monkeypatch.setenv(name, environment["PROXMOX_CA_BUNDLE"])
    login = {
        "api_host": environment["PROXMOX_HOST"],
        "api_port": int(environment["PROXMOX_PORT"]),
        "api_user": environment["PROXMOX_USER"],
        "api_token_id": environment["PROXMOX_TOKEN_ID"],
        "api_token_secret": environment["PROXMOX_TOKEN_SECRET"],
        "validate_certs": True,
    }
    return ModuleRunner(dispatcher=ansible_module, collection="community.proxmox", login=login)


@pytest.fixture
def actions(ansible_module: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> ModuleRunner:
    """Run action plugins of agent_smith.proxmox. They read the login from the environment."""
    for name, value in bench.pve.env().items():
        monkeypatch.setenv(name, value)
    return ModuleRunner(dispatcher=ansible_module, collection="agent_smith.proxmox")
