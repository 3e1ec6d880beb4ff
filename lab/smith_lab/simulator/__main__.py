"""Runs the FulcrumCore simulator, an HTTP server that keeps state and answers as FulcrumCore does.

    python -m smith_lab.simulator --port 0 --port-file F

The API is at <origin>/api/v1, as in the real server. FULCRUM_API_URL is the origin, without /api/v1. A new server
accepts one token, `change-me`. It is an admin's token and valid for a day. `smith_lab.fulcrum_setup` uses it to create
the objects that an agent needs. The server keeps its state in memory. It does not simulate OAuth, the health port,
event leases and pools. A list of pools is empty, and a request to create a pool is answered 400.

Besides the API, the server has lab endpoints, by which tests and the demo control it. They use JSON, need no token and
answer on loopback only. Fault rules do not affect calls of lab endpoints, and the history does not contain them:

    GET    /lab/clock                {"now", "text", "frozen"}: the server's time, also sent in the Date header
    POST   /lab/clock                {"set": seconds | "RFC 3339", "advance": seconds, "freeze": bool}, each optional
    POST   /lab/sweep                apply timeout and retention now; answers {"timedOut", "deleted", "disconnected"}
    GET    /lab/faults               the fault rules
    POST   /lab/faults               add a rule or a list of rules (fault_rules.py describes them)
    DELETE /lab/faults               delete all rules
    GET    /lab/history[?since=SEQ]  every call in order: seq, time, method, path, query, body, token_name, role,
                                     agent_id, status, error, fault, duration_s; the query parameters `method` and
                                     `path_end` (end of the path) filter the calls
    DELETE /lab/history              empty the history
    POST   /lab/reset                return tables, rules, history, switches, options and clock to their initial state
    GET    /lab/switches             the switches, which make the server behave wrongly (store.Switches explains them)
    POST   /lab/switches             {"two_claims_win", "database_down", "vault_off"}: a bool each; sets the given ones
    POST   /lab/options              {"job_timeout_s", …}: set the given members of store.Options
    POST   /lab/tokens/revoke        revoke every token that matches {"name" | "id" | "value" | "role" | "agent_id": …}
    POST   /lab/jobs/{id}/expire     fail the job by timeout now, at any age
    POST   /lab/jobs/{id}/override   {"set": {member: JSON}, "remove": [member]}: change the job's JSON, not its row
    DELETE /lab/jobs/{id}            remove the job, as retention does
    GET    /lab/vault                the references of all stored secrets
    POST   /lab/vault                {"value": JSON}: store a secret; answers {"reference": "vault://…"}
    DELETE /lab/vault[/{reference}]  delete all secrets, or one
    GET    /lab/pending              the raw items that POST /lab/pending added
    POST   /lab/pending              append raw items (any JSON) to every agent's list of pending jobs
    DELETE /lab/pending              remove the raw items
    GET    /lab/state                every table, without token values and secrets
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from smith_lab.simulator.history import LabState
from smith_lab.simulator.server import SimulatorServer
from smith_lab.simulator.store import Options, Store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; return the exit code."""
    arguments = _parser().parse_args(argv)
    server = SimulatorServer(Store(options=_options(arguments)), LabState(), host=arguments.host, port=arguments.port)
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda _number, _frame: stop.set())
    server.start()
    if arguments.port_file is not None:
        _write_port(arguments.port_file, server.port)
    print(f"FulcrumCore simulator at {server.url} (API below /api/v1, lab below /lab)", flush=True)
    stop.wait()
    server.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smith_lab.simulator", description="Simulate FulcrumCore.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on, 0 for any free one (%(default)s)")
    parser.add_argument("--port-file", type=Path, help="write the port here once the server answers")
    parser.add_argument(
        "--job-timeout", type=float, default=300.0, metavar="S", help="fail jobs older than this (%(default)s)"
    )
    parser.add_argument(
        "--maintenance-interval",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds between sweeps; 0: only on request (%(default)s)",
    )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    return Options(job_timeout_s=arguments.job_timeout, maintenance_interval_s=arguments.maintenance_interval)


def _write_port(path: Path, port: int) -> None:
    """Write the port to a file in one step, so that a process that waits for the file never reads it incomplete."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(f"{port}\n")
    os.replace(draft, path)


if __name__ == "__main__":
    sys.exit(main())
