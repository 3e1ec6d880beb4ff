"""The notes and tags of a guest, which its service, this collection and operators write: none removes another's."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import configuration, deletion, guest_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from play_bench import ACTIONS, Bench

SERVICE = "0f7e2c1a-1111-4222-8333-944455556666"
VM: dict[str, Any] = {"service_id": SERVICE, "vmid": 500, "name": "web-0f7e2c1a"}
TEXT = "ESCALATION: call the night shift, not the customer"

#: Lines that an operator writes. All begin with `#`, so none is a line of ours, or of a service text below.
LINES = st.lists(st.text("op \t.=:éß", min_size=1, max_size=12).map(lambda text: f"#{text}"), min_size=1, max_size=4)
SERVICE_TEXTS = st.sampled_from(["", "web", "a shop", "two\nlines", "smith-uid=forged", "two\n\nparagraphs\n"])
TAGS = st.lists(st.sampled_from(["web", "db", "prod"]), max_size=3, unique=True)
OPERATOR_TAGS = st.lists(st.sampled_from(["Backup-Gold", "keep", "site_b"]), max_size=3, unique=True)
REQUESTS = st.one_of(
    st.fixed_dictionaries({"description": SERVICE_TEXTS, "tags": TAGS, "previous_tags": TAGS}),
    st.fixed_dictionaries({"protection": st.booleans()}),
    st.fixed_dictionaries({"agent_id": st.sampled_from([SERVICE, SERVICE[::-1].replace("-", "")[:8] + SERVICE[8:]])}),
    st.fixed_dictionaries({"delete_at": st.sampled_from([1060, 2000])}),
    st.just({"cancel_deletion": True}),
    st.fixed_dictionaries({"is_create": st.just(True), "description": SERVICE_TEXTS, "tags": TAGS}),
    st.fixed_dictionaries({"only_grows": st.just(True), "description": SERVICE_TEXTS, "disk_gib": st.just(9)}),
    st.fixed_dictionaries({deletion.TAGS_REFUSED_MEMBER: st.just(True), "description": SERVICE_TEXTS, "tags": TAGS}),
)


def facts_of(config: dict[str, Any], kind: str) -> dict[str, Any]:
    rows = [{"key": key, "value": value} for key, value in config.items()]
    read = guest_facts.facts_from_configuration if kind == "qemu" else guest_facts.container_facts_from_configuration
    return {**{"exists": True, "kind": kind, "vmid": 500, "node": "pve1"}, **read(rows, {"status": "stopped"})}


def apply_request(config: dict[str, Any], request: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the configuration after a request, as Proxmox stores it. A second run must change nothing."""
    vm = {**VM, **request} if kind == "qemu" else {**VM, **request, "kind": kind}
    is_create = bool(vm.pop("is_create", False))
    if "delete_at" in request:
        vm = deletion.deletion_mark_request(vm, request["delete_at"])
    if "only_grows" in request:
        vm = configuration.disk_growth_request(vm)
    sent = configuration.differing_parameters(facts_of(config, kind), vm, is_create)
    tags = {"tags": ";".join(sent["tags"])} if "tags" in sent else {}
    text = {"description": sent["description"].rstrip()} if "description" in sent else {}
    after = {**config, **tags, **text}
    assert not {"tags", "description"} & set(configuration.differing_parameters(facts_of(after, kind), vm)), (
        "a second run would change it again"
    )
    return after


@given(
    first=SERVICE_TEXTS,
    lines=LINES,
    position=st.integers(0, 9),
    tags=OPERATOR_TAGS,
    requests=st.lists(REQUESTS, max_size=5),
    kind=st.sampled_from(["qemu", "lxc"]),
)
@settings(max_examples=300, deadline=None)
def test_what_an_operator_has_written_survives_every_change(  # noqa: PLR0917 - each is one part of a case
    first: str, lines: list[str], position: int, tags: list[str], requests: list[dict[str, Any]], kind: str
) -> None:
    name = {"name": VM["name"]} if kind == "qemu" else {"hostname": VM["name"]}
    config = apply_request({**name, "tags": "image"}, {"description": first, "tags": ["web"]}, kind)
    written = config["description"].split("\n")
    config["description"] = "\n".join([*written[:position], *lines, *written[position:]]).rstrip()
    # The last line may have lost its trailing blanks.
    lines = config["description"].split("\n")[len(written[:position]) :][: len(lines)]
    config["tags"] = ";".join([config.get("tags", ""), *tags])
    for request in requests:
        config = apply_request(config, request, kind)
        lines_after = config["description"].split("\n")
        assert [line for line in lines_after if line in lines] == lines
        assert set(tags) <= set(config["tags"].split(";"))
        assert facts_of(config, kind)["markers"] == [SERVICE]
    changing = [request for request in requests if "only_grows" not in request]
    texts = [str(request["description"]) for request in changing if "description" in request]
    if texts and texts[-1] not in (first, "smith-uid=forged"):  # the operator may have divided the first text
        assert texts[-1].strip() in config["description"]


def test_a_renamed_service_changes_its_own_line_only() -> None:
    config = apply_request({"name": VM["name"]}, {"description": "s4"}, "qemu")
    config["description"] = config["description"].replace("s4\n", f"s4\n\n{TEXT}\n") + "\nbelow the marker"
    after = apply_request(config, {"description": "s5"}, "qemu")
    assert after["description"].split("\n")[:3] == ["s5", "", TEXT]
    assert after["description"].endswith("\nbelow the marker")
    without_description = apply_request(after, {"description": ""}, "qemu")
    assert "s5" not in without_description["description"]
    assert TEXT in without_description["description"]


def test_notes_of_an_earlier_version_keep_every_line() -> None:
    old = {"name": VM["name"], "description": f"s4\n\n{TEXT}\n\nsmith-uid={SERVICE}", "tags": "smith;web"}
    assert configuration.differing_parameters(facts_of(old, "qemu"), {**VM, "description": "s4", "tags": ["web"]}) == {}
    after = apply_request(old, {"description": "s5"}, "qemu")["description"].split("\n")
    assert (after[0], TEXT in after, "s4" in after) == ("s5", True, True), (
        "who wrote the line s4 is unknown, so it stays"
    )


def test_the_notes_of_an_adopted_vm_stay_those_of_its_operator() -> None:
    adopted = apply_request(
        {"name": VM["name"], "description": f"legacy\n{TEXT}"}, {"description": f"legacy\n{TEXT}"}, "qemu"
    )
    assert adopted["description"] == f"legacy\n{TEXT}\n\nsmith-uid={SERVICE}"
    after = apply_request(adopted, {"description": "shop"}, "qemu")["description"].split("\n")
    assert (after[0], "legacy" in after, TEXT in after) == ("shop", True, True)


def test_the_tags_of_an_adopted_container_stay_those_of_its_operator() -> None:
    config = {"hostname": VM["name"], "tags": "Prod;backup-gold"}
    assert apply_request(config, {"is_create": True}, "lxc")["tags"] == "Prod;backup-gold"
    assert apply_request({"hostname": VM["name"]}, {"is_create": True}, "lxc")["tags"] == "smith"


def test_only_tags_that_the_service_had_are_removed() -> None:
    config = {"name": VM["name"], "description": f"smith-uid={SERVICE}", "tags": "Prod;smith;smith-protected;web"}
    request = {"tags": ["db"], "previous_tags": ["web", "smith-protected", "smith", "other"]}
    assert apply_request(config, request, "qemu")["tags"].split(";") == ["db", "Prod", "smith", "smith-protected"]


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "rollback"])
def test_an_operators_notes_and_tags_survive_every_action(bench: Bench, pve_version: str, action: str) -> None:
    notes = "a shop\n\n{}\n\nsmith-uid={}\nbelow"
    vm = bench.add_vm(status="stopped" if action in ("start", "migrate") else "running")
    values = {"description": notes.format(TEXT, vm["service_id"]), "tags": "smith;web;backup-gold;prod"}
    bench.pve.control("configure", vmid=vm["vmid"], values=values)
    requested = {
        "update": {"cores": 4, "description": "another shop", "tags": ["db"], "previous_tags": ["web"]},
        "create": {"cores": 4, "description": "another shop", "tags": ["db"]},
        "resize": {"disk_gib": 9},
        "migrate": {"target_node": "pve2"},
        "backup": {"backup_storage": "backups"},
        "delete": {"grace_s": 3600},
    }
    done = bench.play(action, {**vm, **requested.get(action, {})})
    assert done.rc == 0, (pve_version, done.output)
    config = bench.guest(vm)["config"]
    assert {TEXT, "below"} <= set(config["description"].splitlines())
    assert {"backup-gold", "prod"} <= set(config["tags"].split(";"))


@pytest.mark.proxmox(
    behaviour="a rollback restores the tags of the snapshot and keeps the notes",
    versions="8, 9",
    source="pve-guest-common: PVE/AbstractConfig.pm, __snapshot_apply_config",
    reaction="an operator's tag that is newer than the snapshot is lost by a rollback; the documentation says so",
)
def test_a_rollback_restores_the_tags_of_the_snapshot_and_keeps_the_notes(bench: Bench, pve_version: str) -> None:
    vm = bench.add_vm()
    assert bench.play("snapshot", {**vm, "snapshot": "before"}).rc == 0
    values = {"description": f"{TEXT}\n\nsmith-uid={vm['service_id']}", "tags": "smith;web;later"}
    bench.pve.control("configure", vmid=vm["vmid"], values=values)
    done = bench.play("rollback", {**vm, "snapshot": "before"})
    assert done.rc == 0, (pve_version, done.output)
    config = bench.guest(vm)["config"]
    assert (config["tags"], config["description"].splitlines()[0]) == ("smith;web", TEXT)
