"""Reading the output of runs from a position: each line is read once, whatever the sizes of the pieces."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from executor.web.pages import output_reader
from executor.web.pages.charts import percentile
from executor.web.pages.output_reader import OutputReader, RunOutput


def _output(file: Path, *, ident: str = "run-1", has_run_ended: bool = False) -> RunOutput:
    return RunOutput(ident=ident, file=file, has_run_ended=has_run_ended)


def test_an_incomplete_line_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "stdout"
    file.write_text("one\ntw")
    reader = OutputReader()
    assert [text.text for text in reader.read([_output(file)])] == ["one\n"]
    assert reader.read([_output(file)]) == []
    file.write_text("one\ntwo\nend")
    assert [text.text for text in reader.read([_output(file)])] == ["two\n"]
    assert not reader.has_read_all_outputs
    assert [text.text for text in reader.read([_output(file, has_run_ended=True)])] == ["end"]
    assert reader.has_read_all_outputs


def test_after_the_end_of_a_run_the_next_run_is_read(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("first\n")
    second.write_text("second\n")
    reader = OutputReader("run-1:0")
    outputs = [_output(first, has_run_ended=True), _output(second, ident="run-2")]
    assert [(text.ident, text.text) for text in reader.read(outputs)] == [("run-1", "first\n"), ("run-2", "second\n")]


def test_without_a_position_the_newest_run_is_read(tmp_path: Path) -> None:
    file = tmp_path / "2"
    file.write_text("second\n")
    outputs = [_output(tmp_path / "1", has_run_ended=True), _output(file, ident="run-2")]
    assert [text.position for text in OutputReader().read(outputs)] == ["run-2:7"]


def test_a_run_whose_output_is_on_another_machine_is_reported(tmp_path: Path) -> None:
    reader = OutputReader()
    assert reader.read([RunOutput(ident="run-1", file=None, has_run_ended=True)]) == []
    assert reader.run_ident_with_missing_output == "run-1"
    assert reader.read([_output(tmp_path / "not-written-yet")]) == []
    assert reader.run_ident_with_missing_output == ""


@given(parts=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=40), max_size=12))
def test_pieces_of_any_size_make_up_the_whole_output(parts: list[str]) -> None:
    """A new reader reads each piece from the last position, as after a lost connection."""

    content = "\n".join(parts)
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(content.encode())
        stream.flush()
        text_read, position = "", ""
        while True:
            reader = OutputReader(position)
            texts = reader.read([_output(Path(stream.name), has_run_ended=True)])
            if not texts:
                break
            text_read += "".join(text.text for text in texts)
            position = texts[-1].position
    assert text_read == content
    assert reader.has_read_all_outputs


def test_a_line_that_is_too_long_for_one_event_is_sent_in_parts(tmp_path: Path) -> None:
    file = tmp_path / "stdout"
    content = "ä€" * output_reader.MAX_EVENT_BYTES
    file.write_text(content, encoding="utf-8")
    texts = OutputReader().read([_output(file, has_run_ended=True)])
    assert len(texts) > 1
    assert "".join(text.text for text in texts) == content


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([], 50) is None
    assert [percentile(list(range(1, 101)), percent) for percent in (50, 90, 99, 100)] == [50, 90, 99, 100]
