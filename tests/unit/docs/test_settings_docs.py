"""docs/settings.md agrees with the code."""

from __future__ import annotations

import runpy
from pathlib import Path

from executor.settings.display import SECTIONS
from executor.settings.settings import FIELDS

DOCS = Path(__file__).parents[3] / "docs"


def test_the_settings_page_is_up_to_date() -> None:
    """If this fails: python docs/generate.py."""
    pages = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == pages["settings.md"]()


def test_every_setting_is_on_the_page_once() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert [name for name in FIELDS if page.count(f"| `{name}`") != 1] == []


def test_the_sections_have_every_setting_in_the_order_of_the_settings() -> None:
    """A setting is checked after the settings on which it depends, so the order of the base classes matters."""
    assert [name.upper() for area in SECTIONS.values() for name in area.model_fields] == list(FIELDS)
