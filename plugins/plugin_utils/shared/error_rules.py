# SPDX-License-Identifier: Apache-2.0
"""Maps Proxmox's error texts to error codes, for the executor and the collection's action plugins.

This module imports nothing of the executor, because playbooks can run without the executor. An Ansible module
puts its own words before Proxmox's text. These words are removed; then the first rule whose pattern matches the text
determines the error code. The codes are the members of `error_codes.ErrorCode`. They never change: FulcrumCore matches
a failed job's error message against the regular expressions of the service type, which contain error codes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .error_patterns import GUEST_NOT_FOUND_PATTERN, RULES
from .reactions import Reaction, is_error_code, reaction_to

#: The beginnings of the full names of modules whose messages contain texts of Proxmox.
PROXMOX_MODULE_PREFIXES = ("community.proxmox.", "community.general.proxmox")
#: Maximum length of the text in a ClassifiedFailure, in characters.
MAX_TEXT_LENGTH = 300
#: Maximum number of characters of a text in which the patterns are searched. A text may be long, because any program
#: may have written it.
MAX_MATCHED_LENGTH = 10_000


@dataclass(frozen=True, kw_only=True)
class ClassifiedFailure:
    """The error code, the reaction (whether the job is retried) and the text of a failure."""

    code: str
    reaction: Reaction
    text: str  #: the message without the code and without an Ansible module's words; at most MAX_TEXT_LENGTH characters


_COMPILED_RULES = tuple((code, re.compile(pattern)) for code, pattern in RULES)

#: Matches the words that an Ansible module puts before Proxmox's text, such as `… failed with exception: `. These words
#: are removed because they contain the name of the VM, and a customer may choose a name that matches a rule.
_WORDS_BEFORE_PROXMOX_TEXT = re.compile(r"\A.*?(failed with exception[:=] ?|vmid \d+[=:] ?)", re.DOTALL)
#: Matches a text that starts with an error code. The action plugins and the playbooks write such texts.
_CODE_AND_TEXT = re.compile(r"\A([A-Z][A-Z_]+): ?(.*)\Z", re.DOTALL)
#: Matches the words that proxmoxer adds to a text if the body of Proxmox's answer is empty, as in every answer 401.
_EMPTY_BODY_NOTE = re.compile(r" ?- \{'errors': b''\}")
_WHITE_SPACE = re.compile(r"\s+")
#: Matches the text of a module that has waited too long for a Proxmox task. The end of the text quotes a line of the
#: Proxmox task's log. Only group 1, the text before the quotation, is kept. The pattern does not match a text that
#: quotes a line `TASK ERROR: …`, because this line states the outcome and must stay in the text.
_TIMEOUT_WITH_LOG = re.compile(
    r"\A(Reached timeout.{0,200}?) ?Last line in task before timeout: (?!\[\{[^}]{0,40}'t': ['\"]TASK ERROR: ).*",
    re.DOTALL,
)


def classify_failure(text: str) -> ClassifiedFailure:
    """Return the error code, the reaction and the text of a failure whose message `text` is from Proxmox or a module.

    If no rule matches, the code is PLAYBOOK_FAILED: the outcome is unknown, so the job is retried once. An error code
    at the beginning of the text is ignored, because an attacker may choose parts of the text. Otherwise the attacker
    could, for example, write VM_NOT_FOUND, and the agent would mark the service's VM as lost.
    """
    # Removes the words that an Ansible module puts before Proxmox's text, and a quoted line of a Proxmox task's log.
    proxmox_text = without_words_before_proxmox_text(_TIMEOUT_WITH_LOG.sub(r"\1", _single_line(text)))
    for code, pattern in _COMPILED_RULES:
        if pattern.search(proxmox_text):
            return _classified_failure(code, proxmox_text)
    return _classified_failure("PLAYBOOK_FAILED", proxmox_text)


def classify_failure_keeping_code(text: str) -> ClassifiedFailure:
    """Return the error code, the reaction and the text of a failure that an action plugin or a playbook reports.

    If the message starts with an error code, this code is used. Otherwise the text is classified like a text of
    Proxmox.
    """
    text = _single_line(text)
    code_and_text = _CODE_AND_TEXT.match(text)
    if code_and_text and is_error_code(code_and_text.group(1)):
        return _classified_failure(code_and_text.group(1), code_and_text.group(2))
    return classify_failure(text)


def classify_ansible_task_failure(result: dict[str, Any], text: str, module: str = "") -> ClassifiedFailure:
    """Return the error code, the reaction and the text of a failed Ansible task whose message is `text`.

    An error code at the beginning of the text is used, unless the task ran a module that sends requests to Proxmox: the
    messages of such modules contain Proxmox's texts. `module` is the full name of the module or action plugin.
    """
    is_proxmox_module = module.startswith(PROXMOX_MODULE_PREFIXES) or _has_proxmox_login(result)
    return classify_failure(text) if is_proxmox_module else classify_failure_keeping_code(text)


def _has_proxmox_login(result: dict[str, Any]) -> bool:
    """Return True if the result of an Ansible task is from a module that got a login for Proxmox."""
    invocation = result.get("invocation")
    arguments = invocation.get("module_args") if isinstance(invocation, dict) else None
    return isinstance(arguments, dict) and "api_host" in arguments


def _single_line(text: str) -> str:
    return _EMPTY_BODY_NOTE.sub("", _WHITE_SPACE.sub(" ", text)).strip()


def without_words_before_proxmox_text(text: str) -> str:
    """Return the first MAX_MATCHED_LENGTH characters of Proxmox's text, without an Ansible module's words before it."""
    return (_WORDS_BEFORE_PROXMOX_TEXT.sub("", text, count=1) or text)[:MAX_MATCHED_LENGTH]


def says_guest_not_found(text: str) -> bool:
    """Return True if the text says that a guest is not on the requested node, or not in Proxmox's list of guests."""
    return re.search(GUEST_NOT_FOUND_PATTERN, text) is not None


def _classified_failure(code: str, text: str) -> ClassifiedFailure:
    """Return the failure with its reaction, and with the text cut off at MAX_TEXT_LENGTH."""
    if len(text) > MAX_TEXT_LENGTH:
        text = text[: MAX_TEXT_LENGTH - 1] + "…"
    return ClassifiedFailure(code=code, reaction=reaction_to(code), text=text)
