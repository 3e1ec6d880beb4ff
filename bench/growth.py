"""Measures how the CPU time of each parser of untrusted text grows with the length of the text.

For each parser, the bench uses the texts that are known to take the most CPU time. A growth of 1 means that a text of
ten times the length takes ten times the CPU time. A parser that takes quadratic time has a growth of 10.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import guest_facts, proxmox_tasks

from bench.part import Bench, Goal, Part, Table
from executor.fulcrum.untrusted_json import check_storable, parse_json
from executor.redaction import Redactor, StreamRedactor
from executor.runs.output import OutputDecoder
from executor.runs.story import RunStory
from executor.shared.error_rules import classify_action_failure
from executor.shared.marker import agent_id_in, markers_in, without_forged_lines

Json = dict[str, Any]
#: Goal: the maximum growth. It is more than 1, because noise and caches change the CPU time.
MAX_GROWTH = 3.0
#: The least CPU time of a measurement. A measurement repeats a short call until this time has passed.
MIN_MEASURED_CPU_S = 0.02
#: The number of measurements of a text. The figure is the shortest CPU time of a call.
MEASUREMENT_COUNT = 3
#: A parser that reads a stream gets the text in pieces of this length.
PIECE_CHARACTERS = 4096
#: A line. The secret that the redactor knows, and the texts from which it removes the secret, are repetitions of it.
SECRET_LINE = "key: value\n"  # noqa: S105
#: The maximum length of a secret.
SECRET_CHARACTERS = 16_384
MAC = "BC:24:11:00:11:22"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A parser, and a function that makes an input of a given length for it."""

    parser: str
    content: str  #: describes the input in the table
    make_input: Callable[[int], Any]
    parse: Callable[[Any], object]


def _text_maker(unit: str, before: str = "", after: str = "") -> Callable[[int], str]:
    """Return a function that makes a text of a given length: `before`, repetitions of `unit`, and `after`."""
    return lambda length: before + unit * ((length - len(before) - len(after)) // len(unit)) + after


def _bytes_maker(unit: str, before: str = "", after: str = "") -> Callable[[int], bytes]:
    make_text = _text_maker(unit, before, after)
    return lambda length: make_text(length).encode()


def _lines_maker(unit: str) -> Callable[[int], list[str]]:
    return lambda length: [unit] * (length // len(unit))


def _parse_or_refuse(content: bytes) -> object:
    try:
        return parse_json(content)
    except ValueError:
        return None


def _make_guest_answer(length: int) -> list[Json]:
    """Return an answer of a QEMU guest agent whose JSON has about this length."""
    address = {"ip-address": "2001:db8::1", "prefix": 64}
    addresses = [address] * (length // len(json.dumps(address)))
    return [{"name": "eth0", "hardware-address": MAC, "ip-addresses": addresses}]


def _read_guest_settings(**config: str) -> object:
    rows = [{"key": key, "value": value} for key, value in config.items()]
    return guest_facts.facts_from_configuration(rows, {"status": "running"})


def _make_redactor() -> Redactor:
    redactor = Redactor()
    redactor.add(SECRET_LINE * (SECRET_CHARACTERS // len(SECRET_LINE)))
    return redactor


def _redact_in_pieces(text: str) -> None:
    stream = StreamRedactor(REDACTOR)
    for start in range(0, len(text), PIECE_CHARACTERS):
        stream.feed(text[start : start + PIECE_CHARACTERS])
    stream.flush()


def _decode_output(data: bytes) -> None:
    decoder = OutputDecoder(lambda _text: None, lambda: None)
    for start in range(0, len(data), PIECE_CHARACTERS):
        decoder.feed(data[start : start + PIECE_CHARACTERS])


def _read_progress(text: str) -> None:
    RunStory(REDACTOR).add_event({"event": "verbose", "stdout": text})


REDACTOR = _make_redactor()
#: The beginning of a JSON text that is nested more deeply than the parser accepts.
TOO_DEEP_JSON_START = "[" * 65
CASES = (
    Case(
        parser="FulcrumCore's JSON",
        content="a string that is not closed",
        make_input=_bytes_maker('\\"', before=f'{TOO_DEEP_JSON_START}"'),
        parse=_parse_or_refuse,
    ),
    Case(
        parser="FulcrumCore's JSON",
        content="brackets",
        make_input=lambda length: b"[" * (length // 2) + b"]" * (length // 2),
        parse=_parse_or_refuse,
    ),
    Case(
        parser="FulcrumCore's JSON",
        content="short strings",
        make_input=_bytes_maker('"",', before=f"{TOO_DEEP_JSON_START}[", after=f'""]{"]" * 65}'),
        parse=_parse_or_refuse,
    ),
    Case(
        parser="values that can be stored",
        content="empty lists",
        make_input=lambda length: [[] for _ in range(length // 3)],
        parse=check_storable,
    ),
    Case(
        parser="marker",
        content="blanks in a marker",
        make_input=_text_maker(" ", before="smith-uid=a", after="b"),
        parse=lambda text: (markers_in(text), without_forged_lines(text)),
    ),
    Case(
        parser="marker",
        content="agent's lines",
        make_input=_text_maker("smith-agent=a b\n"),
        parse=lambda text: (agent_id_in(text), markers_in(text)),
    ),
    Case(
        parser="tags of a VM",
        content="tags",
        make_input=_text_maker("a;"),
        parse=lambda text: _read_guest_settings(tags=text),
    ),
    Case(
        parser="drive of a VM",
        content="sizes",
        make_input=_text_maker(",size=1"),
        parse=lambda text: _read_guest_settings(scsi0=text),
    ),
    Case(
        parser="addresses of a guest",
        content="equal addresses",
        make_input=_make_guest_answer,
        parse=lambda answer: guest_facts.usable_addresses(answer, [MAC]),
    ),
    Case(parser="error rules", content="quotes", make_input=_text_maker("storage '"), parse=classify_action_failure),
    Case(parser="error rules", content="blanks", make_input=_text_maker(" "), parse=classify_action_failure),
    Case(
        parser="log of a Proxmox task",
        content="lines with VMIDs",
        make_input=_lines_maker("Could not remove disk 'a' of ID 1 vm-1-"),
        parse=lambda log: (proxmox_tasks.vmids_in(log), proxmox_tasks.volumes_left_in(log)),
    ),
    Case(
        parser="log of a Proxmox task",
        content="one line of errors",
        make_input=_text_maker("ERROR: command 'a' failed "),
        parse=lambda line: proxmox_tasks.error_with_cause("job errors", [line]),
    ),
    Case(
        parser="output of a run",
        content="parts of an event mark",
        make_input=_bytes_maker("QQ==\x1b[4D", before="\x1b[K"),
        parse=_decode_output,
    ),
    Case(
        parser="story of a run",
        content="one progress line",
        make_input=_text_maker("VM 1 (a): a [1.1 s", before="VM 1 (a): "),
        parse=_read_progress,
    ),
    Case(
        parser="story of a run",
        content="progress lines",
        make_input=_text_maker("VM 1 (a): UPID:a, 5 %, log: a | b [1.1 s]\n"),
        parse=_read_progress,
    ),
    Case(
        parser="redactor",
        content="the secret's equal lines",
        make_input=_text_maker(SECRET_LINE),
        parse=REDACTOR.redact,
    ),
    Case(
        parser="redactor, in pieces",
        content="the secret's equal lines",
        make_input=_text_maker(SECRET_LINE),
        parse=_redact_in_pieces,
    ),
)


def measure(bench: Bench) -> Json:
    """Return the CPU time of each parser for each length, and the growth from each length to the next."""
    return {f"{case.parser}: {case.content}": _measure_case(case, bench.sizes.growth_lengths) for case in CASES}


def _measure_case(case: Case, lengths: tuple[int, ...]) -> Json:
    cpu_s = {length: _measure_parse(case, case.make_input(length)) for length in lengths}
    growths = [(cpu_s[longer] / longer) / (cpu_s[shorter] / shorter) for shorter, longer in itertools.pairwise(lengths)]
    return {"cpu_s": {str(length): value for length, value in cpu_s.items()}, "growths": growths}


def _measure_parse(case: Case, value: Any) -> float:
    """Return the CPU time of one call: the least of several measurements. Each measurement repeats short calls."""
    cpu_s_of_calls: list[float] = []
    for _ in range(MEASUREMENT_COUNT):
        start_time_s, call_count = time.process_time(), 0
        while (spent_s := time.process_time() - start_time_s) < MIN_MEASURED_CPU_S or not call_count:
            case.parse(value)
            call_count += 1
        cpu_s_of_calls.append(spent_s / call_count)
    return min(cpu_s_of_calls)


def _tables(figures: Json) -> list[Table]:
    lengths = [int(length) for length in next(iter(figures.values()))["cpu_s"]]
    rows = [
        (
            name,
            *(f"{1000 * cpu_s:.3g}" for cpu_s in case["cpu_s"].values()),
            *(f"{growth:.2f}" for growth in case["growths"]),
        )
        for name, case in figures.items()
    ]
    headings = (
        "parser: text",
        *(f"CPU-ms at {length // 1000:,} kB" for length in lengths),
        *(f"growth to {length // 1000:,} kB" for length in lengths[1:]),
    )
    return [Table(title="Growth of the CPU time of parsers (1: linear, 10: quadratic)", headings=headings, rows=rows)]


def _goals(figures: Json) -> list[Goal]:
    worst_name = max(figures, key=lambda name: max(figures[name]["growths"]))
    return [Goal(text=f"growth of {worst_name}", limit=MAX_GROWTH, measured=max(figures[worst_name]["growths"]))]


PART = Part(help="growth of parsers with the length of a text", measure=measure, tables=_tables, goals=_goals)
