"""Ids of files and of records."""

import pytest

from detdistill.data.ids import file_id, id_key, record_ids, with_file_ids, with_record_ids
from detdistill.data.records import Objects, Split


@pytest.mark.parametrize(
    ("value", "id", "key"),
    [
        (3, 3, 3),
        (3.0, 3, 3),
        ("3", "3", 3),
        (" 3 ", " 3 ", 3),
        ("-3", "-3", -3),
        ("03", "03", "03"),
        ("3.0", "3.0", "3.0"),
        ("x", "x", "x"),
        (2**70, 2**70, 2**70),
        (3.5, None, None),
        (float("inf"), None, None),
        (True, None, None),
        (None, None, None),
        ("", None, None),
        ([3], None, None),
    ],
)
def test_what_an_id_is_and_what_its_spellings_share(value, id, key):
    assert (file_id(value), id_key(value)) == (id, key)
    assert type(file_id(value)) is type(id)


def test_records_have_the_ids_of_the_file_where_a_tensor_can_hold_them():
    assert record_ids([7, 0, 2**63 - 1]) == [7, 0, 2**63 - 1]
    for ids in ([7, "a"], [7, -1], [7, 2**63]):
        assert record_ids(ids) == [1, 2]
    assert record_ids([]) == []


def test_results_are_translated_to_the_ids_of_the_file_and_back():
    records = tuple(Objects.empty().to_record(id, "a.png", (2, 2), None) for id in (1, 2, 3))
    for record, id in zip(records[:2], ("a", 1), strict=True):
        object.__setattr__(record, "file_id", id)
    split = Split("train", records)
    results = [{"image_id": id, "score": 0.5} for id in (2, 1, 3)]
    translated = with_file_ids(results, split)
    assert [result["image_id"] for result in translated] == [1, "a", 3]
    assert with_record_ids(translated, split) == results
