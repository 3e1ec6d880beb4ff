"""An operator's notes and tags survive any order of actions on a VM, also if the operator changes them in between.

`test_shared_fields.py` tests the functions that decide, with hundreds of examples. Here each step is a real run of a
playbook, which costs a third of a CPU second. So there are few examples, and Hypothesis does not shrink a failing one.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from executor_bench import ExecutorBench
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from play_bench import ACTIONS, Bench
from support.custom_action import EXAMPLES

from executor.model import JobResult, PlaybookRun

#: The codes with which a play may end. An action may refuse the state of the VM; notes and tags survive this too.
ACCEPTED_CODES = {None, "VM_STATE", "VM_NOT_RUNNING", "NOT_FOUND"}
CUSTOM_ACTION, DELETE_ANOTHER = "attach-iso", "delete another VM"
REQUESTS: dict[str, dict[str, Any]] = {
    "create": {"cores": 3, "description": "a shop", "tags": ["web"]},
    "update": {"description": "another\nshop", "tags": ["db"], "previous_tags": ["web"], "cancel_deletion": True},
    "migrate": {"target_node": "pve2"},
    "backup": {"backup_storage": "backups"},
    "delete": {"grace_s": 3600},
    CUSTOM_ACTION: {"properties": {"isoImage": "local:iso/debian-12.iso"}},
}
#: Lines that an operator writes. None is a line of the service.
LINES = st.lists(st.text("op .=:éß", max_size=9).map(lambda text: f"#{text}."), min_size=1, max_size=2)
WRITES = st.tuples(st.just("write"), LINES, st.sets(st.sampled_from(["backup-gold", "keep", "site_b", "prod"])))
PLAYS = st.sampled_from([*ACTIONS, CUSTOM_ACTION, DELETE_ANOTHER, "snapshot", "rollback"]).map(
    lambda action: ("play", action)
)
STEPS = st.lists(st.one_of(WRITES, PLAYS, PLAYS, PLAYS), min_size=8, max_size=12)


@dataclass
class Guest:
    """A VM of a service, and what an operator has written."""

    bench: Bench
    executor: ExecutorBench
    vm: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    tags_by_snapshot: dict[str, set[str]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def write(self, lines: list[str], tags: set[str]) -> None:
        """Add lines at the end of the notes, and tags, as an operator does in Proxmox's web interface."""
        config = self.bench.guest(self.vm)["config"]
        values = {
            "description": "\n".join([config["description"], *lines]),
            "tags": ";".join([config["tags"], *tags - self.tags]),
        }
        self.bench.pve.control("configure", vmid=self.vm["vmid"], values=values)
        self.lines += lines
        self.tags |= tags

    def play(self, action: str) -> None:
        """Run an action on the VM, or the deletion of another one; then compare notes and tags."""
        if action == DELETE_ANOTHER:
            assert self.executor.play("delete", self.bench.add_vm()).succeeded
        elif action == "snapshot":
            name = f"s{next(self.numbers)}"
            if self._run(action, snapshot=name).succeeded:
                self.tags_by_snapshot[name] = set(self.tags)
        elif action == "rollback":
            name = next(iter(self.tags_by_snapshot), "")  # the oldest
            if self._run(action, snapshot=name).succeeded:
                self.tags = set(self.tags_by_snapshot[name])
        else:
            self._run(action, **REQUESTS.get(action, {}))
        self.check_notes_and_tags(action)

    def _run(self, action: str, **request: Any) -> JobResult:
        vm = {**self.vm, **request}
        if action == CUSTOM_ACTION:
            run = PlaybookRun(
                ident=f"custom-{uuid.uuid4().hex[:12]}",
                action=action,
                playbook=EXAMPLES / f"{CUSTOM_ACTION}.yml",
                vm=vm,
                timeout_s=60.0,
            )
            result = self.executor.execute(run)
        else:
            result = self.executor.play(action, vm)
        event(f"{action}: {result.code or 'done'}")
        assert result.code in ACCEPTED_CODES, result.message
        return result

    def check_notes_and_tags(self, action: str) -> None:
        config = self.bench.guest(self.vm)["config"]
        written = config["description"].split("\n")
        assert [line for line in written if line in self.lines] == self.lines, action
        assert self.tags <= set(config["tags"].split(";")), action
        assert f"smith-uid={self.vm['service_id']}" in written, action


@pytest.fixture
def privileges(session_bench: Bench) -> Iterator[None]:
    """Grant the privilege that the custom action needs."""
    session_bench.pve.control("time_scale", scale=0)
    session_bench.pve.control("grant", path="/vms", privilege="VM.Config.CDROM")
    yield
    session_bench.pve.control("revoke", path="/vms", privilege="VM.Config.CDROM")
    session_bench.pve.control("version", version="9.0.10")


@pytest.mark.usefixtures("privileges")
@settings(
    max_examples=20,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, status=st.sampled_from(["running", "stopped"]), version=st.sampled_from(["8.4.1", "9.0.10"]))
def test_what_an_operator_has_written_survives_any_order_of_actions(
    session_bench: Bench, shared_executor: ExecutorBench, steps: list[tuple[Any, ...]], status: str, version: str
) -> None:
    session_bench.pve.control("version", version=version)
    shared = {"scsi0": f"ceph:vm-{uuid.uuid4().hex[:6]}-disk-0,size=8G", "ide2": "ceph:vm-1-cloudinit,media=cdrom"}
    vm = {**session_bench.add_vm(status=status, config=shared), "disk_gib": 9}
    guest = Guest(session_bench, shared_executor, vm)
    guest.write(["#first line"], {"prod"})
    guest.play("snapshot")  # so that every rollback has a snapshot
    for step, *arguments in steps:
        (guest.write if step == "write" else guest.play)(*arguments)
