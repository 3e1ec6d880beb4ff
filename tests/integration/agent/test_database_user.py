"""Which agent of FulcrumCore uses a PostgreSQL database, and when another one takes it over.

The processes of the agent that uses the database confirm this use regularly. Another agent takes the database over when
MIN_UNCONFIRMED_S have passed without a new confirmation. The user of the database is the agent, not a PostgreSQL role.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from sqlalchemy import Engine
from support.agent_parts import AgentParts

from executor.agent.critical_job import CriticalJob
from executor.agent.database_user import MIN_UNCONFIRMED_S, DatabaseUseConfirmer
from executor.agent.execution_recorder import ExecutionRecorder
from executor.agent.mode import Mode
from executor.agent.parts import build_critical_jobs, build_reconciler
from executor.agent.reporter import IDLE_WAIT_S, Reporter
from executor.agent.state import AgentState
from executor.database import drift_checks, nodes
from executor.database.engine import read_only_session, transaction
from executor.database.nodes import AgentProcess
from executor.database.tables.agents import AgentProcessRow, DatabaseUse
from executor.database.tables.agents import CriticalJob as CriticalJobRow
from executor.database.times import utc_now
from executor.drift.facts import DriftKind, Finding, MappingFacts, Repair

CLUSTER = "default"


@dataclass
class Process:
    """An agent process whose clock the test advances."""

    engine: Engine
    agent_id: str
    boot_id: str
    cluster: str = CLUSTER
    now: float = 1000.0
    state: AgentState = field(init=False)
    confirmer: DatabaseUseConfirmer = field(init=False)

    def __post_init__(self) -> None:
        self.state = AgentState(agent_id=self.agent_id, may_use_database=False)
        self.confirmer = DatabaseUseConfirmer(
            engine=self.engine,
            state=self.state,
            boot_id=self.boot_id,
            cluster=self.cluster,
            lease_s=30.0,
            clock=lambda: self.now,
        )
        with transaction(self.engine) as session:
            agent = AgentProcess(
                boot_id=self.boot_id, host="h", pid=1, version="1", concurrency=1, cluster=self.cluster
            )
            nodes.store_agent_start(session, agent)

    def may_claim_after(self, seconds: float = 0.0) -> bool:
        """Advance the clock, confirm the use of the database, and return whether this process may claim jobs."""
        self.now += seconds
        self.confirmer.confirm()
        return self.state.may_claim


def test_all_processes_of_one_agent_use_the_database_and_another_agent_does_not(postgres_engine: Engine) -> None:
    one, two = (Process(postgres_engine, "first", boot_id) for boot_id in ("one", "two"))
    other = Process(postgres_engine, "second", "other")
    assert not one.state.may_claim
    assert (one.may_claim_after(), two.may_claim_after(), other.may_claim_after()) == (True, True, False)
    assert other.state.id_of_other_agent_on_database == "first"
    assert "another agent uses the database" in other.state.summary
    with read_only_session(postgres_engine) as session:
        rows = {node.id: (node.agent_id, node.cluster) for node in session.query(AgentProcessRow)}
    assert rows == {"one": ("first", CLUSTER), "two": ("first", CLUSTER), "other": ("second", CLUSTER)}


def test_another_agent_waits_while_fulcrumcore_accepts_the_token_of_the_first_one(postgres_engine: Engine) -> None:
    one, other = Process(postgres_engine, "first", "one"), Process(postgres_engine, "second", "other")
    one.may_claim_after()
    for _ in range(5):
        assert not other.may_claim_after(MIN_UNCONFIRMED_S / 2)
        assert one.may_claim_after()


def test_an_agent_that_was_recreated_in_fulcrumcore_takes_over_and_the_old_token_claims_nothing_more(
    postgres_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Process(postgres_engine, "first", "old"), Process(postgres_engine, "second", "new")
    assert (old.may_claim_after(), new.may_claim_after()) == (True, False)
    old.state.fulcrum_link.record_failed_call("HTTP 401", has_refused_credentials=True)
    old.may_claim_after()
    assert not new.may_claim_after(MIN_UNCONFIRMED_S - 1)
    assert new.may_claim_after(1)
    old.may_claim_after()
    assert (old.state.may_use_database, old.state.id_of_other_agent_on_database) == (False, "second")
    assert "database_taken_over" in caplog.text
    old.state.fulcrum_link.record_answer()  # FulcrumCore accepts the old token again
    assert not old.may_claim_after()


def test_no_agent_takes_over_because_of_an_outage_of_fulcrumcore(postgres_engine: Engine) -> None:
    """After the outage, the other agent's heartbeat may be accepted first. This alone must not let it take over."""
    one, other = Process(postgres_engine, "first", "one"), Process(postgres_engine, "second", "other")
    assert (one.may_claim_after(), other.may_claim_after()) == (True, False)
    for process in (one, other):
        process.state.fulcrum_link.record_failed_call("no answer")
        process.may_claim_after(10 * MIN_UNCONFIRMED_S)
    assert one.state.may_use_database
    other.state.fulcrum_link.record_answer()
    assert not other.may_claim_after()
    one.state.fulcrum_link.record_answer()
    assert one.may_claim_after()
    assert not other.may_claim_after(MIN_UNCONFIRMED_S)


def test_a_process_of_the_same_agent_with_another_proxmox_cluster_may_not_claim(postgres_engine: Engine) -> None:
    one, other = Process(postgres_engine, "first", "one"), Process(postgres_engine, "first", "other", cluster="north")
    assert (one.may_claim_after(), other.may_claim_after()) == (True, False)


def test_on_sqlite_the_use_of_the_database_is_not_stored(sqlite_engine: Engine) -> None:
    process = Process(sqlite_engine, "first", "one")
    process.state.may_use_database = True
    assert process.may_claim_after()
    with read_only_session(sqlite_engine) as session:
        assert session.query(DatabaseUse).count() == 0


def test_an_agent_that_may_not_use_the_database_sends_no_reports_and_runs_no_shared_critical_job(
    parts: AgentParts,
) -> None:
    """Otherwise FulcrumCore would refuse the reports, and the agent would conclude that the jobs were deleted."""
    shared = parts.shared
    reporter = Reporter(
        engine=parts.engine, fulcrum=shared.fulcrum, state=parts.state, http_403_counter=shared.http_403_counter
    )
    jobs = build_critical_jobs(shared, Mode.SERVE, build_reconciler(shared), parts.runner)
    shared_jobs = [job for job in jobs if not job.is_executed_by_each_process]
    assert len(shared_jobs) >= 4
    for may_use in (True, False):
        parts.state.may_use_database = may_use
        assert {job.may_start() for job in shared_jobs} == {may_use}
    assert reporter.send_due_reports() == IDLE_WAIT_S
    assert not parts.state.may_claim


def test_the_row_of_a_critical_job_names_the_process_that_executes_it(engine: Engine) -> None:
    for is_executed_by_each_process in (False, True):
        job = CriticalJob(
            name=f"each {is_executed_by_each_process}",
            interval_s=60,
            run=lambda: None,
            is_executed_by_each_process=is_executed_by_each_process,
        )
        recorder = ExecutionRecorder(engine, [job], "this process")
        recorder.start()
        assert recorder.try_start_period(job)
        job.last_execution_started_at = utc_now()
        recorder.record_execution(job)
        recorder.stop(60)
        with read_only_session(engine) as session:
            assert session.get_one(CriticalJobRow, job.name).node == "this process"


def test_all_agents_share_the_findings_of_a_drift_check(parts: AgentParts, caplog: pytest.LogCaptureFixture) -> None:
    """The agent whose check finds the drift first logs it. Every agent shows it."""
    first, second = build_reconciler(parts.shared), build_reconciler(parts.shared)
    mapping = MappingFacts(
        id=1, service_id="s", vmid=100, node="pve1", name="web", state="active", updated_at=utc_now()
    )
    finding = Finding(
        kind=DriftKind.VM_MOVED, service_id="s", vmid=100, text="it moved", repair=Repair.CORRECT_NODE, mapping=mapping
    )
    assert (first.open_findings(), second.count_open_findings()) == (None, {})
    first._store_and_log_changes([finding])
    second._store_and_log_changes([finding])
    assert first.open_findings() == second.open_findings() == [finding]
    assert second.count_open_findings()[DriftKind.VM_MOVED] == 1
    assert caplog.text.count("drift_found") == 1
    second._store_and_log_changes([])
    assert first.open_findings() == []
    first._store_and_log_changes([finding])
    assert caplog.text.count("drift_found") == 2, "the finding was resolved in between"


def test_a_finding_that_another_version_has_stored_is_not_shown(parts: AgentParts) -> None:
    with transaction(parts.engine) as session:
        drift_checks.replace_findings(session, parts.shared.settings.smith_cluster, [{"kind": "unknown"}])
    assert build_reconciler(parts.shared).open_findings() == []
