"""Which columns of a table fit into a terminal."""

from __future__ import annotations

from executor.cli.table_layout import MIN_FREE_TEXT_WIDTH, columns_that_fit, free_text_widths

WIDTHS = {"id": 4, "fulcrum": 8, "name": 20, "attempt": 3, "error": 300}


def test_without_a_terminal_every_column_has_its_natural_width() -> None:
    assert columns_that_fit(WIDTHS, None) == (list(WIDTHS), None)


def test_free_text_becomes_narrower_before_a_column_is_left_out() -> None:
    assert columns_that_fit(WIDTHS, 80) == (list(WIDTHS), 80)


def test_less_important_columns_are_left_out_first() -> None:
    assert columns_that_fit(WIDTHS, 55)[0] == ["id", "name", "attempt", "error"]
    assert columns_that_fit(WIDTHS, 50)[0] == ["id", "name", "error"]
    assert columns_that_fit(WIDTHS, 28)[0] == ["id", "error"], "an error is left out last"


def test_a_narrow_column_is_shown_in_the_space_of_a_wide_column_that_was_left_out() -> None:
    assert columns_that_fit(WIDTHS, 40)[0] == ["id", "attempt", "error"]
    assert columns_that_fit({"id": 4, "age": 3, "name": 70, "error": 90}, 60)[0] == ["id", "age", "error"]


def test_a_status_is_left_out_last() -> None:
    widths = {"area": 8, "name": 18, "status": 7, "text": 60}
    assert columns_that_fit(widths, 59)[0] == ["area", "name", "status", "text"]
    assert columns_that_fit(widths, 58)[0] == ["area", "status", "text"]
    assert columns_that_fit(widths, 30)[0] == ["area", "status"]


def test_a_column_without_values_is_left_out_first() -> None:
    widths = {"vmid": 6, "name": 30, "state": 8, "note": 4}
    assert columns_that_fit(widths, 55)[0] == ["vmid", "name", "state", "note"]
    assert columns_that_fit(widths, 52, empty_keys=["note"])[0] == ["vmid", "name", "state"]
    assert columns_that_fit(widths, 30, empty_keys=["note"])[0] == ["vmid", "state", "note"]


def test_a_reason_is_left_out_before_the_columns_who_and_verb() -> None:
    widths = {"at": 20, "who": 4, "verb": 6, "subject_kind": 6, "subject_id": 36, "change": 200, "reason": 90}
    assert columns_that_fit(widths, 60)[0] == ["at", "who", "verb", "change"]


def test_free_text_gets_the_rest_of_the_width() -> None:
    shown = ["id", "reason", "error"]
    assert free_text_widths(shown, {"id": 4, "reason": 10, "error": 300}, 80) == {"reason": 10, "error": 62}
    assert free_text_widths(shown, {"id": 4, "reason": 200, "error": 300}, 80) == {"reason": 36, "error": 36}
    assert free_text_widths(shown, {"id": 4, "reason": 200, "error": 300}, 30) == {"reason": 20, "error": 20}


def test_two_columns_stay_even_if_the_terminal_is_too_narrow() -> None:
    shown, width = columns_that_fit(WIDTHS, 10)
    assert shown == ["id", "error"]
    assert width == 4 + MIN_FREE_TEXT_WIDTH + 2
    assert columns_that_fit({"id": 4, "name": 20}, 10) == (["id", "name"], 4 + 20 + 2)
