"""`smith doctor` names the problem of each broken set-up in tests/data/setups.yml; its remedy repairs the system."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from smith_lab.system import LabSystem
from support import remedies
from support.setups import LISTS, BrokenSystem, running_sound_lab
from support.small_disks import enter_mount_namespace

from executor.doctor.checks import CheckResult
from executor.redaction import redactor

#: The steps of setups.yml that change FulcrumCore, and those that change Proxmox. Both must be restored afterwards.
CORE_STEPS = {"core_call", "core_clock", "token", "other_executor", "older_service_type", "action_without_playbook"}
PROXMOX_STEPS = {"proxmox", "certificate", "no_privileges"}
SETUPS = Path(__file__).parents[2] / "data" / "setups.yml"


def _rows() -> Iterator[Any]:
    """Yield each set-up of the file. One that has `for_each` is yielded once for each member of its list."""
    for row in yaml.safe_load(SETUPS.read_text(encoding="utf-8")):
        ((name, members),) = row.get("for_each", {"": ""}).items()
        for member in LISTS.get(members, [""]):
            yield pytest.param(row, {name: member}, id=f"{row['name']} {member}".strip())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with running_sound_lab(tmp_path_factory.mktemp("lab")) as system:
        yield system
        redactor.discard(system.ids.agent_token, system.proxmox.token_secret)


@pytest.fixture
def system(lab: LabSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokenSystem]:
    with ExitStack() as stack:
        broken = BrokenSystem(lab, tmp_path, stack, monkeypatch)
        yield broken


def test_a_system_that_is_not_broken_has_no_findings(system: BrokenSystem) -> None:
    remaining_findings = system.findings()
    assert remaining_findings == [], remaining_findings


def test_there_are_at_least_45_set_ups() -> None:
    assert len(yaml.safe_load(SETUPS.read_text(encoding="utf-8"))) >= 45


@pytest.mark.parametrize(("row", "member"), list(_rows()))
def test_doctor_names_the_problem_of_a_broken_set_up_and_its_remedy_repairs_it(
    row: dict[str, Any], member: dict[str, str], system: BrokenSystem
) -> None:
    steps = {name for step in row["broken_by"] for name in step}
    call = _in_mount_namespace if "small_disk" in steps else _call
    try:
        call(lambda: _break_and_repair(row, member, system))
    finally:  # the next set-ups use the same lab
        system.restore(core=bool(steps & CORE_STEPS), proxmox=bool(steps & PROXMOX_STEPS))


def _break_and_repair(row: dict[str, Any], member: dict[str, str], system: BrokenSystem) -> None:
    def fill_names(value: Any) -> Any:
        return _fill_names(value, {**system.values(), **member})

    for step in row["broken_by"]:
        _execute(fill_names(step), system)
    findings = system.findings()
    finding = _only_finding_with(findings, row["check"], fill_names(row["found"]))
    remedy = finding.hints if row["remedy"] == "all" else fill_names(row["remedy"])
    assert set(remedy) <= set(finding.hints), f"the hints are {finding.hints}"
    if "done_by" in row:
        for step in row["done_by"]:
            _execute(fill_names(step), system)
    else:
        for hint in remedy:
            remedies.apply(_without_placeholders(hint, fill_names(row.get("fill", {}))), system)
    remaining_findings = system.findings()
    assert remaining_findings == [], remaining_findings


def _only_finding_with(findings: list[CheckResult], check: list[str], text: str) -> CheckResult:
    """Return the finding with this area, name, status and text. There must be one."""
    found = [
        result for result in findings if [result.area, result.name, result.status] == check and text in result.text
    ]
    assert len(found) == 1, findings
    return found[0]


def _execute(step: dict[str, Any], system: BrokenSystem) -> None:
    ((name, arguments),) = step.items()
    getattr(system, name)(**arguments)


def _fill_names(value: Any, values: dict[str, str]) -> Any:
    """Return a value of setups.yml in which the names in braces are replaced."""
    if isinstance(value, str):
        return value.format(**values) if "{" in value else value
    if isinstance(value, dict):
        return {_fill_names(key, values): _fill_names(inner, values) for key, inner in value.items()}
    return [_fill_names(inner, values) for inner in value] if isinstance(value, list) else value


def _without_placeholders(hint: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        hint = hint.replace(f"<{name}>", f"'{value}'" if hint.startswith("smith ") else value)
    return hint


def _call(function: Callable[[], None]) -> None:
    function()


def _in_mount_namespace(function: Callable[[], None]) -> None:
    """Call a function in a thread with a mount namespace of its own. Skip the test if there can be none."""
    failures: list[BaseException] = []

    def run() -> None:
        if reason := enter_mount_namespace():
            failures.append(pytest.skip.Exception(reason))
            return
        try:
            function()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure
