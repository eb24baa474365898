"""The similar name in a message."""

import pytest

from detdistill.errors import nearest


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
