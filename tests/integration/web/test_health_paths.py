"""The paths /livez and /readyz: when an agent is alive, when it is ready, and what they show."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from smith_lab.proxmox.stand_in import ProxmoxStandIn
from smith_lab.system import wait_for
from sqlalchemy import event
from support.health_site import WITHIN_S, MakeSite, Site

from executor.agent import disk_space as space
from executor.database import pauses
from executor.database.engine import transaction
from executor.errors import FulcrumUnavailable
from executor.web import health, probes

# Liveness


def test_an_agent_whose_loops_make_progress_is_alive(site: Site) -> None:
    status, checks = site.checks("/livez")
    assert status == 200
    assert set(checks) == {"main", "dispatch", "report", "leases", "fence", "Heartbeat"}
    assert all(check["ok"] for check in checks.values())


@pytest.mark.parametrize("loop", list(health.MAX_ITERATION_S_BY_LOOP))
def test_livez_names_a_loop_without_progress(loop: str, site: Site) -> None:
    site.turn(**{loop: health.MAX_ITERATION_S_BY_LOOP[loop] + 5})
    status, checks = site.checks("/livez")
    assert status == 503
    assert [name for name, check in checks.items() if not check["ok"]] == [loop]
    assert "no progress" in checks[loop]["reason"]


def test_livez_names_a_critical_job_whose_thread_has_ended(site: Site) -> None:
    site.view.scheduler.stop()
    status, checks = site.checks("/livez")
    assert status == 503
    assert checks["Heartbeat"]["reason"] == "is overdue"


def test_running_jobs_and_an_unreachable_fulcrumcore_do_not_affect_liveness(site: Site) -> None:
    """An agent that is not alive is restarted, which would help in neither case."""
    site.state.claimed_job_count = 8
    site.state.fulcrum_link.record_failed_call("connection refused")
    assert site.checks("/livez")[0] == 200


def test_a_long_lease_allows_the_lease_loop_a_longer_time_without_progress(make_site: MakeSite) -> None:
    site = make_site(SMITH_LEASE_S="3600")
    site.attach()
    site.turn(leases=600.0)
    assert site.checks("/livez")[0] == 200


def test_a_starting_agent_that_waits_for_fulcrumcore_is_alive_and_not_ready(make_site: MakeSite) -> None:
    site = make_site()
    site.handle.record_wait_reason("GET /agents/me: connection refused")
    assert site.checks("/livez") == (200, {})
    status, checks = site.checks("/readyz")
    assert status == 503
    assert checks["agent"]["reason"] == "waits for its configuration from FulcrumCore"
    assert checks["agent"]["detail"] == "GET /agents/me: connection refused"
    assert site.ask("/metrics")[0] == 503


def test_a_stopping_agent_is_alive(site: Site) -> None:
    site.state.stopping.set()
    site.turn(main=9999.0)
    assert site.checks("/livez")[0] == 200


# Readiness


def test_an_agent_whose_checks_pass_is_ready(site: Site) -> None:
    checks = site.until("/readyz", 200)
    assert set(checks) == {"agent", "fulcrum", "proxmox", "database", "disk"}


def test_a_paused_agent_is_ready_and_shows_and_logs_the_pause(site: Site) -> None:
    site.until("/readyz", 200)
    with structlog.testing.capture_logs() as logs:
        with transaction(site.view.engine) as session:
            pauses.start(session, who="ops", reason="update of pve2")
        wait_for(lambda: site.state.pause, WITHIN_S, "the pause")
        status, checks = site.checks("/readyz")
        assert (status, checks["agent"]["reason"]) == (200, "is paused by an operator: no jobs are claimed")
        assert checks["agent"]["detail"].endswith("by ops: update of pve2")
        assert site.state.summary.startswith("paused")
        with transaction(site.view.engine) as session:
            pauses.end(session)
        wait_for(lambda: site.state.pause is None, WITHIN_S, "the end of the pause")
        assert "reason" not in site.checks("/readyz")[1]["agent"]
    pause_events = [entry for entry in logs if entry["event"] in ("agents_paused", "agents_resumed")]
    assert [(entry["event"], entry["reason"]) for entry in pause_events] == [
        ("agents_paused", "update of pve2"),
        ("agents_resumed", "update of pve2"),
    ]
    assert pause_events[0]["who"] == "ops"


def test_before_fulcrum_has_answered_the_agent_is_not_ready(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.heartbeat_at = 0.0
    status, checks = site.checks("/readyz")
    assert (status, checks["fulcrum"]["reason"]) == (503, "FulcrumCore has not answered yet")


def test_the_error_of_an_unreachable_fulcrum_is_shown(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.fulcrum_link.record_failed_call(str(FulcrumUnavailable("GET /agents/me: HTTP 403")))
    status, checks = site.checks("/readyz")
    assert (status, checks["fulcrum"]["detail"]) == (503, "GET /agents/me: HTTP 403")


def test_a_refused_proxmox_token_makes_the_agent_unready_until_it_is_accepted(
    site: Site, proxmox: ProxmoxStandIn
) -> None:
    site.until("/readyz", 200)
    proxmox.fail("GET", "/version", status=401, text="invalid token", times=-1)
    checks = site.until("/readyz", 503)
    assert checks["proxmox"]["reason"] == "Proxmox does not answer, or answers with an error"
    assert "PVE_AUTH" in checks["proxmox"]["detail"]
    assert site.metrics()["smith_proxmox_up",] == 0
    proxmox.control("clear_faults")
    site.until("/readyz", 200)
    assert site.metrics()["smith_proxmox_up",] == 1


def test_health_requests_send_no_request_to_proxmox(make_site: MakeSite, proxmox: ProxmoxStandIn) -> None:
    site = make_site()
    site.turn()
    site.state.heartbeat_at = time.time()
    proxmox.reset_request_log()
    site.attach(probe_interval_s=probes.INTERVAL_S)
    site.until("/readyz", 200)
    for path in ("/readyz", "/metrics", "/livez") * 5:
        site.ask(path)
    assert len([call for call in proxmox.request_log() if call["path"] == "/version"]) == 1


def test_a_read_only_database_makes_the_agent_unready(site: Site) -> None:
    site.until("/readyz", 200)

    def make_read_only(connection: Any, *_: Any) -> None:
        connection.exec_driver_sql("PRAGMA query_only=ON")

    event.listen(site.engine, "begin", make_read_only)
    checks = site.until("/readyz", 503)
    event.remove(site.engine, "begin", make_read_only)
    assert checks["database"]["reason"] == "the database cannot be written"


def test_a_full_disk_makes_the_agent_unready_and_names_the_folder(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The test sets a minimum of free space that no disk has."""
    site.until("/readyz", 200)
    monkeypatch.setitem(space.MIN_FREE_MIB, "data", 10**12)
    checks = site.until("/readyz", 503)
    assert checks["disk"]["reason"] == "too little space in the folder data"
    assert str(tmp_path) in checks["disk"]["detail"]


def test_a_draining_agent_is_not_ready_and_a_disabled_one_is(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.is_disabled = True
    status, checks = site.checks("/readyz")
    assert status == 200
    assert "disabled" in checks["agent"]["reason"]
    site.state.draining.set()
    assert site.checks("/readyz")[0] == 503
