"""The parts of an agent for tests: a dispatcher with its worker and runner, a FulcrumCore simulator, and no Proxmox.

Each job has the action `start`, and its service has a mapping to a VM. The job runs the playbook that the test has
written. This playbook sends no request to Proxmox.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from smith_lab.system import wait_for
from sqlalchemy import Engine, update
from support.databases import new_job, row
from support.simulator_world import World

from executor.agent.dispatcher import Dispatcher
from executor.agent.meters import PrometheusMetrics
from executor.agent.parts import SharedDependencies, build_dispatcher
from executor.agent.refusals import Http403Counter
from executor.agent.state import AgentState
from executor.database import job_queue, mappings
from executor.database.engine import transaction
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.fulcrum.client import FulcrumClient
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.runs.actions import collection_folder
from executor.runs.runner import Runner, RunnerPaths
from executor.settings.settings import Settings

WITHIN_S = 60
BOOT_ID = "me"
PLAYBOOK_HEAD = "---\n- name: Play\n  hosts: proxmox\n  gather_facts: false\n  tasks:\n"
PUBLISH = """
    - name: Publish
      ansible.builtin.set_stats:
        data:
          vm_result: {vmid: "{{ vm.vmid | int }}", status: running, changed: true}
        per_host: false
        aggregate: false
"""


@dataclass
class AgentParts:
    """A dispatcher with all its parts. The test calls `dispatch`, as the agent's loop does."""

    folder: Path
    engine: Engine
    world: World
    state: AgentState = field(init=False)
    shared: SharedDependencies = field(init=False)
    runner: Runner = field(init=False)
    dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        actions = self.folder / "actions"
        actions.mkdir(mode=0o755)
        settings = Settings(
            smith_data_dir=self.folder / "data",
            smith_run_dir=self.folder / "run",
            smith_actions_path=actions,
            smith_concurrency=4,
            smith_warm="off",
        )
        self.state = AgentState(agent_id=self.world.ids.agent_id)
        fulcrum = FulcrumClient(self.world.sim.url, lambda: self.world.ids.agent_token)
        self.shared = SharedDependencies(
            settings=settings,
            boot_id=BOOT_ID,
            state=self.state,
            engine=self.engine,
            fulcrum=fulcrum,
            proxmox=ProxmoxReader(ProxmoxConnection(host="127.0.0.1", port=9, user="smith@pve")),
            http_403_counter=Http403Counter(fulcrum=fulcrum),
        )
        paths = RunnerPaths(
            collection_folder=collection_folder(),
            run_dir=settings.smith_run_dir,
            artifacts_dir=self.folder / "artifacts",
        )
        self.runner = Runner(paths, lambda: {"api_host": "127.0.0.1"})
        self.dispatcher = build_dispatcher(self.shared, self.runner, PrometheusMetrics())

    def write_playbook(self, tasks: str) -> None:
        """Write the playbook of the action `start`: these Ansible tasks, then one that publishes the result."""
        playbook = self.folder / "actions" / "start.yml"
        playbook.write_text(PLAYBOOK_HEAD + textwrap.indent(textwrap.dedent(tasks), "    ") + PUBLISH)
        playbook.chmod(0o644)

    def add_started_service(self, number: int = 0) -> dict[str, Any]:
        """Create a service with a mapped VM; return its job `start`, which FulcrumCore lists as pending."""
        service = self.world.created(f"{self.world.ids.agent_id}/{100_000 + number}")
        with transaction(self.engine) as session:
            mapping = mappings.reserve(
                session, service_id=service["id"], cluster="default", vmid=100_000 + number, name=f"web-{number}"
            )
            assert mapping is not None
            mappings.mark_mapping_active(session, mapping.id)
        self.world.admin.request_action(service["id"], "start")
        return self.world.job_of(service)

    def submit(self, core_job: dict[str, Any], **job_values: Any) -> int:
        """Store a job of FulcrumCore, as the poller does; return the id of its row."""
        with transaction(self.engine) as session:
            job_id = job_queue.submit(
                session,
                new_job(
                    **{
                        "fulcrum_id": core_job["id"],
                        "service_id": core_job["serviceId"],
                        "action": "start",
                        "core_created_at": utc_now(),
                        "deadline_at": utc_now() + timedelta(seconds=300),
                    }
                    | job_values
                ),
            )
        assert job_id is not None
        return job_id

    def dispatch(self) -> None:
        self.state.dispatch_requested.set()
        self.dispatcher.dispatch()

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.dispatcher.running_job_count == 0, WITHIN_S, "the end of all jobs")

    def job(self, job_id: int) -> Job:
        """Return the row of a job, read again."""
        return row(self.engine, job_id)

    def reap_job(self, job_id: int) -> None:
        """Return the job to the queue with a new epoch, as another agent does after the lease has expired."""
        columns = {"status": "pending", "owner": None, "lease_until": None, "epoch": Job.epoch + 1}
        with transaction(self.engine) as session:
            session.execute(update(Job).where(Job.id == job_id).values(**columns))

    def end_backoff(self, job_id: int) -> None:
        with transaction(self.engine) as session:
            session.execute(update(Job).where(Job.id == job_id).values(available_at=None))
