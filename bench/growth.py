"""Measures how the CPU time of each parser of untrusted text grows with the length of the text.

For each parser, the bench uses the texts that are known to take the most CPU time. The growth is the CPU time per
character of a text, divided by the CPU time per character of a text of a tenth of the length. It is 1 for a parser that
takes linear time, and 10 for a parser that takes quadratic time.
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
from executor.redaction import Redactor
from executor.runs.output import OutputDecoder
from executor.runs.story import RunStory
from executor.shared.error_rules import classify_failure_keeping_code
from executor.shared.marker import agent_id_in, marker_values_in, without_imitated_smith_lines

Json = dict[str, Any]
#: Goal: the maximum growth. It is more than 1, because noise and caches change the CPU time.
MAX_GROWTH = 3.0
#: The least CPU time of a measurement. A measurement repeats a short call until this time has passed.
MIN_MEASURED_CPU_S = 0.02
#: The number of measurements of a text. Only the measurement with the least CPU time per call is used.
MEASUREMENT_COUNT = 3
#: A parser that reads a stream gets the text in pieces of this length.
PIECE_CHARACTERS = 4096
#: The redactor's secret is this line, repeated up to SECRET_CHARACTERS. The texts to redact also repeat the line.
SECRET_LINE = "key: value\n"  # noqa: S105
#: The maximum length of a secret.
SECRET_CHARACTERS = 16_384
MAC = "BC:24:11:00:11:22"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A parser, and a function that makes an input of a given length for it."""

    parser: str
    input_description: str  #: for the table
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


def _read_vm_config(**config: str) -> object:
    rows = [{"key": key, "value": value} for key, value in config.items()]
    return guest_facts.facts_from_configuration(rows, {"status": "running"})


def _make_redactor() -> Redactor:
    redactor = Redactor()
    redactor.add(SECRET_LINE * (SECRET_CHARACTERS // len(SECRET_LINE)))
    return redactor


def _decode_output(data: bytes) -> None:
    """Decode a run's output, and ignore the decoded text.

    `write_to_filter` gets the decoded text. In production it is ansible-runner's event filter, which finds the events
    in the text. The decoder calls `ignore_further_text` when the output is longer than its maximum.
    """
    decoder = OutputDecoder(write_to_filter=lambda _text: None, ignore_further_text=lambda: None)
    for start in range(0, len(data), PIECE_CHARACTERS):
        decoder.feed(data[start : start + PIECE_CHARACTERS])


def _read_progress(text: str) -> None:
    """Read progress lines of a run's output into the run's story: the summary of the run that the agent stores."""
    RunStory(REDACTOR).add_event({"event": "verbose", "stdout": text})


REDACTOR = _make_redactor()
#: The beginning of a JSON text. The parser checks the depth only of texts with more than 64 opening brackets.
TOO_DEEP_JSON_START = "[" * 65
CASES = (
    Case(
        parser="FulcrumCore's JSON",
        input_description="a string that is not closed",
        make_input=_bytes_maker('\\"', before=f'{TOO_DEEP_JSON_START}"'),
        parse=_parse_or_refuse,
    ),
    Case(
        parser="FulcrumCore's JSON",
        input_description="brackets",
        make_input=lambda length: b"[" * (length // 2) + b"]" * (length // 2),
        parse=_parse_or_refuse,
    ),
    Case(
        parser="FulcrumCore's JSON",
        input_description="short strings",
        make_input=_bytes_maker('"",', before=f"{TOO_DEEP_JSON_START}[", after=f'""]{"]" * 65}'),
        parse=_parse_or_refuse,
    ),
    Case(
        parser="check for values that the database cannot store",
        input_description="empty lists",
        make_input=lambda length: [[] for _ in range(length // 3)],
        parse=check_storable,
    ),
    # Only the playbooks may write lines such as `smith-uid=<service id>` and `smith-agent=<agent id>` into a VM's
    # description. `without_imitated_smith_lines` replaces the `=` of these lines in a user's text by a colon.
    Case(
        parser="marker",
        input_description="blanks in a marker",
        make_input=_text_maker(" ", before="smith-uid=a", after="b"),
        parse=lambda text: (marker_values_in(text), without_imitated_smith_lines(text)),
    ),
    Case(
        parser="marker",
        input_description="lines that name an agent",
        make_input=_text_maker("smith-agent=a b\n"),
        parse=lambda text: (agent_id_in(text), marker_values_in(text)),
    ),
    Case(
        parser="tags of a VM",
        input_description="tags",
        make_input=_text_maker("a;"),
        parse=lambda text: _read_vm_config(tags=text),
    ),
    Case(
        parser="drive of a VM",
        input_description="sizes",
        make_input=_text_maker(",size=1"),
        parse=lambda text: _read_vm_config(scsi0=text),
    ),
    Case(
        parser="addresses of a guest",
        input_description="equal addresses",
        make_input=_make_guest_answer,
        parse=lambda answer: guest_facts.reachable_addresses(answer, [MAC]),
    ),
    # If a text begins with an error code, `classify_failure_keeping_code` returns this code.
    Case(
        parser="classification of an error text",
        input_description="quotes",
        make_input=_text_maker("storage '"),
        parse=classify_failure_keeping_code,
    ),
    Case(
        parser="classification of an error text",
        input_description="blanks",
        make_input=_text_maker(" "),
        parse=classify_failure_keeping_code,
    ),
    # `volumes_left_in_log` finds the volumes that a qmdestroy task could not remove.
    Case(
        parser="log of a Proxmox task",
        input_description="lines with VMIDs",
        make_input=_lines_maker("Could not remove disk 'a' of ID 1 vm-1-"),
        parse=lambda log: (proxmox_tasks.vmids_in(log), proxmox_tasks.volumes_left_in_log(log)),
    ),
    # "job errors" is the exit status of a failed backup in Proxmox.
    Case(
        parser="log of a Proxmox task",
        input_description="one line of errors",
        make_input=_text_maker("ERROR: command 'a' failed "),
        parse=lambda line: proxmox_tasks.error_with_cause(status="job errors", log=[line]),
    ),
    # An escape sequence of ansible-runner begins and ends with `\x1b[K`. In this text, the second one is missing.
    Case(
        parser="output of a run",
        input_description="an incomplete escape sequence of ansible-runner",
        make_input=_bytes_maker("QQ==\x1b[4D", before="\x1b[K"),
        parse=_decode_output,
    ),
    # The text lacks the `]` with which a progress line ends.
    Case(
        parser="story of a run",
        input_description="one progress line",
        make_input=_text_maker("VM 1 (a): a [1.1 s", before="VM 1 (a): "),
        parse=_read_progress,
    ),
    Case(
        parser="story of a run",
        input_description="progress lines",
        make_input=_text_maker("VM 1 (a): UPID:a, 5 %, log: a | b [1.1 s]\n"),
        parse=_read_progress,
    ),
    Case(
        parser="redactor",
        input_description="the secret's line, repeated",
        make_input=_text_maker(SECRET_LINE),
        parse=REDACTOR.redact,
    ),
)


def measure(bench: Bench) -> Json:
    """Return the CPU time of each parser for each length, and the growth from each length to the next."""
    return {
        f"{case.parser}: {case.input_description}": _measure_case(case, bench.sizes.growth_lengths) for case in CASES
    }


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
        *(
            f"growth from {shorter // 1000:,} to {longer // 1000:,} kB"
            for shorter, longer in itertools.pairwise(lengths)
        ),
    )
    return [Table(title="Growth of the CPU time of parsers (1: linear, 10: quadratic)", headings=headings, rows=rows)]


def _goals(figures: Json) -> list[Goal]:
    worst_name = max(figures, key=lambda name: max(figures[name]["growths"]))
    return [Goal(figure_name=f"growth of {worst_name}", limit=MAX_GROWTH, measured=max(figures[worst_name]["growths"]))]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="growth of parsers with the length of a text", measure=measure, tables=_tables, goals=_goals)
