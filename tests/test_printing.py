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


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, record=True)


def test_a_table_that_is_too_wide_for_the_terminal_is_turned() -> None:
    columns, rows = ["method", "precision", "deviation", "memory"], [["plain", "1.0", "0.5", "939 MiB"]]
    wide, narrow = terminal(50), terminal(26)
    table(wide, columns, rows)
    table(narrow, columns, rows)
    lines = narrow.export_text().splitlines()
    assert wide.export_text().splitlines()[3].split() == ["│", "plain", "│", "1.0", "│", "0.5", "│", "939", "MiB", "│"]
    assert [line.split()[1] for line in lines[1:2] + lines[3:-1]] == columns
    assert max(map(len, lines)) <= 26 and "…" not in "".join(lines)


def test_a_table_of_many_rows_is_not_turned_and_no_cell_is_cut() -> None:
    narrow = terminal(14)
    table(narrow, ["name", "AP"], [["a", "12345678"], ["b", "2"], ["c", "3"]])
    lines = narrow.export_text().splitlines()
    assert lines[1].split() == ["┃", "name", "┃", "AP", "┃"]
    cells = [line.strip("│").split("│") for line in lines[3:-1]]
    assert "".join(last.strip() for _, last in cells) == "1234567823"


def test_in_a_pipe_the_group_is_the_last_column() -> None:
    text = io.StringIO()
    grouped(Console(file=text, width=80), ["method"], {"first group": [["pkd"]], "second group": [["kd"]]})
    assert text.getvalue().splitlines() == ["method  group", "pkd     first group", "kd      second group"]


def test_a_missing_number_is_a_dash() -> None:
    assert (number(1.25), number(1.25, 2), number(None)) == ("1.2", "1.25", "-")
