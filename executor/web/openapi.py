"""Builds the OpenAPI document that describes the pages for programs. The page /openapi.json contains this document.

The pages for programs are the health pages, /metrics and /openapi.json. The document includes the path `/`,
which returns the list of these pages as JSON to a client that does not accept HTML. The HTML pages for operators are
not described.

The document depends on the configuration: a login is described only if a login is required. Tests compare the document
with the responses of the pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from executor.version import VERSION
from executor.web.access import Access
from executor.web.paths import ALLOWED_METHODS, HEALTH_PATHS

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
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
            "name": _STRING,
            "ok": {"type": "boolean"},
            "reason": {**_STRING, "description": "explains the result, without hosts and paths"},
            "detail": {
                **_STRING,
                "description": "may name hosts and folders; shown only to callers who may read all pages",
            },
        },
    },
    "Pages": {
        "type": "object",
        "required": ["pages"],
        "additionalProperties": False,
        "properties": {"pages": {"type": "array", "items": _STRING}},
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {"error": _STRING},
    },
}
_DESCRIPTION = (
    "Health and metrics, read-only: methods other than GET and HEAD are answered with 405. "
    "If there are too many connections at once, the server closes each further connection without a response."
)


@dataclass(frozen=True)
class _PageResponse:
    """One possible response to a request."""

    meaning: str  #: text that says what the response means
    content: Json  #: description of the content, in the format of OpenAPI
    headers: Json | None = None  #: descriptions of the headers, in the format of OpenAPI


def openapi_document(access: Access) -> Json:
    """Return the OpenAPI document. `access` determines which logins the document describes."""
    metrics = {"text/plain": {"schema": _STRING}, "application/openmetrics-text": {"schema": _STRING}}
    # The keys are the paths. Each value is a pair: a summary of the page, and the page's responses by HTTP status.
    pages = {
        "/": ("The list of pages", {200: _PageResponse("the pages", _json_content("Pages"))}),
        "/livez": (
            "Whether the agent is alive: each of its loops and of its periodic tasks makes progress",
            _health_responses(statuses_with_200="alive, starting or stopping", statuses_with_503="stuck"),
        ),
        "/readyz": (
            "Whether a job could be processed",
            _health_responses(statuses_with_200="ready", statuses_with_503="not ready"),
        ),
        "/metrics": (
            "Metrics for Prometheus",
            {
                200: _PageResponse("the metrics", metrics),
                503: _response_with_error("the agent is starting"),
            },
        ),
        "/openapi.json": (
            "This description",
            {200: _PageResponse("OpenAPI", {"application/json": {"schema": {"type": "object"}}})},
        ),
    }
    paths = {path: _describe_page(summary, path, responses, access) for path, (summary, responses) in pages.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Agent Smith", "version": VERSION, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": _SCHEMAS, "securitySchemes": _security_schemes(access)},
    }


def _health_responses(*, statuses_with_200: str, statuses_with_503: str) -> dict[int, _PageResponse]:
    """Return the responses of a health page. Each argument lists the values of `status` for one HTTP status."""
    content = _json_content("Health")
    return {200: _PageResponse(statuses_with_200, content), 503: _PageResponse(statuses_with_503, content)}


def _json_content(schema: str) -> Json:
    """Return the description of JSON content. `schema` is a key of `_SCHEMAS`."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _describe_page(summary: str, path: str, responses: dict[int, _PageResponse], access: Access) -> Json:
    """Return the description of one page: its methods, logins and responses."""
    is_health_page = path in HEALTH_PATHS
    # In OpenAPI, the list after the name of a login contains scopes. These logins have no scopes.
    security: list[Json] = [] if is_health_page else [{name: []} for name in _security_schemes(access)]
    all_responses = {**responses, **_error_responses(access, is_health_page=is_health_page)}
    methods: Json = {}
    for method in ALLOWED_METHODS:
        method_responses = {
            str(status): _describe_response(all_responses[status], method) for status in sorted(all_responses)
        }
        methods[method.lower()] = {"summary": summary, "security": security, "responses": method_responses}
    return methods


def _error_responses(access: Access, *, is_health_page: bool) -> dict[int, _PageResponse]:
    """Return the responses of the middleware `Guard`: to a refused request, and for a page that fails."""
    error_responses = {500: _response_with_error("internal error, see the log")}
    if access.can_only_local_callers_connect and not access.needs_login:
        error_responses[421] = _response_with_error("the Host header does not name this machine")
    if access.token:
        retry_header = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}}
        error_responses[429] = _response_with_error("too many wrong tokens from this address", retry_header)
    if access.token and not is_health_page:
        authenticate_header = {"WWW-Authenticate": {"required": True, "schema": _STRING}}
        error_responses[401] = _response_with_error("a token is required", authenticate_header)
    elif access.needs_login and not is_health_page:
        error_responses[403] = _response_with_error("a trusted reverse proxy that names the user is required")
    return error_responses


def _response_with_error(meaning: str, headers: Json | None = None) -> _PageResponse:
    return _PageResponse(meaning, _json_content("Error"), headers)


def _describe_response(page_response: _PageResponse, method: str) -> Json:
    """Return the description of a response. A response to HEAD has no content."""
    response: Json = {"description": page_response.meaning}
    if page_response.headers:
        response["headers"] = page_response.headers
    if method != "HEAD":
        response["content"] = page_response.content
    return response


def _security_schemes(access: Access) -> Json:
    """Return the ways to log in (in OpenAPI: security schemes), keyed by their names in this document."""
    schemes: Json = {}
    if access.token:
        schemes["token"] = {"type": "http", "scheme": "bearer"}
    if access.proxies:
        schemes["proxy"] = {
            "type": "apiKey",
            "in": "header",
            "name": access.proxy_user_header,
            "description": "set by a trusted reverse proxy; ignored if another address sends it",
        }
    return schemes
