"""The table of all commands: what `smith --help` lists, and where each command's function is.

The modules are imported only when one of their commands is called, so that help and completion answer at once and a
command's module may import what it needs at its top. `help` is the first line of the function's docstring.
"""

from __future__ import annotations

from typing import NamedTuple

from executor.cli.help_text import examples_section


class Command(NamedTuple):
    """One command: `smith GROUP NAME`, or `smith NAME` with the empty group."""

    group: str
    name: str
    #: In the package executor.cli.
    module: str
    function: str
    help: str
    is_hidden: bool = False


class Group(NamedTuple):
    """One group of commands: `smith NAME`."""

    name: str
    help: str
    #: The section at the end of its help.
    examples: str
    #: Module and function of the command that runs without a further name; the help is shown if both are empty.
    module: str = ""
    function: str = ""


class Extension(NamedTuple):
    """A command that another distribution provides, as an entry point of this name."""

    name: str
    help: str
    #: What `pip install` takes.
    distribution: str


COMMANDS = (
    Command("", "run", "run", "run", "Carry FulcrumCore's jobs to Proxmox."),
    Command(
        "",
        "agent-process",
        "agent_process",
        "agent_process",
        "Be the agent that `smith run` supervises.",
        is_hidden=True,
    ),
    Command(
        "",
        "play",
        "play",
        "play",
        "Run an action's playbook by hand: ansible-playbook's output as it comes, then the result.",
    ),
    Command("", "status", "status", "show", "Count jobs, reports and VMs; name the agents and what is overdue."),
    Command(
        "",
        "doctor",
        "doctor",
        "show",
        "Look at settings, FulcrumCore, Proxmox, database and tools, and say what to do about what is wrong.",
    ),
    Command(
        "",
        "health",
        "health",
        "show",
        "Ask the agent on this machine for its health: exit code 0 if it is alive and ready, 1 if not.",
    ),
    Command("", "version", "version", "show", "Say which version this is, and of what."),
    Command("jobs", "list", "jobs", "list_jobs", "List jobs, the newest first."),
    Command(
        "jobs", "show", "jobs", "show_job", "Show everything that is known of one job: times, runs, properties, result."
    ),
    Command("jobs", "log", "jobs", "show_log", "Show what a job's playbook printed."),
    Command("jobs", "retry", "jobs", "retry", "End a job's waiting, for its next attempt or its next report."),
    Command(
        "jobs",
        "cancel",
        "jobs",
        "cancel",
        "End a job as CANCELLED. A playbook that runs is stopped; what it has made so far stays.",
    ),
    Command("runs", "list", "runs", "list_runs", "List runs, the newest first."),
    Command("runs", "show", "runs", "show_run", "Show one run: facts, files, and the end of what it printed."),
    Command(
        "mappings",
        "list",
        "mappings",
        "list_mappings",
        "List mappings, the newest first; those of deleted VMs only when asked for.",
    ),
    Command(
        "mappings",
        "show",
        "mappings",
        "show_mapping",
        "Show a mapping with its history: earlier VMs of the service, earlier services of the VMID.",
    ),
    Command(
        "mappings",
        "adopt",
        "mappings_adopt",
        "adopt",
        "Map an existing VM to a service: it must be no template, and carry that service's marker and no other.",
    ),
    Command(
        "mappings",
        "forget",
        "mappings_adopt",
        "forget",
        "End a mapping. The VM stays as it is; a VM with our marker is an `unmapped_vm` of `smith drift` from then on.",
    ),
    Command(
        "mappings",
        "recall",
        "mappings_recall",
        "recall",
        "Keep a VM that was deleted with a time of grace: its mark goes, and nothing destroys it any more.",
    ),
    Command(
        "drift",
        "fix",
        "drift",
        "fix",
        "Repair what can be repaired without touching a VM: follow moved ones, adopt ours, end mappings of nothing.",
    ),
    Command(
        "audit",
        "list",
        "audit",
        "list_audit",
        "List what was changed, the newest first. Entries are never changed and never pruned.",
    ),
    Command(
        "critical",
        "list",
        "critical",
        "list_critical",
        "List the critical jobs: when each was last done, how often it failed since, and whether it is overdue.",
    ),
    Command(
        "db",
        "upgrade",
        "database",
        "upgrade",
        "Bring the schema to this version's; makes the database when there is none.",
    ),
    Command(
        "db",
        "downgrade",
        "database",
        "downgrade",
        "Take the schema back for an older version. What the older schema has no place for is lost.",
    ),
    Command("db", "current", "database", "current", "Say which schema the database has, and which this version needs."),
    Command("db", "check", "database", "check", "Check schema, integrity and references."),
    Command(
        "db",
        "backup",
        "backup",
        "backup",
        "Copy the SQLite database into one file, as it is at one moment. An agent at work waits for nothing.",
    ),
    Command(
        "db",
        "restore",
        "backup",
        "restore",
        "Put a backup in the database's place. The agent must be stopped; the file that was there is kept beside it.",
    ),
    Command(
        "config",
        "show",
        "config",
        "show",
        "Show every setting with its origin, secrets masked; missing and wrong ones are named, too.",
    ),
    Command(
        "config",
        "example",
        "config",
        "example",
        "Print a `.env` file to start from: what must be set, and everything else as comments.",
    ),
    Command("actions", "list", "actions", "list_actions", "List the actions, and of yours whether they are refused."),
    Command(
        "actions",
        "validate",
        "actions",
        "validate",
        "Look for what keeps an action from working, or from being safe. Nothing is run.",
    ),
    Command(
        "actions",
        "new",
        "actions",
        "new",
        "Write a playbook to begin with, and its schema, into the folder SMITH_ACTIONS_PATH.",
    ),
    Command(
        "templates",
        "list",
        "templates",
        "list_templates",
        "List the templates of Proxmox, those of PROXMOX_OS_TEMPLATES, and what these settings name that is not there.",
    ),
    Command(
        "bootstrap",
        "core",
        "bootstrap",
        "core",
        "Make in FulcrumCore what an agent needs: service type, agent type, metric types, agent and its token.",
    ),
)

EXTENSIONS = (
    Extension(
        "demo",
        "Run the whole system against a simulator and a stand-in. It uses none of your settings.",
        "agent-smith-lab",
    ),
    Extension("lab", "Keep a FulcrumCore simulator and a Proxmox stand-in running, until Ctrl-C.", "agent-smith-lab"),
)

GROUPS = (
    Group(
        "jobs",
        "What FulcrumCore asked for, and what became of it.",
        examples_section(
            "smith jobs list --status failed --limit 20",
            "smith jobs show 4f1c            a job by our number, FulcrumCore's id, or its beginning",
            "smith jobs log 17 --events      what its playbook did, task by task",
        ),
    ),
    Group(
        "runs",
        "The single executions of playbooks.",
        examples_section(
            "smith runs list --job 17",
            "smith runs show create-0c5d0f3a9b21",
        ),
    ),
    Group(
        "mappings",
        "Which VM serves which service.",
        examples_section(
            "smith mappings list --all",
            "smith mappings show 100123      a VMID, a VM's name, a service's id or its beginning",
        ),
    ),
    Group(
        "drift",
        "What differs between our mappings, Proxmox and FulcrumCore.",
        examples_section(
            "smith drift                  exit code 1 when something differs, 5 when Proxmox cannot be believed",
            "smith drift fix              what could be repaired; --yes does it",
        ),
        module="drift",
        function="show",
    ),
    Group(
        "audit",
        "Who changed what by hand.",
        examples_section(
            "smith audit list",
            "smith audit list --subject 8f2c0a11     of one job or service",
        ),
    ),
    Group(
        "critical",
        "The agent's duties at intervals: heartbeat, polling, pruning, metrics.",
        examples_section("smith critical list"),
    ),
    Group(
        "db",
        "The database's schema and health.",
        examples_section(
            "smith db check",
            "smith db upgrade",
        ),
    ),
    Group(
        "config",
        "The settings: in force, and to start from.",
        examples_section(
            "smith config show",
            "smith config example > .env",
        ),
    ),
    Group(
        "actions",
        "What FulcrumCore may ask for: our playbooks, and those of your own folder.",
        examples_section(
            "smith actions list",
            "smith actions validate attach-iso",
            "smith actions new attach-iso      begins one in the folder SMITH_ACTIONS_PATH",
        ),
    ),
    Group(
        "templates",
        "What VMs and containers can be made of.",
        examples_section(
            "smith templates list",
            "smith templates list --json",
        ),
    ),
    Group(
        "bootstrap",
        "Make FulcrumCore ready for an agent.",
        examples_section("smith bootstrap core --help"),
    ),
)
