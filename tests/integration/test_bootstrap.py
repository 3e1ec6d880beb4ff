"""`smith bootstrap core` at FulcrumCore's simulator: from nothing, again, from half of it, and what it refuses."""

from __future__ import annotations

import copy
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from cli_world import Cli
from smith_lab.fulcrum_setup import METRIC_TYPES, SEED_TOKEN, AdminClient
from smith_lab.simulator.control import RunningSimulator, running_simulator

from executor.fulcrum.bootstrap import AGENT_TYPE_FILE, SERVICE_TYPE_FILE, differences, load_type

AGENT, PROVIDER = "smith-dc1", "My cloud"
KINDS = ["service type", "agent type", *["metric type"] * len(METRIC_TYPES), "provider", "agent", "agent token"]
CHANGING = ("POST", "PATCH", "PUT", "DELETE")


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    with running_simulator() as running:
        yield running


@pytest.fixture
def core(simulator: RunningSimulator) -> RunningSimulator:
    simulator.reset()
    return simulator


@pytest.fixture
def admin(core: RunningSimulator) -> Iterator[AdminClient]:
    with AdminClient(core.url) as client:
        yield client


@pytest.fixture
def smith(core: RunningSimulator, tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env |= {"FULCRUM_API_URL": core.url, "CORE_ADMIN_TOKEN": SEED_TOKEN}
    return cli


def arguments(*more: str) -> tuple[str, ...]:
    return ("bootstrap", "core", "--agent", AGENT, "--provider", PROVIDER, *more)


def statuses(told: dict[str, Any]) -> list[str]:
    assert [step["kind"] for step in told["steps"]] == KINDS
    return [step["status"] for step in told["steps"]]


def changes(core: RunningSimulator) -> list[str]:
    """Return the changing calls that FulcrumCore has seen."""
    return [f"{entry['method']} {entry['path']}" for entry in core.history() if entry["method"] in CHANGING]


def who(core: RunningSimulator, token: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    return dict(requests.get(f"{core.api_url}/agents/me", headers=headers, timeout=10).json())


def test_an_empty_fulcrumcore_becomes_one_that_an_agent_can_log_in_to(
    smith: Cli, core: RunningSimulator, admin: AdminClient, tmp_path: Path
) -> None:
    file = tmp_path / "fulcrum_api_token"
    told = smith.json(*arguments("--create-provider", "--token-file", str(file), "--token-days", "30"))
    assert set(statuses(told)) == {"made"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text().strip()
    assert token not in str(told)
    me = who(core, token)
    assert (me["name"], me["participant"]["name"], me["tags"]) == (AGENT, PROVIDER, ["proxmox"])
    assert me["id"] == told["agent_id"]
    (service_type,), (agent_type,) = admin.list_all("service-types"), admin.list_all("agent-types")
    assert agent_type["serviceTypeIds"] == [service_type["id"]]
    assert me["agentTypeId"] == agent_type["id"]
    assert {metric["name"] for metric in admin.list_all("metric-types")} == set(METRIC_TYPES)
    (made,) = [token for token in admin.list_all("tokens") if token["role"] == "agent"]
    assert datetime.fromisoformat(made["expireAt"]) - datetime.now(UTC) < timedelta(days=30)


def test_a_second_run_finds_everything_and_changes_nothing(smith: Cli, core: RunningSimulator, tmp_path: Path) -> None:
    file = str(tmp_path / "token")
    smith.ok(*arguments("--create-provider", "--token-file", file))
    before = (tmp_path / "token").read_text()
    core.clear_history()
    assert set(statuses(smith.json(*arguments("--create-provider", "--token-file", file)))) == {"found"}
    assert changes(core) == []
    assert (tmp_path / "token").read_text() == before


def test_a_dry_run_tells_all_and_makes_nothing(smith: Cli, core: RunningSimulator, tmp_path: Path) -> None:
    file = tmp_path / "token"
    told = smith.json(*arguments("--create-provider", "--token-file", str(file), "--dry-run"))
    assert set(statuses(told)) == {"missing"}
    assert changes(core) == []
    assert not file.exists()


def test_half_of_it_is_completed(smith: Cli, admin: AdminClient, tmp_path: Path) -> None:
    service_type = admin.create("service-types", **load_type(SERVICE_TYPE_FILE))
    admin.create("agent-types", **load_type(AGENT_TYPE_FILE) | {"serviceTypeIds": [service_type["id"]]})
    admin.create("metric-types", name="vm.cpu.usage", entityType="Resource")
    provider = admin.create("participants", name=PROVIDER, status="Enabled")
    told = smith.json(*arguments("--token-file", str(tmp_path / "token")))
    found = {step["name"] for step in told["steps"] if step["status"] == "found"}
    assert found == {service_type["name"], "proxmox", "vm.cpu.usage", PROVIDER}
    assert {step["status"] for step in told["steps"] if step["name"] not in found} == {"made"}
    (agent,) = admin.list_all("agents")
    assert agent["providerId"] == provider["id"]


def test_what_has_other_content_is_told_and_left_as_it_is(
    smith: Cli, core: RunningSimulator, admin: AdminClient, tmp_path: Path
) -> None:
    own = load_type(SERVICE_TYPE_FILE)
    own["propertySchema"]["properties"]["cores"]["validators"] = [{"type": "max", "config": {"value": 2}}]
    service_type = admin.create("service-types", **own)
    admin.create("agent-types", **load_type(AGENT_TYPE_FILE))  # for no service type at all
    admin.create("participants", name=PROVIDER, status="Disabled")
    core.clear_history()
    told = smith.json(*arguments("--token-file", str(tmp_path / "token")))
    others = {step["kind"]: step["differences"] for step in told["steps"] if step["status"] == "differs"}
    assert others == {
        "service type": ["propertySchema.properties.cores.validators"],
        "agent type": [f"serviceTypeIds lacks {service_type['id']}"],
        "provider": ["status"],
    }
    assert not [change for change in changes(core) if not change.startswith("POST")]
    assert admin.call("GET", f"/service-types/{service_type['id']}")["propertySchema"] == own["propertySchema"]
    table = smith.ok(*arguments("--token-file", str(tmp_path / "token"), "--dry-run"))
    assert "propertySchema.properties.cores.validators" in table


def test_a_token_that_is_no_administrators_makes_nothing_and_is_4(
    smith: Cli, core: RunningSimulator, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    done = smith(*arguments("--token-file", str(file)), CORE_ADMIN_TOKEN="not-a-token-of-anybody")
    assert (done.returncode, done.stdout) == (4, "")
    assert "HTTP 403" in done.stderr
    assert "administrator" in done.stderr
    assert "not-a-token-of-anybody" not in done.stderr
    assert changes(core) == []
    assert not file.exists()


@pytest.mark.parametrize(
    ("more", "env", "code", "said"),
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
def test_what_cannot_be_done_is_refused_before_anything_is_made(  # noqa: PLR0917
    smith: Cli, core: RunningSimulator, more: tuple[str, ...], env: dict[str, str], code: int, said: str
) -> None:
    (smith.folder / "taken").touch()
    done = smith(*arguments(*more), **env)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert changes(core) == []


def test_a_name_that_two_have_is_for_a_person_to_decide(smith: Cli, core: RunningSimulator, admin: AdminClient) -> None:
    twins = [admin.create("participants", name=PROVIDER, status="Enabled")["id"] for _ in range(2)]
    core.clear_history()
    done = smith(*arguments("--show-token"))
    assert (done.returncode, changes(core)) == (1, [])
    assert all(twin in done.stderr for twin in twins)
    told = smith.json("bootstrap", "core", "--agent", AGENT, "--provider", twins[1], "--show-token")
    assert who(core, told["token"])["providerId"] == twins[1]


def test_a_reply_that_is_lost_makes_no_second_one(
    smith: Cli, core: RunningSimulator, admin: AdminClient, tmp_path: Path
) -> None:
    """The second request would be answered with a 500, and an agent would be there twice."""
    core.fault("drop_after", method="POST", path="/(service-types|agents)$")
    told = smith.json(*arguments("--create-provider", "--token-file", str(tmp_path / "token")))
    assert set(statuses(told)) == {"made"}
    assert [len(admin.list_all(kind)) for kind in ("service-types", "agents")] == [1, 1]


def test_a_token_that_nobody_kept_is_told_and_can_be_replaced(
    smith: Cli, core: RunningSimulator, admin: AdminClient, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    smith.ok(*arguments("--create-provider", "--token-file", str(file)))
    file.rename(tmp_path / "moved")
    done = smith(*arguments("--token-file", str(file)))
    assert (done.returncode, file.exists()) == (1, False)
    assert "--new-token" in done.stderr
    file.write_text(SEED_TOKEN)  # of somebody else
    assert "is not one of this agent's" in smith(*arguments("--token-file", str(file))).stderr
    file.unlink()
    smith.ok(*arguments("--token-file", str(file), "--new-token"))
    assert who(core, file.read_text().strip())["name"] == AGENT
    assert len([token for token in admin.list_all("tokens") if token["role"] == "agent"]) == 2


def test_when_fulcrumcore_fails_half_way_the_next_run_goes_on(
    smith: Cli, core: RunningSimulator, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    core.fault("status", status=503, method="POST", path="/tokens$")
    done = smith(*arguments("--create-provider", "--token-file", str(file)))
    assert (done.returncode, file.exists()) == (4, False)
    assert "smith-dc1" in done.stdout, "what was made is told"
    core.clear_faults()
    told = smith.json(*arguments("--token-file", str(file)))
    assert statuses(told) == ["found"] * (len(KINDS) - 1) + ["made"]
    assert who(core, file.read_text().strip())["name"] == AGENT


def test_only_what_matters_is_a_difference() -> None:
    wanted = {"schema": {"a": {"type": "integer", "required": True}, "list": [{"value": 1}, {"value": 2}]}}
    there = copy.deepcopy(wanted) | {"id": "1", "createdAt": "now"}
    assert differences(wanted, there) == []
    there["schema"]["a"] |= {"label": "", "secret": None, "validators": []}
    there["schema"]["list"][0]["value"] = 1.0
    assert differences(wanted, there) == []
    there["schema"]["list"][1]["value"] = 3
    there["schema"]["b"] = {"type": "string"}
    del there["schema"]["a"]["required"]
    assert differences(wanted, there) == ["schema.a.required", "schema.list[1].value", "schema.b"]
