"""Finds the lab tests of Agent Smith itself: in the installed distribution, or in a checkout."""

from __future__ import annotations

from pathlib import Path

from executor.runs.actions import collection_folder

#: The folder with the tests in the installed distribution. lab/pyproject.toml names the files.
INSTALLED_FOLDER = Path(__file__).parents[1] / "suite"
FOLDER_IN_CHECKOUT = Path("tests", "playbooks")
TEST_FILES = ("test_lifecycle.py", "test_keeping.py", "test_containers.py")
PYTEST_CONFIGURATION = Path(__file__).with_name("suite.ini")


def suite_folder() -> Path:
    """Return the folder with the tests."""
    return INSTALLED_FOLDER if INSTALLED_FOLDER.is_dir() else collection_folder() / FOLDER_IN_CHECKOUT


def suite_arguments() -> list[str]:
    """Return pytest's arguments for the tests of the suite that a lab can run."""
    folder = suite_folder()
    configuration = ["-c", str(PYTEST_CONFIGURATION), f"--rootdir={folder}", f"--confcutdir={folder}"]
    return [*configuration, "-m", "lab", *(str(folder / name) for name in TEST_FILES)]
