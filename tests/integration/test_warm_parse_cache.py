"""What warm runs share: parsed files and compiled templates, never what a run was given or has found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.test_warm import TOKEN, WHICH, Site, debug, run_dir, said, was_warm

from executor.model import PlaybookRun
from executor.runs.runner import WARM_FOLDER
from executor.runs.warm import parse_cache

__all__ = ["run_dir"]


@pytest.fixture
def site(tmp_path: Path, run_dir: Path) -> Iterator[Site]:
    site = Site(tmp_path, run_dir)
    yield site
    site.runner.stop_warm()


def playbook(site: Site, text: str) -> PlaybookRun:
    """Order a playbook that is there before the servers start, as ours are."""
    order = site.order(debug(f"{text} {WHICH}"))
    fixed = site.home / "playbooks" / "fixed.yml"
    order.playbook.rename(fixed)
    return PlaybookRun(ident=order.ident, action="test", playbook=fixed, vm={"name": "web"}, timeout_s=60)


def templates_of(site: Site) -> Path:
    (found,) = (site.run_dir / WARM_FOLDER).rglob(parse_cache.CODE_FILE)
    return found


def test_a_playbook_that_is_changed_under_a_server_is_read_anew(site: Site) -> None:
    order = playbook(site, "before")
    site.warmed()
    first = site.runner.run(order)
    second = site.runner.run(playbook(site, "after"))

    assert was_warm(first)
    assert was_warm(second)
    assert [said(run).split()[0] for run in (first, second)] == ["before", "after"]


def test_a_template_is_compiled_once_for_all_runs(site: Site) -> None:
    site.warmed()
    site.runner.run(playbook(site, "{{ vm.name | upper }}"))
    known = templates_of(site).read_bytes()
    stamp = templates_of(site).stat().st_mtime_ns
    again = site.runner.run(playbook(site, "{{ vm.name | upper }}"))

    assert b"{{ vm.name | upper }}" in known
    assert templates_of(site).stat().st_mtime_ns == stamp
    assert said(again).startswith("WEB ")


def test_nothing_that_a_run_was_given_stays_with_the_servers(site: Site) -> None:
    site.warmed()
    order = playbook(site, "{{ lookup('ansible.builtin.file', lookup('env', 'SMITH_CREDENTIALS_FILE')) | length }}")
    done = site.runner.run(PlaybookRun(**{**vars(order), "vm": {"name": "{{ 6 * 7 }}-canary"}}))

    assert was_warm(done)
    left = [file for file in (site.run_dir / WARM_FOLDER).rglob("*") if file.is_file()]
    assert templates_of(site) in left
    for file in left:
        content = file.read_bytes()
        assert TOKEN.encode() not in content
        assert b"canary" not in content


def test_broken_byte_code_costs_a_run_nothing(site: Site) -> None:
    site.warmed()
    order = playbook(site, "{{ vm.name }}")
    site.runner.run(order)
    templates_of(site).write_bytes(b"no byte code")
    done = site.runner.run(playbook(site, "{{ vm.name }}"))

    assert was_warm(done)
    assert said(done).startswith("web ")
    assert b"{{ vm.name }}" in templates_of(site).read_bytes()
