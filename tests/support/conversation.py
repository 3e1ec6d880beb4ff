"""Replays a recorded conversation with FulcrumCore, and reduces each answer to the facts that every run must repeat.

A conversation is a YAML file in tests/contract/conversations; tests/contract/README.md explains its members.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import yaml

from executor.fulcrum.types import VAULT_PREFIX

TIMEOUT_S = 30
Json = dict[str, Any]

#: The headers that the contract compares. Other headers, such as Date, differ in each run.
HEADERS = ("Content-Type", "Allow", "Cache-Control", "Vary", "X-Content-Type-Options")
HEADER_PREFIXES = ("Access-Control-",)
#: Members of an answer whose text FulcrumCore may change. The contract compares only that there is a text.
TEXT_MEMBERS = ("error", "message", "errorMessage")
#: The text in a body that is replaced by nested lists. The member `nested` of the step is their number.
NESTED = "<nested>"
#: Members of an answer that are counters of the whole database, so their value depends on earlier runs.
COUNTER_MEMBERS = ("sequenceNumber", "lastEventSequenceProcessed")
#: Lists whose order differs in each run, because FulcrumCore reads them from PostgreSQL without an order.
UNORDERED_MEMBERS = ("serviceTypeIds",)
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
#: Matches a random secret, such as the value of a token. Only its length is compared.
_SECRET = re.compile(r"[A-Za-z0-9_-]{40,}={0,2}")
#: Matches the public URL of FulcrumCore, which an install command contains.
_ORIGIN = re.compile(r"https?://[^/\s]+(?=/api/v1/)")
REPOSITORY = Path(__file__).parents[2]


def load(file: Path) -> Json:
    """Return a conversation: `about`, `needs` and `steps`."""
    return dict(yaml.safe_load(file.read_text()))


def read_answers(file: Path) -> list[Json]:
    """Return the recorded answers of a conversation, or an empty list if none are recorded."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write_answers(file: Path, answers: list[Json]) -> None:
    """Record answers: one line for each, so that a change of FulcrumCore is a readable difference."""
    file.write_text("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))


class Conversation:
    """Sends the requests of one conversation to one server and keeps the values that later requests need."""

    def __init__(self, api_url: str, admin_token: str) -> None:
        self._api_url = api_url
        self._session = requests.Session()
        self._values: dict[str, Any] = {"run": uuid.uuid4().hex[:12], "admin_token": admin_token}
        self._names: dict[str, str] = {}  #: maps an identifier in answers to the name that replaces it
        self._created: list[str] = []  #: paths of the created objects, oldest first

    def close(self) -> None:
        self._session.close()

    def value(self, name: str) -> Any:
        """Return a value that an answer contained and a step has kept."""
        return self._values[name]

    def ask(self, step: Json) -> Json:
        """Send the request of a step; return the facts of its answer."""
        method, path, caller = parse_request(step["ask"])
        # A secret is kept as the reference `vault://<id>`, and FulcrumCore's paths have only the id.
        response = self._send(method, self._fill(path).replace(VAULT_PREFIX, ""), caller, step)
        body = _parse_body(response)
        if isinstance(body, dict):
            body |= dict.fromkeys(step.get("ignore", ()), "<not compared>")
        self._note_created(method, path, response, body)
        for name, member in (step.get("keep") or {}).items():
            self._keep(name, _member_at(body, str(member)))
        return {"ask": step["ask"], "status": response.status_code, **self._facts(response, body)}

    def _send(self, method: str, path: str, caller: str, step: Json) -> requests.Response:
        headers = {name: self._fill(text) for name, text in (step.get("headers") or {}).items()}
        if caller:
            headers["Authorization"] = f"Bearer {self._values[f'{caller}_token']}"
        data = self._fill(step["text"]) if "text" in step else None
        if "body" in step or "file" in step:
            members = json.loads((REPOSITORY / step["file"]).read_text()) if "file" in step else {}
            body = self._fill(step.get("body", {}))
            data = json.dumps({**members, **body} if isinstance(body, dict) else body)
        if "nested" in step and data:
            # json.dumps cannot write lists that are nested so deeply, so the brackets are inserted as text.
            brackets = "[" * step["nested"] + "]" * step["nested"]
            data = data.replace(json.dumps(NESTED), brackets)
        request = requests.Request(method, self._api_url, headers=headers, data=data and data.encode())
        prepared = self._session.prepare_request(request)
        # The library requests would decode and encode the path again, but exactly this path is to be tested.
        prepared.url = self._api_url + path[path.index("/api/v1") + 7 :] if "/api/v1/" in path else self._api_url + path
        return self._session.send(prepared, timeout=TIMEOUT_S)

    def _fill(self, value: Any) -> Any:
        """Replace `${name}` by the kept value, at any depth. A text that is only `${name}` becomes the value itself."""
        if isinstance(value, str):
            whole_match = _VARIABLE.fullmatch(value)
            return (
                self._values[whole_match[1]]
                if whole_match
                else _VARIABLE.sub(lambda match: str(self._values[match[1]]), value)
            )
        if isinstance(value, dict):
            return {self._fill(name): self._fill(member) for name, member in value.items()}
        return [self._fill(item) for item in value] if isinstance(value, list) else value

    def _keep(self, name: str, value: Any) -> None:
        self._values[name] = value
        if isinstance(value, str) and UUID.fullmatch(value.removeprefix(VAULT_PREFIX)):
            self._names.setdefault(value.removeprefix(VAULT_PREFIX), name)

    def _note_created(self, method: str, path: str, response: requests.Response, body: Any) -> None:
        is_creation = method == "POST" and response.status_code == 201 and path.count("/") == 1
        if is_creation and isinstance(body, dict) and "id" in body:
            self._created.append(f"{path}/{body['id']}")

    def _facts(self, response: requests.Response, body: Any) -> Json:
        headers = {
            name: _sorted_list(value) if name == "Allow" else self._replace(value)
            for name, value in sorted((name.title(), value) for name, value in response.headers.items())
            if name in HEADERS or name.startswith(HEADER_PREFIXES)
        }
        return {"headers": headers, "body": self._normalize(body)}

    def _normalize(self, value: Any, member: str = "") -> Any:
        """Replace what differs in each run: identifiers, times, secrets, counters and free texts."""
        if isinstance(value, dict):
            return {name: self._normalize(value[name], name) for name in sorted(value)}
        if isinstance(value, list):
            items = sorted(value, key=lambda item: str(item["path"])) if member == "errors" else value
            normalized = [self._normalize(item) for item in items]
            return sorted(normalized) if member in UNORDERED_MEMBERS else normalized
        if member in COUNTER_MEMBERS and isinstance(value, int):
            return "<number>"
        if isinstance(value, str):
            return "<text>" if member in TEXT_MEMBERS and value else self._replace(value)
        return value

    def _replace(self, text: str) -> str:
        text = UUID.sub(lambda match: f"<{self._name_of(match[0])}>", text)
        text = _SECRET.sub(lambda match: f"<{len(match[0])} characters>", text)
        text = _ORIGIN.sub("<url>", TIME.sub("<time>", text))
        return text.replace(self._values["run"], "<run>")

    def _name_of(self, identifier: str) -> str:
        return self._names.setdefault(identifier, f"id {len(self._names) + 1}")

    def remove_created(self) -> list[str]:
        """Delete what the conversation created, newest first; return the paths that FulcrumCore does not delete."""
        headers = {"Authorization": f"Bearer {self._values['admin_token']}"}
        not_deleted = []
        for path in reversed(self._created):
            if path.startswith("/services/"):
                not_deleted.append(path)  # FulcrumCore has no call that deletes a service's row
                continue
            status = self._session.delete(self._api_url + path, headers=headers, timeout=TIMEOUT_S).status_code
            if status not in (204, 403, 404):
                not_deleted.append(path)
        return not_deleted


def parse_request(text: str) -> tuple[str, str, str]:
    """Split `POST /agents as admin` into method, path and caller; `without a token`, the caller is empty."""
    request = text.removesuffix(" without a token")
    caller = ""
    if request == text:
        request, _, caller = text.rpartition(" as ")
    method, _, path = request.partition(" ")
    return method, path, caller


def _parse_body(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _member_at(body: Any, path: str) -> Any:
    """Return the member that a path such as `items.0.id` names."""
    for part in path.split("."):
        body = body[int(part)] if isinstance(body, list) else body[part]
    return body


def _sorted_list(text: str) -> str:
    return ", ".join(sorted(text.split(", ")))


def read_steps(file: Path) -> list[Json]:
    """Return the steps of a conversation."""
    return list(load(file)["steps"])


def requests_of(folder: Path) -> Iterator[str]:
    """Yield the request of every step of every conversation in a folder."""
    for file in sorted(folder.glob("*.yaml")):
        yield from (step["ask"] for step in load(file)["steps"] if "ask" in step)
