"""Text files of any encoding and with any line ends."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detdistill.text import decode, read_lines, read_text

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(end.join(["red cell", "  plate ", "", "über"]).encode(encoding))
    assert read_lines(path) == ["red cell", "plate", "über"]
    assert read_text(path).startswith("red cell")


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00\ufeff"), max_size=40))
def test_utf8_and_marked_utf16_come_back(text: str) -> None:
    assert decode(text.encode("utf-8")) == text
    assert decode(text.encode("utf-16")) == text


def test_a_line_separator_stays_inside_a_name(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("a\u2028b.jpg\nc.jpg\n", encoding="utf-8")
    assert read_lines(path) == ["a\u2028b.jpg", "c.jpg"]


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9\nb")
    assert read_lines(path) == ["caf\ufffd", "b"]
    with pytest.raises(UnicodeDecodeError):
        read_text(path)
