"""Health and metrics over real sockets: access control, responses, and what makes the agent unhealthy."""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
import structlog
from prometheus_client.parser import text_string_to_metric_families
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.system import wait_for
from sqlalchemy import Engine, event
from support.cli_world import claim, submit
from support.databases import migrated_sqlite_file
from support.web_world import address_of_this_machine

from executor.agent import disk_space as space
from executor.agent.critical_job import CriticalJob
from executor.agent.meters import MAX_LABELLED_ACTIONS, Meters
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.database import job_queue, mappings, nodes, outbox, pauses
from executor.database.engine import open_engine, transaction
from executor.database.nodes import AgentProcess
from executor.database.tables import Job, utc_now
from executor.errors import FulcrumUnavailable, SettingsError
from executor.model import JobResult, ReportState
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import Settings, load_settings
from executor.shared.error_codes import ErrorCode
from executor.web import health, probes, serve
from executor.web.agent_view import AgentHandle, AgentView
from executor.web.paths import PAGE_PATHS
from executor.web.server import serving
from executor.web.wrong_tokens import MAX_WRONG_TOKENS

TOKEN = "a-token-of-more-than-sixteen"
WITHIN_S = 60.0
DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def proxmox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("proxmox")) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def database_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_sqlite_file(tmp_path_factory.mktemp("database"))


class Site:
    """The parts of an agent, its pages on a socket, and a client."""

    def __init__(self, handle: AgentHandle, view: AgentView) -> None:
        self.handle = handle
        self.view = view

    @property
    def state(self) -> AgentState:
        return self.view.state

    @property
    def engine(self) -> Engine:
        return self.view.engine

    def attach(self, probe_interval_s: float = 0.05) -> None:
        self.handle.attach(self.view, probe_interval_s=probe_interval_s)

    def turn(self, **quiet_s: float) -> None:
        """Record a turn of every loop, now or the given number of seconds ago."""
        for name in health.MAX_ITERATION_S_BY_LOOP:
            self.state.iteration_started_at[name] = time.monotonic() - quiet_s.get(name, 0.0)

    def ask(
        self, path: str, method: str = "GET", *, source: str = "127.0.0.1", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.handle.port, WITHIN_S, source_address=(source, 0))
        try:
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read().decode()
        finally:
            connection.close()

    def checks(self, path: str, **headers: str) -> tuple[int, dict[str, dict[str, Any]]]:
        status, _headers, body = self.ask(path, **headers)
        return status, {check["name"]: check for check in json.loads(body)["checks"]}

    def metrics(self, **headers: str) -> dict[tuple[str, ...], float]:
        """Return every sample by its name and its labels' values."""
        status, found, body = self.ask("/metrics", **headers)
        assert status == 200, body
        assert found["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(body)
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    def until(self, path: str, status: int) -> dict[str, dict[str, Any]]:
        """Wait until a page answers with this status; return its checks."""

        def look() -> dict[str, dict[str, Any]] | None:
            found = self.checks(path)
            return found[1] if found[0] == status else None

        return wait_for(look, WITHIN_S, f"{path} to answer {status}")


MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(tmp_path: Path, proxmox: ProxmoxStandIn, database_file: Path) -> Iterator[MakeSite]:
    proxmox.control("clear_faults")
    with ExitStack() as stack:

        def make(**variables: str) -> Site:
            environ = {"SMITH_DATA_DIR": str(tmp_path), "SMITH_RUN_DIR": str(tmp_path / "run")}
            environ |= {"SMITH_HTTP_ADDR": "127.0.0.1:0", "SMITH_CONCURRENCY": "8"} | proxmox.env() | variables
            settings = load_settings(env_file=None, environ=environ)
            shutil.copyfile(database_file, tmp_path / "smith.db")
            engine = open_engine(settings.smith_database_url)
            stack.callback(engine.dispose)
            with transaction(engine) as session:
                concurrency = settings.smith_concurrency
                agent = AgentProcess(boot_id="boot-1", host="here", pid=1, version="0", concurrency=concurrency)
                nodes.add_agent(session, agent)
            state = AgentState()
            scheduler = Scheduler(engine, [CriticalJob(name="Heartbeat", interval_s=5, run=lambda: None)])
            handle = stack.enter_context(serving(settings))
            scheduler.start()
            stack.callback(scheduler.stop)
            view = AgentView(
                boot_id="boot-1",
                settings=settings,
                state=state,
                scheduler=scheduler,
                engine=engine,
                proxmox=ProxmoxReader(ProxmoxConnection.from_settings(settings), timeout_s=5),
                meters=Meters(),
                measure_memory_mib=lambda: 12.0,
                count_drift=lambda: {"vm_gone": 2},
            )
            return Site(handle, view)

        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site whose agent is attached and has sent a heartbeat."""
    site = make_site()
    site.turn()
    site.state.heartbeat_at = time.time()
    site.attach()
    return site


# Liveness


def test_an_agent_whose_loops_make_progress_is_alive(site: Site) -> None:
    status, checks = site.checks("/livez")
    assert status == 200
    assert set(checks) == {"main", "dispatch", "report", "leases", "fence", "Heartbeat"}
    assert all(check["ok"] for check in checks.values())


@pytest.mark.parametrize("loop", list(health.MAX_ITERATION_S_BY_LOOP))
def test_a_loop_without_progress_is_named(loop: str, site: Site) -> None:
    site.turn(**{loop: health.MAX_ITERATION_S_BY_LOOP[loop] + 5})
    status, checks = site.checks("/livez")
    assert status == 503
    assert [name for name, check in checks.items() if not check["ok"]] == [loop]
    assert "no progress" in checks[loop]["reason"]


def test_a_critical_job_whose_thread_has_ended_is_named(site: Site) -> None:
    site.view.scheduler.stop()
    status, checks = site.checks("/livez")
    assert status == 503
    assert checks["Heartbeat"]["reason"] == "is overdue"


def test_a_long_job_and_an_unreachable_fulcrum_do_not_affect_liveness(site: Site) -> None:
    """A restart would not help."""
    site.state.claimed_job_count = 8
    site.state.fulcrum_link.note_down("connection refused")
    assert site.checks("/livez")[0] == 200


def test_a_long_lease_allows_the_lease_loop_a_longer_silence(make_site: MakeSite) -> None:
    site = make_site(SMITH_LEASE_S="3600")
    site.attach()
    site.turn(leases=600.0)
    assert site.checks("/livez")[0] == 200


def test_a_start_that_waits_for_fulcrum_is_alive_and_not_ready(make_site: MakeSite) -> None:
    site = make_site()
    site.handle.note_waiting("GET /agents/me: connection refused")
    assert site.checks("/livez") == (200, {})
    status, checks = site.checks("/readyz")
    assert status == 503
    assert checks["agent"]["reason"] == "waits for FulcrumCore's configuration"
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
    found = [entry for entry in logs if entry["event"] in ("agents_paused", "agents_resumed")]
    assert [(entry["event"], entry["reason"]) for entry in found] == [
        ("agents_paused", "update of pve2"),
        ("agents_resumed", "update of pve2"),
    ]
    assert found[0]["who"] == "ops"


def test_before_fulcrum_has_answered_the_agent_is_not_ready(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.heartbeat_at = 0.0
    status, checks = site.checks("/readyz")
    assert (status, checks["fulcrum"]["reason"]) == (503, "FulcrumCore has not answered yet")


def test_the_error_of_an_unreachable_fulcrum_is_shown(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.fulcrum_link.note_down(str(FulcrumUnavailable("GET /agents/me: HTTP 403")))
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

    def refuse(connection: Any, *_: Any) -> None:
        connection.exec_driver_sql("PRAGMA query_only=ON")

    event.listen(site.engine, "begin", refuse)
    checks = site.until("/readyz", 503)
    event.remove(site.engine, "begin", refuse)
    assert checks["database"]["reason"] == "the database cannot be written"


def test_a_full_disk_makes_the_agent_unready_and_names_the_folder(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Simulated by a minimum that no disk satisfies."""
    site.until("/readyz", 200)
    monkeypatch.setitem(space.MIN_FREE_MIB, "data", 10**12)
    checks = site.until("/readyz", 503)
    assert checks["disk"]["reason"] == "too little space in the folder for data"
    assert str(tmp_path) in checks["disk"]["detail"]


def test_a_draining_agent_is_not_ready_and_a_disabled_one_is(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.is_disabled = True
    status, checks = site.checks("/readyz")
    assert status == 200
    assert "disabled" in checks["agent"]["reason"]
    site.state.draining.set()
    assert site.checks("/readyz")[0] == 503


# Metrics


def test_jobs_are_counted_by_action_and_outcome(site: Site) -> None:
    meters = site.view.meters
    for action, result in [
        ("create", JobResult(succeeded=True, vm={"vmid": 100})),
        ("create", JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="full")),
        ("Evil\naction", JobResult(succeeded=False, code=ErrorCode.UNSUPPORTED_ACTION, detail="none")),
    ]:
        meters.note_ended(site.engine, _finished(site.engine, action, result), duration_s=4.2)
    with transaction(site.engine) as session:
        submit(session, action="stop")
        lease = claim(session)
        job = session.get(Job, lease.job_id)
        assert job is not None
    meters.note_started(job)
    meters.note_ended(site.engine, job, duration_s=1.0)
    found = site.metrics()
    assert found["smith_jobs_total", "create", "completed"] == 1
    assert found["smith_jobs_total", "create", "failed"] == 1
    assert found["smith_jobs_total", "other", "failed"] == 1
    assert found["smith_jobs_total", "stop", "lost"] == 1
    assert found["smith_job_errors_total", "CAPACITY"] == 1
    assert found["smith_job_duration_seconds_bucket", "create", "5.0"] == 2
    assert found["smith_job_duration_seconds_bucket", "create", "3.0"] == 0
    assert found["smith_queue_wait_seconds_count",] == 1


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
        meters.note_ended(site.engine, job, duration_s=1.0)
    found = site.metrics()
    assert found["smith_jobs_total", "start", "put_back"] == 1
    assert found["smith_jobs_total", "start", "abandoned"] == 1


def test_the_number_of_action_labels_is_bounded(site: Site) -> None:
    result = JobResult(succeeded=True, vm={"vmid": 100})
    for number in range(MAX_LABELLED_ACTIONS + 5):
        job = _finished(site.engine, f"action-{number}", result)
        site.view.meters.note_ended(site.engine, job, duration_s=1.0)
    found = site.metrics()
    assert found["smith_jobs_total", "other", "completed"] == 5
    assert len([key for key in found if key[0] == "smith_jobs_total"]) == MAX_LABELLED_ACTIONS + 1


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
    job = _finished(site.engine, "create", JobResult(succeeded=True))
    with transaction(site.engine) as session:
        row = session.get(Job, job.id)
        assert row is not None
        row.finished_at = utc_now() - timedelta(seconds=1000)
    found = site.metrics()
    assert found["smith_queue_depth", "pending"] + found["smith_queue_depth", "processing"] == 2
    assert found["smith_queue_depth", "report_due"] == 1
    assert 1000 <= found["smith_outbox_oldest_seconds",] < 1000 + WITHIN_S
    assert 500 <= found["smith_queue_oldest_seconds",] < 500 + WITHIN_S
    assert found["smith_mappings", "reserved"] == 1
    assert found["smith_mappings", "active"] == 0


def test_jobs_that_fulcrumcore_does_not_accept_as_ended_are_counted_by_cause(site: Site) -> None:
    result = JobResult(succeeded=True)
    _finished(site.engine, "create", result)
    refused = _finished(site.engine, "start", result)
    with transaction(site.engine) as session:
        outbox.postpone_report(session, refused.id, backoff_s=600, note="HTTP 400")
        for _ in range(2):
            submit(session, action="stop")
            elsewhere = JobResult(succeeded=False, code=ErrorCode.JOB_CLAIMED_ELSEWHERE, detail="400")
            job_queue.finish(session, claim(session), elsewhere, ReportState.CLAIMED_ELSEWHERE)
    found = site.metrics()
    assert found["smith_unaccepted_jobs", "report_not_accepted"] == 1
    assert found["smith_unaccepted_jobs", "claimed_elsewhere"] == 2


def test_the_gauges_of_the_agent_process(site: Site) -> None:
    site.until("/readyz", 200)
    site.state.claimed_job_count, site.state.ended_job_count = 7, 4
    found = site.metrics()
    assert found["smith_jobs_running",] == 3
    assert found["smith_job_slots",] == 8
    assert found["smith_process_tree_memory_bytes",] == 12 * 1024 * 1024
    assert found["smith_heartbeat_last_success_timestamp_seconds",] == pytest.approx(site.state.heartbeat_at)
    assert (found["smith_fulcrum_up",], found["smith_proxmox_up",], found["smith_database_up",]) == (1, 1, 1)
    assert [key for key in found if key[0] == "smith_build_info"] != []
    assert found["smith_disk_free_bytes", "data"] > 0


def test_without_a_database_the_other_gauges_are_still_served(site: Site) -> None:
    with transaction(site.engine) as session:
        session.connection().exec_driver_sql("ALTER TABLE mappings RENAME TO elsewhere")
    found = site.metrics()
    assert found["smith_database_up",] == 0
    assert "smith_jobs_running" in {key[0] for key in found}
    assert "smith_queue_depth" not in {key[0] for key in found}


def test_openmetrics_format_is_served_on_request(site: Site) -> None:
    status, headers, body = site.ask("/metrics", accept="application/openmetrics-text;version=1.0.0")
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_the_manual_lists_exactly_the_served_metrics(site: Site) -> None:
    site.view.meters.note_ended(site.engine, _finished(site.engine, "create", JobResult(succeeded=True)), 1.0)
    _status, _headers, body = site.ask("/metrics")
    served = set(re.findall(r"^# TYPE (smith_\S+)", body, re.MULTILINE))
    page = (DOCS / "operating.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(smith_\w+)", page, re.MULTILINE)) == served


def _finished(engine: Engine, action: str, result: JobResult) -> Job:
    with transaction(engine) as session:
        job_id = submit(session, action=action, priority=1000)
        lease = claim(session)
        assert lease.job_id == job_id
        job_queue.finish(session, lease, result)
        job = session.get(Job, job_id)
        assert job is not None
        return job


# Access control


def test_only_get_and_head_are_allowed(site: Site) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        status, headers, _body = site.ask("/livez", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD"), method
    status, headers, body = site.ask("/livez", "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/nothing", "/metrics/"])
def test_every_response_has_the_security_headers(path: str, site: Site) -> None:
    _status, headers, _body = site.ask(path)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers


def test_an_unknown_page_is_a_404(site: Site) -> None:
    assert site.ask("/nothing")[0] == 404
    assert site.ask("/metrics/")[0] == 404


def test_with_a_token_only_health_is_open_and_without_details(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_TOKEN=TOKEN)
    site.turn()
    site.state.heartbeat_at = time.time()
    site.attach()
    site.until("/readyz", 200)
    site.state.fulcrum_link.note_down("GET https://core.internal/api: refused")
    for path in ("/metrics", "/", "/nothing"):
        status, headers, _body = site.ask(path)
        assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="agent-smith"'), path
    assert site.checks("/livez")[0] == 200
    assert "core.internal" not in site.ask("/readyz")[2]
    assert "core.internal" in site.ask("/readyz", authorization=f"Bearer {TOKEN}")[2]
    assert site.metrics(authorization=f"Bearer {TOKEN}")["smith_jobs_running",] == 0
    assert site.ask("/metrics", authorization=f"bearer {TOKEN}")[0] == 200
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "\xe4"):
        assert site.ask("/metrics", authorization=f"Bearer {wrong}")[0] == 401
    assert site.ask("/metrics", authorization=f"Basic {TOKEN}")[0] == 401


def test_an_address_with_many_wrong_tokens_is_refused(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_TOKEN=TOKEN)
    for _ in range(MAX_WRONG_TOKENS):
        assert site.ask("/metrics", authorization="Bearer wrong-wrong-wrong")[0] == 401
    status, headers, _body = site.ask("/metrics", authorization="Bearer wrong-wrong-wrong")
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 61
    assert site.ask("/livez")[0] == 200, "requests without a token are still answered"


def test_wrong_tokens_do_not_shut_out_a_caller_with_the_right_token(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_TOKEN=TOKEN)
    site.attach()
    for _ in range(MAX_WRONG_TOKENS + 1):
        site.ask("/metrics", authorization="Bearer wrong-wrong-wrong")
    assert site.ask("/metrics", authorization=f"Bearer {TOKEN}")[0] == 200


# Connections


REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def open_connections(site: Site, count: int, host: str = "127.0.0.1") -> list[socket.socket]:
    return [socket.create_connection((host, site.handle.port), WITHIN_S) for _ in range(count)]


def read_until_closed(connection: socket.socket) -> bytes:
    """Return what arrives until the server closes the connection. Raises TimeoutError if it does not."""
    connection.settimeout(WITHIN_S)
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize(
    "sent", [b"", b"G", REQUEST + b"G", REQUEST + b"GET / HTTP/1.1\r\n", REQUEST * 2 + b"G"], ids=repr
)
def test_a_connection_with_an_unfinished_request_is_closed(
    sent: bytes, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker with enough such connections would keep all other callers from the health pages."""
    monkeypatch.setattr(serve, "REQUEST_TIMEOUT_S", 0.3)
    site = make_site()
    with closing(open_connections(site, 1)[0]) as connection:
        connection.sendall(sent[: len(REQUEST)] if sent.startswith(REQUEST) else sent)
        if sent.startswith(REQUEST):
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(sent[len(REQUEST) :])
        read_until_closed(connection)


def test_connections_above_the_limit_are_closed_at_once(make_site: MakeSite) -> None:
    site = make_site()
    with ExitStack() as stack:
        connections = [stack.enter_context(one) for one in open_connections(site, serve.MAX_CONNECTIONS + 8)]
        for connection in connections[serve.MAX_CONNECTIONS :]:
            assert read_until_closed(connection) == b""
        connections[0].sendall(REQUEST)
        assert connections[0].recv(65536).startswith(b"HTTP/1.1 200"), "the first ones are served"
    wait_for(lambda: site.ask("/livez")[0] == 200, WITHIN_S, "connections to be accepted again")


def test_another_machine_cannot_occupy_all_connections(make_site: MakeSite) -> None:
    """A connection to the machine's own address comes from that address, as a connection of another machine."""
    own_address = address_of_this_machine()
    site = make_site(SMITH_HTTP_ADDR="0.0.0.0:0", SMITH_HTTP_TOKEN=TOKEN)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(one)
            for one in open_connections(site, serve.MAX_CONNECTIONS_PER_ADDRESS + 4, own_address)
        ]
        for connection in connections[serve.MAX_CONNECTIONS_PER_ADDRESS :]:
            assert read_until_closed(connection) == b""
        assert site.ask("/livez")[0] == 200


def test_a_trusted_proxy_may_have_more_connections_but_not_all(make_site: MakeSite) -> None:
    own_address = address_of_this_machine()
    site = make_site(SMITH_HTTP_ADDR="0.0.0.0:0", SMITH_HTTP_PROXIES=own_address)
    limit = serve.MAX_CONNECTIONS_FROM_OTHER_MACHINES
    with ExitStack() as stack:
        connections = [stack.enter_context(one) for one in open_connections(site, limit + 4, own_address)]
        connections[limit - 1].sendall(REQUEST)
        assert connections[limit - 1].recv(65536).startswith(b"HTTP/1.1 200")
        for connection in connections[limit:]:
            assert read_until_closed(connection) == b""
        assert site.ask("/livez")[0] == 200, "callers on this machine are always served"


def test_only_configured_reverse_proxies_may_name_the_user(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_PROXIES="127.0.0.5,127.0.7.0/24", SMITH_HTTP_USER_HEADER="X-Login")
    site.attach()
    for proxy in ("127.0.0.5", "127.0.7.9"):
        assert site.ask("/metrics", source=proxy, x_login="ops")[0] == 200
        for login in ({}, {"x_login": " "}, {"x_forwarded_user": "ops"}, {"authorization": f"Bearer {TOKEN}"}):
            status, headers, _body = site.ask("/metrics", source=proxy, **login)
            assert status == 403
            assert "www-authenticate" not in headers, "no token would help"
    for other in ("127.0.0.1", "127.0.0.6", "127.0.8.9"):
        assert site.ask("/metrics", source=other, x_login="ops", x_forwarded_for="127.0.0.5")[0] == 403
        assert site.ask("/livez", source=other)[0] == 200


def test_proxy_users_and_token_holders_see_details(make_site: MakeSite) -> None:
    site = make_site(SMITH_HTTP_PROXIES="127.0.0.5", SMITH_HTTP_TOKEN=TOKEN)
    site.turn()
    site.attach()
    site.state.fulcrum_link.note_down("GET https://core.internal/api: refused")
    assert "core.internal" in site.ask("/readyz", source="127.0.0.5", x_forwarded_user="ops")[2]
    assert "core.internal" not in site.ask("/readyz", x_forwarded_user="ops")[2]
    assert site.ask("/metrics", authorization=f"Bearer {TOKEN}")[0] == 200
    assert site.ask("/metrics", x_forwarded_user="ops")[0] == 401
    for _ in range(MAX_WRONG_TOKENS + 1):
        site.ask("/metrics", source="127.0.0.5", authorization="Bearer wrong-wrong-wrong")
    assert site.ask("/metrics", source="127.0.0.5", x_forwarded_user="ops")[0] == 200, "a proxy serves many users"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SMITH_HTTP_PROXIES": "0.0.0.0/0"}, "any client could claim to be any user"),
        ({"SMITH_HTTP_PROXIES": "::/0"}, "any client could claim to be any user"),
        ({"SMITH_HTTP_PROXIES": "proxy.example.net"}, "must be a list of addresses or networks"),
        ({"SMITH_HTTP_PROXIES": "10.8.0.7/24"}, "must be a list of addresses or networks"),
        ({"SMITH_HTTP_USER_HEADER": "X Login"}, "must be a header name"),
        ({"SMITH_HTTP_USER_HEADER": "Authorization"}, "must be a header name"),
    ],
)
def test_an_unsafe_proxy_setting_is_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(env_file=None, environ=variables)


# The OpenAPI document


@pytest.mark.parametrize(
    "variables",
    [{}, {"SMITH_HTTP_TOKEN": TOKEN}, {"SMITH_HTTP_PROXIES": "127.0.0.5"}],
    ids=["open here", "token", "reverse proxy"],
)
def test_every_response_is_documented(variables: dict[str, str], make_site: MakeSite) -> None:
    """From the waiting start to the working agent; with and without login, and with wrong tokens."""
    site = make_site(**variables)
    callers: list[dict[str, str]] = [{}, {"host": "attacker.example"}, {"authorization": f"Bearer {TOKEN}"}]
    callers += [{"source": "127.0.0.5", "x_forwarded_user": "ops"}]
    callers += [{"source": "127.0.0.6", "authorization": "Bearer wrong-wrong-wrong"}] * (MAX_WRONG_TOKENS + 1)
    described = json.loads(site.ask("/openapi.json", **callers[2 if "SMITH_HTTP_TOKEN" in variables else 3])[2])
    assert set(described["paths"]) == {"/", *PAGE_PATHS}
    met = set()
    for step in ("starting", "not ready", "alive"):
        if step == "not ready":
            site.attach()
        if step == "alive":
            site.turn()
            site.state.heartbeat_at = time.time()
            site.until("/readyz", 200)
        for path, method, caller in itertools.product(described["paths"], ("GET", "HEAD"), callers):
            answer = site.ask(path, method, **caller)
            _check_against(described, path, method, answer)
            met.add(answer[0])
    named = {status for page in described["paths"].values() for status in page["get"]["responses"]}
    assert {str(status) for status in met} == named - {"500"}


def _check_against(described: dict[str, Any], path: str, method: str, answer: tuple[int, dict[str, str], str]) -> None:
    status, headers, body = answer
    named = described["paths"][path][method.lower()]["responses"]
    assert str(status) in named, (path, method, status)
    for header, rule in named[str(status)].get("headers", {}).items():
        assert not rule["required"] or header.lower() in headers
    if method == "HEAD":
        assert "content" not in named[str(status)]
        return
    kind = headers["content-type"].partition(";")[0]
    schema = named[str(status)]["content"][kind]["schema"]
    if kind == "application/json":
        jsonschema.validate(json.loads(body), {**schema, "components": described["components"]})


def test_the_document_is_valid_openapi(site: Site) -> None:
    described = json.loads(site.ask("/openapi.json")[2])
    assert schemathesis.openapi.from_dict(described).validate() is None


@pytest.mark.parametrize("address", ["0.0.0.0:9642", "[::]:9642", "192.0.2.1:80", "host.example.net:9642"])
def test_an_address_that_other_machines_reach_needs_a_token(address: str) -> None:
    with pytest.raises(SettingsError, match="SMITH_HTTP_ADDR is wrong, other machines can reach"):
        load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address})
    settings = load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address, "SMITH_HTTP_TOKEN": TOKEN})
    assert settings.smith_http_addr == address
    proxied = load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address, "SMITH_HTTP_PROXIES": "192.0.2.7"})
    assert proxied.smith_http_proxies == ("192.0.2.7/32",)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "off"])
def test_a_loopback_address_needs_no_token(address: str) -> None:
    assert load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address}).smith_http_addr == address


def test_a_token_is_read_from_a_file_and_must_not_be_short(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    settings = load_settings(env_file=None, environ={"SMITH_HTTP_TOKEN_FILE": str(file)})
    assert settings.smith_http_token.get_secret_value() == TOKEN
    with pytest.raises(SettingsError, match="shorter than 16 characters"):
        load_settings(env_file=None, environ={"SMITH_HTTP_TOKEN": "fifteen-letters"})


# The socket


def test_off_opens_no_port(tmp_path: Path) -> None:
    with serving(Settings(smith_data_dir=tmp_path, smith_http_addr="off")) as handle:
        assert handle.port == 0


def test_a_port_in_use_is_logged_once_and_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.INFO, logger="executor"):
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with serving(Settings(smith_data_dir=tmp_path, smith_http_addr=address)) as handle:
            assert handle.port == 0
    assert caplog.text.count("http_not_served") == 1
    assert address in caplog.text
    assert "in use" in caplog.text


def test_the_port_is_free_after_the_agent_has_stopped(tmp_path: Path) -> None:
    with serving(Settings(smith_data_dir=tmp_path, smith_http_addr="127.0.0.1:0")) as handle:
        port = handle.port
        socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S).close()
    with serving(Settings(smith_data_dir=tmp_path, smith_http_addr=f"127.0.0.1:{port}")) as handle:
        assert handle.port == port


def test_stopping_does_not_wait_for_the_next_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TICK_S", 3600.0)
    with (
        serving(Settings(smith_data_dir=tmp_path, smith_http_addr="127.0.0.1:0")) as handle,
        closing(http.client.HTTPConnection("127.0.0.1", handle.port, timeout=WITHIN_S)) as asked,
    ):
        asked.request("GET", "/livez")
        assert asked.getresponse().headers["Date"]
    assert "http" not in [thread.name for thread in threading.enumerate()]


def test_invalid_requests_and_long_headers_do_no_harm(site: Site) -> None:
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"GET /livez HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", site.handle.port), timeout=WITHIN_S) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert site.checks("/livez")[0] == 200


def test_ipv6_is_served(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(Settings(smith_data_dir=tmp_path, smith_http_addr="[::1]:0")) as handle:
        socket.create_connection(("::1", handle.port), timeout=WITHIN_S).close()
