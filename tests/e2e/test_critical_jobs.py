"""The critical jobs, which are periodic tasks of the agent: heartbeats, metrics and pruning."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from smith_lab.system import LabSystem, wait_for

MakeLab = Callable[..., LabSystem]


def count_accepted_entries(lab: LabSystem) -> dict[str, int]:
    """Return the number of accepted metric entries by metric type."""
    counts: dict[str, int] = {}
    for call in lab.core.history(method="POST", path_end="/metric-entries"):
        if call["status"] == 201:
            counts[call["body"]["typeName"]] = counts.get(call["body"]["typeName"], 0) + 1
    return counts


def test_metrics_of_each_mapped_vm_are_sent_and_a_missing_metric_type_is_logged_once(make_lab: MakeLab) -> None:
    lab = make_lab(SMITH_METRICS_INTERVAL_S="2")
    for metric_type in lab.admin.list_all("metric-types"):
        if metric_type["name"] == "vm.network.out":
            lab.admin.call("DELETE", f"/metric-types/{metric_type['id']}")
    lab.start_executor()
    service_id = lab.order_service("measured")
    lab.wait_for_jobs(service_id)
    lab.run_action(service_id, "start")

    wanted = {"vm.cpu.usage", "vm.memory.usage", "vm.network.in", "vm.disk.read", "vm.disk.write"}
    wait_for(lambda: wanted <= count_accepted_entries(lab).keys(), 60, "an entry of every metric type")
    wait_for(lambda: count_accepted_entries(lab)["vm.cpu.usage"] >= 3, 60, "a third entry of one metric type")

    calls = lab.core.history(method="POST", path_end="/metric-entries")
    instance = lab.admin.get_service(service_id)["agentInstanceId"]
    assert {call["body"]["agentInstanceId"] for call in calls} == {instance}
    assert "vm.network.out" not in {call["body"]["typeName"] for call in calls}
    (logged,) = lab.log_events("metric_types_missing")
    assert logged["names"] == ["vm.network.out"]


def test_old_jobs_are_pruned_with_their_artifacts_even_if_they_failed(make_lab: MakeLab) -> None:
    lab = make_lab(SMITH_JOB_RETENTION_S="3600", SMITH_PRUNE_INTERVAL_S="2")
    lab.start_executor()
    completed_service_id, refused_service_id = (
        lab.order_service("kept-a-while"),
        lab.order_service("refused", image="no-such-image"),
    )
    lab.wait_for_jobs(completed_service_id)
    lab.wait_for_jobs(refused_service_id)
    wait_for(lambda: not lab.run_smith_json("jobs", "list", "--unreported"), 30, "both reports")
    artifacts = lab.data_dir / "artifacts"
    assert len(list(artifacts.iterdir())) == 1  # the refused job has failed before a run
    lab.stop_executor()

    with sqlite3.connect(lab.data_dir / "smith.db") as database:
        database.execute("UPDATE jobs SET finished_at = datetime('now', '-2 hours')")
    database.close()
    lab.start_executor()

    wait_for(lambda: lab.run_smith_json("jobs", "list") == [], 60, "both rows to be pruned")
    wait_for(lambda: list(artifacts.iterdir()) == [], 30, "the artifacts to be pruned")
    assert [mapping["service_id"] for mapping in lab.run_smith_json("mappings", "list")] == [completed_service_id]


def test_the_critical_jobs_are_listed_with_their_last_runs(make_lab: MakeLab) -> None:
    prefixes = ("FULCRUM_HEARTBEAT", "SMITH_METRICS", "SMITH_PRUNE", "SMITH_RECONCILE")
    lab = make_lab(**{f"{name}_INTERVAL_S": "1" for name in prefixes})
    lab.start_executor()

    wait_for(lambda: lab.log_events("agent_ready"), 60, "the executor")
    names = {"PurgeDeletedVms", "GetPendingJobs", "Heartbeat", "PruneCompletedJobs", "Reconcile", "ReportMetric"}

    def all_have_run() -> bool:
        rows = {row["name"]: row for row in lab.run_smith_json("critical", "list")}
        return rows.keys() == names and all(row["last_ok_at"] and row["runs"] for row in rows.values())

    wait_for(all_have_run, 60, "every critical job to have run")
    assert all(row["failures"] == 0 for row in lab.run_smith_json("critical", "list"))
