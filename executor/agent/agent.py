"""The agent process: wires the loops, hands jobs to slots, drains and stops.

Threads: one for each critical job, one dispatcher, one reporter, one that renews leases, one for each running job. The
main thread watches limits and signals and is the only one that decides to stop. Signal handlers only count.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from executor.agent.destroyer import Destroyer
from executor.agent.disk_space import Room
from executor.agent.heartbeat import Heartbeat
from executor.agent.live_secrets import LiveSecrets
from executor.agent.machine import Admission, default_concurrency
from executor.agent.meters import Meters
from executor.agent.metrics import VmMetrics
from executor.agent.monitor import Monitor
from executor.agent.poller import Poller
from executor.agent.pruner import Pruner
from executor.agent.reconciler import Reconciler
from executor.agent.reporter import Reporter
from executor.agent.scheduler import CriticalJob, Scheduler
from executor.agent.state import AgentState
from executor.agent.worker import StopSignal, Worker
from executor.database import job_queue, queries, schema
from executor.database.engine import insist, open_engine, reading, transaction
from executor.database.tables import Job, Node, utc_now
from executor.drift.inspector import Inspector
from executor.errors import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_RESTART,
    DatabaseError,
    ErrorCode,
    StaleJob,
)
from executor.fulcrum import remote_config
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import SecretResolver
from executor.log import get_logger
from executor.model import JobResult
from executor.placement.clone_limit import CloneLimit
from executor.placement.placer import Placer
from executor.processes import process_tree
from executor.processes.progress import Progress
from executor.proxmox.client import ProxmoxReader
from executor.runs.plan import Site
from executor.runs.runner import Runner, RunnerPaths, ansible_home
from executor.runs.warm.servers import why_untested
from executor.settings.settings import Settings, load_settings
from executor.version import VERSION
from executor.web.server import serving
from executor.web.watched import Watched

log = get_logger(__name__)

#: The main loop's pace: signals and limits are noticed this fast.
TICK_S = 0.2
#: The dispatcher looks for work this often even when nobody wakes it (a job's pause ran out).
DISPATCH_INTERVAL_S = 2.0
#: Runs that the machine holds back wait for fractions of a second, mostly.
HELD_INTERVAL_S = 0.2
#: Given to cancelled runs to end, and to the last reports, before the process leaves.
CANCEL_GRACE_S = 20.0
#: The same after QUIT: the supervisor waits little longer.
QUIT_GRACE_S = 6.0
FLUSH_S = 10.0
#: Pause of a loop after the database failed.
DATABASE_PAUSE_S = 5.0


class Mode(StrEnum):
    """How long the agent works."""

    SERVE = "serve"  #: until it is told to stop
    ONCE = "once"  #: one poll; what it found is carried and reported
    DRAIN = "drain"  #: until FulcrumCore has nothing more for us


@dataclass(kw_only=True)
class _Slot:
    """One running job."""

    job: Job
    stop: StopSignal = field(default_factory=StopSignal)


class Agent:
    """One life of the agent process."""

    def __init__(self, settings: Settings, live: LiveSecrets, fulcrum: FulcrumClient, mode: Mode = Mode.SERVE) -> None:
        self.settings = settings
        self.mode = mode
        self.boot_id = f"{socket.gethostname()[:20]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.state = AgentState()
        self.engine = open_engine(settings.smith_database_url)
        self.secrets = live
        self.fulcrum = fulcrum
        self.runner = _runner(settings, live)
        self.reporter = Reporter(engine=self.engine, fulcrum=self.fulcrum, state=self.state)
        self.proxmox = proxmox = ProxmoxReader(live.connection(), renew=live.renewed_connection)
        self.poller = Poller(
            engine=self.engine,
            fulcrum=self.fulcrum,
            state=self.state,
            job_timeout_s=settings.fulcrum_job_timeout_s,
            interval_s=settings.fulcrum_poll_interval_s,
        )
        self.worker = Worker(
            engine=self.engine,
            fulcrum=self.fulcrum,
            proxmox=proxmox,
            placer=Placer(proxmox, settings),
            clone_limit=CloneLimit(limit=settings.smith_clones_per_storage),
            runner=self.runner,
            settings=settings,
            site=Site.from_settings(settings, ansible_home()),
            secrets=SecretResolver(self.fulcrum),
        )
        self.reconciler = Reconciler(
            inspector=Inspector(
                engine=self.engine,
                fulcrum=self.fulcrum,
                proxmox=proxmox,
                cluster=settings.smith_cluster,
                wait=self.state.stopping.wait,
            ),
            state=self.state,
            interval_s=settings.smith_reconcile_interval_s,
        )
        self.scheduler = Scheduler(self.engine, self._critical_jobs(proxmox))
        self.monitor = Monitor(settings=settings, state=self.state, scheduler=self.scheduler)
        self.meters = Meters()
        self._admission = Admission(is_warm=runs_warm(settings))
        self._room = Room(folders={"data": settings.smith_data_dir, "run": settings.smith_run_dir})
        self._slots: dict[int, _Slot] = {}
        self._slots_lock = threading.Lock()
        self._without_slot: set[int] = set()  #: jobs that were ours at the last look, and that no slot worked on
        # Threads that stay: each keeps its connections to FulcrumCore and Proxmox from one job to the next.
        self._pool = ThreadPoolExecutor(max_workers=settings.smith_concurrency, thread_name_prefix="job")
        self._signals: list[int] = []
        self._reload_wanted = False  #: HUP came
        self._loops: list[threading.Thread] = []
        self._in_touch_since: float | None = None  #: monotonic; of the unbroken contact with the database

    def _critical_jobs(self, proxmox: ProxmoxReader) -> list[CriticalJob]:
        settings, link = self.settings, self.state.fulcrum
        heartbeat = Heartbeat(fulcrum=self.fulcrum, state=self.state)
        destroyer = Destroyer(
            engine=self.engine,
            fulcrum=self.fulcrum,
            state=self.state,
            cluster=settings.smith_cluster,
            job_timeout_s=settings.fulcrum_job_timeout_s,
        )
        pruner = Pruner(engine=self.engine, settings=settings)
        metrics = VmMetrics(
            engine=self.engine,
            fulcrum=self.fulcrum,
            proxmox=proxmox,
            state=self.state,
            interval_s=settings.smith_metrics_interval_s,
        )
        poll_interval_s, prune_interval_s = settings.fulcrum_poll_interval_s, settings.smith_prune_interval_s
        duties = [
            CriticalJob(
                name="Heartbeat", interval_s=settings.fulcrum_heartbeat_interval_s, run=heartbeat.beat, link=link
            ),
            CriticalJob(
                name="GetPendingJobs",
                interval_s=poll_interval_s,
                run=self._poll,
                wake=self.state.poll_wanted,
                link=link,
            ),
            CriticalJob(name="PruneCompletedJobs", interval_s=prune_interval_s, run=pruner.prune, for_each_node=False),
            CriticalJob(
                name="DestroyDoomed", interval_s=prune_interval_s, run=destroyer.turn, for_each_node=False, link=link
            ),
        ]
        if (interval_s := settings.smith_metrics_interval_s) > 0:
            duties.append(
                CriticalJob(name="ReportMetric", interval_s=interval_s, run=metrics.report, for_each_node=False)
            )
        if (interval_s := settings.smith_reconcile_interval_s) > 0:
            duties.append(
                CriticalJob(name="Reconcile", interval_s=interval_s, run=self.reconciler.turn, for_each_node=False)
            )
        return duties

    def watched(self) -> Watched:
        """Return what the pages of health and metrics look at."""
        return Watched(
            boot_id=self.boot_id,
            settings=self.settings,
            state=self.state,
            scheduler=self.scheduler,
            engine=self.engine,
            proxmox=self.proxmox,
            meters=self.meters,
            memory_mib=self.monitor.memory_mib,
            drift=self.reconciler.counts,
        )

    # --- one life -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until a limit, a signal or the mode ends it. Returns the exit code.

        Raises DatabaseError when the database is newer, damaged, or held by another executor.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda received, _frame: self._signals.append(received))
        signal.signal(signal.SIGHUP, self._want_reload)
        with _held_alone(self.settings.smith_database_url):
            schema.upgrade(self.engine)
            self._settle_in()
            self._start_loops()
            reason, code = self._watch()
            code = self._leave(reason, code)
        log.info("agent_stopped", reason=reason, exit_code=code, jobs=self.state.jobs_ended)
        return code

    def _want_reload(self, _number: int, _frame: object) -> None:
        self._reload_wanted = True

    def _reload_if_wanted(self) -> None:
        """Read the secrets again after HUP; in a thread, because FulcrumCore may be asked, and may be slow."""
        if self._reload_wanted:
            self._reload_wanted = False
            log.info("reload_asked_for")
            threading.Thread(target=self._reload, name="reload", daemon=True).start()

    def _reload(self) -> None:
        self.secrets.reload()
        self.proxmox.connection = self.secrets.connection()

    def _settle_in(self) -> None:
        """Clean up after earlier lives, then write this one down."""
        for ident in self.runner.sweep():
            log.warning("leftover_run_ended", run_ident=ident)
        if self.settings.smith_warm != "off":
            self.runner.start_warm(insist=self.settings.smith_warm == "on")
        with transaction(self.engine) as session:
            session.add(_node_row(self.boot_id, self.settings))
            if self.engine.dialect.name == "sqlite":  # the lock on the file proves that every other owner is dead
                for job_id, status in job_queue.reap(session, alone_as=self.boot_id):
                    log.warning("job_taken_back", job=job_id, status=status)
        log.info("agent_ready", boot_id=self.boot_id, version=VERSION, concurrency=self.settings.smith_concurrency)

    def _start_loops(self) -> None:
        self.scheduler.start()
        loops = {"dispatch": self._dispatch, "report": self._report, "leases": self._renew_leases}
        for name, body in loops.items():
            thread = threading.Thread(target=self._loop, args=(name, body), name=name, daemon=True)
            self._loops.append(thread)
            thread.start()

    def _loop(self, name: str, body: Callable[[], None]) -> None:
        """Turn a loop until the agent stops; a database that fails for a while only slows it."""
        failing = False
        while not self.state.stopping.is_set():
            self.state.note_turn(name)
            try:
                body()
                if failing:
                    log.info("loop_recovered", loop=name)
                failing = False
            except SQLAlchemyError as error:
                if not failing:
                    log.error("loop_cannot_use_database", loop=name, reason=str(error).splitlines()[0])
                failing = True
                self._in_touch_since = None
                self.state.stopping.wait(DATABASE_PAUSE_S)
            except Exception:
                # A defect in one turn must not end the loop: every later job would hang without a sound.
                log.exception("loop_broke", loop=name)
                self.state.stopping.wait(DATABASE_PAUSE_S)

    def _watch(self) -> tuple[str, int]:
        """Return why the agent is to leave, and with which code."""
        progress = Progress()
        while True:
            progress.beat()
            self.state.note_turn("main")
            self._announce(progress)
            self._reload_if_wanted()
            self.monitor.watch()
            if self._signals:
                return "signal", EXIT_OK
            if (limit := self.monitor.reached()) is not None:
                log.info("limit_reached", limit=limit)
                return f"limit {limit}", EXIT_RESTART if self.mode is Mode.SERVE else EXIT_OK
            if self.mode is not Mode.SERVE and self._is_done():
                return "done", EXIT_OK
            time.sleep(TICK_S)

    def _leave(self, reason: str, code: int) -> int:
        """Drain, cancel what does not end in time, deliver what is due, and stop every loop."""
        self.state.draining.set()
        log.info("drain_started", reason=reason, running=len(self._slots))
        drained = self._wait_for_slots(self.settings.smith_drain_timeout_s)
        if not drained:
            self._stop_all(StopSignal.STOPPING)
            grace_s = QUIT_GRACE_S if signal.SIGQUIT in self._signals else CANCEL_GRACE_S
            drained = self._wait_for_slots(grace_s, may_be_hurried=False)
        if signal.SIGQUIT not in self._signals:
            self.reporter.flush(FLUSH_S if self.state.fulcrum.is_up else 0.0)
        self.state.stopping.set()
        for event in (self.state.work_wanted, self.state.report_wanted):
            event.set()
        self.scheduler.stop()
        self.runner.stop_warm()
        with contextlib.suppress(SQLAlchemyError), transaction(self.engine) as session:
            job_queue.release_all(session, self.boot_id)
            stopped = {"stopped_at": utc_now(), "stop_reason": reason[:40], "draining": True}
            session.execute(update(Node).where(Node.id == self.boot_id).values(**stopped))
        return code if drained else EXIT_FAILURE

    def _announce(self, progress: Progress) -> None:
        """Tell the service manager, by way of the supervisor, that we have begun and what we are at."""
        if self.state.has_begun:
            progress.ready()
            progress.status(self.state.summary)

    def _wait_for_slots(self, within_s: float, *, may_be_hurried: bool = True) -> bool:
        """Wait until nothing runs; False when the time is over or a second signal came."""
        progress, limit = Progress(), time.monotonic() + within_s
        while self._slots:
            progress.beat()
            self._announce(progress)
            self._reload_if_wanted()
            self.state.note_turn("main")
            hurried = len(self._signals) > 1 or signal.SIGQUIT in self._signals
            if time.monotonic() >= limit or (may_be_hurried and hurried):
                return False
            time.sleep(TICK_S)
        return True

    def _is_done(self) -> bool:
        """True when a limited mode has nothing left to do."""
        if not self.state.agent_id or self.state.polls == 0 or self._slots:
            return False
        has_open_jobs = self._has_open_jobs()
        if has_open_jobs or self.mode is Mode.ONCE:
            return not has_open_jobs
        # FulcrumCore may have waited for our last report before it shows the next job of a group; and the poll that
        # ends first may have begun before that report.
        enough = self.state.polls + 2
        while self.state.polls < enough and not self._signals:
            self.state.poll_wanted.set()
            time.sleep(TICK_S)
        return not self._has_open_jobs()

    def _has_open_jobs(self) -> bool:
        with reading(self.engine) as session:
            counts = queries.count_jobs(session)
        return bool(counts["pending"] + counts["processing"] + counts["reports_due"])

    # --- loops ----------------------------------------------------------------------------------------------------

    def _poll(self) -> float | None:
        """Poll, unless what is polled could not be begun."""
        if self.state.draining.is_set() or self.state.disabled or (self.mode is Mode.ONCE and self.state.polls):
            return None
        if self.state.agent_id and self.state.polls == 0:
            self.poller.take_in_claimed()
        return self.poller.poll()

    def _dispatch(self) -> None:
        """Fill free slots."""
        self.state.work_wanted.wait(HELD_INTERVAL_S if self._admission.is_holding else DISPATCH_INTERVAL_S)
        self.state.work_wanted.clear()
        while self.state.may_claim and not self._is_full() and self._has_room():
            with transaction(self.engine) as session:
                job = job_queue.claim(
                    session,
                    self.boot_id,
                    lease_s=self.settings.smith_lease_s,
                    max_creates=self.worker.clone_limit.capacity,
                )
            if job is None:
                return
            self._start(job)

    def _has_room(self) -> bool:
        """True while disks and machine can take one more run."""
        return self._room.is_enough() and self._admission.is_open(len(self._slots))

    def _is_full(self) -> bool:
        limit = self.settings.smith_max_jobs
        return len(self._slots) >= self.settings.smith_concurrency or bool(limit and self.state.jobs_claimed >= limit)

    def _start(self, job: Job) -> None:
        slot = _Slot(job=job)
        with self._slots_lock:
            self._slots[job.id] = slot
        self.state.jobs_claimed += 1
        self.meters.note_started(job)
        self._pool.submit(self._carry, slot)

    def _carry(self, slot: _Slot) -> None:
        job, started = slot.job, time.monotonic()
        try:
            self.worker.carry(job, slot.stop)
        except StaleJob as stale:
            log.warning("job_lost", job_id=job.fulcrum_id, reason=str(stale))
        except SQLAlchemyError:
            log.exception("job_end_not_stored", job_id=job.fulcrum_id)  # its lease runs out, and it is looked at again
        except Exception as defect:
            log.exception("job_broke", job_id=job.fulcrum_id)
            self._fail_internal(job, defect)
        finally:
            with self._slots_lock:
                del self._slots[job.id]
                self.state.jobs_ended += 1
            self.state.work_wanted.set()
            self.state.report_wanted.set()
            self.meters.note_ended(self.engine, job, time.monotonic() - started)

    def _fail_internal(self, job: Job, defect: Exception) -> None:
        """End a job that met a defect of ours; only the kind of the error leaves this machine."""
        result = JobResult(succeeded=False, code=ErrorCode.INTERNAL, detail=f"{type(defect).__name__}, see the log")
        lease = job_queue.lease_of(job)
        with contextlib.suppress(StaleJob, SQLAlchemyError):
            insist(self.engine, lambda session: job_queue.finish(session, lease, result))

    def _report(self) -> None:
        pause_s = self.reporter.turn()
        if pause_s > 0:
            self.state.report_wanted.wait(pause_s)
        self.state.report_wanted.clear()

    def _renew_leases(self) -> None:
        """Keep our jobs ours, hear of cancellations, and take back the jobs of dead nodes."""
        with self._slots_lock:  # before the renewal: a job that is claimed after it must not look lost
            slots = list(self._slots.items())
        with transaction(self.engine) as session:
            held = job_queue.renew(session, self.boot_id, lease_s=self.settings.smith_lease_s)
            session.execute(update(Node).where(Node.id == self.boot_id).values(seen_at=utc_now()))
        for job_id, slot in slots:
            if job_id not in held:
                slot.stop.send(StopSignal.LOST)
            elif held[job_id]:
                slot.stop.send(StopSignal.OPERATOR)
        self._put_back_forgotten(held.keys())
        self._reap_dead_nodes()
        self.state.stopping.wait(self.settings.smith_lease_s / 6)

    def _put_back_forgotten(self, held: Collection[int]) -> None:
        """Return jobs to the queue that are ours in the database and that no slot works on.

        The database failed when a slot wanted to write its job's end. Without this they would stay ours for ever, with
        their leases renewed. Seen twice, because a job is ours a moment before it has its slot.
        """
        with self._slots_lock:
            without_slot = set(held) - self._slots.keys()
        forgotten, self._without_slot = without_slot & self._without_slot, without_slot
        for job_id in forgotten:
            with transaction(self.engine) as session:
                if job_queue.release(session, job_id, self.boot_id):
                    log.warning("job_taken_back", job=job_id, status="pending")
                    self.state.work_wanted.set()

    def _reap_dead_nodes(self) -> None:
        """Take back jobs whose lease ran out, on a database that several nodes share.

        Only after one whole lease of unbroken contact: in an outage of the database nobody could renew, and every
        lease looks dead afterwards.
        """
        if self.engine.dialect.name == "sqlite":
            return
        now = time.monotonic()
        self._in_touch_since = self._in_touch_since or now
        if now - self._in_touch_since < self.settings.smith_lease_s:
            return
        with transaction(self.engine) as session:
            for job_id, status in job_queue.reap(session):
                log.warning("job_taken_back", job=job_id, status=status)
                self.state.work_wanted.set()

    def _stop_all(self, reason: str) -> None:
        with self._slots_lock:
            for slot in self._slots.values():
                slot.stop.send(reason)


def runs_warm(settings: Settings) -> bool:
    """True when runs are to be warm, and can be on this machine."""
    return settings.smith_warm != "off" and not why_untested()


def _fitted_to_the_machine(settings: Settings) -> Settings:
    """Return the settings with as many jobs at once as the machine can carry, where nobody has said how many."""
    if settings.smith_concurrency:
        return settings
    return settings.model_copy(update={"smith_concurrency": default_concurrency(is_warm=runs_warm(settings))})


def _fulcrum_client(settings: Settings, live: LiveSecrets) -> FulcrumClient:
    settings.require_fulcrum()
    return FulcrumClient(
        settings.fulcrum_api_url,
        live.fulcrum_token,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
        on_refused=live.look_again,
    )


def _runner(settings: Settings, live: LiveSecrets) -> Runner:
    settings.require_proxmox()
    paths = RunnerPaths(
        ansible_home=ansible_home(), run_dir=settings.smith_run_dir, artifacts_dir=settings.smith_data_dir / "artifacts"
    )
    return Runner(paths, live.credentials, ca_bundle=settings.proxmox_ca_bundle)


def _node_row(boot_id: str, settings: Settings) -> Node:
    now = utc_now()
    return Node(
        id=boot_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=VERSION,
        started_at=now,
        seen_at=now,
        concurrency_wanted=settings.smith_concurrency,
        concurrency=settings.smith_concurrency,
        draining=False,
    )


@contextlib.contextmanager
def _held_alone(url: str) -> Iterator[None]:
    """Hold the SQLite file for this process alone; PostgreSQL is shared on purpose.

    Raises DatabaseError naming who holds it. The kernel drops the lock with the process, however it ends.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        yield
        return
    file = Path(f"{parsed.database}.lock")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read(200).strip() or "another process"
            raise DatabaseError(f"the database {parsed.database} is in use by {holder}: one executor a file") from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def main(settings: Settings, mode: Mode) -> int:
    """Run one agent. Called in a process of its own by the supervisor."""
    process_tree.hide()
    live = LiveSecrets(settings, load_settings)
    fulcrum = _fulcrum_client(settings, live)
    with serving(settings) as stage:
        settings = remote_config.settings_in_force(settings, fulcrum, on_wait=stage.note_waiting)
        settings = _fitted_to_the_machine(settings)
        if settings.smith_remote_config:
            live.overlay_with(settings, lambda fresh: remote_config.settings_now(fresh, fulcrum))
        for setting, danger in settings.insecurities():
            log.warning("insecure_transport", setting=setting, danger=danger)
        agent = Agent(settings, live, fulcrum, mode)
        stage.show(agent.watched())
        code = agent.run()
    sys.stdout.flush()
    if code == EXIT_FAILURE:
        os._exit(code)  # a job that could not be stopped must not hold the process: the supervisor ends what it left
    return code
