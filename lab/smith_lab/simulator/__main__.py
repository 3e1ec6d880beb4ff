"""Runs the FulcrumCore simulator, an HTTP server that keeps state and answers as FulcrumCore does.

    python -m smith_lab.simulator --port 0 --port-file F

The API is at <origin>/api/v1, as in FulcrumCore. The agent's setting FULCRUM_API_URL is this origin, without
/api/v1. A new server accepts one token, the admin's token `change-me`, which is valid for a day.
`smith_lab.fulcrum_setup` uses this token to create the objects that an agent needs. The server keeps its state in
memory. It simulates neither OAuth nor the port of FulcrumCore's health checks.

The server also has lab endpoints, with which tests and the demo control it. They use JSON, need no token and
answer only clients on loopback. A fault rule makes chosen API calls fail, delays them or processes them twice. The
history records every API call. Fault rules and history ignore calls of lab endpoints. The lab endpoints are:

    GET    /lab/clock                {"now", "text", "frozen"}: the time of the server in seconds and as RFC 3339, and
                                     whether the clock is frozen; the time is also sent in the Date header
    POST   /lab/clock                {"set": seconds | "RFC 3339", "advance": seconds, "freeze": bool}: change the time
                                     or freeze the clock; each member is optional
    POST   /lab/sweep                do FulcrumCore's maintenance work once: fail jobs that did not end within the job
                                     timeout, delete old jobs, and, if the server option `agent_maintenance` is set,
                                     disconnect agents that sent no heartbeat; answers how many rows each part
                                     changed: {"timedOut", "deleted", "disconnected"}
    GET    /lab/faults               the fault rules
    POST   /lab/faults               add a rule or a list of rules (fault_rules.py describes them)
    DELETE /lab/faults               delete all rules
    GET    /lab/history[?since=SEQ]  every API call, oldest first: seq, time, method, path, query, body, token_name,
                                     role, agent_id, status, error (the answer's body, if the status is 400 or more),
                                     fault (kind of the fault rule that affected the call, or null), duration_s; the
                                     query parameters `since` (only calls whose seq is greater), `method` and
                                     `path_end` (end of the path) filter the calls
    DELETE /lab/history              empty the history
    POST   /lab/reset                restore the initial state of tables, fault rules, history, switches, server
                                     options and clock
    GET    /lab/switches             the switches, which make the server behave wrongly (store.Switches explains them)
    POST   /lab/switches             {"two_claims_win", "vault_off", …}: set switches; each is a bool; two_claims_win: a
                                     second claim of a job succeeds; vault_off: secrets cannot be read
    POST   /lab/options              {"job_timeout_s", …}: change server options (store.ServerOptions explains them)
    POST   /lab/tokens/revoke        {"name", "id", "value", "role", "agent_id"}: revoke every token that has all
                                     values in the body, which must contain at least one of these members
    POST   /lab/jobs/{id}/expire     make the job fail by timeout now, even if it is younger than the job timeout
    POST   /lab/jobs/{id}/override   {"set": {member: JSON}, "remove": [member]}: change the job's JSON in answers, but
                                     not the stored job
    DELETE /lab/jobs/{id}            delete the job, as FulcrumCore deletes old jobs
    GET    /lab/vault                the references of all stored secrets, each without `vault://`
    POST   /lab/vault                {"value": JSON}: store a secret; answers {"reference": "vault://…"}
    DELETE /lab/vault[/{reference}]  delete all secrets, or the secret with this reference (without `vault://`)
    POST   /lab/pending              add raw items to every agent's list of pending jobs; a raw item is any JSON
    GET    /lab/pending              the raw items
    DELETE /lab/pending              remove the raw items
    GET    /lab/state                the rows of all tables except events, subscriptions, install tokens and pools of
                                     property values; token values and secrets are left out
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from smith_lab.simulator.history import FaultsAndHistory
from smith_lab.simulator.server import SimulatorServer
from smith_lab.simulator.store import ServerOptions, Store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; return the exit code."""
    arguments = _parser().parse_args(argv)
    server = SimulatorServer(
        Store(options=_server_options(arguments)), FaultsAndHistory(), host=arguments.host, port=arguments.port
    )
    stop_requested = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda _number, _frame: stop_requested.set())
    server.start()
    if arguments.port_file is not None:
        _write_port(arguments.port_file, server.port)
    print(f"FulcrumCore simulator at {server.url} (the API below /api/v1, the lab endpoints below /lab)", flush=True)
    stop_requested.wait()
    server.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smith_lab.simulator", description="Simulate FulcrumCore.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on; 0: any free port (%(default)s)")
    parser.add_argument(
        "--port-file", type=Path, help="file to which the server writes the number of its port when it accepts calls"
    )
    parser.add_argument(
        "--job-timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="a job fails if it has not ended this many seconds after its creation (%(default)s)",
    )
    parser.add_argument(
        "--maintenance-interval",
        type=float,
        default=0.0,
        metavar="S",
        help="interval of the maintenance work, in seconds; 0: it is done only on POST /lab/sweep (%(default)s)",
    )
    return parser


def _server_options(arguments: argparse.Namespace) -> ServerOptions:
    return ServerOptions(job_timeout_s=arguments.job_timeout, maintenance_interval_s=arguments.maintenance_interval)


def _write_port(path: Path, port: int) -> None:
    """Write the port to a file. The file appears with its whole content, so no process reads an incomplete number."""
    temporary_file = path.with_name(f"{path.name}.part")
    temporary_file.write_text(f"{port}\n")
    os.replace(temporary_file, path)


if __name__ == "__main__":
    sys.exit(main())
