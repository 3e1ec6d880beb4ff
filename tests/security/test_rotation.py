"""Secrets change while the agent works: the agent uses the new secrets, and no job fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from smith_lab.system import LabSystem, outcome_of, run_lab_system, wait_for

pytestmark = [pytest.mark.xdist_group("rotation"), pytest.mark.timeout(900)]

#: How long the jobs of a service may take.
PATIENCE_S = 250.0
NEW_PROXMOX_SECRET = "rotated-secret-of-proxmox-1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    """A system with one VM, whose secrets come from files."""
    folder = tmp_path_factory.mktemp("rotation")
    with run_lab_system(folder) as system:
        secrets_folder = folder / "secrets"
        secrets_folder.mkdir(mode=0o700)
        (secrets_folder / "fulcrum_api_token").write_text(system.ids.agent_token)
        (secrets_folder / "proxmox_token_secret").write_text(system.proxmox.token_secret)
        system.settings |= {
            "FULCRUM_API_TOKEN": "",
            "PROXMOX_TOKEN_SECRET": "",
            "SMITH_SECRETS_DIR": str(secrets_folder),
            "SMITH_METRICS_INTERVAL_S": "1",  # each metric needs a request to Proxmox, which shows a refusal
        }
        system.start_executor()
        yield system


@pytest.fixture(scope="module")
def service(lab: LabSystem) -> str:
    """Return the id of a service whose VM exists."""
    service_id = lab.order_service("rotated")
    assert lab.wait_for_jobs(service_id, PATIENCE_S)["status"] == "Stopped"
    return service_id


def count_reloads(lab: LabSystem, name: str) -> int:
    """Return how often the agent has loaded this secret again."""
    return sum(name in event["variables"] for event in lab.log_events("secrets_reloaded"))


def agent_process_of(lab: LabSystem) -> psutil.Process:
    children = psutil.Process(lab.executor.pid).children()
    return next(child for child in children if "agent-process" in child.cmdline())


def create_agent_token(lab: LabSystem, name: str) -> str:
    return str(lab.admin.create_token(name, "agent", lab.ids.agent_id)["value"])


def test_a_replaced_fulcrumcore_token_is_loaded_without_a_restart(lab: LabSystem, service: str) -> None:
    before, agent = count_reloads(lab, "FULCRUM_API_TOKEN"), agent_process_of(lab).pid
    token = create_agent_token(lab, "second")
    lab.core.revoke_tokens(value=lab.ids.agent_token)
    (lab.folder / "secrets" / "fulcrum_api_token").write_text(token)

    job = lab.run_action(service, "start", PATIENCE_S)

    assert outcome_of(job) == "Completed"
    assert count_reloads(lab, "FULCRUM_API_TOKEN") == before + 1
    assert agent_process_of(lab).pid == agent
    assert token not in lab.log_file.read_text()


def test_a_changed_proxmox_secret_fails_no_job(lab: LabSystem, service: str) -> None:
    before = count_reloads(lab, "PROXMOX_TOKEN_SECRET")
    lab.proxmox.control("token_secret", secret=NEW_PROXMOX_SECRET)
    (lab.folder / "secrets" / "proxmox_token_secret").write_text(NEW_PROXMOX_SECRET)

    job = lab.run_action(service, "stop", PATIENCE_S)

    assert outcome_of(job) == "Completed"
    assert count_reloads(lab, "PROXMOX_TOKEN_SECRET") == before + 1
    assert NEW_PROXMOX_SECRET not in lab.log_file.read_text()
    # Placement uses the connections of the agent's own threads, all of which must be opened again.
    assert lab.wait_for_jobs(lab.order_service("after-rotation"), PATIENCE_S)["status"] == "Stopped"


def test_sighup_reloads_the_secrets_and_an_unusable_secret_is_logged_and_not_loaded(
    lab: LabSystem, service: str
) -> None:
    file = lab.folder / "secrets" / "fulcrum_api_token"
    token = create_agent_token(lab, "third")
    before, previous_token = count_reloads(lab, "FULCRUM_API_TOKEN"), file.read_text()
    agent = agent_process_of(lab).pid

    file.write_text("")
    os.kill(lab.executor.pid, signal.SIGHUP)
    events = wait_for(lambda: lab.log_events("secrets_not_reloaded"), 60, "the event secrets_not_reloaded")
    assert "FULCRUM_API_TOKEN" in events[-1]["reason"]
    assert events[-1]["all_old_values_kept"] is True
    file.write_text(token)
    os.kill(lab.executor.pid, signal.SIGHUP)

    wait_for(lambda: count_reloads(lab, "FULCRUM_API_TOKEN") == before + 1, 60, "the token to be loaded")
    assert agent_process_of(lab).pid == agent
    assert token not in lab.log_file.read_text()
    lab.core.revoke_tokens(value=previous_token)
    assert outcome_of(lab.run_action(service, "start", PATIENCE_S)) == "Completed"


# --- the running process --------------------------------------------------------


def test_every_file_and_folder_of_the_executor_is_accessible_to_its_owner_only(lab: LabSystem) -> None:
    """Database, write-ahead log, artifacts and run folders have private modes, whatever the umask."""
    places = [lab.data_dir, lab.folder / "run"]
    paths = [path for place in places for path in (place, *place.rglob("*")) if not path.is_symlink()]
    assert len(paths) > 10
    open_to_others = {str(path): oct(path.lstat().st_mode) for path in paths if path.lstat().st_mode & 0o077}
    assert open_to_others == {}


def test_the_agent_writes_no_core_dump_and_has_a_private_umask(lab: LabSystem) -> None:
    agent = agent_process_of(lab)
    for pid in (agent.pid, lab.executor.pid):
        limits = Path(f"/proc/{pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()
