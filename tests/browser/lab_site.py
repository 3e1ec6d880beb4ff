"""A real agent in the lab, whose jobs the tests watch and change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.proxy import Proxy, running_proxy
from smith_lab.system import LabSystem, run_lab_system, wait_for
from support.web_world import TOKEN

START_TIMEOUT_S = 60.0
#: Real seconds for each second of simulated Proxmox time, so that a create takes a few real seconds.
TIME_SCALE = 0.25


@dataclass(frozen=True)
class LabSite:
    """The lab, and a proxy between the browser and the agent."""

    lab: LabSystem
    proxy: Proxy

    def values_for_tests(self) -> dict[str, Any]:
        """Return the URL of the pages and the token for their login."""
        return {"url": f"http://127.0.0.1:{self.proxy.port}", "token": TOKEN}

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return the functions that the tests in JavaScript can call, by path."""
        return {
            "lab/proxy": self.proxy.set_mode,
            "lab/order": self.order,
            "lab/clone-lasts": lambda seconds: self.lab.proxmox.control(
                "task_seconds", type="qmclone", seconds=seconds
            ),
            "lab/wait": lambda service: self.lab.wait_for_jobs(service)["status"],
            "lab/last-job": self.read_last_job,
            "lab/cancel": lambda job: self.lab.run_smith_json("jobs", "cancel", str(job), "--yes"),
            "lab/output": self.read_output,
            "lab/audit": lambda: [[row["who"], row["verb"]] for row in self.lab.run_smith_json("audit", "list")],
            "lab/fail-next-clone": lambda text: self.lab.proxmox.fail_task("qmclone", text),
        }

    def order(self, name: str) -> str:
        """Order a VM, and return the id of its service."""
        return self.lab.order_service(name)

    def read_last_job(self, service: str) -> dict[str, Any] | None:
        """Return FulcrumCore's newest job of a service, as the agent's database has it; None if it has no row yet."""
        fulcrum_id = self.lab.last_job(service)["id"]
        rows = self.lab.run_smith_json("jobs", "list")
        row_of_job = next((row for row in rows if row["fulcrum_id"] == fulcrum_id), None)
        return row_of_job and {
            "id": row_of_job["id"],
            "status": row_of_job["status"],
            "error": row_of_job["error_code"],
        }

    def read_output(self, job: int) -> str:
        """Return what the runs of a job have printed, as `smith jobs log` shows it."""
        return self.lab.run_smith_text("jobs", "log", str(job))


@contextmanager
def lab_site(folder: Path) -> Iterator[LabSite]:
    """Run the lab with its agent while the block runs."""
    folder.mkdir()
    settings = {"SMITH_HTTP_TOKEN": TOKEN, "SMITH_CONCURRENCY": "4"}
    with run_lab_system(folder, time_scale=TIME_SCALE, settings=settings) as lab:
        lab.start_executor()
        (served,) = wait_for(lambda: lab.log_events("http_served"), START_TIMEOUT_S, "the pages")
        wait_for(lambda: lab.log_events("agent_ready"), START_TIMEOUT_S, "the agent")
        with running_proxy(served["port"]) as proxy:
            yield LabSite(lab, proxy)
