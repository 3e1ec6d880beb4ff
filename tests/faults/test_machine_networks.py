"""Several machines in network namespaces: a short trial, the effect of a cut, and the removal of killed trials."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import many_machines
from faults.many_machines import network
from faults.many_machines.__main__ import CANNOT_RUN
from faults.many_machines.troubles import INJECTED_FIRST
from smith_lab.system import wait_for

TESTS = Path(many_machines.__file__).parents[2]
SEED = "4711"
ENTER = "import sys\nfrom faults.many_machines import network\nreason = network.enter()\n"


@pytest.fixture(scope="module", autouse=True)
def skip_without_networks() -> None:
    """Skip these tests where no network can be made. The summary of the tests has the reason."""
    reason = run_python(ENTER + "print(reason)").stdout.strip()
    if reason:
        pytest.skip(f"NOT TESTED: several machines: {reason}")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True, timeout=200)


@pytest.mark.timeout(900)
def test_machines_that_are_killed_suspended_and_cut_off_violate_no_promise(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Each fault of `INJECTED_FIRST` once. Only the long run, `make many-machines`, limits the time of takeovers."""
    record = tmp_path / "record.json"
    options = ["--jobs", "12", "--faults", "5", "--lease", "6", "--time-scale", "0.2", "--seed", SEED]
    ended = subprocess.run(
        [sys.executable, "-m", "faults.many_machines", *options, "--record", str(record)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode != CANNOT_RUN, output
    assert record.exists(), output
    report = json.loads(record.read_text())
    assert report["violations"] == [], output
    assert sum(report["jobs"].values()) >= 12
    assert report["jobs"]["Completed"] >= 6
    assert report["faults"] == dict.fromkeys(INJECTED_FIRST, 1)
    assert record.with_suffix(".jsonl").exists()
    figure(f"three machines: {sum(report['jobs'].values())} creates, {report['violation_counts']}")


TRIAL_SCRIPT = """
import subprocess
with network.networks(1) as (machine,):
    process = subprocess.Popen([*machine.launcher, "sleep", "600"])
    print(machine.name, process.pid, flush=True)
    sys.stdin.read()
"""


def start_and_send_signal(signum: signal.Signals) -> tuple[str, int]:
    """Send a signal to a process that has made a network; return the network's name and the pid of a process in it."""
    with subprocess.Popen(
        [sys.executable, "-c", ENTER + TRIAL_SCRIPT],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        name, pid = process.stdout.readline().split()
        assert name in network.namespaces()
        process.send_signal(signum)
        process.wait(60)
    return name, int(pid)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_an_interrupted_trial_leaves_no_network_and_no_process() -> None:
    name, pid = start_and_send_signal(signal.SIGINT)
    assert name not in network.namespaces()
    assert not is_running(pid)


def test_the_networks_of_a_killed_trial_are_removed_by_the_next_one() -> None:
    name, pid = start_and_send_signal(signal.SIGKILL)
    assert name in network.namespaces()
    assert is_running(pid)
    network.remove_leftovers()
    assert name not in network.namespaces()
    wait_for(lambda: not is_running(pid), 20, "the process to end")


SERVER_SCRIPT = """
import subprocess, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from executor.runs.run_until_file import RunUntilFile
from executor.shared.run_until import NO_LIMIT, boottime_s

folder, client, got = Path(sys.argv[1]), sys.argv[2], []

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        got.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_):
        pass

def wait_until(check):
    limit = time.monotonic() + 60
    while not check():
        if time.monotonic() > limit:
            sys.exit(f"waited in vain; received: {got}")
        time.sleep(0.05)

server = ThreadingHTTPServer((network.SERVERS["Proxmox"], 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with network.networks(2) as machines:
    until = [RunUntilFile(folder / machine.name) for machine in machines]
    clients = []
    for machine, file in zip(machines, until):
        file.set_deadline(NO_LIMIT)
        command = [*machine.launcher, sys.executable, "-c", client, str(server.server_port), str(file.path)]
        clients.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    wait_until(lambda: sorted(got) == ["1 first", "2 first"])
    for machine in machines:
        machine.cut("Proxmox")
    until[0].set_deadline(boottime_s() + 2)
    for process in clients:
        process.communicate(b"\\n")
    time.sleep(2)
    for machine in machines:
        machine.restore()
    wait_until(lambda: "2 second" in got)
    time.sleep(5)
print(sorted(got))
"""
CLIENT_SCRIPT = """
import os, sys
os.environ["SMITH_RUN_UNTIL_FILE"] = sys.argv[2]
import requests
from executor.shared.bounded_http import BoundedAdapter
from faults.many_machines.network import SERVERS
session, number = requests.Session(), sys.argv[2][-1]
session.mount("http://", BoundedAdapter())
url = f"http://{SERVERS['Proxmox']}:{sys.argv[1]}/"
session.post(url, data=f"{number} first", timeout=20)
sys.stdin.readline()
try:
    session.post(url, data=f"{number} second", timeout=1)
except requests.RequestException:
    sys.exit(1)
"""


@pytest.mark.timeout(200)
def test_a_request_of_a_cut_off_machine_does_not_arrive_after_its_run_must_have_ended(tmp_path: Path) -> None:
    """After a cut, the kernel sends a request again, even if the process has ended, but not after the run's deadline.

    During the cut, the deadline of the run on the first machine passes; the run on the second machine has none.
    """
    received = run_python(ENTER + SERVER_SCRIPT, str(tmp_path), CLIENT_SCRIPT).stdout.strip()
    assert received == "['1 first', '2 first', '2 second']"


COUNT_SESSIONS_SCRIPT = """
import subprocess, time
from support.databases import postgres_binaries, postgres_cluster

def sessions():
    query = "SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        return connection.execute(text(query)).scalar()

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
address = network.SERVERS["database"]
with network.networks(1) as (machine,), postgres_cluster(postgres_binaries(), address=address) as cluster:
    engine = create_engine(cluster.url("postgres"), poolclass=NullPool)
    command = [*machine.launcher, sys.executable, "-c", sys.argv[1], cluster.url("postgres")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        print(sessions())
        machine.power_off()
    limit = time.monotonic() + 120
    while sessions() and time.monotonic() < limit:
        time.sleep(1)
    print(sessions())
"""
OPEN_SESSION_SCRIPT = """
import sys, time
from executor.database.engine import open_engine
connection = open_engine(sys.argv[1]).connect()
print("connected", flush=True)
time.sleep(600)
"""


@pytest.mark.timeout(300)
def test_postgresql_ends_the_session_of_a_machine_that_has_disappeared() -> None:
    """With its own settings, PostgreSQL would keep the session for two hours."""
    assert run_python(ENTER + COUNT_SESSIONS_SCRIPT, OPEN_SESSION_SCRIPT).stdout.split() == ["1", "0"]
