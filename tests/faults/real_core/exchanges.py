"""Checks every exchange of agent and FulcrumCore: its form by the recorded contract, its order by the protocol.

An error that FulcrumCore answered is a violation unless the protocol expects it: FulcrumCore was killed at that time,
the answer to an earlier request for the same job was lost, or the agent has read this (now deleted) secret before.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from support.contract_rules import ContractRules, recorded_rules
from support.forwarder import Exchange

API = "/api/v1"
JOB_CALL = re.compile(r"/jobs/([0-9a-f-]{36})/(claim|complete|fail)$")
SECRET = "/vault/secrets/"
#: After a restart of PostgreSQL, FulcrumCore still has connections to the killed server, which fail one by one.
RECOVERY_S = 5.0
#: What FulcrumCore answers while its database is unavailable.
STATUSES_OF_OUTAGE = (403, 500)
MAX_LOGGED_CHARACTERS = 2000


@dataclass
class ExchangeLog:
    """Records what is wrong with the form of each exchange, and writes each exchange to a file."""

    file: TextIO
    rules: ContractRules = field(default_factory=recorded_rules)
    problems: dict[int, list[str]] = field(default_factory=dict)  #: by the exchange's sequence number
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, exchange: Exchange) -> None:
        """Check the form of an exchange that has ended, and write it to the file."""
        answer = None
        if exchange.status is not None:
            answer = {"status": exchange.status, "headers": exchange.headers, "body": exchange.answer}
        found = self.rules.problems(
            exchange.method, exchange.path.removeprefix(API), exchange.query, exchange.body, answer
        )
        with self._lock:
            if found:
                self.problems[exchange.seq] = found
            self.file.write(json.dumps(_logged(exchange) | {"problems": found}) + "\n")


def _logged(exchange: Exchange) -> dict[str, Any]:
    members = ("seq", "time", "duration_s", "method", "path", "query", "body", "status")
    values = {name: getattr(exchange, name) for name in members}
    return values | {"answer": json.dumps(exchange.answer)[:MAX_LOGGED_CHARACTERS]}


@dataclass(frozen=True)
class Outage:
    """A time in which a part of FulcrumCore was killed, in seconds since 1970."""

    part: str
    began: float
    ended: float

    def overlaps(self, exchange: Exchange) -> bool:
        """Return whether FulcrumCore answered the exchange in this time, or soon after it."""
        answered = exchange.time + (exchange.duration_s or 0.0)
        return exchange.time <= self.ended + RECOVERY_S and answered >= self.began


def contract_violations(
    log: ExchangeLog, exchanges: list[Exchange], outages: list[Outage], timed_out: set[str]
) -> list[str]:
    """Return a text for each violation of the contract. `timed_out` are the jobs that FulcrumCore has timed out."""
    found = [*_find_wrong_forms(log, exchanges, outages), *_find_unexpected_errors(exchanges, outages, timed_out)]
    return [f"contract: {text}" for text in [*found, *_find_wrong_order(exchanges)]]


def _find_wrong_forms(log: ExchangeLog, exchanges: list[Exchange], outages: list[Outage]) -> Iterator[str]:
    for seq, problems in sorted(log.problems.items()):
        exchange = exchanges[seq - 1]
        if not _is_of_outage(exchange, outages):
            yield from (f"{_name(exchange)}: {problem}" for problem in problems)


def _find_unexpected_errors(exchanges: list[Exchange], outages: list[Outage], timed_out: set[str]) -> Iterator[str]:
    jobs_with_unknown_effect: set[str] = set()  # jobs with a request whose effect the agent does not know
    read_secret_paths: set[str] = (
        set()
    )  # paths of secrets that were read; FulcrumCore deletes most of them when a job ends
    for exchange in exchanges:
        call = JOB_CALL.search(exchange.path)
        status = exchange.status
        if SECRET in exchange.path:
            if status == 404 and exchange.path in read_secret_paths:
                continue
            read_secret_paths |= {exchange.path} if status in (None, 200) else set()
        if status is None or _is_of_outage(exchange, outages):
            jobs_with_unknown_effect |= {call[1]} if call else set()
        elif status >= 400 and not (call and status == 400 and call[1] in jobs_with_unknown_effect | timed_out):
            yield f"{_name(exchange)}: HTTP {status} is not foreseen here: {str(exchange.error)[:200]}"


def _is_of_outage(exchange: Exchange, outages: list[Outage]) -> bool:
    return exchange.status in STATUSES_OF_OUTAGE and any(outage.overlaps(exchange) for outage in outages)


def _find_wrong_order(exchanges: list[Exchange]) -> Iterator[str]:
    """Yield reports of jobs without an earlier claim, and requests after an acknowledged report."""
    claimed: set[str] = set()
    reported: set[str] = set()
    for exchange in exchanges:
        call = JOB_CALL.search(exchange.path)
        if call is None:
            continue
        job_id, verb = call[1], call[2]
        if job_id in reported:
            yield f"{_name(exchange)}: the report of this job was acknowledged before"
        elif verb == "claim":
            claimed.add(job_id)
        elif job_id not in claimed:
            yield f"{_name(exchange)}: the job was not claimed before"
        elif exchange.status == 204:
            reported.add(job_id)


def _name(exchange: Exchange) -> str:
    return f"{exchange.seq}. {exchange.method} {exchange.path}"


def statuses_by_request(exchanges: list[Exchange]) -> dict[str, dict[str, int]]:
    """Return how often each request had each status. Identifiers in paths are left out."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for exchange in exchanges:
        path = re.sub(r"[0-9a-f-]{36}", "{}", exchange.path.removeprefix(API))
        counts[f"{exchange.method} {path}"][str(exchange.status or "no answer")] += 1
    return {name: dict(statuses) for name, statuses in sorted(counts.items())}
