"""What warm runs share: parsed files and compiled templates, but no input or result of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.warm_site import TOKEN, WHICH, Site, debug, run_dir, said, was_warm

from executor.model import PlaybookRun
from executor.runs.runner import WARM_SERVER_FOLDER
from executor.runs.warm import parse_cache

__all__ = ["run_dir"]


@pytest.fixture
def site(tmp_path: Path, run_dir: Path) -> Iterator[Site]:
    site = Site(tmp_path, run_dir)
    yield site
    site.runner.stop_warm_server()


def run_of_playbook(site: Site, text: str) -> PlaybookRun:
    """Return a run of a playbook that exists before the servers start, as the project's playbooks do."""
    planned = site.run_of(debug(f"{text} {WHICH}"))
    fixed = site.home / "playbooks" / "fixed.yml"
    planned.playbook.rename(fixed)
    return PlaybookRun(ident=planned.ident, action="test", playbook=fixed, vm={"name": "web"}, timeout_s=60)


def byte_code_file_of(site: Site) -> Path:
    """Return the file in which the server keeps the byte code of templates."""
    (file,) = (site.run_dir / WARM_SERVER_FOLDER).rglob(parse_cache.BYTE_CODE_FILE)
    return file


def test_a_playbook_that_changes_while_a_server_runs_is_parsed_again(site: Site) -> None:
    planned = run_of_playbook(site, "before")
    site.warmed()
    first = site.runner.run(planned)
    second = site.runner.run(run_of_playbook(site, "after"))

    assert was_warm(first)
    assert was_warm(second)
    assert [said(run).split()[0] for run in (first, second)] == ["before", "after"]


def test_a_template_is_compiled_once_for_all_runs(site: Site) -> None:
    site.warmed()
    site.runner.run(run_of_playbook(site, "{{ vm.name | upper }}"))
    byte_code = byte_code_file_of(site).read_bytes()
    modified_at_ns = byte_code_file_of(site).stat().st_mtime_ns
    again = site.runner.run(run_of_playbook(site, "{{ vm.name | upper }}"))

    assert b"{{ vm.name | upper }}" in byte_code
    assert byte_code_file_of(site).stat().st_mtime_ns == modified_at_ns
    assert said(again).startswith("WEB ")


def test_no_input_of_a_run_is_stored_in_the_servers_folder(site: Site) -> None:
    site.warmed()
    planned = run_of_playbook(
        site, "{{ lookup('ansible.builtin.file', lookup('env', 'SMITH_CREDENTIALS_FILE')) | length }}"
    )
    done = site.runner.run(PlaybookRun(**{**vars(planned), "vm": {"name": "{{ 6 * 7 }}-canary"}}))

    assert was_warm(done)
    server_files = [file for file in (site.run_dir / WARM_SERVER_FOLDER).rglob("*") if file.is_file()]
    assert byte_code_file_of(site) in server_files
    for file in server_files:
        content = file.read_bytes()
        assert TOKEN.encode() not in content
        assert b"canary" not in content


def test_invalid_byte_code_is_compiled_again(site: Site) -> None:
    site.warmed()
    planned = run_of_playbook(site, "{{ vm.name }}")
    site.runner.run(planned)
    byte_code_file_of(site).write_bytes(b"no byte code")
    done = site.runner.run(run_of_playbook(site, "{{ vm.name }}"))

    assert was_warm(done)
    assert said(done).startswith("web ")
    assert b"{{ vm.name }}" in byte_code_file_of(site).read_bytes()
