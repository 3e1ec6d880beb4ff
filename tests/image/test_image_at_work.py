"""The executor in a hardened container, between simulator and stand-in: jobs, limits, kill, stop, restart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import requests
from containers import (
    SECRETS,
    START_TIMEOUT_S,
    Container,
    Podman,
    Site,
    container_of,
    image_facts,
    log_events,
    needs_podman,
    prepare_site,
    run_smith_json,
    running_install_command,
    wait_until_healthy,
)
from smith_lab.system import LabSystem, outcome_of, run_lab_system, wait_for
from support.install_command import settings_in, store_configuration

JOB_LIMIT_S = 120.0
#: Folders that podman creates for its mounts.
MADE_BY_PODMAN = {"/etc", "/run", "/run/secrets"}
#: Settings with addresses where nothing listens.
UNREACHABLE = {
    "FULCRUM_API_URL": "http://127.0.0.1:9",
    "FULCRUM_API_TOKEN": "an-unused-token",
    "PROXMOX_HOST": "127.0.0.1",
    "PROXMOX_PORT": "9",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_TOKEN_ID": "job",
    "PROXMOX_TOKEN_SECRET": "01234567-89ab-cdef-0123-456789abcdef",
    "SMITH_HTTP_ADDR": "off",  # the network is shared with the container of the other tests
}


def _create_service_until_clone(lab: LabSystem, name: str) -> tuple[str, dict[str, Any]]:
    """Create a service and wait until Proxmox clones its VM; return the service's id and its job."""
    before = len(_clone_requests(lab))
    service_id = lab.order_service(name)
    wait_for(lambda: len(_clone_requests(lab)) > before, JOB_LIMIT_S, "a clone to start")
    return service_id, lab.last_job(service_id)


def _clone_requests(lab: LabSystem) -> list[dict[str, Any]]:
    return [entry for entry in lab.proxmox.changing_requests() if entry["path"].endswith("/clone")]


def _agent_pid(container: Container) -> int:
    """Return the agent's process id in the container."""
    return int(log_events(container, "agent_started")[-1]["pid"])


def test_the_health_command_of_the_image_succeeds(running_container: Container) -> None:
    """The test runs HEALTHCHECK's command itself: podman would need a systemd timer."""
    command = image_facts()["Healthcheck"]["Test"][1:]
    assert running_container.execute(*command).returncode == 0
    assert running_container.execute("smith", "health").stdout.strip() == "alive and ready"


@needs_podman
def test_the_process_has_no_capabilities(running_container: Container) -> None:
    status = running_container.execute("cat", "/proc/1/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4
    assert facts["Gid"].split() == ["10001"] * 4
    assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"


def test_only_the_data_folder_is_writable(running_container: Container) -> None:
    for folder in ("/opt/venv", "/usr/bin", "/etc", "/"):
        assert running_container.execute("touch", f"{folder}/written").returncode != 0, folder


def test_a_burst_of_services_fits_into_the_memory_limit(lab: LabSystem, running_container: Container) -> None:
    """Four services at once in 512 MiB: created, started, stopped, updated and deleted."""
    services = [lab.order_service(f"burst-{number}") for number in range(4)]
    deleted, started = services[:1], services[:2]
    assert _statuses(lab, services) == ["Stopped"] * 4, running_container.logs()[-3000:]
    for service_id in started:
        lab.admin.request_action(service_id, "start")
    assert _statuses(lab, started) == ["Started"] * 2
    lab.admin.request_action(deleted[0], "stop")
    assert _statuses(lab, deleted) == ["Stopped"]
    lab.admin.patch_service(deleted[0], {"cores": 4})
    assert _statuses(lab, deleted) == ["Stopped"]
    (changed,) = lab.guests_of(deleted[0])
    assert (changed["status"], int(changed["config"]["cores"])) == ("stopped", 4)
    lab.admin.delete_service(deleted[0])
    assert _statuses(lab, services) == ["Deleted", "Started", "Stopped", "Stopped"]
    vm_states = [vm["status"] for service_id in services for vm in lab.guests_of(service_id)]
    assert vm_states == ["running", "stopped", "stopped"]
    mapped = {mapping["service_id"] for mapping in run_smith_json(running_container, "mappings", "list")}
    assert set(services) & mapped == set(services[1:])
    assert len(log_events(running_container, "agent_started")) == 1, "the agent was restarted"


def _statuses(lab: LabSystem, services: list[str]) -> list[str]:
    return [str(lab.wait_for_jobs(service_id, 2 * JOB_LIMIT_S)["status"]) for service_id in services]


@needs_podman
def test_the_out_of_memory_killer_does_not_end_the_agent(running_container: Container) -> None:
    large_allocation = running_container.execute("python3", "-c", "print(len(b'x' * (700 << 20)))")
    assert large_allocation.returncode == 137, large_allocation.stderr
    wait_until_healthy(running_container)
    assert len(log_events(running_container, "agent_started")) == 1


def test_no_job_is_lost_or_done_twice_when_the_agent_is_killed(lab: LabSystem, running_container: Container) -> None:
    service_id, job = _create_service_until_clone(lab, "killed")
    before = len(log_events(running_container, "agent_started"))
    assert (
        running_container.execute("python3", "-c", f"import os; os.kill({_agent_pid(running_container)}, 9)").returncode
        == 0
    )
    assert lab.wait_for_jobs(service_id, 2 * JOB_LIMIT_S)["status"] == "Stopped", running_container.logs()[-3000:]
    assert len(log_events(running_container, "agent_started")) == before + 1
    assert len(lab.guests_of(service_id)) == 1
    assert len(lab.reports(job["id"])) == 1


def test_a_stop_waits_for_the_running_playbook_and_reports_its_result(
    lab: LabSystem, running_container: Container
) -> None:
    service_id, job = _create_service_until_clone(lab, "stopped")
    assert running_container.stop() == 0, running_container.logs()[-3000:]
    assert lab.last_job(service_id)["id"] == job["id"]
    assert outcome_of(lab.last_job(service_id)) == "Completed"
    assert len(lab.guests_of(service_id)) == 1


def test_a_container_started_again_has_the_mappings_in_its_volume(lab: LabSystem, running_container: Container) -> None:
    """Starts the VM of the previous test."""
    (service_id,) = [service["id"] for service in lab.admin.list_services() if service["name"] == "stopped"]
    assert service_id in {mapping["service_id"] for mapping in run_smith_json(running_container, "mappings", "list")}
    assert outcome_of(lab.run_action(service_id, "start", JOB_LIMIT_S)) == "Completed"
    assert [vm["status"] for vm in lab.guests_of(service_id)] == ["running"]


def test_no_secret_is_in_output_or_environment(lab: LabSystem, running_container: Container) -> None:
    output = running_container.logs() + (running_container.execute("env").stdout)
    if isinstance(running_container, Podman):
        output += str(running_container.inspect())
    assert "agent_started" in output
    for secret in (lab.ids.agent_token, lab.proxmox.token_secret):
        assert secret not in output


def test_the_image_works_with_only_the_settings_of_the_install_command(tmp_path: Path) -> None:
    """FulcrumCore renders these settings from our agent type. The agent reads all others from FulcrumCore."""
    with run_lab_system(tmp_path / "lab") as lab:
        store_configuration(lab)
        install = lab.admin.call("POST", f"/agents/{lab.ids.agent_id}/install-command")
        token = install["installCommand"].split("Bearer ", 1)[1].split("'", 1)[0]
        fetched = requests.get(install["url"], headers={"Authorization": f"Bearer {token}"}, timeout=30)
        assert fetched.status_code == 200
        site = prepare_site(tmp_path, {name: "" for name in SECRETS})
        for file in site.secrets.iterdir():
            file.unlink()
        environment = settings_in(fetched.text) | {"SMITH_HTTP_ADDR": "off"}
        with container_of(Site(environment=environment, secrets=site.secrets, data=site.data)) as container:
            container.start()
            assert lab.wait_for_jobs(lab.order_service("web"), JOB_LIMIT_S)["status"] == "Stopped"


@needs_podman
def test_the_rendered_install_command_starts_a_working_executor(tmp_path: Path) -> None:
    """The container has the arguments, the env file and the volume of FulcrumCore's install command, unchanged."""
    with run_lab_system(tmp_path / "lab") as lab:
        store_configuration(lab)
        command = lab.admin.call("POST", f"/agents/{lab.ids.agent_id}/install-command")["installCommand"]
        folder = tmp_path / "operator"
        folder.mkdir()
        name = "agent-smith"  # in the agent type, for the container and for its volume
        with running_install_command(command, folder, name=name, volume=name) as container:
            service_id = lab.order_service("web")
            status = lab.wait_for_jobs(service_id, JOB_LIMIT_S)["status"]
            assert status == "Stopped", container.logs()[-3000:]
            assert outcome_of(lab.run_action(service_id, "start", JOB_LIMIT_S)) == "Completed"
            assert outcome_of(lab.run_action(service_id, "delete", JOB_LIMIT_S)) == "Completed"
            jobs = run_smith_json(container, "jobs", "list")
            assert {(job["action"], job["status"]) for job in jobs} == {
                (action, "completed") for action in ("create", "start", "delete")
            }
            facts = container.inspect()
        assert facts["Config"]["User"] == "10001:10001"
        assert facts["HostConfig"]["ReadonlyRootfs"] is True
        assert facts["HostConfig"]["RestartPolicy"]["Name"] == "on-failure"
        assert [mount["Name"] for mount in facts["Mounts"] if mount["Destination"] == "/data"] == [name]


@needs_podman
def test_with_a_writable_root_file_system_only_the_data_folder_is_written(tmp_path: Path) -> None:
    site = prepare_site(tmp_path, dict(UNREACHABLE))
    container = Podman(site=site)
    try:
        container.start(hardening=("--cap-drop=all",))
        wait_for(lambda: log_events(container, "agent_ready"), START_TIMEOUT_S, "agent_ready")
        assert container.stop() == 0
        assert set(container.changed_paths()) <= MADE_BY_PODMAN
        assert (site.data / "smith.db").exists()
    finally:
        container.remove()


@needs_podman
def test_another_user_gets_a_one_line_error_about_the_data_folder(tmp_path: Path) -> None:
    site = prepare_site(tmp_path, dict(UNREACHABLE))
    site.secrets.chmod(0o555)
    for file in site.secrets.iterdir():
        file.chmod(0o444)
    with container_of(site) as container:
        done = container.run_to_completion(options=("--user=12345:12345",))
    _assert_one_line_error(done.returncode, done.stderr, "12345")


def test_a_data_folder_owned_by_root_gives_a_one_line_error(tmp_path: Path) -> None:
    site = prepare_site(tmp_path, dict(UNREACHABLE))
    os.chown(site.data, 0, 0)
    with container_of(site) as container:
        done = container.run_to_completion()
    _assert_one_line_error(done.returncode, done.stderr or done.stdout, "10001")


def _assert_one_line_error(code: int, output: str, uid: str) -> None:
    """Check for the exit code that prevents a restart, and one line that names folder and user."""
    text_lines = [line for line in output.splitlines() if line and not line.startswith("{")]
    assert code == 6, output
    assert len(text_lines) == 1, output
    assert "/data" in text_lines[0], output
    assert uid in text_lines[0], output
