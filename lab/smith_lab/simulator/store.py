"""Stores the simulator's rows in dicts, with indexes for frequent look-ups. Callers must hold the store's `lock`."""

from __future__ import annotations

import base64
import secrets
import threading
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smith_lab.simulator import pool_values
from smith_lab.simulator.clock import SimulatorClock
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.json_patch import patch_operations
from smith_lab.simulator.rows import (
    Agent,
    AgentType,
    ConfigPool,
    Event,
    Group,
    InstallToken,
    Job,
    Json,
    MetricEntry,
    MetricType,
    Option,
    OptionType,
    Participant,
    PoolValue,
    Service,
    ServicePool,
    ServicePoolSet,
    ServiceType,
    Subscription,
    Token,
)
from smith_lab.simulator.vault import Vault

#: The value of the admin's token that each start of FulcrumCore adds.
SEED_TOKEN = "change-me"
DAY_S = 86_400.0
#: The maximum numbers of rows in two tables. When a table has more rows, its oldest rows are removed.
MAX_METRIC_ENTRIES = 200_000
MAX_EVENTS = 50_000


@dataclass(kw_only=True)
class ServerOptions:
    """The settings of the simulated server.

    The defaults of the first three members are the same as in FulcrumCore. POST /lab/options changes members by name.
    """

    job_timeout_s: float = 300.0  #: a job that has not ended fails this long after its creation
    job_retention_s: float = 720 * 3600.0  #: a job is deleted this long after its `completed_at`
    agent_timeout_s: float = 30.0  #: an agent gets the status Disconnected this long after its last heartbeat
    #: Real seconds between two sweeps. A sweep applies the job timeout, the job retention and the agent timeout.
    #: 0: only POST /lab/sweep starts a sweep.
    maintenance_interval_s: float = 0.0
    job_maintenance: bool = True  #: whether a sweep applies the job timeout and the job retention
    agent_maintenance: bool = False  #: whether a sweep applies the agent timeout
    #: An install command installs an agent at a provider. It fetches the agent's configuration from a URL that starts
    #: with this text; "" means the simulator's own URL.
    public_base_url: str = ""


@dataclass(kw_only=True)
class Switches:
    """Wrong behaviours and failures of the server, which tests turn on and off by POST /lab/switches."""

    #: A second claim of a job succeeds as long as the job is Processing.
    two_claims_win: bool = False
    #: Requests for one job (claims, reports) or for one service (actions, updates) all succeed if they arrive within
    #: RACE_WINDOW_S (web.py). FulcrumCore has this error, because it reads and changes a row without a lock.
    simultaneous_requests_all_succeed: bool = False
    database_down: bool = False  #: tokens cannot be looked up, so every call is answered 403
    #: The server has no key for secrets. A call that reads a secret is answered 500, a call that sets a secret 400.
    vault_off: bool = False


@dataclass
class Store:
    """All tables and indexes. An index finds rows by a member other than the id.

    A table maps ids to rows, with these exceptions: `install_tokens` maps agent ids to rows, `subscriptions` maps
    subscriber ids to rows, and `metric_entries` and `events` are queues of rows, oldest first.
    """

    options: ServerOptions = field(default_factory=ServerOptions)
    clock: SimulatorClock = field(default_factory=SimulatorClock)
    switches: Switches = field(default_factory=Switches)
    lock: threading.RLock = field(default_factory=threading.RLock)
    origin: str = ""  #: the simulator's URL without a path, which SimulatorServer sets
    new_service_id: Callable[[], str] | None = None  #: returns the id of each new service; None: random ids

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Empty every table and add the `change-me` token, so that the store equals a new database."""
        #: The secrets in the properties of services and in the configurations of agents.
        self.vault = Vault(is_enabled=not self.switches.vault_off)
        self.participants: dict[str, Participant] = {}
        self.tokens: dict[str, Token] = {}
        #: Several tokens may have the value `change-me`, because each start of the server adds such a token.
        self.tokens_by_value: dict[str, list[Token]] = defaultdict(list)
        self.service_types: dict[str, ServiceType] = {}
        self.agent_types: dict[str, AgentType] = {}
        self.agents: dict[str, Agent] = {}
        self.groups: dict[str, Group] = {}  #: each group consists of services of one consumer
        self.services: dict[str, Service] = {}
        self.metric_types: dict[str, MetricType] = {}
        self.metric_entries: deque[MetricEntry] = deque(maxlen=MAX_METRIC_ENTRIES)
        #: An option is one value that a provider offers, and an option type is a kind of options, such as images.
        self.option_types: dict[str, OptionType] = {}
        self.service_options: dict[str, Option] = {}
        #: An install token is the secret in the URL from which an install command fetches an agent's configuration.
        self.install_tokens: dict[str, InstallToken] = {}
        #: A pool is a set of values. If a property has no value, the server takes one from a pool. Service pools are
        #: for the properties of services, and config pools for the configurations of agents. A service pool set
        #: groups service pools of one provider. An agent uses the pools of at most one set.
        self.service_pool_sets: dict[str, ServicePoolSet] = {}
        self.service_pools: dict[str, ServicePool] = {}
        self.service_pool_values: dict[str, PoolValue] = {}
        self.config_pools: dict[str, ConfigPool] = {}
        self.config_pool_values: dict[str, PoolValue] = {}
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        #: A subscriber is a program that processes all events in order. Its subscription contains the number of the
        #: last event that the subscriber has acknowledged.
        self.subscriptions: dict[str, Subscription] = {}
        #: JSON values that a test adds to each answer of the endpoint that lists pending jobs. They need not be jobs.
        self.raw_pending_items: list[Any] = []
        self._last_event_number = 0
        self._clear_jobs()
        self.add_seed_token()

    def _clear_jobs(self) -> None:
        self.jobs: dict[str, Job] = {}
        #: Maps an agent id to the agent's jobs with the status Pending, in a dict from job id to job.
        self.pending_jobs_by_agent_id: dict[str, dict[str, Job]] = defaultdict(dict)
        #: Maps an agent id to the agent's jobs with the status Processing, in a dict from job id to job.
        self.processing_jobs_by_agent_id: dict[str, dict[str, Job]] = defaultdict(dict)
        self.last_job_by_service_id: dict[str, Job] = {}  #: the newest job of each service
        #: An agent instance id is the id that an agent reported for a service's VM or container.
        self.service_id_by_agent_instance_id: dict[str, str] = {}

    def add_seed_token(self) -> None:
        """Add a `change-me` token that is valid for a day, as each start of FulcrumCore does."""
        self.add_token(name="Bootstrap Admin Token", role="admin", value=SEED_TOKEN, lifetime_s=DAY_S)

    def new_row_fields(self) -> dict[str, Any]:
        """Return the members `id`, `created_at` and `updated_at` of a new row."""
        now = self.clock.now()
        return {"id": str(uuid.uuid4()), "created_at": now, "updated_at": now}

    def mark_updated(self, row: Any) -> None:
        """Set the row's `updated_at` to now."""
        row.updated_at = self.clock.now()

    # Tokens

    def add_token(
        self, *, name: str, role: str, value: str | None = None, lifetime_s: float = DAY_S, **owner_ids: Any
    ) -> Token:
        """Add a token. `owner_ids` may contain `participant_id` and `agent_id`."""
        token = Token(
            **self.new_row_fields(),
            name=name,
            role=role,
            value=value or new_secret(),
            expire_at=self.clock.now() + lifetime_s,
            **owner_ids,
        )
        self.tokens[token.id] = token
        self.tokens_by_value[token.value].append(token)
        return token

    def delete_token(self, token: Token) -> None:
        """Delete a token from the table of tokens and from the index by value."""
        self.tokens.pop(token.id, None)
        self._remove_from_index(token)

    def regenerate_token(self, token: Token) -> None:
        """Give the token a new value. The old value is invalid at once."""
        self._remove_from_index(token)
        token.value = new_secret()
        self.tokens_by_value[token.value].append(token)
        self.mark_updated(token)

    def _remove_from_index(self, token: Token) -> None:
        """Remove the token from the index by value. Other tokens with the same value stay in the index."""
        other_tokens = [other for other in self.tokens_by_value.pop(token.value, []) if other is not token]
        if other_tokens:
            self.tokens_by_value[token.value] = other_tokens

    def find_token(self, value: str) -> Token | None:
        """Return the token with this value, or None if it does not exist, has expired, or cannot be looked up.

        If several tokens have this value, only the token with the lowest id is checked.
        """
        tokens = self.tokens_by_value.get(value)
        if not tokens or self.switches.database_down:
            return None
        token = min(tokens, key=lambda token: token.id)
        return token if token.expire_at > self.clock.now() else None

    def delete_agent(self, agent: Agent) -> None:
        """Delete an agent and its tokens, and release the pool values of its configuration."""
        self.agents.pop(agent.id)
        self.install_tokens.pop(agent.id, None)
        for token in [token for token in self.tokens.values() if token.agent_id == agent.id]:
            self.delete_token(token)
        pool_values.release_values(self.config_pool_values, agent.id)

    # Jobs

    def add_job(self, service: Service, action: str, params: Json | None) -> Job:
        """Add a pending job for a service."""
        job = Job(
            **self.new_row_fields(),
            provider_id=service.provider_id,
            consumer_id=service.consumer_id,
            agent_id=service.agent_id,
            service_id=service.id,
            group_id=service.group_id,
            action=action,
            params=params,
        )
        self.jobs[job.id] = job
        self.pending_jobs_by_agent_id[job.agent_id][job.id] = job
        self.last_job_by_service_id[service.id] = job
        return job

    def set_job_status(self, job: Job, status: str) -> None:
        """Set the status of a job and update the indexes of pending and processing jobs."""
        self.pending_jobs_by_agent_id[job.agent_id].pop(job.id, None)
        self.processing_jobs_by_agent_id[job.agent_id].pop(job.id, None)
        job.status = status
        if status == "Pending":
            self.pending_jobs_by_agent_id[job.agent_id][job.id] = job
        elif status == "Processing":
            self.processing_jobs_by_agent_id[job.agent_id][job.id] = job
        self.mark_updated(job)

    def delete_job(self, job: Job) -> None:
        """Delete a job from the table of jobs and from all indexes."""
        self.set_job_status(job, "Failed")  # this removes the job from the indexes of pending and processing jobs
        del self.jobs[job.id]
        if self.last_job_by_service_id.get(job.service_id) is job:
            del self.last_job_by_service_id[job.service_id]

    def active_job(self, service_id: str) -> Job | None:
        """Return the newest job of the service if it is Pending or Processing, else None."""
        job = self.last_job_by_service_id.get(service_id)
        return job if job and job.status in ("Pending", "Processing") else None

    def deliverable_jobs(self, agent_id: str, limit: int) -> list[Job]:
        """Return the pending jobs that an agent gets: at most `limit`, at most one of each group, sorted by group id.

        While the agent processes a job of a group, it gets no other job of this group.
        """
        busy_group_ids = {job.group_id for job in self.processing_jobs_by_agent_id[agent_id].values()}
        first_jobs: dict[str, Job] = {}
        for job in self.pending_jobs_by_agent_id[agent_id].values():
            if job.group_id in busy_group_ids:
                continue
            first_job = first_jobs.get(job.group_id)
            if first_job is None or _delivery_rank(job) < _delivery_rank(first_job):
                first_jobs[job.group_id] = job
        return [first_jobs[group_id] for group_id in sorted(first_jobs)][:limit]

    # Events

    def add_event(self, initiator: Token, event_type: str, row: Any, payload: Json | None = None) -> None:
        """Add an event about a row to the event log."""
        self._last_event_number += 1
        self.events.append(
            Event(
                **self.new_row_fields(),
                sequence_number=self._last_event_number,
                initiator_type="user",  # also if the initiator is an agent
                initiator_id=initiator.id,
                type=event_type,
                payload=payload,
                provider_id=getattr(row, "provider_id", None),
                agent_id=row.id if isinstance(row, Agent) else getattr(row, "agent_id", None),
                consumer_id=getattr(row, "consumer_id", None),
            )
        )


def payload_of_change(json_before: Json, row: Any) -> Json:
    """Return the payload of an event about a change of this row.

    `json_before` is the result of `json_for_events(row)` before the change.
    """
    return {"diff": list(patch_operations(json_before, json_for_events(row))) or None}


def new_secret() -> str:
    """Return a random secret of 44 characters. The values of FulcrumCore's tokens have the same form."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _delivery_rank(job: Job) -> tuple[int, float]:
    """Return a sort key: jobs with a higher priority come first; among equal priorities, older jobs come first."""
    return (-job.priority, job.created_at)
