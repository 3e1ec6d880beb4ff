"""The parsers of text from outside as functions of bytes, for `make fuzz` and for the replay of its corpus.

Each function calls a parser as the executor or the collection calls it, and catches the errors that this caller
handles. Any other exception shows a defect of the parser: an unexpected error, or an AssertionError because the parsed
value breaks a guarantee. The docstring names the text and the guarantee.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import failures, guest_facts, proxmox_tasks, volumes
from ansible_runner.utils import OutputEventFilter

from executor.cli import adoption_sources, mappings_transfer
from executor.cli.arguments import CommandFailed
from executor.database import mapping_transfer
from executor.errors import JobError, SettingsError
from executor.fulcrum import vault
from executor.fulcrum.clock import parse_http_date
from executor.fulcrum.types import FulcrumAgent, FulcrumJob, FulcrumService, ListedService, ServiceType
from executor.fulcrum.untrusted_json import MAX_JSON_DEPTH, check_storable, parse_json
from executor.model import RunArtifacts, RunStatus
from executor.proxmox import rows, template_needs
from executor.redaction import MIN_SECRET_LENGTH, Redactor
from executor.runs import results
from executor.runs.action_schema import check_properties, read_validator
from executor.runs.actions import Action, collection_folder
from executor.runs.output import OutputDecoder, RunOutput
from executor.runs.plan import plan
from executor.runs.request import PlaybookSettings, RunRequest
from executor.runs.story import MAX_ENTRIES, RunStory
from executor.settings.settings import load_settings
from executor.shared import error_rules, marker, reactions
from executor.web.access import Access
from executor.web.agent_view import AgentHandle
from executor.web.app import make_app

SERVICE_ID = "0a1b2c3d-1111-4000-8000-000000000001"
MAC = "BC:24:11:00:11:22"
#: The first bytes of an input for the redactor are the secret.
SECRET_BYTES = 8
FOLDER = Path(tempfile.mkdtemp(prefix="fuzzing-"))
PLAN_SETTINGS = PlaybookSettings(
    cluster="default",
    templates={"debian-12": 9000},
    storage="local-zfs",
    bridge="vmbr0",
    pool="",
    node="",
    playbook_folders=(collection_folder() / "playbooks",),
    playbook_timeout_s=240.0,
    shutdown_timeout_s=60.0,
)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _json(data: bytes) -> Any:
    """Return JSON as the client of FulcrumCore returns it, or None if this client refuses the text."""
    try:
        return check_storable(parse_json(data))
    except ValueError:
        return None


def fulcrum_json(data: bytes) -> None:
    """JSON from FulcrumCore: it is refused, or no deeper than the database, the redactor and Ansible can process."""
    value = _json(data)
    assert _depth(value) <= MAX_JSON_DEPTH
    for model in (FulcrumJob, FulcrumService, FulcrumAgent, ListedService):
        with contextlib.suppress(ValueError):
            model.parse(value)


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1
    return depth


def properties(data: bytes) -> None:
    """The properties of a service: a run is planned, or the job is refused with a code."""
    value = _json(data)
    if not isinstance(value, dict):
        return
    for action in ("create", "update", "resize", "snapshot"):
        request = RunRequest(
            action=action,
            service_id=SERVICE_ID,
            service_name="web",
            properties=value,
            vmid=101,
            vm_name="web-0a1b2c3d",
            template_vmid=9000,
            time_left_s=280.0,
        )
        with contextlib.suppress(JobError):
            json.dumps(plan(request, PLAN_SETTINGS).vm)


def vault_references(data: bytes) -> None:
    """A service type and properties: the locations of the secrets are found."""
    value = _json(data)
    if not isinstance(value, dict):
        return
    with contextlib.suppress(ValueError):
        for path in ServiceType.parse(value.get("type")).secret_paths():
            for container, key in vault._find_locations(value.get("properties"), path):
                list(vault._strings_and_numbers(container[key]))
    vault._has_reference(value)


def proxmox_json(data: bytes) -> None:
    """JSON from Proxmox for the agent."""
    value = _json(data)
    for parse in (rows.vm_rows, rows.node_rows, rows.storage_rows, rows.archive_rows, rows.as_object):
        with contextlib.suppress(JobError):
            parse(value)
    if isinstance(value, dict):
        for row in rows.vm_rows([{"vmid": 100, "node": "pve1", "type": "qemu"}]):
            rows.fill_in_vm_row(row, value)
        template_needs.privilege_needs_of_template(value)
        template_needs.root_only_devices(value)


def markers(data: bytes) -> None:
    """The description of a VM: a text of a user never becomes a marker."""
    text = _text(data)
    marker.marker_values_in(text)
    marker.agent_id_in(text)
    marker.service_id_in(marker.with_agent_line(text, SERVICE_ID))
    assert marker.marker_values_in(marker.without_imitated_smith_lines(text)) == []
    assert marker.marker_values_in(marker.without_smith_lines(text)) == []


def guest_settings(data: bytes) -> None:
    """The configuration of a guest for an action: tags, drives, NICs, description."""
    value = _json(data)
    if not isinstance(value, dict):
        return
    settings = [{"key": str(key), "value": item} for key, item in value.items() if isinstance(item, str | int)]
    for read in (guest_facts.facts_from_configuration, guest_facts.container_facts_from_configuration):
        read(settings, {"status": "running"})
    volumes.volumes_in(((row["key"], row["value"]) for row in settings), 100)


def guest_agent(data: bytes) -> None:
    """The answer of a guest agent: only IP addresses are used, and at most 64."""
    value = _json(data)
    for read in (guest_facts.reachable_addresses, guest_facts.container_addresses):
        addresses = read(value, [MAC])
        assert len(addresses) <= 64
        for address in addresses:
            assert set(address) <= set("0123456789abcdef.:"), address


def task_log(data: bytes) -> None:
    """The log of a Proxmox task."""
    lines = _text(data).split("\n")
    proxmox_tasks.vmids_in(lines)
    proxmox_tasks.volumes_left_in_log(lines)
    proxmox_tasks.error_with_cause("job errors", lines)


def error_texts(data: bytes) -> None:
    """The error of a module or of Proxmox: one line with one known code."""
    text = _text(data)
    for classify in (error_rules.classify_failure, error_rules.classify_failure_keeping_code):
        failure = classify(text)
        assert "\n" not in failure.text
        reactions.reaction_to(failure.code)
    assert failures.failure({"msg": text}).partition(": ")[0].isascii()
    parse_http_date(text)


def run_output(data: bytes) -> None:
    """The output of a playbook with the escape sequences that hold its events, and the result concluded from it."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        output = RunOutput(Path(folder) / "run", Redactor())
        event_filter = OutputEventFilter(output, output.add_event, suppress_ansible_output=True)
        decoder = OutputDecoder(event_filter.write, output.ignore_further_text)
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            decoder.feed(piece)
        event_filter.close()
        output.finish(status="successful", rc=0)
        _read_result(output.folder)


def run_events(data: bytes) -> None:
    """The events of a run, and `vm_result` in them."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        (Path(folder) / "events.jsonl").write_bytes(data)
        _read_result(Path(folder))


def run_story(data: bytes) -> None:
    """Events of a run, or lines of its output: the story is bounded, and each database can store it."""
    story = RunStory(Redactor())
    for line in data.splitlines():
        value = _json(line)
        story.add_event(value if isinstance(value, dict) else {"event": "verbose", "stdout": _text(line)})
    document = story.end()
    assert all(len(entries) <= MAX_ENTRIES for entries in document.values())
    text = json.dumps(document, allow_nan=False)
    assert "\\u0000" not in text
    check_storable(parse_json(text.encode()))


def _read_result(folder: Path) -> None:
    for status, rc in ((RunStatus.SUCCESSFUL, 0), (RunStatus.FAILED, 2)):
        result = results.read_result(
            RunArtifacts(ident="create-1", folder=folder, status=status, rc=rc, started_at=0.0, ended_at=1.0)
        )
        assert result.succeeded or result.code


def redactor(data: bytes) -> None:
    """A text with a secret: the secret is masked."""
    secret, text = _text(data[:SECRET_BYTES]), _text(data[SECRET_BYTES:])
    masking = Redactor()
    masking.add(secret)
    whole = masking.redact(text + secret)
    if secret.strip() == secret and "*" not in secret and len(secret) >= MIN_SECRET_LENGTH:
        assert secret not in whole


def settings_file(data: bytes) -> None:
    """A file `.env`: the settings are loaded, or each problem is named."""
    file = FOLDER / "fuzzed.env"
    file.write_bytes(data)
    file.chmod(0o600)
    with contextlib.suppress(SettingsError):
        load_settings(env_file=file, environ={})


def adoption_file(data: bytes) -> None:
    """A list of services and VMIDs to adopt: each row is a pair or has a problem, or the file is refused."""
    file = FOLDER / "fuzzed.adoption"
    file.write_bytes(data)
    with contextlib.suppress(CommandFailed):
        for row in adoption_sources.read_rows(file):
            assert row.problem or row.vmid


def mapping_export(data: bytes) -> None:
    """A file that `smith mappings export` wrote on another host: each entry has a problem or can be stored."""
    file = FOLDER / "fuzzed.mappings"
    file.write_bytes(data)
    with contextlib.suppress(CommandFailed):
        for entry in mappings_transfer._read_mappings(file):
            if not mapping_transfer.find_import_problem(entry) and entry.get("delete_at"):
                mapping_transfer._parse_iso_time(entry["delete_at"])


def action_schema(data: bytes) -> None:
    """The JSON Schema of a provider's action, and properties that are checked with it."""
    file = FOLDER / "fuzzed.schema.json"
    file.write_bytes(data)
    with contextlib.suppress(ValueError):
        read_validator(file)
        action = Action(name="x", playbook=file, schema=file, is_ours=False)
        with contextlib.suppress(JobError):
            check_properties(action, {"cores": 2, "name": "web", "disks": [{"gib": 1}]})


def http_requests(data: bytes) -> None:
    """A request to the agent's HTTP server: no server error; without the token only the health pages answer 200."""
    first_line, *header_lines = data.split(b"\n")
    method, _, target = first_line.partition(b" ")
    path, _, query = target.partition(b"?")
    headers = [(name.lower(), value) for name, _, value in (line.partition(b":") for line in header_lines)]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode("latin-1"),
        "scheme": "http",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": query,
        "headers": headers,
        "client": ("192.0.2.7", 4711),
        "server": ("192.0.2.1", 9000),
        "root_path": "",
    }
    status = asyncio.run(_call(scope))
    assert status < HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.SERVICE_UNAVAILABLE, status
    if status == HTTPStatus.OK and b"a-token-of-more-than-sixteen" not in data:
        assert path in {b"/livez", b"/readyz"}, path


async def _call(scope: dict[str, Any]) -> int:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await make_app(AgentHandle(), ACCESS)(scope, receive, send)
    return statuses[0]


ACCESS = Access(token="a-token-of-more-than-sixteen", can_only_local_callers_connect=False)
PARSERS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        fulcrum_json,
        properties,
        vault_references,
        proxmox_json,
        markers,
        guest_settings,
        guest_agent,
        task_log,
        error_texts,
        run_output,
        run_events,
        run_story,
        redactor,
        settings_file,
        adoption_file,
        mapping_export,
        action_schema,
        http_requests,
    )
}
