"""How many images and objects each split and each class has, and what is missing there."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detdistill.data import Data, Split
from detdistill.errors import NAMED, plural
from detdistill.evaluation.coco import health
from detdistill.inspection.findings import Finding, Level
from detdistill.inspection.members import sums

OWN = frozenset({"near_duplicate", "near_duplicate_check_skipped", "extreme_aspect_ratio", "zero_instance_category"})
"""Findings of hotcoco's health check that this package finds by itself, with the names of files and classes."""


@dataclass(frozen=True)
class SplitCounts:
    """The contents of one split.

    crowds: objects that are no training targets. empty: images without objects. parts: the splits that this one
    consists of, if it does.
    """

    images: int
    objects: int
    crowds: int
    empty: int
    parts: tuple[str, ...] = ()


def split_counts(data: Data) -> dict[str, SplitCounts]:
    """The contents of every split."""
    parts = sums(data)
    counts = {}
    for name, split in data.splits.items():
        objects = [int((~record.crowds).sum()) for record in split.records]
        crowds = sum(int(record.crowds.sum()) for record in split.records)
        counts[name] = SplitCounts(len(split), sum(objects), crowds, objects.count(0), parts.get(name, ()))
    return counts


def class_counts(data: Data) -> dict[str, dict[str, int]]:
    """For each class name, its number of objects per split. Crowds are not counted."""
    counts = {}
    for name, split in data.splits.items():
        labels = [record.class_indices[~record.crowds] for record in split.records]
        counts[name] = np.bincount(np.concatenate([*labels, np.empty(0, int)]), minlength=len(data.classes)).tolist()
    return {name: {split: counts[split][index] for split in data.splits} for index, name in enumerate(data.classes)}


def split_findings(
    splits: Mapping[str, Split], classes: Mapping[str, Mapping[str, int]], training: str, evaluation: str | None
) -> list[Finding]:
    """Missing splits, classes without objects in a split, and images without objects."""
    found = []
    if training not in splits:
        text = f"there is no split {training!r}"
        remedy = "name the split to train on with --data.train-split"
        found.append(Finding("no-train-split", "problem", 1, text, remedy=remedy))
    if evaluation is None:
        text = "there is neither a test nor a val split"
        found.append(
            Finding(
                "no-test-split", "problem", 1, text, remedy="keep some images out of the training, for the evaluation"
            )
        )
    for name, split in splits.items():
        missing = [label for label, counts in classes.items() if not counts[name]]
        if missing:
            text = f"{plural(len(missing), 'class has', 'classes have')} no object in {name}"
            remedy = "the detector can't learn them" if name == training else f"their AP on {name} can't be measured"
            level: Level = "problem" if name == training else "warning"
            found.append(Finding("missing-class", level, len(missing), text, tuple(missing[:NAMED]), remedy))
        empty = [record.name for record in split.records if record.crowds.all()]
        if empty:
            text = f"{plural(len(empty), 'image')} of {name} without an object"
            remedy = "they count as background; check that their annotations are not missing"
            found.append(Finding("no-objects", "note", len(empty), text, tuple(empty[:NAMED]), remedy))
    return found


def health_findings(splits: Mapping[str, Split], classes: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    """What hotcoco's health check adds, above all classes with few objects."""
    found = []
    for name, split in splits.items():
        names = dict(zip(split.category_ids, split.classes, strict=True))
        for code, message, ids in health(split.ground_truth()):
            if code in OWN:
                continue
            if code == "low_instance_category":
                rare = [f"{names[id]}: {classes[names[id]][name]}" for id in ids]
                text = f"{plural(len(rare), 'class has', 'classes have')} fewer than 10 objects in {name}"
                remedy = f"their AP on {name} says little"
                found.append(Finding("rare-class", "warning", len(rare), text, tuple(rare[:NAMED]), remedy))
            else:
                found.append(Finding(code, "warning", len(ids), f"{name}: {message}"))
    return found
