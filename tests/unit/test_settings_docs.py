"""docs/settings.md agrees with the code."""

from __future__ import annotations

import runpy
from pathlib import Path

from executor.settings.settings import FIELDS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_settings_page_is_up_to_date() -> None:
    """If this fails: python docs/generate.py."""
    pages = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == pages["settings.md"]()


def test_every_setting_is_on_the_page_once() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert [name for name in FIELDS if page.count(f"| `{name}`") != 1] == []
