"""The path /metrics: which values Prometheus reads, and where they come from."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.cli_world import claim, submit
from support.health_site import WITHIN_S, Site

from executor.agent.meters import MAX_LABELLED_ACTIONS
from executor.database import job_queue, mappings, outbox
from executor.database.engine import transaction
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode

DOCS = Path(__file__).parents[3] / "docs"


# Metrics


def test_jobs_are_counted_by_action_and_outcome(site: Site) -> None:
    meters = site.view.meters
    for action, result in [
        ("create", JobResult(succeeded=True, vm={"vmid": 100})),
        ("create", JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="full")),
        ("Evil\naction", JobResult(succeeded=False, code=ErrorCode.UNSUPPORTED_ACTION, detail="none")),
    ]:
        meters.count_ended_attempt(site.engine, _finish_job(site.engine, action, result), duration_s=4.2)
    with transaction(site.engine) as session:
        submit(session, action="stop")
        lease = claim(session)
        job = session.get(Job, lease.job_id)
        assert job is not None
    meters.record_queue_wait(job)
    meters.count_ended_attempt(site.engine, job, duration_s=1.0)
    metrics = site.metrics()
    assert metrics["smith_jobs_total", "create", "completed"] == 1
    assert metrics["smith_jobs_total", "create", "failed"] == 1
    assert metrics["smith_jobs_total", "other", "failed"] == 1
    assert metrics["smith_jobs_total", "stop", "lost"] == 1
    assert metrics["smith_job_errors_total", "CAPACITY"] == 1
    assert metrics["smith_job_duration_seconds_bucket", "create", "5.0"] == 2
    assert metrics["smith_job_duration_seconds_bucket", "create", "3.0"] == 0
    assert metrics["smith_queue_wait_seconds_count",] == 1


def test_requeued_and_abandoned_jobs_are_counted_separately(site: Site) -> None:
    meters = site.view.meters
    with transaction(site.engine) as session:
        submit(session, action="start")
        lease = claim(session)
        job_queue.requeue(session, lease, backoff_s=60)
        requeued = session.get(Job, lease.job_id)
        submit(session, action="start")
        lease = claim(session)
        result = JobResult(succeeded=False, code=ErrorCode.DEADLINE, detail="gone")
        job_queue.finish(session, lease, result, ReportState.ABANDONED)
        abandoned = session.get(Job, lease.job_id)
    for job in (requeued, abandoned):
        assert job is not None
        meters.count_ended_attempt(site.engine, job, duration_s=1.0)
    metrics = site.metrics()
    assert metrics["smith_jobs_total", "start", "put_back"] == 1
    assert metrics["smith_jobs_total", "start", "abandoned"] == 1


def test_the_number_of_action_labels_is_limited(site: Site) -> None:
    result = JobResult(succeeded=True, vm={"vmid": 100})
    for number in range(MAX_LABELLED_ACTIONS + 5):
        job = _finish_job(site.engine, f"action-{number}", result)
        site.view.meters.count_ended_attempt(site.engine, job, duration_s=1.0)
    metrics = site.metrics()
    assert metrics["smith_jobs_total", "other", "completed"] == 5
    assert len([key for key in metrics if key[0] == "smith_jobs_total"]) == MAX_LABELLED_ACTIONS + 1


def test_queue_outbox_and_mappings_are_read_from_the_database(site: Site) -> None:
    with transaction(site.engine) as session:
        submit(session)
        waiting = session.get(Job, submit(session))
        assert waiting is not None
        waiting.received_at = utc_now() - timedelta(seconds=500)
        mapping = mappings.reserve(
            session, service_id="00000000-0000-4000-8000-000000000001", cluster="default", vmid=500, name="a"
        )
        assert mapping is not None
    job = _finish_job(site.engine, "create", JobResult(succeeded=True))
    with transaction(site.engine) as session:
        row = session.get(Job, job.id)
        assert row is not None
        row.finished_at = utc_now() - timedelta(seconds=1000)
    metrics = site.metrics()
    assert metrics["smith_queue_depth", "pending"] + metrics["smith_queue_depth", "processing"] == 2
    assert metrics["smith_queue_depth", "report_due"] == 1
    assert 1000 <= metrics["smith_outbox_oldest_seconds",] < 1000 + WITHIN_S
    assert 500 <= metrics["smith_queue_oldest_seconds",] < 500 + WITHIN_S
    assert metrics["smith_mappings", "reserved"] == 1
    assert metrics["smith_mappings", "active"] == 0


def test_jobs_that_fulcrumcore_does_not_accept_as_ended_are_counted_by_cause(site: Site) -> None:
    result = JobResult(succeeded=True)
    _finish_job(site.engine, "create", result)
    refused = _finish_job(site.engine, "start", result)
    with transaction(site.engine) as session:
        outbox.postpone_report(session, refused.id, backoff_s=600, note="HTTP 400")
        for _ in range(2):
            submit(session, action="stop")
            claimed_elsewhere = JobResult(succeeded=False, code=ErrorCode.JOB_CLAIMED_ELSEWHERE, detail="400")
            job_queue.finish(session, claim(session), claimed_elsewhere, ReportState.CLAIMED_ELSEWHERE)
    metrics = site.metrics()
    assert metrics["smith_unaccepted_jobs", "report_not_accepted"] == 1
    assert metrics["smith_unaccepted_jobs", "claimed_elsewhere"] == 2


def test_the_gauges_show_the_state_of_the_agent_process(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.claimed_job_count, site.state.ended_job_count = 7, 4
    metrics = site.metrics()
    assert metrics["smith_jobs_running",] == 3
    assert metrics["smith_job_slots",] == 8
    assert metrics["smith_process_tree_memory_bytes",] == 12 * 1024 * 1024
    assert metrics["smith_heartbeat_last_success_timestamp_seconds",] == pytest.approx(site.state.heartbeat_at)
    assert (metrics["smith_fulcrum_up",], metrics["smith_proxmox_up",], metrics["smith_database_up",]) == (1, 1, 1)
    assert [key for key in metrics if key[0] == "smith_build_info"] != []
    assert metrics["smith_disk_free_bytes", "data"] > 0


def test_if_the_database_cannot_be_read_the_other_gauges_are_still_served(site: Site) -> None:
    with transaction(site.engine) as session:
        session.connection().exec_driver_sql("ALTER TABLE mappings RENAME TO elsewhere")
    metrics = site.metrics()
    assert metrics["smith_database_up",] == 0
    assert "smith_jobs_running" in {key[0] for key in metrics}
    assert "smith_queue_depth" not in {key[0] for key in metrics}


def test_openmetrics_format_is_served_on_request(site: Site) -> None:
    status, headers, body = site.ask("/metrics", accept="application/openmetrics-text;version=1.0.0")
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_the_documentation_lists_exactly_the_served_metrics(site: Site) -> None:
    site.view.meters.count_ended_attempt(
        site.engine, _finish_job(site.engine, "create", JobResult(succeeded=True)), 1.0
    )
    _status, _headers, body = site.ask("/metrics")
    served = set(re.findall(r"^# TYPE (smith_\S+)", body, re.MULTILINE))
    page = (DOCS / "operating.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(smith_\w+)", page, re.MULTILINE)) == served


def _finish_job(engine: Engine, action: str, result: JobResult) -> Job:
    with transaction(engine) as session:
        job_id = submit(session, action=action, priority=1000)
        lease = claim(session)
        assert lease.job_id == job_id
        job_queue.finish(session, lease, result)
        job = session.get(Job, job_id)
        assert job is not None
        return job
