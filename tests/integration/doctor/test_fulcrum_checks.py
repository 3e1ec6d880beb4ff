"""The checks of `smith doctor` that concern FulcrumCore. Each test causes a fault there and checks the results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from smith_lab.fulcrum_setup import SEED_TOKEN
from smith_lab.system import LabSystem
from support.doctor_results import Doctor, Results

from executor.doctor.checks import Status
from executor.doctor.fulcrum import check_fulcrum
from executor.settings.settings import Settings


@pytest.fixture(autouse=True)
def restored_lab(lab: LabSystem) -> Iterator[None]:
    yield
    lab.core.clear_faults()
    lab.core.set_switches(database_down=False, vault_off=False)
    lab.proxmox.control("clear_faults")


def test_a_wrong_token_fails_and_proxmox_is_still_checked(doctor: Doctor) -> None:
    results = doctor(FULCRUM_API_TOKEN="not-the-token")
    assert (results.code, results.failed) == (4, {("fulcrum", "token")})
    assert "wrong, revoked or expired" in results.only("token").text
    assert results.only("quorum").status is Status.OK


def test_an_unreachable_fulcrumcore_fails(doctor: Doctor) -> None:
    results = doctor(FULCRUM_API_URL="http://127.0.0.1:9")
    assert (results.code, results.failed) == (4, {("fulcrum", "reachable")})


def fulcrum_checks(**variables: Any) -> Results:
    """Run only the checks of FulcrumCore; return their results."""
    return Results(list(check_fulcrum(Settings(**variables))))


@pytest.mark.parametrize("role", ["admin", "participant"])
def test_a_token_of_an_administrator_or_participant_fails_with_a_remedy(lab: LabSystem, role: str) -> None:
    token = SEED_TOKEN
    if role == "participant":
        token = lab.admin.create_token("participant", "participant", lab.ids.provider_id)["value"]
    check = fulcrum_checks(fulcrum_api_url=lab.core.url, fulcrum_api_token=token).only("token")
    assert check.status is Status.FAILED
    assert "belongs to an administrator or a participant (a provider or a consumer), not to an agent" in check.text
    assert "--new-token" in check.hints[0]
    assert "FULCRUM_API_TOKEN_FILE" in check.hints[1]


def test_a_token_that_fulcrumcore_refuses_has_a_remedy(lab: LabSystem) -> None:
    check = fulcrum_checks(fulcrum_api_url=lab.core.url, fulcrum_api_token="not-the-token").only("token")
    assert "wrong, revoked or expired" in check.text
    assert "--new-token" in check.hints[0]
    assert any("database" in hint for hint in check.hints)


def test_https_to_a_server_without_tls_fails_and_the_certificate_is_not_checked(lab: LabSystem) -> None:
    url = lab.core.url.replace("http://", "https://")
    results = fulcrum_checks(fulcrum_api_url=url, fulcrum_api_token=lab.ids.agent_token)
    assert results.named("tls") == [], "without a handshake, nothing is known of the certificate"
    check = results.only("reachable")
    assert check.status is Status.FAILED
    assert check.text == f"{url}: the server answers without TLS"
    assert check.hints == (f"FULCRUM_API_URL={lab.core.url}",)


def test_the_remedy_for_a_wrong_path_or_port_is_the_right_form_of_the_url(lab: LabSystem) -> None:
    remedies = {f"{lab.core.url}/fulcrum": lab.core.url, "http://127.0.0.1:9": "http://127.0.0.1:<port>"}
    for url, right_url in remedies.items():
        check = fulcrum_checks(fulcrum_api_url=url, fulcrum_api_token=lab.ids.agent_token).only("reachable")
        assert check.status is Status.FAILED
        assert check.hints[0] == f"FULCRUM_API_URL={right_url}"


def test_each_failed_check_of_fulcrumcore_has_a_remedy(lab: LabSystem) -> None:
    """The agent type of this agent has no service types, so several checks fail at once."""
    path = f"/agent-types/{lab.ids.agent_type_id}"
    before = lab.admin.call("GET", path)["serviceTypeIds"]
    lab.admin.call("PATCH", path, {"serviceTypeIds": []})
    results = fulcrum_checks(fulcrum_api_url=lab.core.url, fulcrum_api_token=lab.ids.agent_token)
    lab.admin.call("PATCH", path, {"serviceTypeIds": before})
    provider = "--provider 'Northwind Cloud'"
    assert results.only("service types").hints[0] == f"smith bootstrap core --agent smith-dc1 {provider}"
    assert all(check.hints for check in results.checks if check.status in {Status.FAILED, Status.WARNING})


def test_a_disabled_agent_and_a_wrong_clock_are_warnings(doctor: Doctor, lab: LabSystem) -> None:
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Disabled"})
    lab.core.advance(3600)
    results = doctor()
    lab.core.advance(-3600)
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Disconnected"})
    assert results.only("enabled").status is Status.WARNING
    assert results.only("clock").status is Status.WARNING
    assert "ahead of this machine's clock" in results.only("clock").text
    assert results.code == 0


def test_an_action_without_a_playbook_fails(doctor: Doctor, lab: LabSystem) -> None:
    path = f"/service-types/{lab.ids.service_type_id}"
    before = lab.admin.call("GET", path)["lifecycleSchema"]
    first = before["actions"][0]
    with_defrost = {**before, "actions": [*before["actions"], {**first, "name": "defrost"}]}
    lab.admin.call("PATCH", path, {"lifecycleSchema": with_defrost})
    results = doctor()
    lab.admin.call("PATCH", path, {"lifecycleSchema": before})
    assert results.code == 4
    assert "defrost" in results.only("type proxmox-vm").text


def test_a_password_property_that_is_not_secret_is_a_warning(doctor: Doctor, lab: LabSystem) -> None:
    path = f"/service-types/{lab.ids.service_type_id}"
    before = lab.admin.call("GET", path)["propertySchema"]
    members = before["properties"]
    plain = {key: rule for key, rule in members["ciPassword"].items() if key != "secret"}
    lab.admin.call("PATCH", path, {"propertySchema": {**before, "properties": {**members, "ciPassword": plain}}})
    results = doctor()
    lab.admin.call("PATCH", path, {"propertySchema": before})
    (check,) = results.named("type proxmox-vm", Status.WARNING)
    assert "ciPassword is not marked secret" in check.text
    assert results.code == 0


def test_missing_metric_types_are_a_warning_with_the_call_that_creates_them(doctor: Doctor, lab: LabSystem) -> None:
    (metric_type,) = [row for row in lab.admin.list_all("metric-types") if row["name"] == "vm.cpu.usage"]
    lab.admin.call("DELETE", f"/metric-types/{metric_type['id']}")
    check = doctor().only("metric types")
    with_metrics_off = doctor(SMITH_METRICS_INTERVAL_S="0").only("metric types")
    lab.admin.create("metric-types", name="vm.cpu.usage", entityType="Resource")
    assert check.status is Status.WARNING
    assert any("vm.cpu.usage" in hint for hint in check.hints)
    assert with_metrics_off.status is Status.OK


def test_proxmox_is_checked_with_the_configuration_that_fulcrumcore_stores_for_the_agent(
    doctor: Doctor, lab: LabSystem
) -> None:
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"configuration": {"apiHost": "127.0.0.2", "apiPort": 9}})
    results = doctor(SMITH_REMOTE_CONFIG="true")
    assert results.only("configuration").status is Status.OK
    assert ("proxmox", "reachable") in results.failed
    assert results.code == 5
    lab.core.set_switches(vault_off=True)
    results = doctor(SMITH_REMOTE_CONFIG="true")
    # FulcrumCore has no vault, so the secrets in the configuration cannot be read: the check fails without a retry.
    assert (results.code, results.only("configuration").status) == (4, Status.FAILED)
