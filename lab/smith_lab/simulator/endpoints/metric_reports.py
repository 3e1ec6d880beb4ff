"""Summarizes metric entries for admins and participants: lists the ids of measured resources, and computes aggregates.

An aggregate consists of one value, such as an average, for each bucket. A bucket is one minute, hour, day or month.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container
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
_AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "max": max,
    "sum": sum,
    "avg": lambda values: sum(values) / len(values),
    "diff": lambda values: max(values) - min(values),
}


def _list_resource_ids(call: Call) -> Reply:
    rows = [entry for entry in call.store.metric_entries if may_access_entry(call, entry)]
    return ENTRY_LISTING.reply_distinct_values(call, rows, lambda entry: entry.resource_id)


def _aggregate_entries(call: Call) -> Reply:
    query = dict(reversed(call.query))  # contains the first value of a parameter that has several values
    service_id, type_id = _read_path_id(call, "serviceId"), _read_path_id(call, "typeId")
    aggregate = _require_allowed_name(query.get("aggregateType") or "min", _AGGREGATES)
    bucket_size = _require_allowed_name(query.get("bucket") or "hour", MAX_RANGE_BY_BUCKET_SIZE)
    end = _read_time(query.get("end"), call.store.clock.now())
    start = _read_time(query.get("start"), end - MAX_RANGE_BY_BUCKET_SIZE[bucket_size].total_seconds())
    if not 0 <= end - start <= MAX_RANGE_BY_BUCKET_SIZE[bucket_size].total_seconds():
        raise bad_request("time range is negative or exceeds the maximum of the bucket")
    values_by_bucket: dict[str, list[float]] = defaultdict(list)
    for entry in call.store.metric_entries:
        is_requested = (entry.service_id, entry.type_id) == (service_id, type_id)
        is_requested = is_requested and entry.resource_id == call.path_params["resourceId"]
        if is_requested and start <= entry.created_at <= end and may_access_entry(call, entry):
            values_by_bucket[_bucket_start(entry.created_at, bucket_size)].append(entry.value)
    data = [
        [start_text, with_go_numbers(_AGGREGATES[aggregate](values))]
        for start_text, values in sorted(values_by_bucket.items())
    ]
    time_range = {"start": time_to_text(start), "end": time_to_text(end)}
    return Reply(body={"data": data, "aggregate": aggregate, "bucket": bucket_size, **time_range})


def _read_path_id(call: Call, name: str) -> str:
    try:
        return read_uuid(call.path_params[name])
    except ValueError as exc:
        raise bad_request(f"invalid parameter {name}") from exc


def _require_allowed_name(name: str, allowed_names: Container[str]) -> str:
    if name not in allowed_names:
        raise bad_request(f"unknown aggregate or bucket {name!r}")
    return name


def _read_time(text: str | None, default: float) -> float:
    try:
        return time_from_text(text) if text else default
    except ValueError as exc:
        raise bad_request(str(exc)) from exc


def _bucket_start(time_s: float, bucket_size: str) -> str:
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
