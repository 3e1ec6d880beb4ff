"""An agent whose pages are not requested does not import the modules of the pages."""

from __future__ import annotations

import subprocess
import sys

#: Serves an agent's pages, requests the paths for programs, and prints which modules of the pages are imported.
PROGRAM = """
import sys, urllib.request
from pathlib import Path
from executor.settings.settings import load_settings
from executor.web.server import serving_pages
settings = load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": "127.0.0.1:0", "SMITH_DATA_DIR": sys.argv[1]})
with serving_pages(settings) as handle:
    for page in ("livez", "openapi.json"):
        urllib.request.urlopen(f"http://127.0.0.1:{handle.port}/{page}").read()
    print([name for name in ("jinja2", "executor.web.pages.app", "executor.doctor.run") if name in sys.modules])
"""


def test_an_agent_whose_pages_are_not_requested_does_not_import_their_modules(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
