"""Twelve kinds of secret are in use while a system works; afterwards none is where it must not be (promise R12).

One lab, three starts of the executor: with secrets from files and SQLite (create, update, a failing create, a leaking
action, an agent killed during a run), with a configuration from FulcrumCore and PostgreSQL, and with an unreachable
database and proxy. The scan covers every file that the executor wrote, the bytes of database and write-ahead log, logs,
arguments and environments of its processes, HTTP responses, command output, and the jobs at FulcrumCore. The operator
sets the supervisor's environment, so the secrets are given as files.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from canaries import Canary, Hit, ProcessWatch, Scanner, files_below, make_core
from smith_lab.fulcrum_setup import VM_SERVICE_TYPE_FILE, read_type_file
from smith_lab.system import LabSystem, run_lab_system, wait_for
from support import fork_server

from executor.model import PlaybookRun
from executor.redaction import MASK, Redactor
from executor.runs.actions import collection_folder
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths

#: All tests share one fixture: in one group it runs once.
pytestmark = [pytest.mark.xdist_group("canary"), pytest.mark.timeout(1200)]

LEAK = Path(__file__).parent / "leak.yml"
#: How long the jobs of a service may take.
PATIENCE_S = 280.0
#: Services that run the leaking action, and the error message that FulcrumCore gets.
LEAKING_SERVICES = ("nasty", "base64", "lines", "long")
LEAK_ERROR = f"TASK_FAILED: it was {MASK}"


def passwords() -> dict[str, Canary]:
    """Return passwords of VMs by the name of their service."""
    a, b, c, d, e, f, g = (make_core() for _ in range(7))
    lines = [make_core() for _ in range(12)]
    shared = f"Prefix-{d}"
    return {
        "plain": Canary("vault, on create", f"pass {a} word", (a,)),
        "nasty": Canary("quotes, newlines, unicode, $, {{", f"\"q' \\{b}\n{{{{ 7*7 }}}} $HOME ü☃ {b}%&<", (b,)),
        "base64": Canary("base64 alphabet", f"{c}+/+/aB3/{c}==", (c,)),
        "lines": Canary(
            "long, several lines",
            "-----BEGIN X-----\n" + "\n".join(f"{line}+{line}" for line in lines) + "\n-----END X-----",
            tuple(lines),
        ),
        "short": Canary("prefix of another", shared, (d,)),
        "long": Canary("has another as prefix", f"{shared}-and-more-{e}", (e,)),
        "update": Canary("vault, on update", f"changed '{f}'", (f,)),
        "crash": Canary("held by a run that is killed", f"{g}!{g}", (g,)),
    }


@dataclass
class Evidence:
    """What the three starts of the executor left behind, and what was observed while it ran."""

    canaries: list[Canary]
    lab: LabSystem
    folders: list[Path]
    hits_in_processes: set[Hit] = field(default_factory=set)
    processes: dict[int, str] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)  #: pages and output of commands
    hits_while_running: set[Hit] = field(
        default_factory=set
    )  #: in data and log, with the write-ahead log not yet merged
    hits_in_killed_run: set[Hit] = field(default_factory=set)  #: in run folders, right after the agent was killed
    jobs_at_fulcrumcore: str = ""  #: all jobs, as FulcrumCore returns them
    outcomes: dict[str, str] = field(
        default_factory=dict
    )  #: by service, the error or the status of its last job at FulcrumCore
    passwords_at_proxmox: dict[str, str] = field(
        default_factory=dict
    )  #: by service, the password in the VM's configuration

    @property
    def scanner(self) -> Scanner:
        return Scanner(self.canaries)

    @contextmanager
    def watch_processes(self) -> Iterator[None]:
        """Scan the executor's processes while the block runs."""
        watch = ProcessWatch(self.lab.executor.pid, self.scanner)
        try:
            yield
        finally:
            watch.close()
            self.hits_in_processes |= watch.hits
            self.processes |= watch.command_lines

    def run_command(self, *arguments: str) -> None:
        """Run a `smith` command and store its output."""
        done = fork_server.run(arguments, env=self.lab.environment(), cwd=self.lab.folder, timeout=120)
        name = f"smith {' '.join(arguments)} ({len(self.outputs)})"
        self.outputs[name] = (done.stdout + done.stderr).encode()

    def fetch_pages(self, token: str) -> None:
        """Fetch the pages with and without the token."""
        port = self.lab.log_events("http_served")[-1]["port"]
        for path in ("/", "/livez", "/readyz", "/metrics", "/jobs"):
            for headers in ({}, {"Authorization": f"Bearer {token}"}):
                request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  (the test's own address)
                        output = str(answer.headers).encode() + answer.read()
                except urllib.error.HTTPError as error:
                    output = str(error.headers).encode() + error.read()
                self.outputs[f"GET {path} {'with' if headers else 'without'} token ({len(self.outputs)})"] = output


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    folder = tmp_path_factory.mktemp("canary")
    with ExitStack() as stack:
        lab = stack.enter_context(run_lab_system(folder))
        evidence = _prepare(lab)
        vm_passwords = passwords()
        evidence.canaries += vm_passwords.values()
        _first_start(evidence, vm_passwords)
        url = stack.enter_context(_database_with_password(evidence))
        _second_start(evidence, url)
        _third_start(evidence)
        yield evidence


def _prepare(lab: LabSystem) -> Evidence:
    """Set every secret as a file, except the proxy's password, which only the environment can hold."""
    secrets_folder = lab.folder / "secrets"
    secrets_folder.mkdir(mode=0o700)
    http_token, proxy = make_core(), make_core()
    secrets_in_files = {
        "fulcrum_api_token": lab.ids.agent_token,
        "proxmox_token_secret": lab.proxmox.token_secret,
        "smith_http_token": http_token,
    }
    for name, value in secrets_in_files.items():
        (secrets_folder / name).write_text(f"{value}\n")
        (secrets_folder / name).chmod(0o600)
    actions = lab.folder / "actions"
    actions.mkdir(mode=0o755)
    (actions / "leak.yml").write_text(LEAK.read_text())
    (actions / "leak.yml").chmod(0o644)
    private = {name: lab.folder / name for name in ("home", "tmp")}
    for place in private.values():
        place.mkdir(mode=0o700)
    lab.settings |= {
        "FULCRUM_API_TOKEN": "",
        "PROXMOX_TOKEN_SECRET": "",
        "SMITH_SECRETS_DIR": str(secrets_folder),
        "SMITH_ACTIONS_PATH": str(actions),
        "SMITH_CONCURRENCY": "3",
        "SMITH_LOG_LEVEL": "debug",
        "HOME": str(private["home"]),
        "TMPDIR": str(private["tmp"]),
        "HTTPS_PROXY": f"http://user:{proxy}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    _offer_leaking_action(lab)
    canaries = [
        Canary("FulcrumCore's token", secrets_in_files["fulcrum_api_token"], (secrets_in_files["fulcrum_api_token"],)),
        Canary(
            "Proxmox's token", secrets_in_files["proxmox_token_secret"], (secrets_in_files["proxmox_token_secret"],)
        ),
        Canary("HTTP token", http_token, (http_token,)),
        Canary("proxy password", proxy, (proxy,)),
    ]
    return Evidence(canaries, lab, [lab.data_dir, lab.folder / "run", lab.log_file, *private.values()])


def _offer_leaking_action(lab: LabSystem) -> None:
    """Offer a service type with the leaking action and with passwords stored in the vault."""
    service_type = copy.deepcopy(read_type_file(VM_SERVICE_TYPE_FILE))
    service_type["name"] = "proxmox-vm-that-leaks"
    password = service_type["propertySchema"]["properties"]["ciPassword"]
    password["secret"] = {"type": "persistent"}
    del password["validators"]
    transitions = [{"from": state, "to": state} for state in ("Stopped", "Started")]
    service_type["lifecycleSchema"]["actions"].append({"name": "leak", "transitions": transitions})
    created = lab.admin.create("service-types", **service_type)
    agent_type = lab.admin.call("GET", f"/agent-types/{lab.ids.agent_type_id}")
    ids = [*(item["id"] for item in agent_type.get("serviceTypes", [])), created["id"]]
    lab.admin.call("PATCH", f"/agent-types/{lab.ids.agent_type_id}", {"serviceTypeIds": ids})
    lab.ids = replace(lab.ids, service_type_id=created["id"])


def _first_start(evidence: Evidence, vm_passwords: dict[str, Canary]) -> None:
    lab = evidence.lab
    lab.start_executor()
    with evidence.watch_processes():
        services = {
            name: lab.order_service(
                name, ciUser="ops", ciPassword=vm_passwords[name].value, cores=1, memoryMb=512, diskGb=8
            )
            for name in ("nasty", "base64", "lines", "short", "long")
        }
        services["update"] = lab.order_service("update", cores=1, memoryMb=512, diskGb=8)
        for service in services.values():
            lab.wait_for_jobs(service, PATIENCE_S)
        lab.admin.patch_service(services["update"], {"ciPassword": vm_passwords["update"].value})
        for name in LEAKING_SERVICES:
            lab.admin.request_action(services[name], "leak")
        for service in services.values():
            lab.wait_for_jobs(service, PATIENCE_S)
        _fail_a_create(evidence, vm_passwords["plain"])
        _kill_the_agent(evidence, vm_passwords["crash"])
        evidence.hits_while_running = evidence.scanner.find_in_files_below(*evidence.folders)
        evidence.fetch_pages(evidence.canaries[2].value)
        _run_commands(evidence, services)
    evidence.outcomes |= {name: _outcome(lab, services[name]) for name in (*LEAKING_SERVICES, "update")}
    evidence.passwords_at_proxmox = {
        name: str(vm["config"].get("cipassword", "")) for name in services for vm in lab.guests_of(services[name])
    }
    lab.stop_executor()
    evidence.jobs_at_fulcrumcore = json.dumps(lab.admin.list_all("jobs"))


def _fail_a_create(evidence: Evidence, password: Canary) -> None:
    """Fail a create with a Proxmox error that repeats the password."""
    for method in ("PUT", "POST"):
        text = f"Parameter verification failed. cipassword: {password.value}"
        evidence.lab.proxmox.fail(method, "/nodes/*/qemu/*/config", status=400, text=text)
    service = evidence.lab.order_service(
        "refused", ciUser="ops", ciPassword=password.value, cores=1, memoryMb=512, diskGb=8
    )
    evidence.lab.wait_for_jobs(service, PATIENCE_S)
    evidence.lab.proxmox.control("clear_faults")
    evidence.outcomes["refused"] = _outcome(evidence.lab, service)


def _kill_the_agent(evidence: Evidence, password: Canary) -> None:
    lab = evidence.lab
    lab.proxmox.control("time_scale", scale=1.0)
    lab.proxmox.reset_request_log()
    service = lab.order_service("crash", ciUser="ops", ciPassword=password.value, cores=1, memoryMb=512, diskGb=8)
    wait_for(lambda: any(call["path"].endswith("/clone") for call in lab.proxmox.changing_requests()), 120, "a clone")
    agent = wait_for(lambda: _find_agent_below(lab.executor.pid), 20, "the agent")
    os.kill(agent, signal.SIGKILL)
    evidence.hits_in_killed_run = evidence.scanner.find_in_files_below(lab.folder / "run")
    lab.proxmox.control("time_scale", scale=0.0)
    lab.wait_for_jobs(service, PATIENCE_S)
    evidence.outcomes["crash"] = _outcome(lab, service)


def _outcome(lab: LabSystem, service: str) -> str:
    job = lab.last_job(service)
    return str(job.get("errorMessage") or job["status"])


def _find_agent_below(pid: int) -> int | None:
    return next((child.pid for child in psutil.Process(pid).children() if "agent-process" in child.cmdline()), None)


def _run_commands(evidence: Evidence, services: dict[str, str]) -> None:
    """Run every command that shows something of these jobs."""
    for arguments in (("config", "show"), ("config", "show", "--json"), ("status",), ("doctor",), ("audit", "list")):
        evidence.run_command(*arguments)
    rows = [
        row
        for row in evidence.lab.run_smith_json("jobs", "list")
        if row["action"] == "leak" or row["status"] == "failed"
    ]
    for row in rows:
        evidence.run_command("jobs", "show", row["fulcrum_id"], "--json")
        evidence.run_command("jobs", "log", row["fulcrum_id"])
    evidence.run_command("jobs", "show", rows[0]["fulcrum_id"])
    evidence.run_command("jobs", "log", rows[0]["fulcrum_id"], "--events", "--json")
    for row in evidence.lab.run_smith_json("runs", "list")[:3]:
        evidence.run_command("runs", "show", row["ident"], "--lines", "1000")
    evidence.run_command("mappings", "show", services["nasty"])


@contextmanager
def _database_with_password(evidence: Evidence) -> Iterator[str]:
    """Yield the address of an empty PostgreSQL database, '' where there is none; its password is one more canary."""
    from support.databases import postgres_binaries, postgres_cluster  # noqa: PLC0415  (psycopg is an extra)

    secret = make_core()
    evidence.canaries.append(Canary("database password", secret, (secret,)))
    if (binaries := postgres_binaries()) is None:
        yield ""
        return
    with postgres_cluster(binaries) as cluster:
        cluster.execute("CREATE DATABASE canary")
        yield f"postgresql+psycopg://smith:{secret}@/canary?host={cluster.folder}"


def _second_start(evidence: Evidence, url: str) -> None:
    """Start again with a new Proxmox token from FulcrumCore's configuration."""
    lab, secret = evidence.lab, make_core()
    evidence.canaries.append(Canary("token from FulcrumCore's configuration", secret, (secret,)))
    lab.proxmox.control("token_secret", secret=secret)
    configuration = {
        "apiHost": lab.proxmox.host,
        "apiPort": lab.proxmox.port,
        "apiUser": lab.proxmox.user,
        "apiTokenId": lab.proxmox.token_id,
        "apiTokenSecret": secret,
        "caBundle": lab.proxmox.ca_bundle.read_text(),
        "nodes": ["pve1"],
    }
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"configuration": configuration})
    (lab.folder / "secrets" / "proxmox_token_secret").unlink()
    if url:
        (lab.folder / "secrets" / "smith_database_url").write_text(url)
    lab.settings |= {"SMITH_REMOTE_CONFIG": "true"}
    before = len(lab.log_events("agent_ready"))
    lab.start_executor()
    with evidence.watch_processes():
        wait_for(lambda: len(lab.log_events("agent_ready")) > before, 120, "the second start")
        service = lab.order_service("remote", cores=1, memoryMb=512, diskGb=8)
        lab.wait_for_jobs(service, PATIENCE_S)
        evidence.outcomes["remote"] = _outcome(lab, service)
        evidence.fetch_pages(evidence.canaries[2].value)
        for arguments in (("config", "show", "--json"), ("doctor",), ("jobs", "list", "--json")):
            evidence.run_command(*arguments)
    lab.stop_executor()


def _third_start(evidence: Evidence) -> None:
    """Run commands with an unreachable database and proxy."""
    lab = evidence.lab
    secret = evidence.canaries[-2].value
    (lab.folder / "secrets" / "smith_database_url").write_text(f"postgresql+psycopg://smith:{secret}@127.0.0.1:9/none")
    lab.settings |= {"SMITH_REMOTE_CONFIG": "false", "PROXMOX_TOKEN_SECRET_FILE": ""}
    (lab.folder / "secrets" / "proxmox_token_secret").write_text(evidence.canaries[1].value)
    evidence.run_command("jobs", "list")
    evidence.run_command("db", "check")
    evidence.run_command("run", "--no-supervisor", "--once")
    proxy = lab.settings["HTTPS_PROXY"]
    lab.settings |= {"NO_PROXY": "", "HTTP_PROXY": proxy, "FULCRUM_API_URL": "https://core.example.invalid"}
    evidence.run_command("doctor")


# ---------------------------------------------------------------------------------------------------------------


def test_every_kind_of_secret_was_in_use(evidence: Evidence) -> None:
    """Without this, the other tests would pass even if no secret was in use."""
    kinds = {canary.kind for canary in evidence.canaries}
    assert len(kinds) >= 12, sorted(kinds)
    for name in ("nasty", "base64", "lines", "short", "long", "update"):
        assert evidence.passwords_at_proxmox[name], f"no password reached the VM {name}"
    outcomes = evidence.outcomes
    assert [outcomes[name] for name in ("update", "crash", "remote")] == ["Completed"] * 3
    assert {outcomes[name][: len(LEAK_ERROR)] for name in LEAKING_SERVICES} == {LEAK_ERROR}
    assert MASK in outcomes["refused"]
    assert len(evidence.processes) > 20, "too few processes were seen"
    assert any("ansible-playbook" in command or "playbook" in command for command in evidence.processes.values())
    assert any(file.name.endswith(".db") for file in files_below(evidence.lab.data_dir))
    assert any(file.name == "events.jsonl" for file in files_below(evidence.lab.data_dir))


def test_no_secret_is_in_any_file_that_the_executor_wrote(evidence: Evidence) -> None:
    assert evidence.hits_while_running == set()
    assert evidence.scanner.find_in_files_below(*evidence.folders) == set()


def test_no_secret_is_in_arguments_or_environments_of_the_executors_processes(evidence: Evidence) -> None:
    """Except the proxy's password: a program gets its proxy from the environment only."""
    assert {
        hit for hit in evidence.hits_in_processes if hit.kind != "proxy password" or "cmdline" in hit.where
    } == set()


def test_no_secret_is_in_http_responses_or_command_output(evidence: Evidence) -> None:
    hits = {hit for where, output in evidence.outputs.items() for hit in evidence.scanner.find_in(output, where)}
    assert hits == set()
    assert all(evidence.outputs.values()), [where for where, output in evidence.outputs.items() if not output]


def test_no_secret_is_in_the_jobs_at_fulcrumcore(evidence: Evidence) -> None:
    assert evidence.scanner.find_in(evidence.jobs_at_fulcrumcore, "jobs at FulcrumCore") == set()


def test_a_killed_run_leaves_secrets_in_its_private_folder_and_the_sweep_removes_them(evidence: Evidence) -> None:
    """The scan finds the secrets before the sweep: without the sweep, the scan of all files would fail."""
    assert {hit.kind for hit in evidence.hits_in_killed_run} >= {"held by a run that is killed", "Proxmox's token"}
    remaining = [file for file in files_below(evidence.lab.folder / "run") if ".warm" not in file.parts]
    assert [file.name for file in remaining] == [RUN_UNTIL_FILE]


class _NullRedactor(Redactor):
    """A redactor that masks no secret."""

    def add(self, *secrets: str) -> None:
        """Ignore the secrets."""


@pytest.mark.parametrize("is_redacting", [True, False], ids=["with", "without"])
def test_the_artifacts_of_a_leaking_run_contain_secrets_only_without_the_redactor(
    tmp_path: Path, is_redacting: bool
) -> None:
    vm_passwords, token = passwords(), make_core()
    redactor = Redactor() if is_redacting else _NullRedactor()
    paths = RunnerPaths(
        collection_folder=collection_folder(), run_dir=tmp_path / "run", artifacts_dir=tmp_path / "artifacts"
    )
    runner = Runner(paths, lambda: {"api_host": "pve.example", "api_token_secret": token}, redactor=redactor)
    password = "\n".join(canary.value for canary in vm_passwords.values())
    scanner = Scanner([*vm_passwords.values(), Canary("token", token, (token,))])
    run = PlaybookRun(
        ident="leak-1",
        action="leak",
        playbook=LEAK,
        vm={"properties": {"ciPassword": password}, "each": [canary.value for canary in vm_passwords.values()]},
        timeout_s=240,
        secrets=(password, *(canary.value for canary in vm_passwords.values())),
    )

    artifacts = runner.run(run)

    assert (artifacts.folder / "events.jsonl").stat().st_size > 1000
    kinds = {hit.kind for hit in scanner.find_in_files_below(tmp_path)}
    assert kinds == (set() if is_redacting else {*(canary.kind for canary in vm_passwords.values()), "token"})
