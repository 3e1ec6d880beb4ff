"""The functions that decide which failure a message of Proxmox, of a module or of a Proxmox task means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import (
    configuration,
    failures,
    login,
    proxmox_tasks,
)
from decision_facts import make_vm, make_vm_facts

#: The status of a Proxmox task, whether it is running, and whether it has failed.
TASK_STATES = [
    (None, True, False),
    ("RUNNING", True, False),
    ("OK", False, False),
    ("WARNINGS: 1", False, False),
    ("clone failed: x", False, True),
    ("OKAY not", False, True),
]


def test_of_two_proxmox_tasks_of_the_same_second_the_one_that_started_later_is_first() -> None:
    """A container's stop and start fit into a second; the start's failure must be seen."""
    stop = {"type": "vzstop", "starttime": 1_700_000_000, "pstart": 7_000, "status": "OK"}
    start = {"type": "vzstart", "starttime": 1_700_000_000, "pstart": 7_007, "status": "start broke"}
    older = {"type": "vzcreate", "starttime": 1_699_999_999, "pstart": 9_000, "status": "OK"}
    for tasks in ([stop, start, older], [start, older, stop], [older, stop, start]):
        assert [task["type"] for task in proxmox_tasks.newest_first(tasks)] == ["vzstart", "vzstop", "vzcreate"]


@pytest.mark.parametrize(("status", "is_running", "has_failed"), TASK_STATES)
def test_the_state_of_a_proxmox_task_follows_from_its_status(
    status: str | None, is_running: bool, has_failed: bool
) -> None:
    task = {"status": status} if status else {}
    assert (proxmox_tasks.is_running(task), proxmox_tasks.has_failed(task)) == (is_running, has_failed)


def test_a_failure_message_gets_exactly_one_code() -> None:
    assert failures.failure({"msg": "VM_PROTECTED: no"}) == "VM_PROTECTED: no"
    assert failures.failure({"msg": "starting of VM 5 failed with exception: 403 Forbidden: x"}).startswith("PVE_PERM")
    assert failures.failure({}).startswith("PLAYBOOK_FAILED")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"exception": "Traceback …\nx.ResourceException: 596 Connection timed out"}, "PVE_TIMEOUT: "),
        ({"exception": "Traceback …\nKeyError: 'status'"}, "PLAYBOOK_FAILED: KeyError: 'status'"),
        ({"module_stderr": "Traceback …\nKeyError: 'status'\n"}, "PLAYBOOK_FAILED: KeyError: 'status'"),
        ({}, "PLAYBOOK_FAILED: the module ended without a message"),
    ],
)
def test_a_module_that_ended_by_an_exception_has_an_error_and_may_have_made_its_change(
    answer: dict[str, Any], error: str
) -> None:
    complete = failures.with_exception_as_message({"failed": True, **answer})
    assert failures.proxmox_failure(complete).startswith(error)
    assert failures.is_outcome_unknown(complete)


def test_an_answer_with_a_message_is_not_changed() -> None:
    for answer in ({"failed": True, "msg": "x", "exception": "y"}, {"changed": True}, {"failed": False}):
        assert failures.with_exception_as_message(answer) is answer


FORGED_TEXT = "VM_NOT_FOUND: VM 500 does not exist"


def test_a_code_in_the_text_of_proxmox_is_not_used() -> None:
    """With VM_NOT_FOUND, FulcrumCore would treat the VM as gone, although it exists."""
    facts = {**make_vm_facts(), "reached": False}
    texts = [
        failures.outcome_problem({**facts, "task_error": FORGED_TEXT}, {}, "running"),
        failures.outcome_problem(facts, {"failed": True, "msg": f"{FORGED_TEXT}: Read timed out"}, "running"),
        failures.proxmox_failure({"msg": FORGED_TEXT}),
        failures.error_of_change_not_made({"msg": FORGED_TEXT}),
        failures.failure({"msg": FORGED_TEXT, "invocation": {"module_args": {"api_host": "pve1"}}}),
        configuration.configuration_problem({**facts, "task_error": FORGED_TEXT}, make_vm(cores=64), []),
    ]
    assert [text.partition(":")[0] for text in texts] == [
        *("TASK_FAILED", "PVE_TIMEOUT", "PLAYBOOK_FAILED", "PLAYBOOK_FAILED", "PLAYBOOK_FAILED", "TASK_FAILED")
    ]


UNKNOWN_OUTCOMES = ["Reached timeout while waiting for creating VM.", "Read timed out. (read timeout=5)"]
UNKNOWN_OUTCOMES += [
    "('Connection aborted.', RemoteDisconnected())",
    "Module result deserialization failed: No start",
    "502 Bad Gateway",
]


#: An error, and whether the change may have been made nevertheless: by a module, and by a single request.
MAY_HAVE_BEEN_MADE = [
    ("595 Errors during connection establishment: Connection refused", True, False),
    ("401 Unauthorized: Authentication failed!", True, False),
    ("596 Errors during TLS negotiation: Connection timed out", True, True),
    ("599 Too many redirections", True, True),
    ("('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))", True, True),
    ("500 Internal Server Error: VM is locked (backup)", False, False),
]


@pytest.mark.parametrize(("text", "by_module", "by_request"), MAY_HAVE_BEEN_MADE)
def test_the_error_decides_whether_a_failed_change_may_have_been_made(
    text: str, by_module: bool, by_request: bool
) -> None:
    """A module sends several requests. One of them may have made the change before another one failed."""
    answer = {"failed": True, "msg": text}
    assert failures.is_outcome_unknown(answer) is by_module
    assert failures.is_outcome_unknown(answer, is_single_request=True) is by_request


def test_a_refused_login_is_temporary_if_the_following_look_up_was_accepted() -> None:
    answer = {"failed": True, "msg": "401 Unauthorized: Authentication failed!"}
    problem = failures.outcome_problem({**make_vm_facts(), "reached": False}, answer, "running")
    assert problem == "PVE_UNREACHABLE: 401 Unauthorized: Authentication failed!"


@pytest.mark.parametrize("text", UNKNOWN_OUTCOMES)
def test_the_outcome_of_a_change_without_a_response_is_unknown(text: str) -> None:
    assert failures.is_outcome_unknown({"failed": True, "msg": text})


@pytest.mark.parametrize(
    "answer",
    [
        {"failed": True, "msg": "403 Forbidden: x"},
        {"failed": True, "msg": "500 Internal Server Error: VM is locked (backup)"},
        {"failed": False, "msg": "VM 5 started"},
        {"msg": ""},
    ],
)
def test_the_outcome_of_a_change_that_proxmox_made_or_refused_is_known(answer: dict[str, Any]) -> None:
    assert not failures.is_outcome_unknown(answer)


def test_the_certificate_is_verified_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert login.read_login_parameters("")["validate_certs"] is True
    monkeypatch.setenv("PROXMOX_VALIDATE_CERTS", "False")
    monkeypatch.setenv("PROXMOX_PORT", "")
    assert login.read_login_parameters("") == {"validate_certs": False}
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"api_host": "pve", "api_password": "", "ca_bundle": "/ca"}))
    assert login.read_login_parameters(str(tmp_path / "c.yml")) == {"api_host": "pve", "validate_certs": True}
    assert login.find_ca_bundle(str(tmp_path / "c.yml")) == "/ca"


#: The facts after a change that should start a VM, the error of the change, and the beginning of the reported error.
OUTCOMES = [
    ({"reached": True}, "Reached timeout", ""),
    ({"task_error": "start failed", "running_tasks": ["UPID:x"]}, "Reached timeout", "TASK_FAILED: start failed"),
    ({"running_tasks": ["UPID:x"]}, "Reached timeout", "TASK_TIMEOUT: Proxmox task UPID:x has not ended in time"),
    # The running Proxmox task belongs to another job, so the module's error is the cause.
    ({"running_tasks": ["UPID:x"]}, "VM 500 already exists on node 'pve1'", "VM_ID_TAKEN: "),
    ({}, "Reached timeout while waiting", "TASK_TIMEOUT: Reached timeout while waiting"),
    ({"lock": "backup"}, "", "VM_LOCKED: "),
    ({}, "", "TASK_FAILED: VM 500 is stopped, not running, although Proxmox reported no error"),
]


@pytest.mark.parametrize(("facts", "message", "problem"), OUTCOMES)
def test_the_cause_of_a_failed_change_is_the_first_that_is_known(
    facts: dict[str, Any], message: str, problem: str
) -> None:
    change = {"failed": True, "msg": message} if message else {}
    reported_problem = failures.outcome_problem({**make_vm_facts(), "reached": False, **facts}, change, "running")
    assert reported_problem.startswith(problem)
    assert bool(reported_problem) is bool(problem)


def test_an_unexpected_exception_is_described_by_type_and_line_without_its_text() -> None:
    try:
        raise KeyError("a secret")
    except KeyError as exc:
        text = failures.type_and_location_of(exc)
    assert re.fullmatch(r"KeyError in test_failure_decisions\.py:\d+", text)


#: The log of a Proxmox task, and the VMIDs of the guests in it.
LOGS = [
    (["creating a clone of VM 9000 with ID 501"], {501}),
    (["create full clone of drive scsi0 (lvm:base-9000-disk-0)", 'Logical volume "vm-501-disk-0" created.'], {501}),
    (["create full clone of drive scsi0 (ceph:base-9000-disk-0)", "transferred 8.0 GiB of 8.0 GiB (100.00%)"], set()),
]


@pytest.mark.parametrize(("log", "vmids"), LOGS)
def test_vmids_in_a_log_are_read_from_the_names_of_guests_only(log: list[str], vmids: set[int]) -> None:
    assert proxmox_tasks.vmids_in(log) == vmids


#: The status of a failed Proxmox task, the end of its log, the cause in it, and the code.
CAUSES = [
    (
        "start failed: QEMU exited with code 1",
        ["kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory"],
        "cannot set up guest memory 'pc.ram': Cannot allocate memory",
        "CAPACITY",
    ),
    (
        "migration aborted",
        [
            "2026-11-27 04:00:00 starting migration of VM 500 to node 'pve2' (10.0.0.2)",
            "2026-11-27 04:00:01 ERROR: migration aborted (duration 00:00:01): storage 'nfs' is not available",
        ],
        "storage 'nfs' is not available",
        "STORAGE_UNAVAILABLE",
    ),
    (
        "migration problems",
        ["2026-11-27 04:00:01 ERROR: command '/usr/bin/ssh' failed: exit code 255", "migration finished with problems"],
        "command '/usr/bin/ssh' failed: exit code 255",
        "TASK_FAILED",
    ),
    ("job errors", ["ERROR: Backup of VM 500 failed - VM is locked (clone)"], "VM is locked (clone)", "VM_LOCKED"),
    (
        "unexpected status",
        ["ERROR: can't acquire lock '/var/run/vzdump.lock' - got timeout"],
        "can't acquire lock '/var/run/vzdump.lock' - got timeout",
        "VM_LOCKED",
    ),
    (
        "startup for container '500' failed",
        ["run_buffer: 571 Script exited with status 19", "storage 'nfs' is not online"],
        "storage 'nfs' is not online",
        "STORAGE_UNAVAILABLE",
    ),
    ("unexpected status", ["half of a line"], "", "PVE_TIMEOUT"),
    ("clone failed: No space left on device", ["ERROR: VM is locked (backup)"], "", "CAPACITY"),
]


@pytest.mark.parametrize(("status", "end", "cause", "code"), CAUSES)
def test_the_cause_of_a_failed_proxmox_task_is_read_from_the_end_of_its_log(
    status: str, end: list[str], cause: str, code: str
) -> None:
    log = [*(f"transferred {n} %" for n in range(100)), *end, f"TASK ERROR: {status}"]
    text = proxmox_tasks.error_with_cause(status, log) if not proxmox_tasks.has_failure_cause(status) else status
    assert text.startswith(status if code != "VM_LOCKED" or status == "job errors" else cause)
    assert text.endswith(cause)
    assert failures.failure({"msg": text}).split(":")[0] == code


@pytest.mark.parametrize(
    ("task", "is_ours"),
    [
        ({"user": "smith@pve!job"}, True),
        ({"user": "smith@pve", "tokenid": "job"}, True),
        ({"user": "smith@pve", "tokenid": "other"}, False),
        ({"user": "smith@pve!other"}, False),
        ({"user": "smith@pve"}, False),
        ({"user": "root@pam"}, False),
    ],
)
def test_only_a_proxmox_task_of_the_same_token_is_ours(task: dict[str, str], is_ours: bool) -> None:
    """Proxmox lists the Proxmox tasks of every user and token to a login with Sys.Audit."""
    assert proxmox_tasks.is_started_by(task, "smith@pve!job") is is_ours


@pytest.mark.parametrize(
    "status", ["unexpected status", "interrupted by signal", "unable to get last line from task log - x"]
)
def test_a_proxmox_task_that_was_killed_or_has_no_log_has_an_unknown_outcome(status: str) -> None:
    assert proxmox_tasks.is_task_outcome_unknown({"status": status})
    assert not proxmox_tasks.is_task_outcome_unknown({"status": "start failed"})
    assert not proxmox_tasks.is_task_outcome_unknown({"status": "RUNNING"})
