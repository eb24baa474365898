"""Ids in the files of a data set: whole numbers or texts. Records have whole numbers that fit into a tensor."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from detdistill.data.records import Split

LIMIT = 2**63  # an id of a record is smaller than this and not negative
NUMBER = re.compile(r"0|-?[1-9]\d{0,99}")


def file_id(value: object) -> int | str | None:
    """The id that an entry of a file has, or None if it is neither a whole number nor a text. 3.0 is 3."""
    if type(value) is int:  # not a boolean
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str) and value.strip() else None


def id_key(value: object) -> int | str | None:
    """What all spellings of an id have in common, or None if it is no id: 3, 3.0 and "3" are the same id."""
    if type(value) is int:
        return value
    id = file_id(value)
    if isinstance(id, str):
        text = id.strip()
        return int(text) if NUMBER.fullmatch(text) else text
    return id


def record_ids(ids: Sequence[int | str]) -> list[int]:
    """The ids of the records of a split: the file's own if all can be ids of records, and otherwise 1, 2, ..."""
    own = [id for id in ids if isinstance(id, int) and 0 <= id < LIMIT]
    return own if len(own) == len(ids) else list(range(1, len(ids) + 1))


def with_file_ids(results: Sequence[Mapping[str, Any]], split: Split) -> list[dict[str, Any]]:
    """COCO results with the image ids of the files in place of the records' own."""
    return _renamed(results, {record.id: record.file_id for record in split.records if record.file_id is not None})


def with_record_ids(results: Sequence[Mapping[str, Any]], split: Split) -> list[dict[str, Any]]:
    """COCO results with the ids of the records in place of the files' own: the reverse of `with_file_ids`."""
    return _renamed(results, {record.file_id: record.id for record in split.records if record.file_id is not None})


def _renamed(results: Sequence[Mapping[str, Any]], ids: Mapping[Any, int | str]) -> list[dict[str, Any]]:
    return [{**result, "image_id": ids.get(result["image_id"], result["image_id"])} for result in results]
