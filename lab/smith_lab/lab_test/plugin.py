"""The pytest plugin of `smith lab-test`: fixtures for tests of playbooks in the lab. docs/lab_test.md describes them.

The lab is a Proxmox cluster for tests; the environment variables LAB_PROXMOX_* name it. If the Python package
`smith_lab` is installed, pytest loads this plugin for all tests, not only for lab tests. Only the fixtures import other
modules of `smith_lab`, so that tests without these fixtures do not import them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from executor.model import JobResult
    from executor.proxmox.client import ProxmoxReader
    from smith_lab.lab_test.fulcrum import LabFulcrum
    from smith_lab.lab_test.guest_actions import GuestActions
    from smith_lab.lab_test.open_lab import LabRun

#: The option in pytest's configuration that names the folder with a provider's own actions.
ACTIONS_OPTION = "smith_actions"
SECRET_VARIABLE = "LAB_PROXMOX_TOKEN_SECRET"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `smith_actions` of pytest's configuration file."""
    parser.addini(ACTIONS_OPTION, "the folder with your own actions, relative to the configuration file")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Mask the secret of the lab's API token in what a test has printed, and in the text of its failure."""
    report = yield
    secret = os.environ.get(SECRET_VARIABLE, "")
    if not secret:
        return report
    from executor.redaction import Redactor  # noqa: PLC0415

    redactor = Redactor()
    redactor.add(secret)
    text = str(report.longrepr or "")
    if (masked := redactor.redact(text)) != text:
        report.longrepr = masked
    report.sections = [(title, redactor.redact(content)) for title, content in report.sections]
    return report


@pytest.fixture(scope="session")
def lab_run() -> Iterator[LabRun]:
    """The run of lab tests: the settings of the lab, and the range of VMIDs that is reserved for this run.

    If `smith lab-test` started pytest, that command has reserved the range. Otherwise this fixture reserves a range in
    the lab that LAB_PROXMOX_* names, or in a stand-in for Proxmox.
    """
    from executor.settings.settings import load_settings  # noqa: PLC0415
    from smith_lab.lab_test.lab_settings import is_lab_configured, require_vmids_outside_agent_range  # noqa: PLC0415
    from smith_lab.lab_test.open_lab import lab_run_of_parent_process, open_lab, reserve_range_for_run  # noqa: PLC0415

    run = lab_run_of_parent_process(os.environ)
    if run is not None:
        yield run
        return
    with open_lab(os.environ) as lab:
        if is_lab_configured(os.environ):
            require_vmids_outside_agent_range(lab, load_settings())
        # The tests may run for `time_limit_s`. In the next five minutes, the run's guests are removed. Then the
        # reservation expires: another run of lab tests may reserve the range, and remove the guests in it.
        with reserve_range_for_run(lab, time_limit_s=3600) as run:
            yield run


@pytest.fixture(scope="session")
def lab_actions_folder(pytestconfig: pytest.Config) -> Path | None:
    """The folder with the provider's own actions (playbooks): the option `smith_actions`, else SMITH_ACTIONS_PATH."""
    from executor.settings.settings import load_settings  # noqa: PLC0415

    name = str(pytestconfig.getini(ACTIONS_OPTION) or "")
    if name:
        return (pytestconfig.rootpath / name).resolve()
    folder = load_settings().smith_actions_path
    return folder.resolve() if folder else None


@pytest.fixture(scope="session")
def lab_guests(lab_run: LabRun, lab_actions_folder: Path | None) -> GuestActions:
    """The object that creates guests in the lab, and runs actions and playbooks on them."""
    from smith_lab.lab_test.guest_actions import GuestActions  # noqa: PLC0415
    from smith_lab.lab_test.open_lab import RESERVED_VARIABLE  # noqa: PLC0415

    worker_index, worker_count = 0, 1
    # If `smith lab-test` has reserved the range, each worker of pytest-xdist uses its own part of the range. Otherwise,
    # each worker has a range of its own, and uses all of it.
    if os.environ.get(RESERVED_VARIABLE):
        worker_index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        worker_count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return GuestActions(
        lab_run=lab_run, actions_folder=lab_actions_folder, worker_index_and_count=(worker_index, worker_count)
    )


@pytest.fixture
def make_lab_vm(lab_guests: GuestActions) -> Iterator[Callable[..., dict[str, Any]]]:
    """Return a function that creates a guest.

    The guests are removed after the test, unless `smith lab-test` has set the environment variable LAB_PROXMOX_KEEP.

    The function returns the variable `vm`, which describes the guest to actions and playbooks.

    `make_lab_vm("db", cores=4)` creates a guest with 4 cores and with `db` in its name. With `kind="lxc"`, the guest is
    a container.
    """
    from smith_lab.lab_test.open_lab import KEEP_VARIABLE  # noqa: PLC0415

    vmids: set[int] = set()

    def make(label: str = "vm", **members: Any) -> dict[str, Any]:
        vm = lab_guests.new_vm_variable(label, **members)
        vmids.add(vm["vmid"])
        return lab_guests.create(vm)

    yield make
    if not os.environ.get(KEEP_VARIABLE):
        lab_guests.remove(vmids)


@pytest.fixture
def lab_vm(make_lab_vm: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The variable `vm` of a new stopped VM, for `run_action`. The VM is removed after the test."""
    return make_lab_vm()


@pytest.fixture
def run_action(lab_guests: GuestActions) -> Callable[..., JobResult]:
    """Return a function that runs an action: `run_action("resize", lab_vm, disk_gib=20)`. `check=True`: a dry run.

    The returned function returns the result that the executor would store: `succeeded`, `vm`, `code` and `message` (the
    error code and the error text).
    """
    return lab_guests.run_action


@pytest.fixture
def run_playbook(lab_guests: GuestActions) -> Callable[..., JobResult]:
    """Return a function that runs a playbook in any folder: `run_playbook(Path("site.yml"), lab_vm)`."""
    return lab_guests.run_playbook


@pytest.fixture(scope="session")
def proxmox(lab_guests: GuestActions) -> ProxmoxReader:
    """Return an object that reads the lab's Proxmox: for example, `proxmox.vm_config(vm["node"], vm["vmid"])`."""
    return lab_guests.cluster.proxmox_reader


@pytest.fixture
def fulcrum_core(lab_guests: GuestActions, tmp_path: Path) -> Iterator[LabFulcrum]:
    """A FulcrumCore simulator, and an agent that runs the simulator's jobs in the lab.

    The methods `order_service`, `wait_for_jobs`, `run_action` and `update_service` do what a customer does.
    """
    from smith_lab.lab_test.fulcrum import running_fulcrum  # noqa: PLC0415
    from smith_lab.lab_test.open_lab import KEEP_VARIABLE  # noqa: PLC0415

    with running_fulcrum(lab_guests, tmp_path, must_keep_guests=bool(os.environ.get(KEEP_VARIABLE))) as fulcrum:
        yield fulcrum
