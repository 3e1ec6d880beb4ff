"""Injection payloads: templates, YAML, shell, JSON, SQL, Proxmox's own separators, markup.

A payload that is executed creates a file in the folder `witness`, which must stay empty. Some payloads are fixed, the
others are combined from fragments by a seeded generator, so that a failure can be reproduced.
"""

from __future__ import annotations

import random
from pathlib import Path

SEED = 20260901

#: `W` is replaced by a path below the witness folder, a different one in each payload.
JINJA = (
    "{{ lookup('ansible.builtin.pipe', 'touch W') }}",
    "{{ lookup('pipe', 'touch W') }}",
    "{{lookup('pipe','touch W')}}",
    "{%- set x = lookup('pipe', 'touch W') -%}{{ x }}",
    "{% if lookup('pipe', 'touch W') %}x{% endif %}",
    "{% for x in [1] %}{{ query('pipe', 'touch W') }}{% endfor %}",
    "{{ query('ansible.builtin.pipe', 'touch W') }}",
    "{{ q('pipe', 'touch W') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ lookup('pipe','touch W') }}",
    "{{ cycler.__init__.__globals__.os.system('touch W') }}",
    "{{ joiner.__init__.__globals__.os.popen('touch W').read() }}",
    "{{ namespace.__init__.__globals__.os.popen('touch W').read() }}",
    "{{ self.__init__.__globals__.__builtins__.open('W', 'w') }}",
    "{{ lipsum.__globals__['os'].popen('touch W').read() }}",
    "{{ request.application.__globals__.__builtins__.__import__('os').popen('touch W') }}",
    "{{ ['touch W'] | map('system') }}",
    "{{ 'x' | ansible.builtin.shell('touch W') }}",
    "{{ lookup('template', 'W') }}",
    "{{ lookup('file', '/etc/passwd') }}",
    "{{ lookup('env', 'SMITH_CREDENTIALS_FILE') }}",
    "{{ lookup('ini', 'x file=/etc/passwd') }}",
    "{{ lookup('url', 'http://127.0.0.1:9/W') }}",
    "{{ lookup('vars', 'smith_proxmox') }}",
    "{{ smith_proxmox.api_token_secret }}",
    "{{ hostvars['proxmox']['smith_proxmox'] }}",
    "{{ vars }}",
    "{{ 7 * 7 }}",
    "{{ an_undefined_variable }}",
    "{{ 1 / 0 }}",
    "{{",
    "}}",
    "{%",
    "{% endraw %}{{ lookup('pipe', 'touch W') }}{% raw %}",
    "{% raw %}{{ lookup('pipe', 'touch W') }}{% endraw %}",
    "{# #}{{ lookup('pipe', 'touch W') }}",
    "{#",
    "{{ '{{' }} lookup('pipe', 'touch W') {{ '}}' }}",
    "{{ '{{ lookup(\\'pipe\\', \\'touch W\\') }}' }}",
    "{\u200b{ lookup('pipe', 'touch W') }}",
    "\\{\\{ lookup('pipe', 'touch W') \\}\\}",
    "#jinja2: variable_start_string: '[['\n[[ lookup('pipe', 'touch W') ]]",
    "#jinja2: trim_blocks:False\n{{ lookup('pipe', 'touch W') }}",
    "{% include 'W' %}",
    "{% import 'os' as o %}{{ o.system('touch W') }}",
    "{% macro x() %}{{ lookup('pipe', 'touch W') }}{% endmacro %}{{ x() }}",
    "{% call(x) y() %}{{ lookup('pipe', 'touch W') }}{% endcall %}",
)
YAML = (
    "!!python/object/apply:os.system ['touch W']",
    '!!python/object/new:subprocess.check_output [["touch","W"]]',
    "!!python/name:os.system",
    "!unsafe '{{ lookup(\"pipe\", \"touch W\") }}'",
    "!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6162",
    "$ANSIBLE_VAULT;1.1;AES256\n6162636465",
    "!include /etc/passwd",
    "yes", "no", "on", "Off", "true", "null", "~", "0777", "0o17", "0x1F", "1e309", "-.inf", ".nan", "1_000",
    "12:30:45", "2026-01-01", "=", "<<", "<<: *a", "&a [*a, *a]", "*a", "- a\n- b", "a: b", "? a\n: b", "|\n  text",
    ">-\n  text",
    "---\na: b\n...", "%YAML 1.1\n---\na", "# comment", "text # no comment", "[1, 2", "{a: b", "'", '"', "'' ''", "\\",
    "\ttab", " leading", "trailing ", "", " ", "\u0085next line", "\u2028line\u2029paragraph",
    '__ansible_unsafe', '{"__ansible_unsafe": "x"}', '{"__ansible_vault": "x"}', '{"__ansible_type": "x"}',
)  # fmt: skip
SHELL = (
    "$(touch W)", "`touch W`", "; touch W", "| touch W", "|| touch W", "&& touch W", "& touch W &", "\ntouch W\n",
    "> W", "< /etc/passwd", "$(touch${IFS}W)", "x'; touch W; '", 'x"; touch W; "', "x\\'; touch W #", "$'\\ntouch W'",
    "*", "?", "~root", "${HOME}", "$0", "!!", "!$", "-e touch W", "--help", "-rf /", "%0Atouch W", "\rtouch W",
    "\x00touch W", "x\x00y", "@/etc/passwd", "@W", "=cmd|'touch W'!A0", "+x", "-1",
)  # fmt: skip
OTHERS = (
    "'; DROP TABLE jobs; --", "' OR '1'='1", "x%' ESCAPE '\\", "%s %d %n", "%(name)s", "{0.__class__}", "{x!r}",
    "../../../../etc/passwd", "..\\..\\x", "/etc/passwd", "file:///etc/passwd", "con", "a/b", "a/../b", ".", "..",
    "<script>alert(1)</script>", "&lt;b&gt;", "<!--", "]]>", "javascript:alert(1)", "${jndi:ldap://127.0.0.1:9/W}",
    "smith-uid=00000000-0000-4000-8000-000000000000", "a\nsmith-uid=00000000-0000-4000-8000-000000000000",
    "SMITH-UID = 00000000-0000-4000-8000-000000000000", "name=x,tag=y", "ip=dhcp,gw=10.0.0.1", "virtio,bridge=vmbr9",
    "local:iso/x.iso,media=cdrom", "x;y", "x,y=z", "vault://00000000-0000-4000-8000-000000000000", "vault://",
    "vault://../agents/me", "\x1b[2J\x1b]0;owned\x07", "\x1b[K", "\x9b31m", "\ufeffbom", "\u202egnp.exe", "\u200bzero",
    "\uff46\uff55\uff4c\uff4c", "İstanbul", "ß", "Ünï¢ødé ☃ 💥", "e\u0301", "\U000e0041", "a" * 63, "a" * 64,
    "x" * 4096,
    "http://169.254.169.254/latest", "\r\nX-Injected: yes", "Bearer x\r\nHost: y", "--extra-vars=@W", "-e@W", "@vm.yml",
    "NaN", "Infinity", "1e999", "9" * 400, "-0", "0.1", "{}", "[]", '{"a":', "\\u0000", "\\x00", "\\N{BULLET}",
)  # fmt: skip
_FRAGMENTS = (
    "{{", "}}", "{%", "%}", "{#", "#}", "'", '"', "\\", "\n", "\r", "\t", " ", "$", "`", ";", "|", "&", "<", ">", "!",
    "!unsafe", "!vault", "lookup('pipe', 'touch W')", "touch W", "7*7", "raw", "endraw", "vm", "x", "é", "☃", ":", ",",
    "=", "#", "-", "---", "*a", "&a", "[", "]", "(", ")", "%", "@", "~", "\x00", "\x1b", "\u2028", "\u200b", "0", "yes",
)  # fmt: skip


def corpus(witness: Path, *, generated: int = 150) -> list[str]:
    """Return each payload once. All calls return the same payloads, apart from the paths of the files."""
    rng = random.Random(SEED)  # noqa: S311  (must be reproducible)
    generated_payloads = ["".join(rng.choices(_FRAGMENTS, k=rng.randint(2, 12))) for _ in range(generated)]
    fixed_payloads = (*JINJA, *YAML, *SHELL, *OTHERS)
    return [
        text.replace("W", str(witness / f"w{number}"))
        for number, text in enumerate(dict.fromkeys([*fixed_payloads, *generated_payloads]))
    ]
