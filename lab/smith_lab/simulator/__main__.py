"""FulcrumCore, simulated: a stateful server on a real socket, faithful to section 10.1 of the contract that we rely on.

    python -m smith_lab.simulator --port 0 --port-file F

The API is at <origin>/api/v1, as in the real server; FULCRUM_API_URL is the origin without it. A new server knows
one token, `change-me` (admin, one day); `smith_lab.fulcrum_setup` sets up everything else. State is in memory.
Not simulated: pools (writes answer 400, lists are empty), OAuth, the health port, event leases.

The lab's own endpoints, without a token, on loopback only, all JSON, never touched by faults and not in the history:

    GET    /lab/clock                {"now", "text", "frozen"}: the server's time; it is in the Date header too
    POST   /lab/clock                {"set": seconds | "RFC 3339", "advance": seconds, "freeze": bool}, any of them
    POST   /lab/sweep                run timeout and retention now: {"timedOut", "deleted", "disconnected"}
    GET    /lab/faults               the rules in force
    POST   /lab/faults               add a rule or a list of rules (fault_rules.py describes them)
    DELETE /lab/faults               drop all rules
    GET    /lab/history[?since=SEQ]  every call in order: seq, time, method, path, query, body, token_name, role,
                                     agent_id, status, error, fault, duration_s
    DELETE /lab/history
    POST   /lab/reset                an empty server again: tables, rules, history, switches, options, clock
    GET    /lab/switches
    POST   /lab/switches             {"two_claims_win", "database_down", "vault_off"}: bool each
    POST   /lab/options              {"job_timeout_s", "job_retention_s", "agent_timeout_s", "agent_maintenance", …}
    POST   /lab/tokens/revoke        every token like {"name" | "id" | "value" | "role" | "agent_id": …}
    POST   /lab/jobs/{id}/expire     time the job out now
    POST   /lab/jobs/{id}/override   {"set": {member: JSON}, "remove": [member]}: deliver this job otherwise
    DELETE /lab/jobs/{id}            remove the job, as retention does
    GET    /lab/vault                the references that exist
    POST   /lab/vault                {"value": JSON}: store a secret; answers {"reference": "vault://…"}
    DELETE /lab/vault[/{reference}]  forget all secrets, or one
    GET    /lab/pending
    POST   /lab/pending              append raw items (any JSON) to every agent's pending list
    DELETE /lab/pending
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
    """Serve until SIGTERM or SIGINT."""
    arguments = _parser().parse_args(argv)
    server = SimulatorServer(Store(options=_options(arguments)), LabState(), host=arguments.host, port=arguments.port)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    server.start()
    if arguments.port_file is not None:
        _write_port(arguments.port_file, server.port)
    print(f"FulcrumCore simulator at {server.url} (API below /api/v1, lab below /lab)", flush=True)
    stop.wait()
    server.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smith_lab.simulator", description="FulcrumCore, simulated.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on, 0 for any free one (%(default)s)")
    parser.add_argument("--port-file", type=Path, help="write the port here once the server answers")
    parser.add_argument(
        "--job-timeout", type=float, default=300.0, metavar="S", help="age that fails a job (%(default)s)"
    )
    parser.add_argument(
        "--maintenance-interval",
        type=float,
        default=0.0,
        metavar="S",
        help="sweep so often; 0: on demand (%(default)s)",
    )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    return Options(job_timeout_s=arguments.job_timeout, maintenance_interval_s=arguments.maintenance_interval)


def _write_port(path: Path, port: int) -> None:
    """Appears complete or not at all: whoever waits for the file may read it at once."""
    half = path.with_name(f"{path.name}.part")
    half.write_text(f"{port}\n")
    os.replace(half, path)


if __name__ == "__main__":
    sys.exit(main())
