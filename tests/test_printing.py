"""Tables in text, and numbers in them."""

import io

from rich.console import Console

from detdistill.printing import grouped, number, table


def test_in_a_pipe_a_table_has_one_aligned_line_per_row() -> None:
    text = io.StringIO()
    rows = [["pkd", "9.5", "a long explanation that is not wrapped"], ["crosskd", "10.25", "short"]]
    table(Console(file=text, width=20, soft_wrap=True), ["method", "AP", "note"], rows)
    assert text.getvalue().splitlines() == [
        "method      AP  note",
        "pkd        9.5  a long explanation that is not wrapped",
        "crosskd  10.25  short",
    ]


def test_in_a_pipe_the_group_is_the_last_column() -> None:
    text = io.StringIO()
    grouped(Console(file=text, width=80), ["method"], {"first group": [["pkd"]], "second group": [["kd"]]})
    assert text.getvalue().splitlines() == ["method  group", "pkd     first group", "kd      second group"]


def test_a_missing_number_is_a_dash() -> None:
    assert (number(1.25), number(1.25, 2), number(None)) == ("1.2", "1.25", "-")
