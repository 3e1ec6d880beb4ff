"""Handles the API calls that list jobs, and the calls by which agents claim, complete and fail jobs.

FulcrumCore does not lock a row between the check and the change. So several requests that arrive at the same time may
all pass a check that only one of them should pass. Tests imitate this by the switch
`simultaneous_requests_all_succeed`: `call.job_at_request` and `call.service_at_request` then return the row as it was
when the call arrived. If the switch is off, they return the current row.

The agent reports two members of a service: `agent_instance_id` is the id of the VM, and `agent_instance_data` is data
about the VM, such as its IP addresses.

The lifecycle of a service type defines the states of a service. A transition is a change of the state by an action.

A view is the JSON of a row in an answer. A `full_` view also contains objects to which the row refers.
"""

from __future__ import annotations

import copy

from smith_lab.simulator import lifecycle, pool_values, properties, views
from smith_lab.simulator.entities import json_for_events
from smith_lab.simulator.lookups import ServiceLookups
from smith_lab.simulator.paging import Listing, equals, equals_enum, equals_uuid, sort_by
from smith_lab.simulator.problems import PropertyErrors, bad_request, internal_error
from smith_lab.simulator.rows import Job, Json, Service, ServiceType
from smith_lab.simulator.store import Store
from smith_lab.simulator.web import AGENTS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Owners, Reply

JOB_STATUSES = ("Pending", "Processing", "Completed", "Failed")
#: The greatest number of pending jobs in an answer to an agent whose request has no valid `limit`.
DEFAULT_PENDING_LIMIT = 10

_LISTING = Listing(
    filters={
        "action": equals("action"),
        "status": equals_enum("status", JOB_STATUSES),
        "agentId": equals_uuid("agent_id"),
        "serviceId": equals_uuid("service_id"),
    },
    sort_keys={
        "priority": sort_by("priority"),
        "createdAt": sort_by("created_at"),
        "claimedAt": sort_by("claimed_at"),
        "completedAt": sort_by("completed_at"),
    },
)


def owners_of_job_or_service(row: Job | Service) -> Owners:
    """Return the owners of a job or service: its provider, its consumer and its agent.

    Only owners and admins may access the job or service.
    """
    return Owners(participant_ids=(row.provider_id, row.consumer_id), agent_id=row.agent_id)


def _find_job_owners(call: Call) -> Owners | None:
    job = call.store.jobs.get(call.id)
    return owners_of_job_or_service(job) if job else None


def _list_jobs(call: Call) -> Reply:
    rows = (job for job in call.store.jobs.values() if call.may_access(owners_of_job_or_service(job)))
    return _LISTING.reply(call, rows, lambda job: views.full_job(call.store, job))


def _get_job(call: Call) -> Reply:
    return Reply(body=views.full_job(call.store, call.store.jobs[call.id]))


def _list_pending_jobs(call: Call) -> Reply:
    """List the agent's pending jobs: at most one job for each service group.

    Each service is in one service group. While the agent processes a job of a service, the list contains no job of any
    service in the same group.
    """
    jobs = call.store.deliverable_jobs(call.caller_token.agent_id or "", _limit_in_query(call))
    rendered_jobs = [views.job(call.store, job) for job in jobs]
    # Tests add raw items, which may be any JSON, to test how an agent handles invalid jobs.
    return Reply(body=rendered_jobs + call.store.raw_pending_items)


def _limit_in_query(call: Call) -> int:
    """Return the query parameter `limit`, or the default if it is absent or not a positive number."""
    text = next((value for name, value in call.query if name == "limit"), "")
    try:
        limit = int(text)
    except ValueError:
        return DEFAULT_PENDING_LIMIT
    return limit if limit > 0 else DEFAULT_PENDING_LIMIT


def _claim_job(call: Call) -> Reply:
    """Claim a job. As FulcrumCore does, check only the job's status, and do not store which agent claims it."""
    store, job = call.store, call.store.jobs[call.id]
    status = call.job_at_request(job).status
    # With the switch `two_claims_win`, a job can be claimed a second time as long as it is Processing.
    is_second_claim_allowed = store.switches.two_claims_win and status == "Processing"
    if status != "Pending" and not is_second_claim_allowed:
        raise bad_request("cannot claim a job not in pending status")
    store.set_job_status(job, "Processing")
    job.claimed_at = store.clock.now()
    return NO_CONTENT


def _complete_job(call: Call) -> Reply:
    """Complete a job and change its service.

    All changes are made in a copy of the service. The copy is stored when all checks have passed. So after a refused
    request, the service is unchanged, and the job is still Processing.
    """
    store, job = call.store, call.store.jobs[call.id]
    _refuse_unless_processing(call.job_at_request(job), "complete")
    service = copy.copy(call.service_at_request(store.services[job.service_id]))
    json_before = json_for_events(service)
    service_type = store.service_types[service.service_type_id]
    if call.body.get("properties"):
        service.properties = _merge_properties(store, service, service_type, call.body["properties"])
    _apply_transition(service, service_type, job)
    service.agent_instance_data = call.body.get("agentInstanceData", service.agent_instance_data)
    service.agent_instance_id = call.body.get("agentInstanceId", service.agent_instance_id)
    if job.action == "update":
        # As in FulcrumCore, the job's params replace all properties. The values that the agent reported are lost. After
        # a job without params, the service has no properties.
        service.properties = job.params
    # In a terminal state, no action is allowed.
    is_terminal_state = lifecycle.is_terminal(service_type.lifecycle_schema, service.status)
    if is_terminal_state:
        service.agent_instance_id = None
    _refuse_used_instance_id(store, service)
    _save_service(store, service)
    store.set_job_status(job, "Completed")
    job.completed_at = store.clock.now()
    _delete_secrets(store, service, service_type, include_persistent=is_terminal_state)
    if is_terminal_state:
        # Other services can now get the values that service pools allocated to properties of this service.
        pool_values.release_values(store.service_pool_values, service.id)
    if job.action != "update":
        # As in FulcrumCore, only the event of an `update` job contains the change of the properties.
        json_before["properties"] = service.properties
    call.record_change("service.transitioned", json_before, service)
    return NO_CONTENT


def _merge_properties(store: Store, service: Service, service_type: ServiceType, reported_properties: Json) -> Json:
    """Return the service's properties with the values that the agent reported.

    `properties.process` checks the reported values and stores secrets in the vault. Raises a 400 if a value is invalid.
    """
    old_properties = service.properties or {}
    context = properties.ChangeContext(
        vault=store.vault,
        actor="agent",
        is_update=True,
        service_status=service.status,
        # Checks properties that refer to another service, or to a service option (a value that the provider offers).
        lookups=ServiceLookups(store, service),
    )
    try:
        return old_properties | properties.process(
            context, service_type.property_schema, old_properties, reported_properties
        )
    except PropertyErrors as exc:
        raise bad_request(str(exc)) from exc


def _apply_transition(service: Service, service_type: ServiceType, job: Job) -> None:
    """Set the service's state (`status`) to the state after the job's action.

    Raises a 400 if the lifecycle has no transition for this action from this state.
    """
    try:
        service.status = lifecycle.next_state(service_type.lifecycle_schema, service.status, job.action)
    except (lifecycle.NoTransition, lifecycle.UnknownAction) as exc:
        raise bad_request(str(exc)) from exc


def _refuse_used_instance_id(store: Store, service: Service) -> None:
    """Raise a 500 if another service has the same `agentInstanceId`. FulcrumCore's database requires unique ids."""
    if service.agent_instance_id is None:
        return
    service_id_with_instance_id = store.service_id_by_agent_instance_id.get(service.agent_instance_id)
    if service_id_with_instance_id not in (None, service.id):
        raise internal_error(
            'duplicate key value violates unique constraint "service_agent_instance_id_uniq" (SQLSTATE 23505)'
        )


def _save_service(store: Store, service: Service) -> None:
    """Store the changed service, and update the index that maps an `agent_instance_id` to a service id."""
    old_instance_id = store.services[service.id].agent_instance_id
    if old_instance_id is not None:
        store.service_id_by_agent_instance_id.pop(old_instance_id, None)
    if service.agent_instance_id is not None:
        store.service_id_by_agent_instance_id[service.agent_instance_id] = service.id
    store.services[service.id] = service
    store.mark_updated(service)


def _fail_job(call: Call) -> Reply:
    """Fail a claimed job, and change the service's state.

    The lifecycle may have transitions for a failed action. A transition may have a regular expression that the error
    message must match. Without a matching transition (NoTransition), the job fails, and the service keeps its state.
    Raises a 400 if the lifecycle does not contain the action (UnknownAction).
    """
    store, job = call.store, call.store.jobs[call.id]
    _refuse_unless_processing(call.job_at_request(job), "fail")
    service = copy.copy(call.service_at_request(store.services[job.service_id]))
    json_before = json_for_events(service)
    service_type = store.service_types[service.service_type_id]
    message = call.body.get("errorMessage", "")
    try:
        service.status = lifecycle.next_state(service_type.lifecycle_schema, service.status, job.action, message)
        _save_service(store, service)
    except lifecycle.NoTransition:
        pass
    except lifecycle.UnknownAction as exc:
        raise bad_request(str(exc)) from exc
    store.set_job_status(job, "Failed")
    # As in FulcrumCore, `completed_at` stays None. So this job is never deleted, because the periodic deletion of old
    # jobs compares `completed_at` with the current time.
    job.error_message = message
    _delete_secrets(store, service, service_type, include_persistent=False)
    if lifecycle.is_terminal(service_type.lifecycle_schema, service.status):
        pool_values.release_values(store.service_pool_values, service.id)
    call.record_change("service.transitioned", json_before, service)
    return NO_CONTENT


def _refuse_unless_processing(job: Job, verb: str) -> None:
    if job.status != "Processing":
        raise bad_request(f"cannot {verb} a job not in processing status")


def _delete_secrets(store: Store, service: Service, service_type: ServiceType, *, include_persistent: bool) -> None:
    """Delete the service's ephemeral secrets from the vault, or all its secrets if `include_persistent` is true.

    The property schema declares each secret property as `ephemeral` (deleted when a job ends) or `persistent`.
    """
    references = list(
        properties.vault_references_of_type(service_type.property_schema, service.properties, "ephemeral")
    )
    if include_persistent:
        references += properties.vault_references(service.properties)
    for reference in references:
        store.vault.delete(reference)


_COMPLETE_BODY_FIELDS = {"agentInstanceId": "string", "agentInstanceData": "object", "properties": "object"}

ENDPOINTS = [
    Endpoint(method="GET", path="/jobs", handler=_list_jobs, roles=ANY_ROLE),
    Endpoint(method="GET", path="/jobs/pending", handler=_list_pending_jobs, roles=AGENTS),
    Endpoint(method="GET", path="/jobs/{id}", handler=_get_job, roles=ANY_ROLE, find_owners=_find_job_owners),
    Endpoint(
        method="POST",
        path="/jobs/{id}/claim",
        handler=_claim_job,
        roles=AGENTS,
        checks_role_before_body=True,  # as in FulcrumCore, which checks the body first for most other paths
        find_owners=_find_job_owners,
    ),
    Endpoint(
        method="POST",
        path="/jobs/{id}/complete",
        handler=_complete_job,
        roles=AGENTS,
        fields=_COMPLETE_BODY_FIELDS,
        checks_role_before_body=True,
        find_owners=_find_job_owners,
    ),
    Endpoint(
        method="POST",
        path="/jobs/{id}/fail",
        handler=_fail_job,
        roles=AGENTS,
        fields={"errorMessage": "string"},
        checks_role_before_body=True,
        find_owners=_find_job_owners,
    ),
]
