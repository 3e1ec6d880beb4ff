"""The lab's own endpoints under /lab/: no token, loopback only. `smith_lab.simulator` documents them."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from smith_lab.simulator import maintenance, views
from smith_lab.simulator.clock import from_text, to_text
from smith_lab.simulator.faults import Lab, Rule
from smith_lab.simulator.rows import Job, Token
from smith_lab.simulator.store import Store

#: Reads the request's JSON body, acts under the lock, answers JSON.
Action = Callable[[Request, Any], Any]


class LabRefusal(Exception):
    """The lab cannot do that: 400 with the reason, or 404."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class LabApi:
    """Reaches into the store behind the API's back."""

    def __init__(self, store: Store, lab: Lab) -> None:
        self._store, self._lab = store, lab
        self._first_options = asdict(store.options)

    def routes(self) -> list[Route]:
        return [self._route(method, path, action) for method, path, action in self._actions()]

    def _actions(self) -> list[tuple[str, str, Action]]:
        return [
            ("GET", "/lab/clock", self._read_clock),
            ("POST", "/lab/clock", self._set_clock),
            ("POST", "/lab/sweep", self._sweep),
            ("GET", "/lab/faults", self._read_faults),
            ("POST", "/lab/faults", self._add_faults),
            ("DELETE", "/lab/faults", self._delete_faults),
            ("GET", "/lab/history", self._read_history),
            ("DELETE", "/lab/history", self._delete_history),
            ("POST", "/lab/reset", self._reset),
            ("GET", "/lab/switches", self._read_switches),
            ("POST", "/lab/switches", self._set_switches),
            ("POST", "/lab/options", self._set_options),
            ("POST", "/lab/tokens/revoke", self._revoke_tokens),
            ("POST", "/lab/jobs/{id}/expire", self._expire_job),
            ("POST", "/lab/jobs/{id}/override", self._override_job),
            ("DELETE", "/lab/jobs/{id}", self._delete_job),
            ("GET", "/lab/vault", self._read_vault),
            ("POST", "/lab/vault", self._add_secret),
            ("DELETE", "/lab/vault", self._delete_secrets),
            ("DELETE", "/lab/vault/{reference}", self._delete_secret),
            ("GET", "/lab/pending", self._read_pending),
            ("POST", "/lab/pending", self._add_pending),
            ("DELETE", "/lab/pending", self._delete_pending),
            ("GET", "/lab/state", self._dump),
        ]

    def _route(self, method: str, path: str, action: Action) -> Route:
        async def respond(request: Request) -> Response:
            if not _is_loopback(request):
                return JSONResponse({"error": "the lab answers on loopback only"}, 403)
            raw = await request.body()
            try:
                with self._store.lock:
                    # Not JSONResponse: a test may have stored NaN or Infinity, and asks for them back.
                    done = action(request, json.loads(raw) if raw else None)
                    return Response(json.dumps(done), media_type="application/json")
            except LabRefusal as refusal:
                return JSONResponse({"error": str(refusal)}, refusal.status)
            except (AttributeError, TypeError, ValueError, KeyError) as exc:
                return JSONResponse({"error": f"{type(exc).__name__}: {exc}"}, 400)

        handler: Callable[[Request], Awaitable[Response]] = respond
        return Route(path, handler, methods=[method])

    # Time

    def _read_clock(self, request: Request, body: Any) -> Any:
        now = self._store.clock.now()
        return {"now": now, "text": to_text(now), "frozen": self._store.clock.frozen}

    def _set_clock(self, request: Request, body: Any) -> Any:
        clock = self._store.clock
        if "freeze" in body:
            clock.freeze(bool(body["freeze"]))
        if "set" in body:
            clock.set(from_text(body["set"]) if isinstance(body["set"], str) else float(body["set"]))
        if "advance" in body:
            clock.advance(float(body["advance"]))
        return self._read_clock(request, body)

    def _sweep(self, request: Request, body: Any) -> Any:
        return maintenance.sweep(self._store)

    # Faults and history

    def _read_faults(self, request: Request, body: Any) -> Any:
        return [asdict(rule) for rule in self._lab.rules]

    def _add_faults(self, request: Request, body: Any) -> Any:
        rules = [Rule(**item) for item in (body if isinstance(body, list) else [body])]
        self._lab.rules.extend(rules)
        return self._read_faults(request, body)

    def _delete_faults(self, request: Request, body: Any) -> Any:
        self._lab.rules.clear()
        return []

    def _read_history(self, request: Request, body: Any) -> Any:
        since = int(request.query_params.get("since", "0"))
        return self._lab.entries(since)

    def _delete_history(self, request: Request, body: Any) -> Any:
        self._lab.history.clear()
        return []

    def _reset(self, request: Request, body: Any) -> Any:
        """A new, empty server: database, rules, history, switches, options and clock as at the start."""
        self._lab.rules.clear()
        self._lab.history.clear()
        for item in fields(self._store.switches):
            setattr(self._store.switches, item.name, item.default)
        _assign(self._store.options, self._first_options)
        self._store.clock.reset()
        self._store.clear()
        return {}

    # Switches and options

    def _read_switches(self, request: Request, body: Any) -> Any:
        return asdict(self._store.switches)

    def _set_switches(self, request: Request, body: Any) -> Any:
        _assign(self._store.switches, body)
        self._store.vault.enabled = not self._store.switches.vault_off
        return self._read_switches(request, body)

    def _set_options(self, request: Request, body: Any) -> Any:
        _assign(self._store.options, body)
        return asdict(self._store.options)

    # Tokens, jobs, secrets

    def _revoke_tokens(self, request: Request, body: Any) -> Any:
        """Revoke every token whose members equal the given ones: name, id, value, role or agent_id."""
        if not body:
            raise LabRefusal("say which: name, id, value, role or agent_id")
        doomed = [token for token in self._store.tokens.values() if _is_like(token, body)]
        if not doomed:
            raise LabRefusal("no such token", 404)
        for token in doomed:
            self._store.delete_token(token)
        return {"revoked": [token.name for token in doomed]}

    def _job(self, request: Request) -> Job:
        job = self._store.jobs.get(request.path_params["id"])
        if job is None:
            raise LabRefusal("no such job", 404)
        return job

    def _expire_job(self, request: Request, body: Any) -> Any:
        """Time the job out now, whatever its age, as the maintenance worker would."""
        job = self._job(request)
        if job.status not in ("Pending", "Processing"):
            raise LabRefusal(f"job is {job.status}")
        maintenance.fail_timed_out(self._store, [job])
        return views.pending_job(self._store, job)

    def _override_job(self, request: Request, body: Any) -> Any:
        """Deliver the job with other members: {"set": {...}, "remove": [...]}; the row itself stays true."""
        job = self._job(request)
        job.override, job.hidden = dict(body.get("set", {})), list(body.get("remove", []))
        return views.pending_job(self._store, job)

    def _delete_job(self, request: Request, body: Any) -> Any:
        self._store.delete_job(self._job(request))
        return {}

    def _read_vault(self, request: Request, body: Any) -> Any:
        return sorted(self._store.vault.secrets)

    def _add_secret(self, request: Request, body: Any) -> Any:
        return {"reference": self._store.vault.save(body["value"])}

    def _delete_secrets(self, request: Request, body: Any) -> Any:
        self._store.vault.secrets.clear()
        return []

    def _delete_secret(self, request: Request, body: Any) -> Any:
        if self._store.vault.secrets.pop(request.path_params["reference"], None) is None:
            raise LabRefusal("no such secret", 404)
        return {}

    # Raw pending items

    def _read_pending(self, request: Request, body: Any) -> Any:
        return self._store.raw_pending

    def _add_pending(self, request: Request, body: Any) -> Any:
        """Append items, of any JSON, to what every agent's pending list answers, until they are deleted."""
        self._store.raw_pending.extend(body if isinstance(body, list) else [body])
        return self._store.raw_pending

    def _delete_pending(self, request: Request, body: Any) -> Any:
        self._store.raw_pending.clear()
        return []

    def _dump(self, request: Request, body: Any) -> Any:
        """Every table; tokens without their values, the vault without its secrets."""
        store = self._store
        tables: dict[str, dict[str, Any]] = {
            "participants": store.participants,
            "serviceTypes": store.service_types,
            "agentTypes": store.agent_types,
            "agents": store.agents,
            "groups": store.groups,
            "services": store.services,
            "jobs": store.jobs,
            "metricTypes": store.metric_types,
            "optionTypes": store.option_types,
            "options": store.service_options,
        }
        dump: dict[str, Any] = {name: [views.raw(row) for row in table.values()] for name, table in tables.items()}
        dump["tokens"] = [views.token(token) for token in store.tokens.values()]
        dump["metricEntries"] = [views.raw(entry) for entry in store.metric_entries]
        dump["vault"] = sorted(store.vault.secrets)
        return dump


def _is_loopback(request: Request) -> bool:
    return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback


def _is_like(token: Token, members: dict[str, str]) -> bool:
    return all(getattr(token, name) == value for name, value in members.items())


def _assign(target: Any, members: dict[str, Any]) -> None:
    """Set known members only."""
    known = {item.name for item in fields(target)}
    unknown = set(members) - known
    if unknown:
        raise LabRefusal(f"unknown {sorted(unknown)}, known {sorted(known)}")
    for name, value in members.items():
        setattr(target, name, value)
