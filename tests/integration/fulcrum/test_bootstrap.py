"""`smith bootstrap core` against the FulcrumCore simulator, which has none, some or all of the objects."""

from __future__ import annotations

import copy
import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from smith_lab.fulcrum_setup import METRIC_TYPES, SEED_TOKEN, AdminClient
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.cli_world import Cli

from executor.fulcrum.bootstrap import AGENT_TYPE_FILE, VM_SERVICE_TYPE_FILE, read_type_file
from executor.fulcrum.differences import find_differences

AGENT, PROVIDER = "smith-dc1", "My cloud"
KINDS = ["service type", "agent type", *["metric type"] * len(METRIC_TYPES), "provider", "agent", "agent token"]
CHANGING_METHODS = ("POST", "PATCH", "PUT", "DELETE")


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    with running_simulator() as running:
        yield running


@pytest.fixture
def core(simulator: SimulatorThread) -> SimulatorThread:
    simulator.reset()
    return simulator


@pytest.fixture
def admin(core: SimulatorThread) -> Iterator[AdminClient]:
    with AdminClient(core.url) as client:
        yield client


@pytest.fixture
def smith(core: SimulatorThread, tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env |= {"FULCRUM_API_URL": core.url, "CORE_ADMIN_TOKEN": SEED_TOKEN}
    return cli


def arguments(*extra_options: str) -> tuple[str, ...]:
    return ("bootstrap", "core", "--agent", AGENT, "--provider", PROVIDER, *extra_options)


def statuses(output: dict[str, Any]) -> list[str]:
    assert [step["kind"] for step in output["steps"]] == KINDS
    return [step["status"] for step in output["steps"]]


def list_changing_requests(core: SimulatorThread) -> list[str]:
    """Return the requests other than GET that FulcrumCore received."""
    return [f"{entry['method']} {entry['path']}" for entry in core.history() if entry["method"] in CHANGING_METHODS]


def read_agent(core: SimulatorThread, token: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    return dict(requests.get(f"{core.api_url}/agents/me", headers=headers, timeout=10).json())


def test_bootstrap_creates_everything_that_an_agent_needs(
    smith: Cli, core: SimulatorThread, admin: AdminClient, tmp_path: Path
) -> None:
    file = tmp_path / "fulcrum_api_token"
    output = smith.json(*arguments("--create-provider", "--token-file", str(file), "--token-days", "30"))
    assert set(statuses(output)) == {"made"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text().strip()
    assert token not in str(output)
    me = read_agent(core, token)
    assert (me["name"], me["participant"]["name"], me["tags"]) == (AGENT, PROVIDER, ["proxmox"])
    assert me["id"] == output["agent_id"]
    (service_type,), (agent_type,) = admin.list_all("service-types"), admin.list_all("agent-types")
    assert agent_type["serviceTypeIds"] == [service_type["id"]]
    assert me["agentTypeId"] == agent_type["id"]
    assert {metric["name"] for metric in admin.list_all("metric-types")} == set(METRIC_TYPES)
    (agent_token,) = [token for token in admin.list_all("tokens") if token["role"] == "agent"]
    assert datetime.fromisoformat(agent_token["expireAt"]) - datetime.now(UTC) < timedelta(days=30)


def test_a_second_run_finds_everything_and_changes_nothing(smith: Cli, core: SimulatorThread, tmp_path: Path) -> None:
    file = str(tmp_path / "token")
    smith.ok(*arguments("--create-provider", "--token-file", file))
    before = (tmp_path / "token").read_text()
    core.clear_history()
    assert set(statuses(smith.json(*arguments("--create-provider", "--token-file", file)))) == {"found"}
    assert list_changing_requests(core) == []
    assert (tmp_path / "token").read_text() == before


def test_a_dry_run_lists_all_objects_and_creates_none(smith: Cli, core: SimulatorThread, tmp_path: Path) -> None:
    file = tmp_path / "token"
    output = smith.json(*arguments("--create-provider", "--token-file", str(file), "--dry-run"))
    assert set(statuses(output)) == {"missing"}
    assert list_changing_requests(core) == []
    assert not file.exists()


def test_missing_objects_are_created_beside_existing_ones(smith: Cli, admin: AdminClient, tmp_path: Path) -> None:
    service_type = admin.create("service-types", **read_type_file(VM_SERVICE_TYPE_FILE))
    admin.create("agent-types", **read_type_file(AGENT_TYPE_FILE) | {"serviceTypeIds": [service_type["id"]]})
    admin.create("metric-types", name="vm.cpu.usage", entityType="Resource")
    provider = admin.create("participants", name=PROVIDER, status="Enabled")
    output = smith.json(*arguments("--token-file", str(tmp_path / "token")))
    found = {step["name"] for step in output["steps"] if step["status"] == "found"}
    assert found == {service_type["name"], "proxmox", "vm.cpu.usage", PROVIDER}
    assert {step["status"] for step in output["steps"] if step["name"] not in found} == {"made"}
    (agent,) = admin.list_all("agents")
    assert agent["providerId"] == provider["id"]


def test_the_service_type_is_added_to_an_agent_type_that_exists(
    smith: Cli, core: SimulatorThread, admin: AdminClient, tmp_path: Path
) -> None:
    """FulcrumCore refuses orders of a service type that the agent type does not list. No listed type is removed."""
    other = admin.create("service-types", **read_type_file(VM_SERVICE_TYPE_FILE) | {"name": "other"})
    agent_type = admin.create("agent-types", **read_type_file(AGENT_TYPE_FILE) | {"serviceTypeIds": [other["id"]]})
    admin.create("participants", name=PROVIDER, status="Enabled")
    own_file = tmp_path / "own.json"
    own_file.write_text(json.dumps(read_type_file(VM_SERVICE_TYPE_FILE) | {"name": "own"}))
    options = arguments("--token-file", str(tmp_path / "token"), "--service-type-file", str(own_file))
    shown = {step["kind"]: step["status"] for step in smith.json(*options, "--dry-run")["steps"]}
    assert shown["agent type"] == "attached"
    assert admin.call("GET", f"/agent-types/{agent_type['id']}")["serviceTypeIds"] == [other["id"]]
    steps = {step["kind"]: step for step in smith.json(*options)["steps"]}
    assert (steps["agent type"]["status"], steps["agent type"]["differences"]) == ("attached", [])
    attached = admin.call("GET", f"/agent-types/{agent_type['id']}")["serviceTypeIds"]
    assert attached == [other["id"], steps["service type"]["id"]]
    again = {step["kind"]: step["status"] for step in smith.json(*options)["steps"]}
    assert again["agent type"] == "found"


def test_with_a_new_token_the_other_valid_tokens_are_listed_and_deleted_on_request(
    smith: Cli, admin: AdminClient, tmp_path: Path
) -> None:
    admin.create("participants", name=PROVIDER, status="Enabled")
    first_file, second_file, third_file = (tmp_path / name for name in ("first", "second", "third"))
    assert smith.json(*arguments("--token-file", str(first_file)))["other_tokens"] == []
    shown = smith.ok(*arguments("--token-file", str(second_file), "--new-token"))
    assert "still valid: the agent's old tokens: " in shown
    assert "--remove-old-tokens deletes them" in shown
    dry_run_output = smith.json(
        *arguments("--token-file", str(third_file), "--new-token", "--remove-old-tokens", "--dry-run")
    )
    assert (len(dry_run_output["other_tokens"]), dry_run_output["other_tokens_deleted"]) == (2, False)
    output = smith.json(*arguments("--token-file", str(third_file), "--new-token", "--remove-old-tokens"))
    assert (len(output["other_tokens"]), output["other_tokens_deleted"]) == (2, True)
    agent_tokens = [token for token in admin.list_all("tokens") if token.get("agentId") == output["agent_id"]]
    assert len(agent_tokens) == 1
    assert agent_tokens[0]["id"] not in [token["id"] for token in output["other_tokens"]]


def test_old_tokens_are_deleted_only_when_a_new_one_is_created(smith: Cli) -> None:
    ended = smith(*arguments("--remove-old-tokens"))
    assert ended.returncode == 2
    assert "needs --new-token" in ended.stderr


def test_an_object_with_other_content_is_reported_and_not_changed(
    smith: Cli, core: SimulatorThread, admin: AdminClient, tmp_path: Path
) -> None:
    changed_type = read_type_file(VM_SERVICE_TYPE_FILE)
    changed_type["propertySchema"]["properties"]["cores"]["validators"] = [{"type": "max", "config": {"value": 2}}]
    service_type = admin.create("service-types", **changed_type)
    stored = admin.call("GET", f"/service-types/{service_type['id']}")  # FulcrumCore adds the members that are missing
    other_type = read_type_file(AGENT_TYPE_FILE) | {"serviceTypeIds": [service_type["id"]]}
    other_type["configurationSchema"]["properties"]["storage"]["label"] = "another label"
    admin.create("agent-types", **other_type)
    admin.create("participants", name=PROVIDER, status="Disabled")
    core.clear_history()
    output = smith.json(*arguments("--token-file", str(tmp_path / "token")))
    differences = {step["kind"]: step["differences"] for step in output["steps"] if step["status"] == "differs"}
    assert differences == {
        "service type": ["propertySchema.properties.cores.validators"],
        "agent type": ["configurationSchema.properties.storage.label"],
        "provider": ["status"],
    }
    assert not [change for change in list_changing_requests(core) if not change.startswith("POST")]
    assert admin.call("GET", f"/service-types/{service_type['id']}")["propertySchema"] == stored["propertySchema"]
    table = smith.ok(*arguments("--token-file", str(tmp_path / "token"), "--dry-run"))
    assert "propertySchema.properties.cores.validators" in table


def test_a_token_without_administrator_rights_creates_nothing_and_exits_with_4(
    smith: Cli, core: SimulatorThread, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    done = smith(*arguments("--token-file", str(file)), CORE_ADMIN_TOKEN="not-a-valid-token")
    assert (done.returncode, done.stdout) == (4, "")
    assert "HTTP 403" in done.stderr
    assert "administrator" in done.stderr
    assert "not-a-valid-token" not in done.stderr
    assert list_changing_requests(core) == []
    assert not file.exists()


@pytest.mark.parametrize(
    ("extra_options", "env", "code", "expected_error"),
    [
        (("--dry-run",), {"CORE_ADMIN_TOKEN": ""}, 3, "CORE_ADMIN_TOKEN"),
        (("--dry-run",), {"FULCRUM_API_URL": ""}, 3, "FULCRUM_API_URL"),
        (("--dry-run", "--admin-token-file", "nowhere"), {}, 3, "nowhere"),
        (("--dry-run", "--service-type-file", "nowhere"), {}, 3, "nowhere"),
        (("--dry-run",), {}, 1, "has no participant My cloud"),
        (("--create-provider",), {}, 2, "--token-file"),
        (("--create-provider", "--token-file", "taken"), {}, 2, "taken exists already"),
        (("--create-provider", "--token-file", "no/folder"), {}, 1, "no/folder cannot be written"),
        (("--dry-run",), {"FULCRUM_API_URL": "http://127.0.0.1:9"}, 4, "refused"),
    ],
)
def test_a_request_that_cannot_be_fulfilled_is_refused_before_anything_is_created(  # noqa: PLR0917
    smith: Cli,
    core: SimulatorThread,
    extra_options: tuple[str, ...],
    env: dict[str, str],
    code: int,
    expected_error: str,
) -> None:
    (smith.folder / "taken").touch()
    done = smith(*arguments(*extra_options), **env)
    assert (done.returncode, done.stdout) == (code, "")
    assert expected_error in done.stderr
    assert "Traceback" not in done.stderr
    assert list_changing_requests(core) == []


def test_two_objects_of_the_wanted_name_are_refused(smith: Cli, core: SimulatorThread, admin: AdminClient) -> None:
    twins = [admin.create("participants", name=PROVIDER, status="Enabled")["id"] for _ in range(2)]
    core.clear_history()
    done = smith(*arguments("--show-token"))
    assert (done.returncode, list_changing_requests(core)) == (1, [])
    assert all(twin in done.stderr for twin in twins)
    output = smith.json("bootstrap", "core", "--agent", AGENT, "--provider", twins[1], "--show-token")
    assert read_agent(core, output["token"])["providerId"] == twins[1]


def test_a_lost_response_does_not_create_a_second_object(
    smith: Cli, core: SimulatorThread, admin: AdminClient, tmp_path: Path
) -> None:
    """A retry without a look-up would fail with a 500, or create a second agent."""
    core.add_fault("drop_after", method="POST", path="/(service-types|agents)$")
    output = smith.json(*arguments("--create-provider", "--token-file", str(tmp_path / "token")))
    assert set(statuses(output)) == {"made"}
    assert [len(admin.list_all(kind)) for kind in ("service-types", "agents")] == [1, 1]


def test_a_missing_or_wrong_token_file_is_reported_and_the_token_can_be_replaced(
    smith: Cli, core: SimulatorThread, admin: AdminClient, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    smith.ok(*arguments("--create-provider", "--token-file", str(file)))
    file.rename(tmp_path / "moved")
    done = smith(*arguments("--token-file", str(file)))
    assert (done.returncode, file.exists()) == (1, False)
    assert "--new-token" in done.stderr
    file.write_text(SEED_TOKEN)  # another user's token
    assert "is not a token of this agent" in smith(*arguments("--token-file", str(file))).stderr
    file.unlink()
    smith.ok(*arguments("--token-file", str(file), "--new-token"))
    assert read_agent(core, file.read_text().strip())["name"] == AGENT
    assert len([token for token in admin.list_all("tokens") if token["role"] == "agent"]) == 2


def test_a_second_run_completes_a_run_that_failed_at_its_last_step(
    smith: Cli, core: SimulatorThread, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    core.add_fault("status", status=503, method="POST", path="/tokens$")
    done = smith(*arguments("--create-provider", "--token-file", str(file)))
    assert (done.returncode, file.exists()) == (4, False)
    assert "smith-dc1" in done.stdout, "the created objects are reported"
    core.clear_faults()
    output = smith.json(*arguments("--token-file", str(file)))
    assert statuses(output) == ["found"] * (len(KINDS) - 1) + ["made"]
    assert read_agent(core, file.read_text().strip())["name"] == AGENT


def test_empty_members_and_members_that_fulcrumcore_adds_are_no_differences() -> None:
    wanted = {"schema": {"a": {"type": "integer", "required": True}, "list": [{"value": 1}, {"value": 2}]}}
    existing = copy.deepcopy(wanted) | {"id": "1", "createdAt": "now"}
    assert find_differences(wanted, existing) == []
    existing["schema"]["a"] |= {"label": "", "secret": None, "validators": []}
    existing["schema"]["list"][0]["value"] = 1.0
    assert find_differences(wanted, existing) == []
    existing["schema"]["list"][1]["value"] = 3
    existing["schema"]["b"] = {"type": "string"}
    del existing["schema"]["a"]["required"]
    assert find_differences(wanted, existing) == ["schema.a.required", "schema.list[1].value", "schema.b"]
