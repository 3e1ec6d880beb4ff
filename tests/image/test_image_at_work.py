"""The executor in a hardened container, between simulator and stand-in: made, stopped, killed, started again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from containers import (
    START_LIMIT_S,
    Container,
    Podman,
    container_of,
    events,
    image_facts,
    needs_podman,
    prepare_site,
    smith,
    wait_until_healthy,
)
from smith_lab.system import LabSystem, ending, wait_for

JOB_LIMIT_S = 120.0
#: Where it puts what it mounts.
MADE_BY_PODMAN = {"/etc", "/run", "/run/secrets"}
#: What a system without anybody at the other end is told.
NOBODY = {
    "FULCRUM_API_URL": "http://127.0.0.1:9",
    "FULCRUM_API_TOKEN": "a-token-for-nobody",
    "PROXMOX_HOST": "127.0.0.1",
    "PROXMOX_PORT": "9",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_TOKEN_ID": "job",
    "PROXMOX_TOKEN_SECRET": "01234567-89ab-cdef-0123-456789abcdef",
    "SMITH_HTTP_ADDR": "off",  # the network is shared with the container of the other tests
}


def _order_until_its_playbook_runs(lab: LabSystem, name: str) -> tuple[str, dict[str, Any]]:
    """Order a service and wait until Proxmox clones its VM; return the service's id and its job."""
    before = len(_clones(lab))
    service_id = lab.order(name)
    wait_for(lambda: len(_clones(lab)) > before, JOB_LIMIT_S, "a clone to begin")
    return service_id, lab.last_job(service_id)


def _clones(lab: LabSystem) -> list[dict[str, Any]]:
    return [entry for entry in lab.proxmox.changing_requests() if entry["path"].endswith("/clone")]


def _agent_pid(container: Container) -> int:
    """Return the agent's process id as the container sees it."""
    return int(events(container, "agent_started")[-1]["pid"])


def test_it_is_healthy_by_its_own_command(running: Container) -> None:
    """By that of its HEALTHCHECK, which podman would run by a timer of systemd's, and by that for people."""
    command = image_facts()["Healthcheck"]["Test"][1:]
    assert running.execute(*command).returncode == 0
    assert running.execute("smith", "health").stdout.strip() == "alive and ready"


@needs_podman
def test_it_has_no_rights_to_lose(running: Container) -> None:
    status = running.execute("cat", "/proc/1/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4
    assert facts["Gid"].split() == ["10001"] * 4
    assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"


def test_it_cannot_write_what_is_not_its_data(running: Container) -> None:
    for folder in ("/opt/venv", "/usr/bin", "/etc", "/"):
        assert running.execute("touch", f"{folder}/written").returncode != 0, folder


def test_a_burst_of_whole_lives_fits_into_its_memory(lab: LabSystem, running: Container) -> None:
    """The demo's burst, four playbooks at once in 512 MiB: made, started, stopped, changed and deleted."""
    services = [lab.order(f"burst-{number}") for number in range(4)]
    whole, started = services[:1], services[:2]
    assert _statuses(lab, services) == ["Stopped"] * 4, running.logs()[-3000:]
    for service_id in started:
        lab.admin.action(service_id, "start")
    assert _statuses(lab, started) == ["Started"] * 2
    lab.admin.action(whole[0], "stop")
    assert _statuses(lab, whole) == ["Stopped"]
    lab.admin.patch_service(whole[0], {"cores": 4})
    assert _statuses(lab, whole) == ["Stopped"]
    (changed,) = lab.vms_of(whole[0])
    assert (changed["status"], int(changed["config"]["cores"])) == ("stopped", 4)
    lab.admin.delete_service(whole[0])
    assert _statuses(lab, services) == ["Deleted", "Started", "Stopped", "Stopped"]
    made = [vm["status"] for service_id in services for vm in lab.vms_of(service_id)]
    assert made == ["running", "stopped", "stopped"]
    mapped = {mapping["service_id"] for mapping in smith(running, "mappings", "list")}
    assert set(services) & mapped == set(services[1:])
    assert len(events(running, "agent_started")) == 1, "something was killed on the way"


def _statuses(lab: LabSystem, services: list[str]) -> list[str]:
    return [str(lab.settled(service_id, 2 * JOB_LIMIT_S)["status"]) for service_id in services]


@needs_podman
def test_what_takes_too_much_memory_dies_and_the_agent_does_not(running: Container) -> None:
    greedy = running.execute("python3", "-c", "print(len(b'x' * (700 << 20)))")
    assert greedy.returncode == 137, greedy.stderr
    wait_until_healthy(running)
    assert len(events(running, "agent_started")) == 1


def test_killing_the_agent_loses_and_doubles_nothing(lab: LabSystem, running: Container) -> None:
    service_id, job = _order_until_its_playbook_runs(lab, "killed")
    before = len(events(running, "agent_started"))
    assert running.execute("python3", "-c", f"import os; os.kill({_agent_pid(running)}, 9)").returncode == 0
    assert lab.settled(service_id, 2 * JOB_LIMIT_S)["status"] == "Stopped", running.logs()[-3000:]
    assert len(events(running, "agent_started")) == before + 1
    assert len(lab.vms_of(service_id)) == 1
    assert len(lab.reports(job["id"])) == 1


def test_a_stop_lets_the_running_playbook_end_and_reports_it(lab: LabSystem, running: Container) -> None:
    service_id, job = _order_until_its_playbook_runs(lab, "stopped")
    assert running.stop() == 0, running.logs()[-3000:]
    assert lab.last_job(service_id)["id"] == job["id"]
    assert ending(lab.last_job(service_id)) == "Completed"
    assert len(lab.vms_of(service_id)) == 1


def test_a_start_with_the_same_volume_knows_what_was_before(lab: LabSystem, running: Container) -> None:
    """What the test before has made and stopped is started now."""
    (service_id,) = [service["id"] for service in lab.admin.list_services() if service["name"] == "stopped"]
    assert service_id in {mapping["service_id"] for mapping in smith(running, "mappings", "list")}
    assert ending(lab.act(service_id, "start", JOB_LIMIT_S)) == "Completed"
    assert [vm["status"] for vm in lab.vms_of(service_id)] == ["running"]


def test_no_secret_is_told(lab: LabSystem, running: Container) -> None:
    said = running.logs() + (running.execute("env").stdout)
    if isinstance(running, Podman):
        said += str(running.inspect())
    assert "agent_started" in said
    for secret in (lab.ids.agent_token, lab.proxmox.token_secret):
        assert secret not in said


@needs_podman
def test_nothing_is_written_but_data_even_where_it_could_be(tmp_path: Path) -> None:
    site = prepare_site(tmp_path, dict(NOBODY))
    container = Podman(site=site)
    try:
        container.start(hardening=("--cap-drop=all",))
        wait_for(lambda: events(container, "agent_ready"), START_LIMIT_S, "the agent to work")
        assert container.stop() == 0
        assert set(container.written()) <= MADE_BY_PODMAN
        assert (site.data / "smith.db").exists()
    finally:
        container.remove()


@needs_podman
def test_another_user_is_told_in_one_line_that_the_data_is_not_theirs(tmp_path: Path) -> None:
    site = prepare_site(tmp_path, dict(NOBODY))
    site.secrets.chmod(0o555)
    for file in site.secrets.iterdir():
        file.chmod(0o444)
    with container_of(site) as container:
        done = container.run_to_its_end(options=("--user=12345:12345",))
    _is_one_clear_line(done.returncode, done.stderr, "12345")


def test_data_of_root_is_told_in_one_line(tmp_path: Path) -> None:
    site = prepare_site(tmp_path, dict(NOBODY))
    os.chown(site.data, 0, 0)
    with container_of(site) as container:
        done = container.run_to_its_end()
    _is_one_clear_line(done.returncode, done.stderr or done.stdout, "10001")


def _is_one_clear_line(code: int, said: str, uid: str) -> None:
    """A person must act, so it ends for good, with what to do and without a traceback."""
    plain = [line for line in said.splitlines() if line and not line.startswith("{")]
    assert code == 6, said
    assert len(plain) == 1, said
    assert "/data" in plain[0], said
    assert uid in plain[0], said
