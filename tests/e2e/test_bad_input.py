"""Malformed and unusual jobs from FulcrumCore: each ends with the right error code, and the agent keeps working.

The fixture `outcomes` orders all services while the agent's polls fail, and alters the jobs before it lets the polls
succeed. The tests check how the jobs ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from smith_lab.system import LabSystem, outcome_of, run_lab_system, wait_for

#: All tests share the fixture `outcomes`. Tests of one group run in one process, so the fixture is set up once.
pytestmark = pytest.mark.xdist_group("bad-input")

GOOD = {"cores": 1, "memoryMb": 512, "diskGb": 8, "image": "debian-12"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"
SUCCESS = ""  #: the error code of a job that completes


@dataclass(frozen=True)
class Case:
    """One altered job, and the error code with which it must end (`SUCCESS` if it must complete)."""

    name: str
    code: str
    members: dict[str, Any] = field(default_factory=dict)  #: replaced in the job
    service: dict[str, Any] = field(default_factory=dict)  #: replaced in the job's service


def params(code: str, name: str, **changes: Any) -> Case:
    """Return a case whose job has these params: `GOOD` with the changes. A property with the value `...` is removed."""
    wanted = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return Case(name, code, {"params": wanted})


def nested_objects(levels: int) -> Any:
    """Return objects that are nested in each other, this many levels deep."""
    value: Any = "bottom"
    for _ in range(levels):
        value = {"in": value}
    return value


CASES = [
    Case("action unknown", "UNSUPPORTED_ACTION", {"action": "frobnicate"}),
    Case("action is a path", "UNSUPPORTED_ACTION", {"action": "../../create"}),
    Case("action is a shell line", "UNSUPPORTED_ACTION", {"action": "create;rm"}),
    Case("action empty", "UNSUPPORTED_ACTION", {"action": ""}),
    Case("action null", "UNSUPPORTED_ACTION", {"action": None}),
    Case("action a number", "UNSUPPORTED_ACTION", {"action": 7}),
    Case("action too long", "UNSUPPORTED_ACTION", {"action": "a" * 51}),
    Case("action in capitals", "UNSUPPORTED_ACTION", {"action": "CREATE"}),
    Case("action with a NUL", "UNSUPPORTED_ACTION", {"action": "create\u0000"}),
    Case("service null", "INVALID_REQUEST", {"service": None}),
    Case("service a text", "INVALID_REQUEST", {"service": "web"}),
    Case("service without id", "INVALID_REQUEST", {"service": {"name": "x", "properties": GOOD}}),
    Case("service id no UUID", "INVALID_REQUEST", {"service": {"id": "42", "name": "x", "properties": GOOD}}),
    Case("params a list", "INVALID_REQUEST", {"params": [1, 2]}),
    Case("params a text", "INVALID_REQUEST", {"params": "cores=2"}),
    Case("params empty and no properties", "INVALID_REQUEST", {"params": {}}, {"properties": None}),
    Case("update without params", "INVALID_REQUEST", {"action": "update", "params": None}),
    params("INVALID_REQUEST", "cores missing", cores=...),
    params("INVALID_REQUEST", "cores null", cores=None),
    params("INVALID_REQUEST", "cores a text", cores="2"),
    params("INVALID_REQUEST", "cores true", cores=True),
    params("INVALID_REQUEST", "cores zero", cores=0),
    params("INVALID_REQUEST", "cores negative", cores=-1),
    params("INVALID_REQUEST", "cores 2^63", cores=2**63),
    params("INVALID_REQUEST", "cores a fraction", cores=1.5),
    params("INVALID_REQUEST", "cores infinite", cores=float("inf")),
    params("INVALID_REQUEST", "cores not a number", cores=float("nan")),
    params("INVALID_REQUEST", "cores empty", cores=""),
    params("INVALID_REQUEST", "memory in GiB by mistake", memoryMb=2),
    params("INVALID_REQUEST", "memory in bytes by mistake", memoryMb=2 * 1024**3),
    params("INVALID_REQUEST", "disk below the template's", diskGb=4),
    params("INVALID_REQUEST", "disk a list", diskGb=[8]),
    params("INVALID_REQUEST", "nested hundreds deep", extra=nested_objects(300)),
    params("INVALID_REQUEST", "ten megabytes", extra="x" * 10_000_000),
    params("INVALID_REQUEST", "image missing", image=...),
    params("INVALID_REQUEST", "image a path", image="../../etc/passwd"),
    params("NOT_FOUND", "image unknown", image="windows-3.11"),
    params("INVALID_REQUEST", "hostname with a blank", hostname="my host"),
    params("INVALID_REQUEST", "hostname with a line break", hostname="host\nsmith-uid=1"),
    params("INVALID_REQUEST", "user with Jinja", ciUser="{{ 7*7 }}"),
    params("INVALID_REQUEST", "private key", sshPublicKeys=[PRIVATE_KEY]),
    params("INVALID_REQUEST", "key over two lines", sshPublicKeys=[f"{KEY}\nssh-rsa AAAA"]),
    params("INVALID_REQUEST", "text that is no key", sshPublicKeys=["hello"]),
    params("INVALID_REQUEST", "51 keys", sshPublicKeys=[KEY] * 51),
    params("INVALID_REQUEST", "static without address", network={"mode": "static"}),
    params("INVALID_REQUEST", "mode unknown", network={"mode": "carrier-pigeon"}),
    params("INVALID_REQUEST", "address out of range", network={"mode": "static", "ipv4Cidr": "300.1.1.1/24"}),
    params("INVALID_REQUEST", "network address", network={"mode": "static", "ipv4Cidr": "192.0.2.0/24"}),
    params(
        "INVALID_REQUEST",
        "IPv6 address in the property for IPv4",
        network={"mode": "static", "ipv4Cidr": "2001:db8::1/64"},
    ),
    params(
        "INVALID_REQUEST",
        "gateway outside the network",
        network={"mode": "static", "ipv4Cidr": "192.0.2.5/24", "ipv4Gateway": "198.51.100.1"},
    ),
    params("INVALID_REQUEST", "DNS server a name", network={"mode": "dhcp", "dnsServers": ["dns.example.net"]}),
    params("INVALID_REQUEST", "vlan too high", network={"mode": "dhcp", "vlan": 5000}),
    params("INVALID_REQUEST", "bridge with blanks", network={"mode": "dhcp", "bridge": "vmbr0,firewall=0 x"}),
    params("INVALID_REQUEST", "tag with a semicolon", tags=["a;b"]),
    params("INVALID_REQUEST", "tags a text", tags="gold"),
    params("SECRET_MISSING", "secret not in the vault", ciPassword="vault://0b6f3a52-0000-4000-8000-000000000000"),
    params(SUCCESS, "unknown members", nonsense={"a": [1]}, __proto__="x"),
    params(SUCCESS, "hostname that YAML reads as a boolean", hostname="yes"),
    params(SUCCESS, "key with colon in the comment and CRLF", sshPublicKeys=[f"{KEY} me: at=home #1\r\n"]),
    Case("name Jinja", SUCCESS, {"params": GOOD}, {"name": "{{ lookup('env', 'HOME') }}{% raw %}"}),
    Case("name YAML tags", SUCCESS, {"params": GOOD}, {"name": "!unsafe !vault | &a *a"}),
    Case("name emoji, RTL and dashes", SUCCESS, {"params": GOOD}, {"name": "-\u202e🦄-ünï\ncode-" + "x" * 90}),
    Case(
        "name forges a marker", SUCCESS, {"params": GOOD}, {"name": "x\nsmith-uid=00000000-0000-4000-8000-000000000000"}
    ),
    Case("name null", SUCCESS, {"params": GOOD}, {"name": None}),
    Case("priority absurd", "INVALID_REQUEST", {"params": GOOD, "priority": 10**30}),
    Case("createdAt missing", SUCCESS, {"params": GOOD, "createdAt": None}),
]
#: Entries of the list of pending jobs from which no job can be made.
UNUSABLE = [
    {"action": "create"},
    {"id": "not-a-uuid", "action": "create", "service": {}},
    {"id": 5},
    None,
    "text",
    [],
]


@dataclass
class Outcome:
    """The job of a case after its end, and the VMs of its service in Proxmox."""

    job: dict[str, Any]
    vms: list[dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    with run_lab_system(tmp_path_factory.mktemp("bad-input")) as lab:
        lab.core.add_fault("status", method="GET", path=".*/jobs/pending$", times=100_000, status=503)
        lab.start_executor()
        services = {case.name: lab.order_service(f"case-{number}", **GOOD) for number, case in enumerate(CASES)}
        for case in CASES:
            override_pending_job(lab, case, services[case.name])
        foreign_service_id = lab.order_service("foreign", **GOOD)
        lab.core.override_job(lab.last_job(foreign_service_id)["id"], agentId="00000000-0000-4000-8000-000000000000")
        lab.core.add_raw_pending_items(*UNUSABLE)
        lab.core.clear_faults()
        wait_for(lambda: all_ended(lab, services.values()), 280, "every case to end")
        lab.core.delete_raw_pending_items()
        outcomes_by_name = {
            name: Outcome(lab.last_job(service_id), lab.guests_of(service_id)) for name, service_id in services.items()
        }
        outcomes_by_name["a job of another agent"] = Outcome(
            lab.last_job(foreign_service_id), lab.guests_of(foreign_service_id)
        )
        later_service_id = lab.order_service("afterwards", **GOOD)
        lab.wait_for_jobs(later_service_id)
        outcomes_by_name["an ordinary job afterwards"] = Outcome(
            lab.last_job(later_service_id), lab.guests_of(later_service_id)
        )
        code = lab.stop_executor()
        assert code == 0
        log = lab.log_file.read_text()
        assert "Traceback" not in log
        assert "critical_job_crashed" not in log
        assert lab.log_events("agent_ready")[1:] == []
        yield outcomes_by_name


def override_pending_job(lab: LabSystem, case: Case, service_id: str) -> None:
    """Let FulcrumCore's list of pending jobs show the service's job as the case alters it."""
    job = lab.last_job(service_id)
    members = dict(case.members)
    if case.service:
        members["service"] = {**job_service(lab, job["id"]), **case.service}
    lab.core.override_job(job["id"], **members)


def job_service(lab: LabSystem, job_id: str) -> dict[str, Any]:
    """Return the service as FulcrumCore's list of pending jobs embeds it."""
    service = lab.admin.get_service(lab.admin.call("GET", f"/jobs/{job_id}")["serviceId"])
    return {key: value for key, value in service.items() if key not in ("agent", "serviceType")}


def all_ended(lab: LabSystem, services: Any) -> bool:
    jobs = {job["serviceId"]: job["status"] for job in lab.admin.list_all("jobs")}
    return all(jobs[service_id] in ("Completed", "Failed") for service_id in services)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_altered_job_ends_as_expected_and_a_failed_one_creates_no_vm(
    case: Case, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[case.name]
    message = outcome.job.get("errorMessage", "")

    assert message.partition(":")[0] == case.code, message
    assert outcome.job["status"] == ("Failed" if case.code else "Completed")
    assert len(outcome.vms) == (0 if case.code else 1)
    assert "Traceback" not in message
    assert len(message) < 1000


def test_a_job_of_another_agent_is_not_claimed(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["a job of another agent"].job["status"] == "Pending"
    assert outcomes["a job of another agent"].vms == []


def test_the_agent_still_processes_jobs_after_malformed_ones(outcomes: dict[str, Outcome]) -> None:
    assert outcome_of(outcomes["an ordinary job afterwards"].job) == "Completed"
    assert len(outcomes["an ordinary job afterwards"].vms) == 1


def test_a_service_name_is_stored_as_plain_text_in_the_vm(outcomes: dict[str, Outcome]) -> None:
    (vm,) = outcomes["name Jinja"].vms
    assert "{{ lookup('env', 'HOME') }}{% raw %}" in vm["config"]["description"]
    (vm,) = outcomes["name forges a marker"].vms
    lines = vm["config"]["description"].splitlines()
    assert len([line for line in lines if line.startswith("smith-uid=")]) == 1
