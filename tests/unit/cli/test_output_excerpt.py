"""The excerpt of a run's output that is stored in the database."""

from __future__ import annotations

from executor.cli.output_excerpt import MAX_HEAD_LENGTH, MAX_LINE_LENGTH, MAX_TAIL_LENGTH, OutputExcerpt


def test_a_short_output_is_complete() -> None:
    excerpt = OutputExcerpt()
    for line in ("PLAY [x]", "", "ok: [proxmox]"):
        excerpt.add(line)
    assert excerpt.text() == "PLAY [x]\n\nok: [proxmox]\n"


def test_the_excerpt_of_a_long_output_has_its_beginning_and_its_end() -> None:
    excerpt = OutputExcerpt()
    count = 20_000
    for number in range(count):
        excerpt.add(f"line {number}")
    lines = excerpt.text().splitlines()
    note = next(line for line in lines if line.endswith(" lines omitted]"))
    kept_numbers = [int(line.removeprefix("line ")) for line in lines if line != note]
    left_out_count = int(note.split()[0].removeprefix("["))
    assert kept_numbers == sorted(kept_numbers)
    assert (kept_numbers[0], kept_numbers[-1]) == (0, count - 1)
    assert len(kept_numbers) + left_out_count == count
    assert len(excerpt.text()) <= MAX_HEAD_LENGTH + MAX_TAIL_LENGTH + len(note) + 1


def test_a_long_line_is_cut() -> None:
    excerpt = OutputExcerpt()
    for _number in range(100):
        excerpt.add("x" * 1_000_000)
    assert len(excerpt.text()) <= MAX_HEAD_LENGTH + MAX_TAIL_LENGTH + 100
    assert set(map(len, excerpt.text().splitlines())) >= {MAX_LINE_LENGTH}


def test_the_text_is_returned_once_until_a_line_is_added() -> None:
    excerpt = OutputExcerpt()
    assert excerpt.text_if_changed() is None
    excerpt.add("one")
    assert [excerpt.text_if_changed(), excerpt.text_if_changed()] == ["one\n", None]
    excerpt.add("two")
    assert excerpt.text_if_changed() == "one\ntwo\n"
