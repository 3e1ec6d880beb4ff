"""`smith nodes drain`, `resume` and `limit`: each changes how many jobs one agent process claims.

A node is one agent process, not a node of Proxmox. To drain a node means to pause it, with a row in the table `pauses`.
A pause and a limit are stored with a scope, which names the process's data folder. A restarted process has another id,
but the same data folder, so the pause and the limit stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from executor.cli.arguments import AsJson, CommandFailed
from executor.cli.help_text import examples
from executor.cli.output import show_outcome
from executor.cli.store import WritableTransaction, writable_transaction
from executor.database import agent_queries, audit, nodes, operator_changes, pause_scopes
from executor.database.times import utc_now
from executor.views.agent_liveness import is_alive
from executor.views.status_document import pause_text
from executor.views.text import count_with_noun

if TYPE_CHECKING:  # The class is used only in annotations.
    from executor.database.tables.agents import AgentProcessRow

NodeArgument = Annotated[
    str,
    typer.Argument(
        metavar="NODE", help="The host of the agent process, or the process's id, or the beginning of this id."
    ),
]


@examples(
    'smith nodes drain pve-ops-2 --reason "new kernel"    running jobs run to their end; no more are claimed',
)
def drain(
    node: NodeArgument,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Shown by `smith nodes list`, and stored in the audit log.")
    ],
    as_json: AsJson = False,
) -> None:
    """Stop one agent process from claiming jobs, until `smith nodes resume`.

    The agent process stays drained after a restart.
    """
    who = audit.operator_name()
    with writable_transaction() as transaction:
        chosen_node = _find_node(transaction, node)
        is_new_pause = operator_changes.pause_agent_process(transaction.session, chosen_node, who=who, reason=reason)
        pause = agent_queries.find_pause(transaction.session, pause_scopes.scope_of_agent_process(chosen_node))
        if pause is None:
            raise CommandFailed("the node is not drained: it was resumed at the same time; run the command again")
        running_count = agent_queries.running_job_counts(transaction.session).get(chosen_node.id, 0)
    text = (
        f"{chosen_node.host} claims no more jobs: {pause_text(pause)}"  # "since <time> by <operator>: <reason>"
        if is_new_pause
        else f"{chosen_node.host} was already drained: {pause_text(pause)}"
    )
    running_jobs = count_with_noun(running_count, "running job")
    jobs_text = f"; {running_jobs} will end normally" if running_count else "; it runs no job"
    show_outcome(
        text + jobs_text, as_json=as_json, node=chosen_node.id, was_paused=not is_new_pause, running=running_count
    )


@examples("smith nodes resume pve-ops-2")
def resume(node: NodeArgument, as_json: AsJson = False) -> None:
    """Let one agent process claim jobs again."""
    with writable_transaction() as transaction:
        chosen_node = _find_node(transaction, node)
        ended_pause = operator_changes.resume_agent_process(transaction.session, chosen_node, who=audit.operator_name())
    text = (
        f"{chosen_node.host} was not drained"
        if ended_pause is None
        else f"resumed; {chosen_node.host} was drained {pause_text(ended_pause)}"
    )
    show_outcome(text, as_json=as_json, node=chosen_node.id, was_paused=ended_pause is not None)


@examples(
    "smith nodes limit pve-ops-2 4    at most 4 jobs in parallel; running jobs are not ended",
    "smith nodes limit pve-ops-2 --reset",
)
def limit(
    node: NodeArgument,
    jobs: Annotated[int | None, typer.Argument(metavar="JOBS", min=1, help="The maximum number of jobs.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Use SMITH_CONCURRENCY of the node again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Limit how many jobs an agent process runs in parallel.

    The process never runs more jobs than its SMITH_CONCURRENCY. The limit stays until `--reset`, even if the process is
    restarted or its SMITH_CONCURRENCY changes.
    """
    if reset == (jobs is not None):
        raise typer.BadParameter("give either the number of jobs or --reset")
    with writable_transaction() as transaction:
        chosen_node = _find_node(transaction, node)
        # `concurrency_wanted` is how many jobs the process may run in parallel now: the lower one of its
        # SMITH_CONCURRENCY and the operator's limit.
        previous_limit = chosen_node.concurrency_wanted
        new_limit = nodes.set_job_limit(transaction.session, chosen_node, None if reset else jobs)
        audit.add_entry(
            transaction.session,
            who=audit.operator_name(),
            verb="limit",
            subject_kind="agents",  # the kind of audit entries about one agent process or all of them
            subject_id=pause_scopes.scope_of_agent_process(chosen_node),
            before={"max_jobs": previous_limit},
            after={"max_jobs": jobs or "reset"},
        )
    text = f"{chosen_node.host} runs at most {new_limit} jobs in parallel (the limit was {previous_limit})"
    show_outcome(
        text,
        as_json=as_json,
        node=chosen_node.id,
        max_jobs=new_limit,
        was=previous_limit,
        concurrency=chosen_node.concurrency,  # the SMITH_CONCURRENCY of the process
    )


def _find_node(transaction: WritableTransaction, reference: str) -> AgentProcessRow:
    """Return the node whose host is `reference`, or whose id begins with `reference`.

    Agent processes that have stopped do not match. Raises CommandFailed if no node or several nodes match.
    """
    unstopped_processes = agent_queries.processes_without_stop_time(transaction.session)
    matches = [
        node for node in unstopped_processes if reference and (node.host == reference or node.id.startswith(reference))
    ]
    lease_s = transaction.settings.smith_lease_s
    alive_matches = [node for node in matches if is_alive(node, utc_now(), lease_s)]
    # A process that crashed is not marked as stopped. It is returned only if no match is alive.
    matches = alive_matches or matches
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise CommandFailed(f"no agent process has the host or id {reference}: see `smith nodes list`")
    raise CommandFailed(
        f"{reference} matches several agent processes: {', '.join(node.id for node in matches)}. Use one of these ids"
    )
