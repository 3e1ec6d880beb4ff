"""Go's regular expressions and templates in the simulator."""

from __future__ import annotations

import re
from typing import Any

import pytest
from smith_lab.simulator import go_regexp, go_template
from smith_lab.simulator.go_template_parser import TemplateError


@pytest.mark.parametrize(
    "pattern",
    [
        r"a(?=b)",
        r"a(?!b)",
        r"(?<=a)b",
        r"(?<!a)b",
        r"(a)\1",
        r"(?P=name)",
        r"(?>a)",
        r"a++",
        r"a*+",
        r"a\Z",
        "(",
        "a**",
    ],
)
def test_syntax_that_re2_lacks_is_refused(pattern: str) -> None:
    with pytest.raises(re.error):
        go_regexp.compile_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        (r"^VM_NOT_FOUND\b", "VM_NOT_FOUND: 5", True),
        (r"^VM_NOT_FOUND\b", "VM_NOT_FOUNDLING", False),
        (r"b", "abc", True),
        (r"^a$", "a\n", False),
        (r"(?m)^a$", "a\nb", True),
        (r"a\z", "a\n", False),
        (r"(?m)^a$\nb\z", "a\nb", True),
        (r"(?m)a\z", "a\nb", False),
        (r"[$]", "$", True),
        (r"\$$", "cost$", True),
        (r"[]$]x", "]x", True),
        (r"[^$]+$", "ab", True),
        (r"\w", "é", False),
        (r"(?i)disk", "DISK", True),
        (r"(?P<code>A+)", "xAA", True),
        (r"[(?=]", "=", True),
    ],
)
def test_patterns_match_as_in_go(pattern: str, text: str, is_match: bool) -> None:
    assert go_regexp.matches(pattern, text) is is_match


DATA: dict[str, Any] = {
    "host": 'pve "one"',
    "port": 8006.0,
    "big": 1000000,
    "half": 0.5,
    "on": True,
    "nodes": ["a", "b"],
    "none": [],
    "range": {"min": 1, "max": 9},
    "images": {"b": 2, "a": 1},
    "empty": {},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{ .port }}/{{ .big }}/{{ .half }}/{{ .on }}", "8006/1000000/0.5/true"),
        ('{{ printf "%q" .host }}', '"pve \\"one\\""'),
        ('{{ printf "%s:%v %d%%" .host .port .big }}', 'pve "one":8006 1000000%'),
        ("{{ .range.min }}-{{ .range.max }}", "1-9"),
        ("{{ .nodes }}{{ .range }}", "[a b]map[max:9 min:1]"),
        ('{{ with index . "missing" }}x{{ end }}y', "y"),
        ('{{ with index . "missing" }}x{{ else }}z{{ end }}', "z"),
        ("{{ with .host }}{{ . }}{{ end }}", 'pve "one"'),
        ("{{ range .nodes }}<{{ . }}>{{ end }}", "<a><b>"),
        ("{{ range .none }}x{{ else }}nothing{{ end }}", "nothing"),
        ("{{ range $name, $id := .images }}{{ $name }}={{ $id }};{{ end }}", "a=1;b=2;"),
        ("{{ range $i, $node := .nodes }}{{ $i }}{{ $node }}{{ end }}", "0a1b"),
        ("{{ range $name, $id := .empty }}x{{ else }} {}{{ end }}", " {}"),
        ("a\n{{- if .on }}\n  b\n{{- end }}\nc", "a\n  b\nc"),
        ("a  {{- /* said nothing */ -}}  b", "ab"),
        ("{{ if not .on }}a{{ else if .nodes }}b{{ else }}c{{ end }}", "b"),
        ("{{ if eq .port 8006 }}same{{ end }}", "same"),
        ("{{ (index .nodes 1) }}{{ len .nodes }}", "b2"),
        ('{{ .host | printf "%s!" }}', 'pve "one"!'),
        ("{{ $x := .port }}{{ $x }}", "8006"),
        ("{{ $.range.max }}", "9"),
        ('{{ index . "missing" }}', "<no value>"),
    ],
)
def test_templates_render_as_in_go(template: str, text: str) -> None:
    assert go_template.render(template, DATA) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ .missing }}",
        "{{ .range.missing }}",
        "{{ .host.inner }}",
        "{{ .host",
        "{{ }}",
        "{{ end }}",
        "{{ else }}",
        "{{ if .on }}",
        "{{ shout .host }}",
        "{{ $unknown }}",
        "{{ range .host }}{{ end }}",
        "{{ index .nodes 7 }}",
        "{{ .host .port }}",
        "{{ ( .host }}",
        "{{ % }}",
    ],
)
def test_templates_that_go_refuses_are_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        go_template.render(template, DATA)
