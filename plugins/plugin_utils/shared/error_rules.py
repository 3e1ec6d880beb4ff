# SPDX-License-Identifier: Apache-2.0
"""Maps the texts of Proxmox's failures to error codes, for the executor and the collection's actions.

This module imports only the standard library, because playbooks can also run without the executor. An Ansible module
puts its own words before Proxmox's text. After these words are removed, the first rule whose pattern matches the text
determines the code. The codes are the members of `error_codes.ErrorCode`. They never change, because service types in
FulcrumCore match them. Every pattern is valid in Python and in RE2 (the regular expressions of Go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: The beginnings of the full names of modules whose messages contain texts of Proxmox.
PROXMOX_MODULES = ("community.proxmox.", "community.general.proxmox")
#: Maximum length of the text in a ClassifiedFailure, in characters.
MAX_TEXT_LENGTH = 300
#: Maximum number of characters of a text that the patterns are applied to. Some patterns take quadratic time, so a long
#: text from another program could block the process.
MAX_MATCHED_LENGTH = 10_000


class Reaction(StrEnum):
    """Whether, and how, a failed job is retried."""

    NO = "no"  #: not retried: the same request would fail the same way
    LATER = "later"  #: retried after a backoff: nothing was changed, or the change can safely be repeated
    CHECK = "check"  #: retried: the change may have been made, and the idempotent playbook first checks what exists
    NEW_ID = "new_id"  #: retried with another VMID, unless the service already has a VM
    ONCE = "once"  #: retried once


@dataclass(frozen=True, kw_only=True)
class ClassifiedFailure:
    """The error code, the reaction and the text of a failure."""

    code: str
    reaction: Reaction
    text: str  #: the message without the code and without an Ansible module's words; at most MAX_TEXT_LENGTH characters


#: Matches the error text of a request or a Proxmox task that did not get a lock in time: the lock file of a guest, the
#: lock of a storage in the whole cluster, or that of a backup.
LOCK_TIMEOUT = (
    r"can't (lock file|acquire lock)|cfs-lock '[^']+' error|got lock (request )?timeout|-locked command timed out"
    r"|failed: got timeout"
)

#: A text about a guest that is not on the node that the request named, or not in the list of guests. No such text
#: proves that the guest does not exist: it may have moved, or the list may be out of date. `Cluster.absence` (in the
#: actions) and `MappingFinder` (for a service without a mapping) prove it.
NOT_HERE = (
    r"VM with (vmid|VMID) \d+ does not exist in cluster"
    r"|Configuration file 'nodes/[^/]+/(qemu-server|lxc)/\d+\.conf' does not exist"
    r"|unable to find configuration file|unable to find VM '\d+'"
)
#: The rules: each has a code, a reaction and a pattern. The first rule whose pattern matches a text is used. If a text
#: can match several rules, the rule for failures with an unknown outcome comes first.
RULES: tuple[tuple[str, Reaction, str], ...] = (
    # If a connection ends during the TLS handshake, the certificate may still be valid. So this rule precedes PVE_TLS.
    (
        "PVE_UNREACHABLE",
        Reaction.LATER,
        r"SSLEOFError|UNEXPECTED_EOF|EOF occurred in violation of protocol|SSLZeroReturnError"
        r"|handshake operation timed out",
    ),
    # LOGIN_NOT_REPEATED of login_repeats.py: the answer 401 may be temporary, so this is not the rule PVE_AUTH.
    ("PVE_UNREACHABLE", Reaction.LATER, r"refused the login, and too little time was left"),
    ("PVE_TLS", Reaction.NO, r"CERTIFICATE_VERIFY_FAILED|SSLError|TLS CA certificate bundle"),
    (
        "PVE_AUTH",
        Reaction.NO,
        r"\b401 Unauthorized|Couldn't authenticate user|No valid authentication credentials|invalid (PVE )?ticket"
        r"|invalid csrf token|required: api_password, api_token_id",
    ),
    # Proxmox answers 595 if it could not send a request to its node. It answers 596 to 599 if it sent the request and
    # got no complete answer, so the work may continue.
    ("NODE_DOWN", Reaction.LATER, r"\b595 |No route to host|hostname lookup '[^']+' failed"),
    # If the quorum is lost during a Proxmox task, the task cannot write the temporary file of a configuration.
    (
        "PVE_NO_QUORUM",
        Reaction.LATER,
        r"no quorum|(unable to open file|unable to write|closing file) '[^']+\.tmp\."
        r"|close \(rename\) atomic file '/etc/pve/",
    ),
    # The last three alternatives are the status of a Proxmox task that was killed, or whose log was removed.
    (
        "PVE_TIMEOUT",
        Reaction.CHECK,
        r"\b59[6-9] |Read timed out|ConnectTimeout|interrupted by signal|unexpected status"
        r"|unable to get last line from task log|no such task",
    ),
    (
        "PVE_UNREACHABLE",
        Reaction.LATER,
        r"Failed to establish a new connection|NameResolutionError|Max retries exceeded|Connection aborted"
        r"|RemoteDisconnected|Connection reset|\b(429|502|503|504) [A-Z]"
        r"|Unable to load access control list|ipcc_send_rec\S* failed|pmxcfs (is )?not mounted",
    ),
    # A hibernated VM stays locked until it is started.
    ("VM_STATE", Reaction.NO, r"(VM|CT) is locked \(suspended\)|in error state, must be disabled and fixed first"),
    ("VM_HALF_DESTROYED", Reaction.NO, r"(VM|CT) is locked \(destroyed\)"),
    (
        "VM_LOCKED",
        Reaction.LATER,
        rf"(VM|CT) is locked|{LOCK_TIMEOUT}|missing snapshot lock|migration lock|got wrong lock|invalid lock",
    ),
    # A guest that has moved to another node is not found on its former one. So this is never VM_NOT_FOUND: a retry
    # looks the guest up again, and proves its absence if it does not exist. A container is `not running` there, without
    # a check of its configuration. An action does not request the power state that its look-up has found, so
    # `not running` and `already running` say that the guest has changed or moved since then.
    (
        "PVE_CONFLICT",
        Reaction.LATER,
        rf"checksum mis+match|detected modified configuration|{NOT_HERE}|An error occurred: 'name'"
        r"|(VM|CT) \d+ (not|already) running",
    ),
    ("VM_ID_TAKEN", Reaction.NEW_ID, r"config file already exists|already exists on node|VM \d+ already exists"),
    (
        "CAPACITY",
        Reaction.LATER,
        r"No space left|not enough (free )?space|insufficient (free )?space|out of (data )?space|quota exceeded"
        r"|exceeds .*quota|unable to get any free VMID|max backup limit|[Cc]annot allocate memory"
        r"|free space in thin pool|reached threshold",
    ),
    (
        "STORAGE_UNAVAILABLE",
        Reaction.LATER,
        r"storage '[^']+' (is not online|is disabled|is not available|does not exist)|rbd error"
        r"|couldn't connect to the cluster|rados_connect|^Storage \S+ does not exist in the cluster"
        r"|(unable to|could not) activate storage|no such (volume group|logical volume)",
    ),
    (
        "NOT_FOUND",
        Reaction.NO,
        r"pool '[^']+' does not exist|no such cluster node|node '[^']+' does not exist|VM with name = |No VM with name"
        r"|Multiple VMs with name|[Ss]napshot '?[^ ']+'? does not exist",
    ),
    (
        "PVE_PERMISSION",
        Reaction.NO,
        r"\b403 Forbidden|Permission check failed|[Oo]nly root (can|may)|missing privileges|Insufficient permission",
    ),
    ("SHUTDOWN_TIMEOUT", Reaction.NO, r"quit/powerdown failed|container did not stop"),
    ("VM_PROTECTED", Reaction.NO, r"protection mode enabled"),
    ("VM_NOT_RUNNING", Reaction.NO, r"(VM|CT) \d+ is not running"),
    (
        "VM_STATE",
        Reaction.NO,
        r"used in HA resources|still in use|is paused|is running|if it's a template|if vm is a template"
        r"|without --online|snapshot name '[^']*' already used|feature is not (available|supported)|live[- ]migrate"
        r"|while VM is running|incomplete snapshot|needed by replication|Too many unused volumes|wrong snapshot state"
        r"|is not most recent snapshot|move a disk with snapshots|with stop mode on a HA managed"
        r"|[Tt]here is a replication job",
    ),
    (
        "INVALID_REQUEST",
        Reaction.NO,
        r"\b400 Bad Request|Parameter verification failed|Validation of arguments failed|Unsupported parameters"
        r"|must be one of|unable to convert to|missing required arguments|are missing:|is not a valid tag|shrink"
        r"|Finalization of task args|is undefined|not allowed for linked clones|bootorder|value too large"
        r"|resize a cdrom"
        r"|no options specified|reserved name|Unrecognized size pattern|missing disk"
        r"|disk '[^']+' (does not exist|has no)|does not support vm images|non-shared storage|uses local storage"
        r"|content type|either 'host' or 'mapping'|unable to parse|no storage ID specified|not compatible"
        r"|hotplug feature",
    ),
    (
        "PLAYBOOK_FAILED",
        Reaction.NO,
        r"Failed to import the required Python library|module interpreter|resolve module/action"
        r"|unexpected keyword argument|has no attribute|deserialization failed|Action failed: Unknown error",
    ),
    ("TASK_TIMEOUT", Reaction.CHECK, r"Reached timeout while|Timed out after \d+ second|timeout expired"),
    (
        "TASK_FAILED",
        Reaction.ONCE,
        r"on task execution|task \w+ ended|clone failed|start failed|QEMU exited|migration (aborted|problems)"
        r"|startup for container|job errors",
    ),
    ("PVE_API_ERROR", Reaction.ONCE, r"\b50[01] (Internal|Not)|the answer is longer than"),
)

#: The reactions to the codes that no rule has. An action or the executor sets these codes itself.
REACTIONS_WITHOUT_RULE: dict[str, Reaction] = {
    "VM_NOT_FOUND": Reaction.NO,
    "VM_IDENTITY_MISMATCH": Reaction.NO,
    "GUEST_NO_ADDRESS": Reaction.NO,
    "SECRET_MISSING": Reaction.NO,
    "UNSUPPORTED_ACTION": Reaction.NO,
    "RESULT_INVALID": Reaction.NO,
    "JOB_GONE": Reaction.NO,
    "JOB_CLAIMED_ELSEWHERE": Reaction.NO,
    "RESULT_REFUSED": Reaction.NO,
    "DEADLINE": Reaction.NO,
    "CANCELLED": Reaction.NO,
    "AGENT_RESTARTED": Reaction.CHECK,
    "LEASE_LOST": Reaction.CHECK,
    "QUARANTINED": Reaction.NO,
    "INTERNAL": Reaction.NO,
}
#: The reaction to every code.
REACTIONS: dict[str, Reaction] = {code: reaction for code, reaction, _pattern in RULES} | REACTIONS_WITHOUT_RULE
_COMPILED_RULES = tuple((code, re.compile(pattern)) for code, _reaction, pattern in RULES)

#: Matches the words that an Ansible module puts before Proxmox's text. These words are removed because they contain the
#: name of the VM, and a consumer may choose a name that matches a rule.
_MODULE_PREFIX = re.compile(r"\A.*?(failed with exception[:=] ?|vmid \d+[=:] ?)", re.DOTALL)
#: Matches a text that starts with an error code. The actions and the playbooks write such texts.
_CODE_AND_TEXT = re.compile(r"\A([A-Z][A-Z_]+): ?(.*)\Z", re.DOTALL)
#: What proxmoxer adds to a text if the body of Proxmox's answer is empty, such as that of every answer 401.
_EMPTY_BODY = re.compile(r" ?- \{'errors': b''\}")
_WHITE_SPACE = re.compile(r"\s+")


def classify_failure(text: str) -> ClassifiedFailure:
    """Return the error code, the reaction and the text of a failure whose message `text` is from Proxmox or a module.

    If no rule matches, the code is PLAYBOOK_FAILED. An error code at the beginning of the text is not used, because an
    attacker may determine Proxmox's text: VM_NOT_FOUND, for example, would end the service of a VM that exists.
    """
    text = _single_line(text)
    proxmox_text = without_module_prefix(text)
    for code, pattern in _COMPILED_RULES:
        if pattern.search(proxmox_text):
            return _classified_failure(code, proxmox_text)
    return _classified_failure("PLAYBOOK_FAILED", proxmox_text)


def classify_own_failure(text: str) -> ClassifiedFailure:
    """Return the error code, the reaction and the text of a failure whose message `text` is from an action or playbook.

    If the message starts with an error code, that code is used. Otherwise the text is classified like one of Proxmox.
    """
    text = _single_line(text)
    code_and_text = _CODE_AND_TEXT.match(text)
    if code_and_text and code_and_text.group(1) in REACTIONS:
        return _classified_failure(code_and_text.group(1), code_and_text.group(2))
    return classify_failure(text)


def classify_task_failure(result: dict[str, Any], text: str, action: str = "") -> ClassifiedFailure:
    """Return the error code, the reaction and the text of a failed Ansible task whose message is `text`.

    An error code at the beginning of the text is used, unless the task ran a module that sends requests to Proxmox: the
    messages of such modules contain Proxmox's texts. `action` is the full name of the task's module or action.
    """
    is_proxmox_module = action.startswith(PROXMOX_MODULES) or _has_proxmox_login(result)
    return classify_failure(text) if is_proxmox_module else classify_own_failure(text)


def _has_proxmox_login(result: dict[str, Any]) -> bool:
    """Return True if the result of an Ansible task is from a module that got a login for Proxmox."""
    invocation = result.get("invocation")
    arguments = invocation.get("module_args") if isinstance(invocation, dict) else None
    return isinstance(arguments, dict) and "api_host" in arguments


def _single_line(text: str) -> str:
    return _EMPTY_BODY.sub("", _WHITE_SPACE.sub(" ", text)).strip()


def without_module_prefix(text: str) -> str:
    """Return the first MAX_MATCHED_LENGTH characters of Proxmox's text, without an Ansible module's words before it."""
    return (_MODULE_PREFIX.sub("", text, count=1) or text)[:MAX_MATCHED_LENGTH]


def is_not_here(text: str) -> bool:
    """Return True if the text says that a guest is not on the node that a request named, or not in the list."""
    return re.search(NOT_HERE, text) is not None


def reaction_to(code: str) -> Reaction:
    """Return the reaction to a failure with this code; NO for an unknown code."""
    return REACTIONS.get(code, Reaction.NO)


def _classified_failure(code: str, text: str) -> ClassifiedFailure:
    """Return the failure with its reaction, and with the text cut off at MAX_TEXT_LENGTH."""
    if len(text) > MAX_TEXT_LENGTH:
        text = text[: MAX_TEXT_LENGTH - 1] + "…"
    return ClassifiedFailure(code=code, reaction=reaction_to(code), text=text)
