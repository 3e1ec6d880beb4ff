"""The version, from the installed package's own metadata."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("agent-smith")
except PackageNotFoundError:  # run from a folder that was never installed
    VERSION = "0+unknown"
