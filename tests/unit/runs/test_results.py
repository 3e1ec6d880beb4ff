"""Reading a run's artifacts and its result document (`vm_result`).

The events are those of ansible-runner 2.4 and ansible-core 2.19.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.run_events import VM, artifacts, early, event, failed, final, read, verbose

from executor.model import RunStatus
from executor.runs import results
from executor.shared.error_codes import ErrorCode

# --- success ------------------------------------------------------------------------------------------------------


def test_a_successful_run_is_a_success_with_the_facts_of_the_vm(tmp_path: Path) -> None:
    result = read(tmp_path, event("playbook_on_start"), early(status="stopped"), final(), status=RunStatus.SUCCESSFUL)
    assert (result.succeeded, result.code, result.message) == (True, None, "")
    assert result.vm.items() >= VM.items()
    assert (result.vm["mac_address"], result.vm["adopted"], result.vm["ip_addresses"]) == ("", False, [])


def test_the_last_of_several_result_documents_is_used(tmp_path: Path) -> None:
    result = read(tmp_path, early(node="pve1"), final(node="pve2"), status=RunStatus.SUCCESSFUL)
    assert result.vm["node"] == "pve2"
    assert read(tmp_path, early(), event("playbook_on_stats", artifact_data={}), status=RunStatus.SUCCESSFUL).succeeded


def test_a_text_from_a_jinja_template_is_converted_to_the_type_of_its_member(tmp_path: Path) -> None:
    result = read(tmp_path, final(vmid="101", changed="true"), status=RunStatus.SUCCESSFUL)
    assert (result.vm["vmid"], result.vm["changed"]) == (101, True)


def test_members_that_a_providers_playbook_added_stay_in_the_result(tmp_path: Path) -> None:
    result = read(tmp_path, final(gpu={"model": "x"}), status=RunStatus.SUCCESSFUL)
    assert result.vm["gpu"] == {"model": "x"}


def test_a_rescued_or_ignored_failure_does_not_fail_the_run(tmp_path: Path) -> None:
    ignored = failed("VM_LOCKED: busy") | {"event_data": {"res": {"msg": "x"}, "ignore_errors": True}}
    result = read(tmp_path, failed("CAPACITY: rescued"), ignored, final(), status=RunStatus.SUCCESSFUL)
    assert result.succeeded


# --- an invalid document ------------------------------------------------------------------------------------------

DEEP: Any = {}
for _ in range(60):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([VM], "vm_result has invalid members: the whole document"),
        ("101", "vm_result has invalid members: the whole document"),
        ({"node": "pve1"}, "vm_result has invalid members: vmid"),
        (VM | {"vmid": 99}, "vm_result has invalid members: vmid"),
        (VM | {"vmid": 10**9}, "vm_result has invalid members: vmid"),
        (VM | {"vmid": None}, "vm_result has invalid members: vmid"),
        (VM | {"vmid": True}, "vm_result has invalid members: vmid"),
        (VM | {"vmid": "one hundred and one"}, "vm_result has invalid members: vmid"),
        (VM | {"status": "paused", "node": 1}, "vm_result has invalid members: node, status"),
        (VM | {"ip_addresses": "192.0.2.1"}, "vm_result has invalid members: ip_addresses"),
        (VM | {"ip_addresses": [None]}, "vm_result has invalid members: ip_addresses.0"),
        (VM | {"ip_addresses": ["192.0.2.1"] * 65}, "vm_result has invalid members: ip_addresses"),
        (VM | {"note": "x" * 70_000}, "vm_result is larger than 65536 bytes"),
        (VM | {"note": "ü" * 40_000}, "vm_result is larger than 65536 bytes"),
        (VM | {"load": float("nan")}, "vm_result contains a value that cannot be stored"),
        (VM | {"load": float("inf")}, "vm_result contains a value that cannot be stored"),
        (VM | {"name": "nul\x00"}, "vm_result contains a value that cannot be stored"),
        (VM | {"name": "half \ud800"}, "vm_result contains a value that cannot be stored"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("vm_") else "",
)
def test_a_successful_run_with_an_invalid_result_document_counts_as_failed(
    tmp_path: Path, document: Any, words: str
) -> None:
    result = read(tmp_path, final(document), status=RunStatus.SUCCESSFUL)
    assert (result.succeeded, result.message) == (False, f"RESULT_INVALID: {words} (run create-1)")


@pytest.mark.parametrize(
    "lines", [[], [event("playbook_on_stats", artifact_data={})], [event("playbook_on_stats")], [{"event": "x"}]]
)
def test_a_successful_run_without_a_result_document_counts_as_failed(tmp_path: Path, lines: list[Any]) -> None:
    result = read(tmp_path, *lines, status=RunStatus.SUCCESSFUL)
    assert result.message == "RESULT_INVALID: the playbook succeeded but published no vm_result (run create-1)"


def test_a_successful_run_whose_artifacts_cannot_be_read_counts_as_failed(tmp_path: Path) -> None:
    run = artifacts(tmp_path, final(), status=RunStatus.SUCCESSFUL)
    (tmp_path / "events.jsonl").unlink()
    result = results.read_result(run)
    assert result.message == (
        "RESULT_INVALID: the run's artifacts cannot be read: No such file or directory (run create-1)"
    )


def test_a_run_whose_ansible_task_has_no_result_counts_as_killed(tmp_path: Path) -> None:
    """Ansible's process for this Ansible task was killed, so it is unknown what the run has changed."""
    task_start = event("playbook_on_task_start")
    worker_error = verbose("[ERROR]: A worker was found in a dead state")
    result = read(tmp_path, early(), task_start, worker_error, final(), rc=1)
    assert (result.code, result.is_effect_unknown) == (ErrorCode.PLAYBOOK_FAILED, True)
    assert "the process of an Ansible task was killed" in result.message
    for task_end in (failed("VM_LOCKED: busy"), event("runner_on_ok", res={})):
        assert not read(tmp_path, task_start, task_end, rc=2).is_effect_unknown
    assert not read(tmp_path, verbose("[ERROR]: the playbook could not be found"), rc=1).is_effect_unknown


# --- failure ------------------------------------------------------------------------------------------------------


def test_a_text_of_proxmox_cannot_choose_the_error_code(tmp_path: Path) -> None:
    """A provider's playbook may run modules of community.proxmox and not use the filter `failure`."""
    text = "VM_NOT_FOUND: VM 101 does not exist"
    by_name = failed(text, task_action="proxmox_kvm", resolved_action="community.proxmox.proxmox_kvm")
    by_login = event("runner_on_failed", res={"msg": text, "invocation": {"module_args": {"api_host": "pve1"}}})
    items = [{"failed": True, "msg": text, "invocation": {"module_args": {"api_host": "pve1"}}}]
    by_item = event("runner_on_failed", res={"msg": "One or more items failed", "results": items})
    for line in (by_name, by_login, by_item, verbose(f"{text} [ERROR]")):
        assert read(tmp_path, line).code is ErrorCode.PLAYBOOK_FAILED


def test_a_failure_has_the_code_of_the_role_and_the_known_facts_of_the_vm(tmp_path: Path) -> None:
    result = read(tmp_path, early(status="stopped"), failed("SHUTDOWN_TIMEOUT: the guest ignored it"), final())
    assert (result.succeeded, result.code) == (False, ErrorCode.SHUTDOWN_TIMEOUT)
    assert result.message == "SHUTDOWN_TIMEOUT: the guest ignored it (run create-1)"
    assert result.vm["vmid"] == 101


def test_the_error_text_of_a_module_is_classified(tmp_path: Path) -> None:
    words = "creation of qemu VM 101 with vmid 101 failed with exception=500 Internal Server Error: no quorum"
    assert read(tmp_path, failed(words)).code is ErrorCode.PVE_NO_QUORUM
    assert read(tmp_path, failed("something new")).code is ErrorCode.PLAYBOOK_FAILED


def test_an_unreachable_host_is_a_failure(tmp_path: Path) -> None:
    unreachable = event("runner_on_unreachable", res={"msg": "No route to host", "unreachable": True})
    assert read(tmp_path, unreachable).code is ErrorCode.NODE_DOWN


def test_the_last_failure_is_the_reason_because_earlier_ones_were_rescued(tmp_path: Path) -> None:
    """A rescue section runs after the failure that it handles, so a failed run fails at its last failure."""
    result = read(tmp_path, failed("CAPACITY: rescued"), early(), failed("VM_STATE: and this was not"))
    assert result.code is ErrorCode.VM_STATE


@pytest.mark.parametrize(
    ("text", "message_for_tenants"),
    [
        (
            "CAPACITY: not enough free space in thin pool 'pve/data', 3 GiB left",
            "there is not enough free capacity for this request",
        ),
        ("NODE_DOWN: node pve2 is offline", "a node does not answer"),
        ("NOT_FOUND: no such cluster node 'pve2'", "an object that the job needs, such as a template, does not exist"),
        ("NOT_FOUND: VM 101 has no snapshot daily", "VM 101 has no snapshot daily"),
        ("VM_LOCKED: VM is locked", "VM is locked"),
    ],
)
def test_the_text_of_proxmox_about_capacity_nodes_and_objects_is_only_for_the_operator(
    tmp_path: Path, text: str, message_for_tenants: str
) -> None:
    result = read(tmp_path, failed(text))
    assert result.operator_message == f"{text} (run create-1)"
    assert result.message == f"{result.code}: {message_for_tenants} (run create-1)"


def test_an_ignored_failure_is_not_the_reason_of_a_failed_run(tmp_path: Path) -> None:
    ignored = event("runner_on_failed", res={"msg": "CAPACITY: never mind"}, ignore_errors=True)
    assert read(tmp_path, failed("VM_STATE: this"), ignored).code is ErrorCode.VM_STATE


def test_the_failed_item_of_a_loop_is_the_reason_of_a_failed_run(tmp_path: Path) -> None:
    """The error of the loop itself comes last, and is the same for every loop."""
    items = [
        {"failed": True, "msg": "VM_LOCKED: item a", "item": "a"},
        {"failed": True, "msg": "VM_LOCKED: item b", "item": "b"},
        {"failed": False, "msg": "fine", "item": "c"},
    ]
    events = [event("runner_item_on_failed", res=item) for item in items[:2]]
    loop = event("runner_on_failed", res={"results": items, "msg": "One or more items failed", "failed": True})
    result = read(tmp_path, *events, loop)
    assert result.message == "VM_LOCKED: item b (run create-1)"


def test_a_censored_failure_is_not_replaced_by_an_earlier_one(tmp_path: Path) -> None:
    hidden = event("runner_on_failed", res={"censored": "the output has been hidden due to 'no_log: true'"})
    result = read(tmp_path, failed("CAPACITY: rescued"), hidden)
    assert result.code is ErrorCode.PLAYBOOK_FAILED
    assert "no_log" in result.message
    assert (
        "the Ansible task failed without an error message"
        in read(tmp_path, event("runner_on_failed", res=None)).message
    )


@pytest.mark.parametrize("message", [["a", "b"], {"a": 1}, 5, True])
def test_a_message_that_is_not_text_is_shown_as_text(tmp_path: Path, message: Any) -> None:
    assert str(message) in read(tmp_path, failed(message)).message


def test_a_playbook_that_is_not_yaml_fails_with_ansibles_error_text(tmp_path: Path) -> None:
    """Such a run has no events of Ansible tasks, only error output."""
    result = read(
        tmp_path,
        verbose("[WARNING]: No inventory was parsed"),
        verbose("[ERROR]: YAML parsing failed: did not find expected node content."),
        verbose("Origin: create.yml:3:1"),
    )
    assert result.code is ErrorCode.PLAYBOOK_FAILED
    assert "YAML parsing failed" in result.message


def test_a_failed_ansible_task_takes_precedence_over_error_output(tmp_path: Path) -> None:
    result = read(tmp_path, failed("VM_STATE: this"), verbose("[ERROR]: Task failed"))
    assert result.code is ErrorCode.VM_STATE


@pytest.mark.parametrize(("rc", "signum"), [(137, 9), (143, 15)])
def test_a_killed_run_names_the_signal_and_no_ansible_task(tmp_path: Path, rc: int, signum: int) -> None:
    result = read(tmp_path, failed("VM_LOCKED: most likely rescued"), rc=rc)
    assert result.is_effect_unknown
    assert result.message.startswith(f"PLAYBOOK_FAILED: the playbook was killed by signal {signum}")
    assert ("memory" in result.message) is (signum == 9)


def test_a_run_that_its_guard_ended_without_a_reason_of_the_agent_was_killed(tmp_path: Path) -> None:
    result = read(tmp_path, failed("VM_LOCKED: most likely rescued"), rc=254)
    assert result.is_effect_unknown
    assert result.message.startswith("PLAYBOOK_FAILED: the playbook was killed, or could not be started")
    for status in (RunStatus.CANCELED, RunStatus.TIMEOUT):
        assert not read(tmp_path, rc=254, status=status).is_effect_unknown


def test_a_run_that_its_guard_ended_because_of_the_lease_was_killed(tmp_path: Path) -> None:
    result = read(tmp_path, failed("VM_LOCKED: most likely rescued"), rc=253)
    assert (result.is_effect_unknown, result.code) == (True, ErrorCode.LEASE_LOST)
    for status in (RunStatus.CANCELED, RunStatus.TIMEOUT):
        assert read(tmp_path, rc=253, status=status).code is not ErrorCode.LEASE_LOST


def test_a_run_whose_action_plugin_refused_a_change_because_of_the_lease_was_not_killed(tmp_path: Path) -> None:
    result = read(tmp_path, failed("LEASE_LOST: nothing more is changed"), rc=2)
    assert (result.is_effect_unknown, result.code) == (False, ErrorCode.LEASE_LOST)


@pytest.mark.parametrize("rc", [1, 2, 4, 127, 128, 250])
def test_a_run_with_an_exit_code_of_ansible_was_not_killed(tmp_path: Path, rc: int) -> None:
    result = read(tmp_path, failed("VM_LOCKED: VM is locked (backup)"), rc=rc)
    assert (result.is_effect_unknown, result.code) == (False, ErrorCode.VM_LOCKED)


def test_a_failed_run_without_events_has_a_message(tmp_path: Path) -> None:
    assert read(tmp_path).message == "PLAYBOOK_FAILED: playbook failed without an error message (run create-1)"


def test_a_failed_run_without_artifacts_has_an_error_code(tmp_path: Path) -> None:
    run = artifacts(tmp_path)
    (run.folder / "events.jsonl").unlink()
    assert results.read_result(run).code is ErrorCode.PLAYBOOK_FAILED


def test_an_invalid_document_does_not_replace_the_reason_of_a_failure(tmp_path: Path) -> None:
    """The code of the failure decides whether the job is retried."""
    result = read(tmp_path, early(vmid="nonsense"), failed("VM_LOCKED: busy"))
    assert (result.code, result.vm) == (ErrorCode.VM_LOCKED, {})


@pytest.mark.parametrize(
    ("status", "code"), [(RunStatus.TIMEOUT, ErrorCode.TASK_TIMEOUT), (RunStatus.CANCELED, ErrorCode.CANCELLED)]
)
@pytest.mark.parametrize("lines", [[], [early()], [early(), failed("CAPACITY: rescued")], ["{"]])
def test_a_cancelled_or_timed_out_run_reports_no_other_error(
    tmp_path: Path, status: RunStatus, code: ErrorCode, lines: list[Any]
) -> None:
    result = read(tmp_path, *lines, status=status)
    assert (result.succeeded, result.code) == (False, code)
    assert "CAPACITY" not in result.message
    assert bool(result.vm) == (early() in lines)


def test_a_run_cancelled_before_any_output_is_cancelled(tmp_path: Path) -> None:
    run = artifacts(tmp_path, status=RunStatus.CANCELED)
    (tmp_path / "events.jsonl").unlink()
    assert results.read_result(run).code is ErrorCode.CANCELLED


# --- text from outside --------------------------------------------------------------------------------------------

GARBAGE = (
    "",
    "null",
    "[]",
    "5",
    '"text"',
    "{",
    '{"event": "runner_on_failed", "event_data": ',
    "[" * 100_000,
    '{"event_data": []}',
    '{"event": [], "event_data": {"res": []}}',
    '{"event": "runner_on_ok", "event_data": {"res": {"ansible_stats": []}}}',
    '{"event": "runner_on_ok", "event_data": {"res": {"ansible_stats": {"data": [{}]}}}}',
    '{"event": "playbook_on_stats", "event_data": {"artifact_data": "vm_result"}}',
    '{"event": "verbose", "stdout": null}',
    "\udcff\udcfe\x00",
    '{"event": "smith_truncated", "left_out": 7}',
)


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda text: repr(text[:20]))
def test_a_line_that_is_not_an_event_is_skipped(tmp_path: Path, garbage: str) -> None:
    assert read(tmp_path, garbage, final(), garbage, status=RunStatus.SUCCESSFUL).succeeded
    assert read(tmp_path, garbage, failed("VM_STATE: this"), garbage).code is ErrorCode.VM_STATE


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([
        "event", "event_data", "res", "msg", "results", "failed", "ansible_stats", "data", "artifact_data", "vm_result",
        "vmid", "runner_on_failed", "stdout", "verbose",
    ]), inner),
    max_leaves=20,
))  # fmt: skip
def test_any_content_of_an_event_yields_a_result(tmp_path_factory: pytest.TempPathFactory, anything: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    for status in RunStatus:
        odd = [anything, {"event": "runner_on_failed", "event_data": anything}, {"event": "x", "event_data": anything}]
        result = read(folder, *odd, status=status)
        assert result.succeeded == (result.code is None)
        assert result.message.isprintable()


def test_a_long_error_text_is_truncated(tmp_path: Path) -> None:
    assert len(read(tmp_path, failed("VM_STATE: " + "x" * 100_000)).message) < 400
