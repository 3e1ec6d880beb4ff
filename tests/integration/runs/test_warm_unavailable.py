"""When runs are cold although warm runs are enabled."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import structlog
from support.warm_site import WHICH, Site, debug, eventually, is_alive, run_dir, said, site, unavailable, was_warm

from executor.errors import SettingsError
from executor.processes import process_tree
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.warm import patches, servers
from executor.runs.warm.servers import WarmServerKeeper

__all__ = ["run_dir", "site"]

pytestmark = [pytest.mark.xdist_group("warm"), pytest.mark.timeout(900)]


def test_runs_of_an_untested_ansible_are_cold_and_this_is_logged_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "TESTED_SERIES", ("2.18",))
    with structlog.testing.capture_logs() as logs:
        site.runner.start_warm_server()
        runs = [site.play(debug(WHICH)) for _ in range(2)]

    assert not any(was_warm(run) for run in runs)
    assert len(unavailable(logs)) == 1
    assert "was not tested" in unavailable(logs)[0]


def test_warm_runs_required_with_an_untested_ansible_are_a_settings_error(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "TESTED_SERIES", ())
    with pytest.raises(SettingsError, match="SMITH_WARM is on, but ansible-core"):
        site.runner.start_warm_server(are_warm_runs_required=True)


def test_runs_are_cold_if_ansible_lacks_a_private_name_that_they_need(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing_name = patches.PrivateName(module="ansible.utils.vars", name="renamed", purpose="a test")
    monkeypatch.setattr(patches, "PRIVATE_NAMES", (*patches.PRIVATE_NAMES, missing_name))
    with structlog.testing.capture_logs() as logs:
        site.runner.start_warm_server()
        run = site.play(debug(WHICH))

    assert not was_warm(run)
    assert unavailable(logs) == [
        "warm runs need the name renamed in the Python module ansible.utils.vars, "
        "but the installed version of this module lacks it"
    ]
    with pytest.raises(SettingsError, match=r"SMITH_WARM is on, but warm runs need the name renamed in "):
        site.runner.start_warm_server(are_warm_runs_required=True)


def test_a_changed_ansible_cfg_is_used_by_the_next_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "RESTART_BACKOFF_S", 0.0)
    site.warmed()
    tasks = debug("{{ lookup('config', 'DEFAULT_FORKS') }} " + WHICH)
    assert said(site.play(tasks)).startswith("5 ")
    (site.home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\nforks = 7\n")

    with structlog.testing.capture_logs() as logs:
        runs_after_the_change = [site.play(tasks) for _ in range(2)]
        eventually(site.runner.warm_server_pid)
        warm_again = site.play(tasks)

    assert all(said(run).startswith("7 ") for run in (*runs_after_the_change, warm_again))
    assert was_warm(warm_again)
    assert unavailable(logs) == [
        "ansible.cfg, ansible-core, a module of community.proxmox or a plugin of Agent Smith has changed since "
        "the server started"
    ]


def test_a_run_whose_environment_differs_from_the_servers_is_cold(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.warmed()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    tasks = debug("{{ lookup('env', 'HTTPS_PROXY') }} " + WHICH)

    run = site.play(tasks)

    assert said(run).startswith("http://proxy.example:3128")
    assert not was_warm(run)


def test_after_the_servers_are_stopped_runs_are_cold_and_their_folder_is_removed(site: Site) -> None:
    site.warmed()
    pid = eventually(site.runner.warm_server_pid)
    site.runner.stop_warm_server()

    assert not is_alive(pid)
    assert [path.name for path in site.run_dir.iterdir()] == [RUN_UNTIL_FILE]
    assert not was_warm(site.play(debug(WHICH)))


def test_runs_are_cold_while_no_thread_can_start_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm_server_keeper = WarmServerKeeper(tmp_path, tmp_path, lambda: dict(os.environ))

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with structlog.testing.capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)  # as Python does at the operating system's limit
        command = warm_server_keeper.make_command(["ansible-playbook", "play.yml"], str(Path(sys.executable).parent))
    assert command == [*process_tree.guard_command_prefix(), "ansible-playbook", "play.yml"]
    assert unavailable(logs) == ["can't start new thread"]
