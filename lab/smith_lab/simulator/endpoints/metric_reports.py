"""Summarizes metric entries for admins and participants: lists the ids of measured resources, and computes aggregates.

A participant in FulcrumCore is a provider or a consumer.

A metric entry is one value that an agent measured. Its `resource_id` is a name that the agent gives to the measured
resource, such as `cpu`. A metric type is a measured quantity, such as CPU use. The entry's `type_id` is the metric
type's id.

An aggregate is one value computed from all entries in a bucket, such as their average. A bucket is one minute, hour,
day or month.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

from smith_lab.simulator.clock import time_from_text, time_to_text
from smith_lab.simulator.decoding import read_uuid, with_go_numbers
from smith_lab.simulator.endpoints.metrics import ENTRY_LISTING, may_access_entry
from smith_lab.simulator.problems import bad_request
from smith_lab.simulator.web import ADMINS_AND_PARTICIPANTS, Call, Endpoint, Reply

#: Maps the size of a bucket to the longest time range of one request.
MAX_RANGE_BY_BUCKET_SIZE = {
    "minute": timedelta(hours=24),
    "hour": timedelta(days=7),
    "day": timedelta(days=90),
    "month": timedelta(days=365),
}
#: Maps the name of an aggregate to the function that computes it from the values of the entries in a bucket.
_AGGREGATE_FUNCTIONS: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "max": max,
    "sum": sum,
    "avg": lambda values: sum(values) / len(values),
    "diff": lambda values: max(values) - min(values),
}


def _list_resource_ids(call: Call) -> Reply:
    """Return one page of the sorted resource ids of the accessible entries that match the query parameters."""
    rows = [entry for entry in call.store.metric_entries if may_access_entry(call, entry)]
    return ENTRY_LISTING.reply_distinct_values(call, rows, lambda entry: entry.resource_id)


def _aggregate_entries(call: Call) -> Reply:
    query = dict(reversed(call.query))  # if a parameter occurs several times, its first value is used
    service_id, type_id = _read_path_id(call, "serviceId"), _read_path_id(call, "typeId")
    aggregate_name = _read_choice(query, "aggregateType", "min", _AGGREGATE_FUNCTIONS)
    bucket_size = _read_choice(query, "bucket", "hour", MAX_RANGE_BY_BUCKET_SIZE)
    max_range_s = MAX_RANGE_BY_BUCKET_SIZE[bucket_size].total_seconds()
    end = _read_time(query.get("end"), call.store.clock.now())
    start = _read_time(query.get("start"), end - max_range_s)
    if not 0 <= end - start <= max_range_s:
        raise bad_request(f"with bucket={bucket_size}, end must be 0 to {max_range_s:.0f} seconds after start")
    values_by_bucket: dict[str, list[float]] = defaultdict(list)
    for entry in call.store.metric_entries:
        is_requested = (entry.service_id, entry.type_id) == (service_id, type_id)
        is_requested = is_requested and entry.resource_id == call.path_params["resourceId"]
        if is_requested and start <= entry.created_at <= end and may_access_entry(call, entry):
            values_by_bucket[_bucket_start_text(entry.created_at, bucket_size)].append(entry.value)
    # `with_go_numbers` converts numbers to the form in which Go writes them: 2.0 becomes 2.
    data = [
        [start_text, with_go_numbers(_AGGREGATE_FUNCTIONS[aggregate_name](values))]
        for start_text, values in sorted(values_by_bucket.items())
    ]
    time_range = {"start": time_to_text(start), "end": time_to_text(end)}
    return Reply(body={"data": data, "aggregate": aggregate_name, "bucket": bucket_size, **time_range})


def _read_path_id(call: Call, name: str) -> str:
    try:
        return read_uuid(call.path_params[name])
    except ValueError as exc:
        raise bad_request(f"invalid parameter {name}") from exc


def _read_choice(query: dict[str, str], name: str, default: str, choices: Collection[str]) -> str:
    """Return the value of a query parameter, or `default` without a value. Raises a 400 for an unknown value."""
    value = query.get(name) or default
    if value not in choices:
        raise bad_request(f"{name} must be one of: {', '.join(choices)}")
    return value


def _read_time(text: str | None, default: float) -> float:
    try:
        return time_from_text(text) if text else default
    except ValueError as exc:
        raise bad_request(str(exc)) from exc


def _bucket_start_text(time_s: float, bucket_size: str) -> str:
    """Return the start of the bucket (a minute, hour, day or month) that contains a time."""
    time = datetime.fromtimestamp(time_s, UTC).replace(second=0, microsecond=0)
    if bucket_size != "minute":
        time = time.replace(minute=0)
    if bucket_size in ("day", "month"):
        time = time.replace(hour=0)
    if bucket_size == "month":
        time = time.replace(day=1)
    return time_to_text(time.timestamp())


ENDPOINTS = [
    Endpoint(
        method="GET", path="/metric-entries/resource-ids", handler=_list_resource_ids, roles=ADMINS_AND_PARTICIPANTS
    ),
    Endpoint(
        method="GET",
        path="/metric-entries/aggregate/{serviceId}/{resourceId}/{typeId}",
        handler=_aggregate_entries,
        roles=ADMINS_AND_PARTICIPANTS,
    ),
]
