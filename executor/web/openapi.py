"""Builds the OpenAPI document that describes the pages. It is served as /openapi.json.

The document depends on the configuration: it describes a login only if one is required. Tests compare the document with
the responses of the pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from executor.version import VERSION
from executor.web.guard import METHODS, OPEN_PATHS, Access

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_SCHEMAS: Json = {
    "Health": {
        "type": "object",
        "required": ["status", "checks"],
        "additionalProperties": False,
        "properties": {
            "status": {"enum": ["starting", "alive", "stuck", "stopping", "ready", "not ready"]},
            "checks": {"type": "array", "items": {"$ref": "#/components/schemas/Check"}},
        },
    },
    "Check": {
        "type": "object",
        "required": ["name", "ok"],
        "additionalProperties": False,
        "properties": {
            "name": _TEXT,
            "ok": {"type": "boolean"},
            "reason": {**_TEXT, "description": "one of a fixed set of sentences, without host names"},
            "detail": {**_TEXT, "description": "may name hosts and folders; only shown with a login"},
        },
    },
    "Pages": {
        "type": "object",
        "required": ["pages"],
        "additionalProperties": False,
        "properties": {"pages": {"type": "array", "items": _TEXT}},
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {"error": _TEXT},
    },
}
_ABOUT = (
    "Health and metrics, read-only: methods other than GET and HEAD are answered with 405. "
    "Too many connections at once are answered with 503."
)


@dataclass(frozen=True)
class _Answer:
    """One possible response to a request: its meaning, content and headers."""

    text: str
    content: Json
    headers: Json | None = None


def document(access: Access) -> Json:
    """Return the OpenAPI document for a server with this access configuration."""
    metrics = {"text/plain": {"schema": _TEXT}, "application/openmetrics-text": {"schema": _TEXT}}
    pages = {
        "/": ("The list of pages", {200: _Answer("the pages", _json("Pages"))}),
        "/livez": ("Whether every loop makes progress", _health("alive, starting or stopping", "stuck")),
        "/readyz": ("Whether a job could be processed", _health("ready", "not ready")),
        "/metrics": (
            "Metrics for Prometheus",
            {200: _Answer("the metrics", metrics), 503: _Answer("the agent is starting", _json("Error"))},
        ),
        "/openapi.json": (
            "This description",
            {200: _Answer("OpenAPI", {"application/json": {"schema": {"type": "object"}}})},
        ),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Agent Smith", "version": VERSION, "description": _ABOUT},
        "paths": {path: _path(summary, path, answers, access) for path, (summary, answers) in pages.items()},
        "components": {"schemas": _SCHEMAS, "securitySchemes": _logins(access)},
    }


def _health(good: str, bad: str) -> dict[int, _Answer]:
    """Return the responses of a health page: with status 200 if the state is good, else with status 503."""
    return {200: _Answer(good, _json("Health")), 503: _Answer(bad, _json("Health"))}


def _json(schema: str) -> Json:
    """Return the description of JSON content with this schema of `_SCHEMAS`."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _path(summary: str, path: str, answers: dict[int, _Answer], access: Access) -> Json:
    """Return the description of one page: its methods, logins and responses."""
    is_open = path in OPEN_PATHS
    security: list[Json] = [] if is_open else [{name: []} for name in _logins(access)]
    all_answers = {**answers, **_refusals(access, is_open=is_open)}
    return {
        method.lower(): {
            "summary": summary,
            "security": security,
            "responses": {str(status): _response(all_answers[status], method) for status in sorted(all_answers)},
        }
        for method in METHODS
    }


def _refusals(access: Access, *, is_open: bool) -> dict[int, _Answer]:
    """Return the responses of `Guard` to a refused request, and the response if the page raises an exception."""
    refusals = {500: _Answer("internal error, see the log", _json("Error"))}
    if access.is_local and not access.needs_login:
        refusals[421] = _Answer("unknown host name", _json("Error"))
    if access.token:
        wait = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}}
        refusals[429] = _Answer("too many wrong tokens from this address", _json("Error"), wait)
    if access.token and not is_open:
        how = {"WWW-Authenticate": {"required": True, "schema": _TEXT}}
        refusals[401] = _Answer("a token is required", _json("Error"), how)
    elif access.needs_login and not is_open:
        refusals[403] = _Answer("only through a trusted reverse proxy that names the user", _json("Error"))
    return refusals


def _response(answer: _Answer, method: str) -> Json:
    """Return the description of a response. A response to HEAD has no content."""
    response: Json = {"description": answer.text}
    if answer.headers:
        response["headers"] = answer.headers
    if method != "HEAD":
        response["content"] = answer.content
    return response


def _logins(access: Access) -> Json:
    """Return the ways to log in (OpenAPI: security schemes) by name."""
    schemes: Json = {}
    if access.token:
        schemes["token"] = {"type": "http", "scheme": "bearer"}
    if access.proxies:
        text = "set by a trusted reverse proxy; ignored if another address sends it"
        schemes["proxy"] = {"type": "apiKey", "in": "header", "name": access.user_header, "description": text}
    return schemes
