"""Finds the lab tests of Agent Smith itself: in the installed package `smith_lab`, or in a checkout."""

from __future__ import annotations

from pathlib import Path

from executor.runs.actions import collection_folder

#: The folder with the tests in the installed package. lab/pyproject.toml lists the files of this folder.
INSTALLED_FOLDER = Path(__file__).parents[1] / "suite"
FOLDER_IN_CHECKOUT = Path("tests", "playbooks")
#: test_keeping.py tests the actions resize, migrate, backup and delete.
TEST_FILES = ("test_lifecycle.py", "test_keeping.py", "test_containers.py")
PYTEST_CONFIGURATION = Path(__file__).with_name("suite.ini")


def suite_folder() -> Path:
    """Return the folder with the tests. In a checkout, `collection_folder` returns the root of the repository."""
    return INSTALLED_FOLDER if INSTALLED_FOLDER.is_dir() else collection_folder() / FOLDER_IN_CHECKOUT


def suite_arguments() -> list[str]:
    """Return the arguments with which pytest runs the tests in TEST_FILES that have the marker `lab`."""
    folder = suite_folder()
    configuration = ["-c", str(PYTEST_CONFIGURATION), f"--rootdir={folder}", f"--confcutdir={folder}"]
    return [*configuration, "-m", "lab", *(str(folder / name) for name in TEST_FILES)]
