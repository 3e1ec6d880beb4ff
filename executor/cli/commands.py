"""Lists all commands and groups of `smith`: their names, help texts and functions.

A command's module is imported only when the command is called or `smith COMMAND --help` is shown. This makes
`smith --help` and shell completion fast. `smith --help` therefore takes the help lines from this module. A command's
help line repeats the first line of the function's docstring.
"""

from __future__ import annotations

from typing import NamedTuple

from executor.cli.help_text import examples_section


class Command(NamedTuple):
    """One command: `smith GROUP NAME`, or `smith NAME` if `group` is empty."""

    group: str
    name: str
    #: The module of the function, without the prefix `executor.cli.`.
    module: str
    function: str
    #: The line that `smith --help` or `smith GROUP --help` shows for the command.
    help: str
    #: Whether the help omits the command.
    is_hidden: bool = False


class Group(NamedTuple):
    """One group of commands: `smith NAME`."""

    name: str
    help: str
    #: The section `Examples:` at the end of the group's help.
    examples: str
    #: The module and the function that execute `smith NAME` without a command. If they are empty, the help is shown.
    module: str = ""
    function: str = ""


class Extension(NamedTuple):
    """A command of another Python distribution, which has an entry point with the command's name.

    `smith --help` lists the command even if the distribution is not installed. The command then fails, and the error
    names the distribution.
    """

    name: str
    help: str
    #: The name of the distribution, for `pip install`.
    distribution: str


#: Each row has the group, the name, the module, the function and the help line.
COMMANDS = (
    Command(
        "",
        "init",
        "init",
        "init",
        "Set up Proxmox, FulcrumCore and the settings; write a systemd unit, quadlet or compose file.",
    ),
    Command("", "run", "run", "run", "Run FulcrumCore's jobs in Proxmox."),
    Command(
        "",
        "agent-process",
        "agent_process",
        "agent_process",
        "Run the agent; `smith run` starts this process.",
        is_hidden=True,
    ),
    Command("", "play", "play", "play", "Run an action's playbook with ansible-playbook."),
    Command(
        "", "status", "status", "show", "Show whether agents, FulcrumCore and Proxmox work; count jobs and mappings."
    ),
    Command("", "top", "top", "show", "Show running jobs with their steps, the queue, and the last failures."),
    Command("", "pause", "pause", "pause", "Stop the agents from claiming jobs, until `smith resume`."),
    Command("", "resume", "pause", "resume", "Let the agents claim jobs again."),
    Command("", "doctor", "doctor", "run_doctor", "Check settings, FulcrumCore, Proxmox, database and this machine."),
    Command("", "health", "health", "show_health", "Ask the agent on this machine for its health."),
    Command("", "version", "version", "show", "Show the versions of Agent Smith and of its dependencies."),
    Command("", "support", "support", "support", "Write an archive for a bug report."),
    Command(
        "",
        "forget",
        "forget",
        "forget_services",
        "Erase the stored data of ended services, which have no VM and no unfinished job.",
    ),
    Command("jobs", "list", "jobs", "list_jobs", "List jobs, the newest first."),
    Command("jobs", "show", "job_timeline", "show_job", "Show one job as a timeline, with its properties and result."),
    Command("jobs", "log", "job_log", "show_log", "Show what a job's playbook printed."),
    Command(
        "jobs",
        "retry",
        "job_changes",
        "retry",
        "Let the agent make a waiting job's next attempt now, or report an ended job's result now.",
    ),
    Command("jobs", "cancel", "job_changes", "cancel", "End a job with the error code CANCELLED."),
    Command("runs", "list", "runs", "list_runs", "List runs, the newest first."),
    Command("runs", "show", "runs", "show_run", "Show one run with its artifacts and the end of its output."),
    Command("runs", "log", "run_log", "show_log", "Show what a run's playbook printed."),
    Command("mappings", "list", "mappings", "list_mappings", "List mappings, the newest first."),
    Command("mappings", "show", "mappings", "show_mapping", "Show a mapping with its history."),
    Command("mappings", "adopt", "mappings_adopt", "adopt", "Map an existing VM to a service."),
    Command("mappings", "forget", "mappings_forget", "forget", "Mark a mapping as deleted; no VM is changed."),
    Command("mappings", "recall", "mappings_recall", "recall", "Cancel the scheduled deletion of a VM."),
    Command(
        "mappings",
        "export",
        "mappings_transfer",
        "export",
        "Write the current mappings into a file for `smith mappings import`.",
    ),
    Command(
        "mappings",
        "import",
        "mappings_transfer",
        "import_mappings",
        "Insert the mappings that `smith mappings export` has written on another host.",
    ),
    Command("drift", "fix", "drift", "repair_drift", "Repair wrong and missing mappings; no VM is changed."),
    Command(
        "audit",
        "list",
        "audit",
        "list_audit",
        "List operators' changes and the agent's corrections of mappings, the newest first.",
    ),
    Command(
        "nodes",
        "list",
        "nodes",
        "list_nodes",
        "List the agent processes that use this database.",
    ),
    Command(
        "nodes",
        "drain",
        "node_changes",
        "drain",
        "Stop one agent process from claiming jobs, until `smith nodes resume`.",
    ),
    Command("nodes", "resume", "node_changes", "resume", "Let one agent process claim jobs again."),
    Command("nodes", "limit", "node_changes", "limit", "Limit how many jobs an agent process runs in parallel."),
    Command(
        "critical", "list", "critical", "list_critical", "List the critical jobs, which are the agent's periodic tasks."
    ),
    Command("db", "upgrade", "database", "upgrade_schema", "Upgrade the schema; create the database if there is none."),
    Command(
        "db", "downgrade", "database", "downgrade_schema", "Downgrade the schema for an older version of Agent Smith."
    ),
    Command(
        "db",
        "current",
        "schema_state",
        "show_revisions",
        "Show the schema's revision, and the revision that Agent Smith needs.",
    ),
    Command("db", "check", "schema_state", "check_database", "Check the schema, the integrity and the foreign keys."),
    Command("db", "backup", "backup", "back_up_database", "Copy the SQLite database into one file."),
    Command("db", "restore", "backup", "restore_database", "Replace the database by a backup."),
    Command("db", "migrate", "migrate", "migrate", "Move the database from SQLite to PostgreSQL, or back."),
    Command(
        "db", "unseal", "migrate", "unseal", "Let a database that `smith db migrate` has sealed accept changes again."
    ),
    Command(
        "config",
        "show",
        "config",
        "show_settings",
        "Show every setting with the origin of its value, such as a file or the default.",
    ),
    Command("config", "example", "config", "print_example", "Print an example `.env` file."),
    Command(
        "actions", "list", "actions", "list_actions", "List the actions, and show why the agent refuses an action."
    ),
    Command(
        "actions",
        "validate",
        "actions",
        "validate_actions",
        "Check an action's files, playbook, schema and syntax. Nothing is run.",
    ),
    Command(
        "actions",
        "new",
        "actions",
        "write_new_action",
        "Write the files of a new action into the folder SMITH_ACTIONS_PATH.",
    ),
    Command(
        "actions",
        "test",
        "action_test",
        "run_tests",
        "Run the tests of one of your own actions in a lab (a Proxmox server for tests, or a stand-in).",
    ),
    Command("templates", "list", "templates", "list_templates", "List the templates in Proxmox and in the settings."),
    Command(
        "bootstrap",
        "core",
        "bootstrap",
        "bootstrap_core",
        "Create an agent, its token, a service type, an agent type and metric types in FulcrumCore.",
    ),
)

EXTENSIONS = (
    Extension(
        "demo",
        "Run Agent Smith against a FulcrumCore simulator and a Proxmox stand-in, without your settings.",
        "agent-smith-lab",
    ),
    Extension(
        "lab", "Run a FulcrumCore simulator and a Proxmox stand-in; the subcommands order services.", "agent-smith-lab"
    ),
    Extension(
        "lab-test",
        "Test playbooks in a lab (a Proxmox server for tests, or a stand-in).",
        "agent-smith-lab",
    ),
    Extension(
        "lab-sweep",
        "Remove the guests and backups that `smith lab-test` left in the lab.",
        "agent-smith-lab",
    ),
)

GROUPS = (
    Group(
        "jobs",
        "The jobs that FulcrumCore sent, and their outcome.",
        examples_section(
            "smith jobs list --status failed --limit 20",
            "smith jobs show 4f1c            the job's number, FulcrumCore's id, or the beginning of this id",
            "smith jobs log 17 --events      the Ansible tasks of the job's playbook",
        ),
    ),
    Group(
        "runs",
        "The executions of playbooks.",
        examples_section(
            "smith runs list --job 17",
            "smith runs show create-0c5d0f3a9b21",
            "smith runs log create-0c5d0f3a9b21    what the run's playbook printed",
        ),
    ),
    Group(
        "mappings",
        "The VM of each service.",
        examples_section(
            "smith mappings list --all",
            "smith mappings show 100123      a VMID, a VM's name, or the beginning of a service's id",
        ),
    ),
    Group(
        "drift",
        "The differences between the mappings, Proxmox and FulcrumCore.",
        examples_section(
            "smith drift                  exit code 1 if an operator must act, 5 if the comparison is inconclusive",
            "smith drift fix              show the repairs; --yes applies them",
        ),
        module="drift",
        function="show_drift",
    ),
    Group(
        "audit",
        "The changes that operators made, and the agent's automatic corrections of mappings.",
        examples_section(
            "smith audit list",
            "smith audit list --subject 8f2c0a11    entries of one job or service",
        ),
    ),
    Group(
        "nodes",
        "The agent processes that use this database (not Proxmox's nodes).",
        examples_section(
            "smith nodes list",
            'smith nodes drain pve-ops-2 --reason "new kernel"    pve-ops-2 is the host of the agent process',
            "smith nodes limit pve-ops-2 4                        at most 4 jobs in parallel",
        ),
    ),
    Group(
        "critical",
        "The agent's periodic tasks, such as heartbeat, polling, metrics, and deletion of old jobs.",
        examples_section("smith critical list"),
    ),
    Group(
        "db",
        "The database: schema, check, backup, move to another database.",
        examples_section(
            "smith db check",
            "smith db upgrade",
            "smith db migrate --to-file /etc/agent-smith/new_database_url",
        ),
    ),
    Group(
        "config",
        "The effective settings, and an example file.",
        examples_section(
            "smith config show",
            "smith config example > .env",
        ),
    ),
    Group(
        "actions",
        "The actions: the built-in playbooks, and the playbooks in your own folder.",
        examples_section(
            "smith actions list",
            "smith actions validate attach-iso",
            "smith actions new attach-iso      write the files of a new action into the folder SMITH_ACTIONS_PATH",
            "smith actions test attach-iso     run the action's tests on a Proxmox for tests, or a stand-in",
        ),
    ),
    Group(
        "templates",
        "The templates for VMs and containers.",
        examples_section(
            "smith templates list",
            "smith templates list --json",
        ),
    ),
    Group(
        "bootstrap",
        "Create an agent, its token, a service type, an agent type and metric types in FulcrumCore.",
        examples_section("smith bootstrap core --help"),
    ),
)
