"""Runs the tests of the pages in a real browser: python -m browser.run NODE_MODULES SCREENSHOTS [FILE...]

It starts the servers of the pages, and a server with which a test changes what they show (browser/control.py). The
tests in JavaScript drive Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from browser.control import running_control
from browser.fronts import running_caddy, running_nginx
from browser.lab_site import lab_site
from browser.prepared import prepared_site

HERE = Path(__file__).parent
#: The test files in their order. They share servers and databases, so a file that changes more of them runs later.
ORDER = ("pages", "hostile", "live", "fronts", "actions", "pictures")


def main(node_modules: Path, screenshots: Path, files: list[str]) -> int:
    """Run the tests of these files, or of all. Return the exit code."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        print("Chromium is not installed: apt-get install chromium", file=sys.stderr)
        return 1
    screenshots.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)  # nginx's worker runs as another user
        prepared = stack.enter_context(prepared_site(folder / "prepared"))
        lab = stack.enter_context(lab_site(folder / "lab"))
        target = prepared.site.url.removeprefix("http://")
        fronts = {
            "nginx": stack.enter_context(running_nginx(folder / "nginx", target)),
            "caddy": stack.enter_context(running_caddy(folder / "caddy", target)),
        }
        control = stack.enter_context(running_control(prepared.functions() | lab.functions()))
        values = {
            "prepared": prepared.values_for_tests(),
            "lab": lab.values_for_tests(),
            "fronts": fronts,
            "control": control,
        }
        environment = os.environ | {
            "SMITH_BROWSER": json.dumps(values | {"chromium": chromium, "folder": str(folder)}),
            "SMITH_SCREENSHOTS": str(screenshots),
            "NODE_PATH": str(node_modules),
        }
        names = files or [str(HERE / f"{name}.test.js") for name in ORDER]
        command = ["node", "--test-reporter=spec", HERE / "all.js", *(str(Path(name).resolve()) for name in names)]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
