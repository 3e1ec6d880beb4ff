"""Defines the commands `smith demo` and `smith lab`.

The lab is a FulcrumCore simulator and a Proxmox stand-in. Its Python package declares both commands as entry points in
the group `smith.commands`. The program `smith` loads the commands of this group.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.help_text import examples, examples_section
from executor.cli.lazy import TYPER_ARGUMENTS
from executor.cli.output import show_json
from smith_lab import lab_command
from smith_lab.demo import main as run_demo
from smith_lab.lab_faults import FAULTS, begin_fault, clear_faults
from smith_lab.orders import Customer
from smith_lab.running_lab import DEFAULT_FOLDER, FOLDER_VARIABLE

Folder = Annotated[
    Path,
    typer.Option(
        "--folder",
        envvar=FOLDER_VARIABLE,
        help="The folder of the running lab. After `. lab.env`, this option is not needed.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The service's name.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job has ended.")]
Cores = Annotated[int | None, typer.Option("--cores", min=1, help="Number of cores.")]
MemoryMb = Annotated[int | None, typer.Option("--memory-mb", min=1, help="Memory in MiB.")]
DiskGb = Annotated[int | None, typer.Option("--disk-gb", min=1, help="Size of the disk in GiB.")]
#: The actions that need only the service's name, each with the help line of its command.
SIMPLE_ACTIONS = {
    "start": "Start the VM of a service.",
    "stop": "Shut down the VM of a service.",
    "restart": "Restart the VM of a service.",
    "delete": "Delete a service with its VM.",
}

lab = typer.Typer(
    name="lab",
    invoke_without_command=True,
    epilog=examples_section(
        "smith lab                       a FulcrumCore simulator and a Proxmox stand-in, until Ctrl-C",
        "smith lab --folder .lab --core-port 3000 --proxmox-port 8006     with this folder and these ports",
        "smith lab order web-1           in another shell: order a VM",
        "smith lab fault                 list the faults to try",
    ),
    **TYPER_ARGUMENTS,  # turn off the features for which typer would import rich, because this import is slow
)


@examples(
    "smith demo                  six services, from create to delete",
    "smith demo --services 20    more services at once",
    "smith demo --json           the summary for scripts",
)
def demo(
    services: Annotated[int, typer.Option("--services", min=1, max=1000, help="How many services to create.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with log, database and artifacts.")] = False,
) -> None:
    """Run Agent Smith against a FulcrumCore simulator and a Proxmox stand-in, without your settings."""
    raise typer.Exit(run_demo(service_count=services, as_json=as_json, keep_folder=keep))


@lab.callback()
def run_lab(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Folder for settings, secrets and the CA; default: a temporary folder."),
    ] = None,
    fulcrum_port: Annotated[
        int, typer.Option("--core-port", min=0, max=65535, help="The FulcrumCore simulator's port; 0: any free.")
    ] = 0,
    proxmox_port: Annotated[
        int, typer.Option("--proxmox-port", min=0, max=65535, help="The stand-in's port; 0: any free port.")
    ] = 0,
) -> None:
    """Run a FulcrumCore simulator and a Proxmox stand-in; the subcommands order services."""
    if context.invoked_subcommand is None:
        raise typer.Exit(lab_command.main(folder=folder, fulcrum_port=fulcrum_port, proxmox_port=proxmox_port))


@lab.command(
    epilog=examples_section(
        "smith lab order web-1",
        "smith lab order db-1 --image ubuntu-24.04 --cores 2 --memory-mb 4096 --disk-gb 20",
        "smith lab order box-1 --container",
    )
)
def order(
    name: Name,
    *,
    image: Annotated[str | None, typer.Option("--image", help="debian-12 or ubuntu-24.04.")] = None,
    cores: Cores = None,
    memory_mb: MemoryMb = None,
    disk_gb: DiskGb = None,
    container: Annotated[bool, typer.Option("--container", help="Order a container instead of a VM.")] = False,
    wait: Wait = True,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Order a service, whose VM the agent creates."""
    properties = _properties_with_value(cores=cores, memoryMb=memory_mb, diskGb=disk_gb)
    if image:
        properties["osTemplate" if container else "image"] = image
    # `order`, `update` and `run_action` return the exit code. With `must_wait`, they print the outcome of the job.
    customer = Customer(folder, must_wait=wait)
    raise typer.Exit(customer.order(name, properties, is_container=container))


@lab.command(epilog=examples_section("smith lab update web-1 --cores 2", "smith lab update web-1 --disk-gb 20"))
def update(
    name: Name,
    *,
    cores: Cores = None,
    memory_mb: MemoryMb = None,
    disk_gb: DiskGb = None,
    wait: Wait = True,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Change the size of a service's VM."""
    customer = Customer(folder, must_wait=wait)
    raise typer.Exit(customer.update(name, _properties_with_value(cores=cores, memoryMb=memory_mb, diskGb=disk_gb)))


def _add_action(action: str, help_line: str) -> None:
    @lab.command(action, help=help_line, epilog=examples_section(f"smith lab {action} web-1"))
    def run(name: Name, wait: Wait = True, folder: Folder = DEFAULT_FOLDER) -> None:
        raise typer.Exit(Customer(folder, must_wait=wait).run_action(name, action))


for each_action, each_help_line in SIMPLE_ACTIONS.items():
    _add_action(each_action, each_help_line)


@lab.command("list", epilog=examples_section("smith lab list"))
def list_services(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List the services of the lab."""
    services = Customer(folder).list_services()
    if as_json:
        show_json(services)
        return
    for service in services:
        # agentInstanceId is "<agent id>/<VMID>", or empty.
        vmid = str(service.get("agentInstanceId") or "").rpartition("/")[2]
        print(f"{service['name']:<20} {service['status']:<10} {vmid or '-':>7}  {service['id']}")


@lab.command(epilog=examples_section("smith lab fault storage-full", "smith lab fault clear"))
def fault(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The fault's name; clear: end all faults.")] = None,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Begin a fault, and print the commands that show and end it; clear ends all. Without a name, list the faults."""
    if name is None:
        for each in FAULTS:
            print(f"{each.name:<16} {each.description}")
    elif name == "clear":
        clear_faults(folder)
        print("all faults have ended: repeat the commands that failed")
    else:
        begun_fault = begin_fault(folder, name)
        print(
            f"{begun_fault.description}\nobserve it:  {begun_fault.observe_command}\nend it:      smith lab fault clear"
        )


def _properties_with_value(**values: int | None) -> dict[str, Any]:
    """Return the properties that have a value. None means that the user did not give the option."""
    return {name: value for name, value in values.items() if value is not None}
