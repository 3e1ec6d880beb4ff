"""Defines the paths of the pages that programs or operators read, of the public pages, and of the forms."""

from __future__ import annotations

#: The paths of the pages for programs: a program such as Prometheus or a health check reads them.
PROGRAM_PAGE_PATHS = ("/livez", "/readyz", "/metrics", "/openapi.json")
#: The paths of the health pages. These pages need no login, but show details only to callers who may read all pages.
HEALTH_PATHS = frozenset({"/livez", "/readyz"})
#: The HTTP methods that all pages allow. Only the paths of forms also allow POST.
ALLOWED_METHODS = ("GET", "HEAD")
#: The first part of each path for operators. The overview has the empty path. Each path below `actions` accepts the
#: form of one operator action, such as retrying a job. The other paths are pages.
_OPERATOR_FIRST_PARTS = frozenset({"", "jobs", "vms", "executors", "settings", "audit", "doctor", "actions"})
#: The first part of each public path, which needs no login: login and logout, and the folder of scripts, styles and
#: images.
_PUBLIC_FIRST_PARTS = frozenset({"login", "logout", "static"})
#: The first part of each path to which forms are sent.
_FORM_FIRST_PARTS = frozenset({"login", "logout", "actions"})


def first_part(path: str) -> str:
    """Return the first part of a path, such as `jobs` of `/jobs/17`."""
    return path.removeprefix("/").partition("/")[0]


def is_operator_page_or_public(path: str) -> bool:
    """Return whether this is the path of a page or of a form for operators, or a public path."""
    return first_part(path) in _OPERATOR_FIRST_PARTS | _PUBLIC_FIRST_PARTS


def is_public_path(path: str) -> bool:
    """Return whether this is a public path: login, logout, or a script, style or image."""
    return first_part(path) in _PUBLIC_FIRST_PARTS


def accepts_forms(path: str) -> bool:
    """Return whether forms are sent to this path."""
    return first_part(path) in _FORM_FIRST_PARTS


def relative_root_url(path: str) -> str:
    """Return the URL of the overview, relative to the page with this path, such as `../` for `/jobs/17`.

    All links are relative, so the pages work behind a reverse proxy that serves them under a prefix.
    """
    return "../" * (path.count("/") - 1)
