"""Words of messages: the similar name, the plural, the first of many names."""

import pytest

from detdistill.errors import nearest, one_line, plural, some


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("pdk", "; did you mean 'pkd'?"),
        ("crosskdd", "; did you mean 'crosskd'?"),
        ("mobilenetv2_053", "; did you mean 'mobilenetv2_035'?"),
        ("zebra", ""),
    ],
)
def test_the_most_similar_name_is_suggested_with_swapped_characters_first(word: str, expected: str):
    assert nearest(word, ["pkt", "pkd", "crosskd", "crosskd_roi", "mobilenetv2_075", "mobilenetv2_035"]) == expected


def test_the_plural_depends_on_the_count() -> None:
    assert [plural(1, "box", "boxes"), plural(2, "box", "boxes"), plural(0, "image")] == [
        "1 box",
        "2 boxes",
        "0 images",
    ]
    assert [plural(2, "class"), plural(2, "process"), plural(2, "class has", "classes have")] == [
        "2 classes",
        "2 processes",
        "2 classes have",
    ]


def test_only_the_first_names_are_named() -> None:
    assert some(["a"]) == "a"
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some("abc", most=1) == "a and 2 more"


def test_a_message_becomes_one_line() -> None:
    assert one_line(ValueError("a  b\n c")) == "a b c"
    assert one_line(ValueError("abcdef"), 3) == "abc"
    assert one_line(ValueError()) == "ValueError"
