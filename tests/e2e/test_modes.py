"""`smith run` with `--once` and `--until-idle`, after which it ends by itself, and with invalid settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from smith_lab.system import LabSystem

MakeLab = Callable[..., LabSystem]


def test_once_processes_the_jobs_of_one_poll_and_exits(make_lab: MakeLab) -> None:
    lab = make_lab()
    services = [lab.order_service(f"once-{number}") for number in range(2)]

    assert lab.start_executor("--once").wait(120) == 0

    assert [lab.admin.get_service(service_id)["status"] for service_id in services] == ["Stopped"] * 2
    assert lab.run_smith_json("jobs", "list", "--unreported") == []


def test_until_idle_works_until_fulcrum_has_no_more_jobs(make_lab: MakeLab) -> None:
    lab = make_lab()
    group_id = lab.admin.create_group(lab.ids.consumer_id, "one-at-a-time")
    services = [lab.order_service(f"idle-{number}", group_id=group_id) for number in range(3)]

    assert lab.start_executor("--until-idle").wait(240) == 0

    assert [lab.admin.get_service(service_id)["status"] for service_id in services] == ["Stopped"] * 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [("FULCRUM_API_URL", ""), ("PROXMOX_HOST", ""), ("SMITH_CONCURRENCY", "many"), ("SMITH_CONCURENCY", "4")],
)
def test_an_invalid_setting_is_named_and_prevents_the_start(make_lab: MakeLab, setting: str, value: str) -> None:
    lab = make_lab(**{setting: value})

    assert lab.start_executor().wait(60) == 3

    log = lab.log_file.read_text()
    assert setting in log
    assert "Traceback" not in log
    assert not lab.data_dir.exists()
