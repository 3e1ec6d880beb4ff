"""Values and secrets of runs: text from outside is never evaluated, and no secret is visible."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.run_site import (
    CREDENTIALS,
    PUBLISH,
    TOKEN,
    Site,
    commands_and_environments_of,
    events_of,
    eventually,
    result_of,
)

from executor.errors import JobError
from executor.model import RunStatus
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner
from executor.shared.error_codes import ErrorCode

PASSWORD = "canary-password-\"q'uo\\te-ü"
INHERITED_SECRET = "canary-inherited-9sLx"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for orphan in site.orphans():
        for process in (*orphan.children(recursive=True), orphan):
            process.kill()
    assert not list(site.paths.run_dir.glob("*/*.yml")), "a run left its secrets behind"


def test_a_template_in_a_value_is_not_evaluated(site: Site) -> None:
    payload_target = site.folder / "victim"
    payloads = [
        "{{ lookup('ansible.builtin.pipe', 'touch %s') }}" % payload_target,  # noqa: UP031  braces are the payload
        "{% set x = lookup('ansible.builtin.pipe', 'touch " + str(payload_target) + "') %}",
        "!unsafe {{ 1 + 1 }}",
    ]
    tasks = """
        - name: Use the values as a playbook does
          ansible.builtin.set_stats:
            data:
              vm_result:
                name: "{{ vm.name }}"
                tags: "{{ vm.tags }}"
                joined: "{{ vm.tags | join(',') }} {{ vm.deep.deeper[0] }}"
            per_host: false
    """
    vm = {"name": payloads[0], "tags": payloads, "deep": {"deeper": payloads}}

    artifacts = site.runner.run(site.run_of(site.playbook(tasks), vm=vm))

    assert result_of(artifacts) == {
        "name": payloads[0],
        "tags": payloads,
        "joined": f"{','.join(payloads)} {payloads[0]}",
    }
    assert not payload_target.exists()


def test_values_reach_the_playbook_unchanged(site: Site) -> None:
    values = {
        "texts": [
            "yes",
            "null",
            "~",
            "012",
            "1e3",
            "",
            " x ",
            "a\nb\n",
            "\ttab",
            "'\"\\",
            "ü😀\u2028\x85",
            "- a: b",
            "&a *a",
            "\x7f\x01",
        ],
        "numbers": [0, -1, 101, 2**40, 1.5],
        "others": [True, False, None, [], {}],
        "same": {"once": ["x"]},
    }
    values["again"] = values["same"]
    tasks = """
        - name: Echo
          ansible.builtin.set_stats:
            data:
              vm_result:
                echo: "{{ vm }}"
            per_host: false
    """

    artifacts = site.runner.run(site.run_of(site.playbook(tasks), vm=values))

    echoed = result_of(artifacts)["echo"]
    assert abs(echoed.pop("deadline_monotonic_s") - time.monotonic()) < 120  # added by the runner
    assert echoed == values


def test_half_a_surrogate_pair_is_an_invalid_request(site: Site) -> None:
    with pytest.raises(JobError) as caught:
        site.runner.run(site.run_of(site.playbook(PUBLISH), vm={"name": "x\ud800"}))

    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]


@pytest.mark.parametrize("ident", ["", "..", "a/b", "../a", "-a", "a b", "a\n", "x" * 200, ".kept"])
def test_an_ident_that_cannot_name_a_folder_is_refused(site: Site, ident: str) -> None:
    with pytest.raises(ValueError, match="not a run ident"):
        site.runner.run(site.run_of(site.playbook(PUBLISH), ident=ident))
    with pytest.raises(ValueError, match="not a run ident"):
        site.runner.kill(ident)


def _files_that_contain(folder: Path, secret_texts: list[bytes]) -> list[Path]:
    """Return the files below this folder that contain one of these byte strings."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(secret_text in path.read_bytes() for secret_text in secret_texts)]


def test_r12_no_secret_is_in_any_argument_environment_or_stored_file(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULCRUM_API_TOKEN", INHERITED_SECRET)
    monkeypatch.setenv("PROXMOX_TOKEN_SECRET", INHERITED_SECRET)
    started, continue_file = site.folder / "started", site.folder / "go-on"
    tasks = f"""
        - name: Show every secret in every way
          ansible.builtin.debug:
            msg: ["{{{{ credentials.api_token_secret }}}}", "{{{{ vm.cloud_init.password }}}}", "{{{{ credentials }}}}"]

        - name: Show the environment, and wait for the test
          ansible.builtin.shell: "env; touch {started}; until test -e {continue_file}; do sleep 0.1; done"

        - name: Fail with a secret
          ansible.builtin.fail:
            msg: "bad {{{{ vm.cloud_init.password }}}} {{{{ credentials.api_token_secret | b64encode }}}}"
    """
    planned = site.run_of(site.playbook(tasks), vm={"cloud_init": {"password": PASSWORD}}, secrets=(PASSWORD,))
    secret_texts = [text.encode() for text in (TOKEN, PASSWORD, INHERITED_SECRET, json.dumps(PASSWORD)[1:-1], "canary")]
    secret_texts.append(base64.b64encode(TOKEN.encode()))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, planned)
        eventually(started.exists)
        commands_and_environments = commands_and_environments_of(site)
        files_with_secrets = _files_that_contain(site.paths.run_dir, secret_texts)
        continue_file.touch()
        artifacts = future.result()

    assert len(commands_and_environments) >= 4
    assert [
        text for text in commands_and_environments if any(secret_text in text for secret_text in secret_texts)
    ] == []
    assert {path.name for path in files_with_secrets} == {"vm.yml", "credentials.yml"}
    assert artifacts.status is RunStatus.FAILED
    assert _files_that_contain(site.folder, secret_texts) == []
    assert "********" in (artifacts.folder / "stdout").read_text()
    names = {line.split("=")[0] for event in events_of(artifacts) for line in _stdout_of(event)}
    assert {"SMITH_RUN_IDENT", "SMITH_CREDENTIALS_FILE", "PATH"} <= names
    assert not names & {"FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET"}


def _stdout_of(event: dict[str, Any]) -> list[str]:
    result = event.get("event_data", {}).get("res", {})
    return result.get("stdout_lines", []) if isinstance(result, dict) else []


def test_the_secrets_of_a_current_run_are_readable_by_our_user_only(site: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.waiting()))
        eventually(site.is_waiting)
        folder = site.paths.run_dir / "run-1"
        file_modes = {path.stat().st_mode & 0o777 for path in (folder / "vm.yml", folder / "credentials.yml")}
        folder_modes = {path.stat().st_mode & 0o777 for path in (site.paths.run_dir, folder)}
        site.runner.kill("run-1")
        future.result()

    assert (file_modes, folder_modes) == ({0o600}, {0o700})


def test_a_secret_is_no_longer_masked_after_the_last_run_that_uses_it(site: Site) -> None:
    site.runner.run(site.run_of(site.playbook(PUBLISH), secrets=("only-for-this-run",)))

    assert site.redactor.redact(f"only-for-this-run {TOKEN}") == f"only-for-this-run {TOKEN}"


def test_a_run_dir_that_others_can_read_is_made_private_before_a_run(site: Site) -> None:
    site.paths.run_dir.mkdir(mode=0o755)
    site.paths.run_dir.chmod(0o777)

    site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert site.paths.run_dir.stat().st_mode & 0o777 == 0o700


def test_the_ca_bundle_is_set_for_each_library_that_a_playbook_uses(site: Site) -> None:
    bundle = site.folder / "ca.pem"
    bundle.touch()
    runner = Runner(site.paths, lambda: dict(CREDENTIALS), ca_bundle=bundle, redactor=site.redactor)

    artifacts = runner.run(site.run_of(site.playbook("- name: Show\n  ansible.builtin.command: env\n")))

    shown = [line for event in events_of(artifacts) for line in _stdout_of(event)]
    expected_lines = {f"{name}={bundle}" for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PROXMOX_CA_PATH")}
    assert expected_lines <= set(shown)
