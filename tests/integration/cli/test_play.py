"""`smith play`: an operator runs an action by hand, here on a Proxmox stand-in."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.cli_world import GIVE_UP_S, Cli, claim, submit
from support.played_vms import NUMBERS, made, mapped, new_vm, on_a_terminal, vars_file

from executor.model import PlaybookRun
from executor.runs import results
from executor.runs.actions import collection_folder
from executor.runs.private_folder import ansible_credentials
from executor.runs.runner import Runner, RunnerPaths
from executor.settings.settings import load_settings

#: Contains an expression of Jinja, which must not be evaluated.
PASSWORD = "hunter2-{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def pve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("stand-in")) as running:
        yield running


@pytest.fixture
def smith(tmp_path: Path, pve: ProxmoxStandIn) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    cli.env |= pve.env() | {"PROXMOX_TEMPLATES": "debian-12=9000"}
    yield cli
    pve.control("clear_faults")


def play_and_read_document(smith: Cli, *arguments: str) -> dict[str, Any]:
    """Run `smith play` with --json, and return the document on stdout. The playbook's output must be on stderr."""
    done = smith("play", *arguments, "--json")
    assert done.stdout, done.stderr
    assert "PLAY RECAP" in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_create_from_a_file_creates_the_vm_and_prints_its_result(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = new_vm(cloud_init={"user": "ops", "password": PASSWORD})
    file = vars_file(smith.folder, vm)
    done = smith("play", "create", "--vars", file, "-e", "cores=3", "-e", "tags=gold,eu", PROXMOX_TAGS="gold,eu")
    assert done.returncode == 0, done.stdout + done.stderr
    guest = pve.guest(vm["vmid"])
    assert guest is not None
    assert str(guest["config"]["cores"]) == "3"
    assert guest["config"]["tags"] == "eu;gold;smith"
    assert guest["config"]["ciuser"] == "ops"
    assert "PLAY RECAP" in done.stdout
    assert "Result" in done.stdout
    assert vm["name"] in done.stdout.partition("Result")[2]
    assert "no mapping was changed" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("member", "error"),
    [
        ("network.bridge=vmbr9", "INVALID_REQUEST: the bridge vmbr9 is not offered"),
        ("network.vlan=99", "INVALID_REQUEST: the VLAN 99 is not offered"),
        ("storage=ceph", "INVALID_REQUEST: the storage ceph is not offered"),
        ("allowed={bridges: ['*'], vlans: ['*']}", ""),  # a run by hand cannot extend what is allowed
        ("template=ubuntu-24.04", "NOT_FOUND: PROXMOX_TEMPLATES has no template ubuntu-24.04"),
        ("template_vmid=9001", "NOT_FOUND: PROXMOX_TEMPLATES has no template 9001"),
    ],
)
def test_a_run_by_hand_is_refused_if_it_requests_what_the_settings_do_not_offer(
    smith: Cli, pve: ProxmoxStandIn, member: str, error: str
) -> None:
    vm = new_vm(network={"vlan": 99} if not error else {})
    done = smith("play", "create", "--vars", vars_file(smith.folder, vm), "-e", member)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (error or "INVALID_REQUEST: the VLAN 99 is not offered") in done.stderr
    if "is not offered" in error:
        assert "the values that may be requested are in" in done.stderr
    assert pve.guest(vm["vmid"]) is None


def test_a_run_by_hand_cannot_back_up_to_a_storage_that_the_settings_do_not_offer(
    smith: Cli, pve: ProxmoxStandIn
) -> None:
    vm = made(pve, status="running")
    done = smith("play", "backup", "--vmid", str(vm["vmid"]), "-e", "backup_storage=backups")
    assert "INVALID_REQUEST: the storage backups is not offered" in done.stderr
    done = smith("play", "delete", "--yes", "--vmid", str(vm["vmid"]), "-e", "final_backup=backups")
    assert "INVALID_REQUEST: the storage backups is not offered" in done.stderr
    assert pve.guest(vm["vmid"])["status"] == "running"


def test_the_result_of_a_run_by_hand_is_the_same_as_that_of_an_agents_run(
    smith: Cli, pve: ProxmoxStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_of_run_by_hand, vm_of_agents_run = made(pve), made(pve)
    document = play_and_read_document(smith, "start", "--vmid", str(vm_of_run_by_hand["vmid"]))
    for name, value in smith.env.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None)
    runner = Runner(
        RunnerPaths(
            collection_folder=collection_folder(),
            run_dir=smith.folder / "run",
            artifacts_dir=smith.folder / "artifacts",
        ),
        lambda: ansible_credentials(settings),
        ca_bundle=settings.proxmox_ca_bundle,
    )
    run = PlaybookRun(
        ident="start-1",
        action="start",
        playbook=collection_folder() / "playbooks" / "start.yml",
        vm={**vm_of_agents_run, "timeout_s": 60},
        timeout_s=60,
    )
    vm_in_agents_result = results.read_result(runner.run(run)).vm
    differing = {"vmid", "name", "upids", "ip_addresses"}
    assert {key: value for key, value in document["vm"].items() if key not in differing} == {
        key: value for key, value in vm_in_agents_result.items() if key not in differing
    }
    assert set(document["vm"]) == set(vm_in_agents_result)
    assert document["succeeded"] is True
    assert len(document["vm"]["upids"]) == len(vm_in_agents_result["upids"]) == 1


def test_with_json_stdout_contains_only_one_document(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = made(pve)
    document = play_and_read_document(smith, "start", "--vmid", str(vm["vmid"]))
    assert document["vm"]["status"] == "running"
    assert (document["mapping_updated"], document["check"], document["error_code"]) == (False, False, None)


@pytest.mark.parametrize("action", ["create", "start", "stop", "update", "delete"])
def test_check_shows_the_plan_and_changes_nothing(smith: Cli, pve: ProxmoxStandIn, action: str) -> None:
    if action == "create":
        arguments = ["--vars", vars_file(smith.folder, new_vm())]
    else:
        vm = made(pve, status="stopped" if action == "start" else "running")
        arguments = ["--vmid", str(vm["vmid"]), *(["-e", "cores=4"] if action == "update" else [])]
    pve.reset_request_log()
    done = smith("play", action, *arguments, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert pve.changing_requests() == []
    assert "Plan" in done.stdout
    assert "check mode: these changes were not made" in done.stdout


def test_a_run_that_names_a_service_updates_its_mapping(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve, node="pve2"))
    document = play_and_read_document(smith, "start", "--service", vm["service_id"][:13])
    assert (document["succeeded"], document["mapping_updated"]) == (True, True)
    mapping = smith.json("mappings", "show", str(vm["vmid"]))
    assert (mapping["state"], mapping["node"]) == ("active", "pve2")
    done = smith("play", "delete", "--yes", "--service", str(vm["vmid"]))
    assert f"the mapping of service {vm['service_id']} is up to date" in done.stdout
    assert smith.json("mappings", "show", str(vm["vmid"]))["state"] == "deleted"
    assert pve.guest(vm["vmid"]) is None


def test_a_run_that_names_a_vmid_changes_no_mapping(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve))
    assert smith("play", "delete", "--yes", "--vmid", str(vm["vmid"])).returncode == 0
    assert smith.json("mappings", "show", str(vm["vmid"]))["state"] == "reserved"


def test_a_service_with_a_running_job_is_refused(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve))
    with smith.database_session() as session:
        submit(session, action="start", service_id=vm["service_id"])
        claim(session)
    pve.reset_request_log()
    done = smith("play", "stop", "--service", vm["name"])
    assert (done.returncode, pve.request_log()) == (1, [])
    assert "is running: wait for its end" in done.stderr


def test_a_failure_prints_its_code_and_exits_with_1(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = made(pve)
    pve.control("recycle", vmid=vm["vmid"], name="other-vm")
    done = smith("play", "delete", "--yes", "--vars", vars_file(smith.folder, vm))
    assert done.returncode == 1
    assert "smith: VM_IDENTITY_MISMATCH: " in done.stderr
    assert pve.guest(vm["vmid"]) is not None


def test_a_vmid_without_our_marker_is_refused_before_any_playbook(smith: Cli, pve: ProxmoxStandIn) -> None:
    vmid = next(NUMBERS)
    pve.control("add", vmid=vmid, name="unmarked", config={"cores": 1})
    done = smith("play", "delete", "--yes", "--vmid", str(vmid))
    assert done.returncode == 1
    assert "has no marker of Agent Smith" in done.stderr
    assert "PLAY" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["create", "-e", "cores=2"], "service_id: UUID of the service"),
        (["create", "-e", "cores=many"], "cores must be a whole number"),
        (["create", "-e", "cores"], "-e takes KEY=VALUE"),
        (["create", "-e", "cloud_init.password=hunter2"], "cloud_init.password is a secret"),
        (["start", "--service", "x", "--vmid", "100"], "cannot be combined"),
        (["start", "--name", "x", "--hosts", "all"], "cannot be combined"),
        (["update", "--vmid", "100", "-e", "core=4"], "core is not a member of vm: did you mean cores?"),
        (["update", "--vmid", "100", "-e", "network.bridg=vmbr1"], "network.bridg is not a member of vm: did you mean"),
        (["update", "--vmid", "100", "-e", "zzzz=4"], "docs/actions.md lists the members"),
        (["delete", "--vmid", "100"], "delete destroys data, and there is no terminal to ask on: use --yes"),
        (["rollback", "--vmid", "100", "--json"], "with --json the command asks no question: use --yes"),
        (["delete", "--hosts", "all"], "use --yes"),
        (["create", "--hosts", "all"], "create makes one new VM"),
    ],
)
def test_a_usage_error_is_reported_before_proxmox_is_called(
    smith: Cli, pve: ProxmoxStandIn, arguments: list[str], error: str
) -> None:
    pve.reset_request_log()
    done = smith("play", *arguments)
    assert done.returncode == 2
    assert error in " ".join(done.stderr.replace("│", " ").split())
    assert pve.request_log() == []


def test_an_identity_that_contradicts_the_mapping_is_refused(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve))
    done = smith("play", "start", "--service", vm["name"], "-e", "vmid=100")
    assert done.returncode == 2
    assert pve.guest(vm["vmid"])["status"] == "stopped"  # type: ignore[index]


def test_an_unknown_action_and_a_playbook_that_cannot_start_exit_with_1(smith: Cli) -> None:
    done = smith("play", "fly")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("smith: UNSUPPORTED_ACTION: ")
    assert "`smith actions list` shows the actions" in done.stderr
    assert "did you mean start?" in smith("play", "strat").stderr
    folder = smith.folder / "actions"
    folder.mkdir(mode=0o755)
    (folder / "fly.yml").write_text("---\n- hosts: proxmox\n  tasks:\n    - no_such_module_at_all: {}\n")
    (folder / "fly.yml").chmod(0o644)
    broken = smith("play", "fly", "-e", "vmid=100", SMITH_ACTIONS_PATH=str(folder))
    assert broken.returncode == 1
    assert "smith: PLAYBOOK_FAILED: " in broken.stderr


def test_no_process_of_a_run_by_hand_shows_a_secret(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = new_vm(cloud_init={"user": "ops", "password": PASSWORD})
    arguments = ["play", "create", "--vars", vars_file(smith.folder, vm)]
    process_texts: set[str] = set()
    with subprocess.Popen(
        smith.command(*arguments), env=smith.environment(), cwd=smith.folder, stdout=subprocess.PIPE, text=True
    ) as process:
        parent = psutil.Process(process.pid)
        assert process.stdout is not None
        for _line in process.stdout:
            process_texts |= arguments_and_environments_below(parent)
        assert process.wait(GIVE_UP_S) == 0
    assert any("ansible-playbook" in text for text in process_texts)
    assert not [text for text in process_texts if PASSWORD in text or pve.token_secret in text]


def arguments_and_environments_below(parent: psutil.Process) -> set[str]:
    """Return the arguments and the environment of each descendant process, which other processes can read."""
    texts = set()
    for child in parent.children(recursive=True):
        try:
            texts |= {" ".join(child.cmdline()), json.dumps(child.environ())}
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return texts


#: The playbook of an action that a provider (the organisation that runs the agent) has added.
PROVIDERS_ACTION = """---
- hosts: proxmox
  gather_facts: false
  tasks:
    - name: Publish a result
      ansible.builtin.set_stats:
        data: {vm_result: {vmid: 100, node: pve1, name: own, status: stopped}}
        per_host: false
        aggregate: false
"""


def test_a_new_action_written_by_smith_actions_new_runs_unchanged(smith: Cli, pve: ProxmoxStandIn) -> None:
    folder = smith.folder / "actions"
    folder.mkdir(mode=0o755)
    smith.env["SMITH_ACTIONS_PATH"] = str(folder)
    smith.ok("actions", "new", "say-hello")
    vm = made(pve)
    document = play_and_read_document(smith, "say-hello", "--vmid", str(vm["vmid"]))
    assert (document["succeeded"], document["vm"]["vmid"], document["vm"]["changed"]) == (True, vm["vmid"], False)
    pve.control("recycle", vmid=vm["vmid"], name="another")
    document = play_and_read_document(smith, "say-hello", "--vars", vars_file(smith.folder, vm))
    assert (document["succeeded"], document["error_code"]) == (False, "VM_IDENTITY_MISMATCH")


@pytest.mark.parametrize(
    ("effect", "is_asked", "needs_yes"), [("reads", False, False), (None, True, False), ("destroys", True, True)]
)
def test_the_effect_in_the_schema_decides_whether_the_command_asks_and_needs_yes(
    smith: Cli, effect: str | None, is_asked: bool, needs_yes: bool
) -> None:
    folder = smith.folder / "actions"
    folder.mkdir(mode=0o755)
    schema = {} if effect is None else {"x-smith-effect": effect}
    for name, text in {"own.yml": PROVIDERS_ACTION, "own.schema.json": json.dumps(schema)}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    smith.env["SMITH_ACTIONS_PATH"] = str(folder)
    done = smith("play", "own")
    assert (done.returncode, "own destroys data" in done.stderr) == ((2, True) if needs_yes else (0, False))
    if needs_yes:
        assert smith("play", "own", "--yes").returncode == 0
    output, rc = on_a_terminal(smith, ["play", "own"], {"Run own?": "y"})
    assert (rc, "Run own?" in output, "check mode skips Ansible tasks" in output) == (0, is_asked, is_asked), output


def test_a_mapping_is_found_by_a_name_without_its_suffix_and_a_vm_by_its_whole_name(
    smith: Cli, pve: ProxmoxStandIn
) -> None:
    vm = mapped(smith, made(pve))
    document = play_and_read_document(smith, "start", "--service", vm["name"].removesuffix(f"-{vm['service_id'][:8]}"))
    assert (document["vm"]["vmid"], document["mapping_updated"]) == (vm["vmid"], True)
    document = play_and_read_document(smith, "stop", "--name", vm["name"])
    assert (document["vm"]["vmid"], document["mapping_updated"]) == (vm["vmid"], False)
    done = smith("play", "stop", "--name", "no-such-vm")
    assert (done.returncode, "sees no VM no-such-vm in Proxmox" in done.stderr) == (1, True)


def test_an_action_runs_on_all_vms_of_a_group_and_shows_which_failed(smith: Cli, pve: ProxmoxStandIn) -> None:
    in_group, locked_in_group, vm_outside_group = made(pve), made(pve), made(pve)
    for vm in (in_group, locked_in_group):
        pve.control("configure", vmid=vm["vmid"], values={"tags": "smith;copper"})
    pve.control("configure", vmid=locked_in_group["vmid"], values={"lock": "backup"})
    done = smith("play", "start", "--hosts", "tag_copper", "--parallel", "2")
    assert done.returncode == 7, done.stdout + done.stderr
    assert f"{in_group['name']} | PLAY RECAP" in done.stdout
    assert "1 succeeded, 1 failed" in done.stdout
    states = [pve.guest(vm["vmid"])["status"] for vm in (in_group, locked_in_group, vm_outside_group)]  # type: ignore[index]
    assert states == ["running", "stopped", "stopped"]
    done = smith("play", "start", "--hosts", "tag_copper", "--json")
    outcomes = {vm["vmid"]: (vm["succeeded"], vm["error_code"]) for vm in json.loads(done.stdout)["vms"]}
    assert outcomes == {in_group["vmid"]: (True, None), locked_in_group["vmid"]: (False, "VM_LOCKED")}
    pve.control("configure", vmid=locked_in_group["vmid"], values={"lock": ""})
    done = smith("play", "start", "--hosts", "tag_copper", "--check")
    assert (done.returncode, "the VM will be started" in done.stdout) == (0, True), done.stdout + done.stderr
    assert pve.guest(locked_in_group["vmid"])["status"] == "stopped"  # type: ignore[index]
    for pattern in ("no_such_group", "-x"):
        done = smith("play", "start", f"--hosts={pattern}")
        assert (done.returncode, f"no VM matches the pattern {pattern}" in done.stderr) == (1, True), done.stderr


def test_a_linked_clone_does_not_need_the_storage_in_the_settings(smith: Cli) -> None:
    """With linked clones, PROXMOX_STORAGE does not limit the nodes on which a template can be cloned."""
    storages_are_known = {}
    for full_clones in ("true", "false"):
        env = {"PROXMOX_STORAGE": "no-such-storage", "PROXMOX_FULL_CLONES": full_clones}
        rows = smith.json("templates", "list", **env)
        vm_templates = [row for row in rows if row["kind"] == "qemu" and row["storages"]]
        storages_are_known[full_clones] = [row["storages_are_known"] for row in vm_templates]
    assert storages_are_known["true"]
    assert not any(storages_are_known["true"])
    assert all(storages_are_known["false"])
