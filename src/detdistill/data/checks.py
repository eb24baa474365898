"""Checks of data sets of any layout, after reading: repeated objects, classes without objects, images in two splits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from detdistill.data.faults import Faults, names_of
from detdistill.data.records import Contents, Record
from detdistill.data.roles import role
from detdistill.errors import plural, some

Splits = Mapping[str, Sequence[Record]]


def without_repetitions(splits: Splits, faults: Faults) -> dict[str, tuple[Record, ...]]:
    """The splits, with objects of the same class and the same box counted once. Each repetition is told as a repair."""
    checked: dict[int, Record] = {}  # a record may be in several splits
    for records in splits.values():
        for record in records:
            if id(record) not in checked:
                checked[id(record)] = _without_repetitions(record, faults)
    return {name: tuple(checked[id(record)] for record in records) for name, records in splits.items()}


def class_notes(contents: Contents, splits: Splits) -> list[str]:
    """Notes about classes without objects, and about classes whose objects are all crowds or difficult."""
    counts, plain = np.zeros(len(contents.classes), dtype=int), np.zeros(len(contents.classes), dtype=int)
    for records in splits.values():
        for record in records:
            np.add.at(counts, record.class_indices, 1)
            np.add.at(plain, record.class_indices[~record.crowds], 1)
    empty = [name for name, count in zip(contents.classes, counts, strict=True) if count == 0]
    crowds = [
        name for name, count, some in zip(contents.classes, counts, plain, strict=True) if count > 0 and some == 0
    ]
    notes = []
    if empty:
        notes.append(f"{plural(len(empty), 'class')} without objects: {some(empty)}")
    if crowds:
        notes.append(
            f"{plural(len(crowds), 'class')} whose objects are all crowds or difficult, so neither learned nor "
            f"measured: {some(crowds)}"
        )
    return notes


def shared_notes(splits: Splits) -> list[str]:
    """A note for each two splits of different roles that have images in common."""
    notes = []
    sources = {
        name: {str(record.path) for record in records if record.path is not None}
        for name, records in splits.items()
        if role(name) is not None
    }
    for first, second in combinations(sources, 2):
        shared = sources[first] & sources[second]
        if shared and role(first) != role(second):
            names = names_of(sorted(shared))
            notes.append(f"{plural(len(shared), 'image')} of {first} also in {second} ({names})")
    return notes


def _without_repetitions(record: Record, faults: Faults) -> Record:
    """The record without objects that repeat an earlier one."""
    if len(record.corners) < 2:
        return record
    rows = np.column_stack([record.class_indices, record.crowds, record.corners])
    _, first = np.unique(rows, axis=0, return_index=True)
    if len(first) == len(rows):
        return record
    for index in sorted(set(range(len(rows))) - set(first.tolist())):
        faults.repair(record.name, "repeated", f"object {index + 1}")
    kept = np.sort(first)
    names = ("corners", "class_indices", "crowds", "areas")
    return replace(record, **{name: getattr(record, name)[kept] for name in names})
