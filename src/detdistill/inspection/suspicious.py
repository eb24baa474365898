"""Boxes that are probably mistakes: too thin, as large as the image, there twice, or of an unusual size."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torchvision.ops import box_iou

from detdistill.errors import NAMED, plural
from detdistill.inspection.findings import Finding, Level
from detdistill.inspection.members import Members

THIN = 2.0  # pixels of the file
SLENDER = 20.0  # ratio of the longer to the shorter side
WHOLE = 0.95  # share of the image
TWICE = 0.9  # IoU of two boxes of one class
SAME = 0.5  # pixels by which the corners of equal boxes may differ
USUAL = 20  # boxes from which on a class has a usual size
FACTOR, DEVIATIONS = 4.0, 6.0  # an outlier is beyond both: times the median side, and robust standard deviations


def suspicious(members: Members) -> list[Finding]:
    """The findings about the boxes of a data set. Crowds are not looked at."""
    twice, two_classes = _pairs(members)
    found = [
        _boxes(members, _thin(members), "thin", f"thinner than {THIN:g} pixels", "correct or remove them"),
        _boxes(
            members,
            _slender(members),
            "slender",
            f"more than {SLENDER:g} times as long as wide",
            "check that no corners are mixed up",
        ),
        _boxes(
            members,
            _whole(members),
            "whole-image",
            f"larger than {100 * WHOLE:g} % of the image",
            "check that these are objects, and not labels of whole images",
        ),
        _boxes(
            members,
            _outliers(members),
            "unusual-size",
            f"more than {FACTOR:g} times larger or smaller than the median of the class",
            "check class and corners",
        ),
        _couples(members, twice, "twice", "of one class overlap almost completely", "remove one of each pair"),
        _couples(
            members, two_classes, "two-classes", "are the same box with two classes", "remove the wrong one", "problem"
        ),
    ]
    return [finding for finding in found if finding is not None]


def _thin(members: Members) -> np.ndarray:
    return members.sides.min(1) < THIN


def _slender(members: Members) -> np.ndarray:
    sides = members.sides
    return (sides.max(1) > SLENDER * sides.min(1)) & ~_thin(members)


def _whole(members: Members) -> np.ndarray:
    return members.sides.prod(1) > WHOLE * members.sizes.prod(1)[members.image]


def _outliers(members: Members) -> np.ndarray:
    """(N,) True for a box whose side, relative to its image, is far from the median of its class."""
    relative = members.sides.prod(1) / members.sizes.prod(1)[members.image]
    sides = np.log(np.maximum(relative, 1e-12)) / 2
    is_outlier = np.zeros(len(sides), dtype=bool)
    for label in range(len(members.classes)):
        chosen = members.labels == label
        if chosen.sum() < USUAL:
            continue
        distances = np.abs(sides[chosen] - np.median(sides[chosen]))
        deviation = 1.4826 * np.median(distances)  # the standard deviation of a normal distribution with this median
        is_outlier[chosen] = distances > max(np.log(FACTOR), DEVIATIONS * deviation)
    return is_outlier & ~_thin(members)  # a thin box is found already


def _pairs(members: Members) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The pairs of boxes of one class that overlap almost completely, and the equal boxes of different classes."""
    twice, two_classes = [], []
    for boxes in _by_image(members):
        corners, labels = members.corners[boxes], members.labels[boxes]
        first, second = np.triu_indices(len(boxes), 1)
        same_class = labels[first] == labels[second]
        overlaps = box_iou(torch.from_numpy(corners), torch.from_numpy(corners)).numpy()
        for one, other in np.argwhere(np.triu(overlaps > TWICE, 1)):
            if labels[one] == labels[other]:
                twice.append((int(boxes[one]), int(boxes[other])))
        same_box = np.abs(corners[first] - corners[second]).max(1) <= SAME
        for index in np.flatnonzero(same_box & ~same_class):
            two_classes.append((int(boxes[first[index]]), int(boxes[second[index]])))
    return twice, two_classes


def _by_image(members: Members) -> Iterator[np.ndarray]:
    """The indices of the boxes of each image that has several. The boxes are in the order of their images."""
    ends = np.searchsorted(members.image, np.arange(len(members.records)), side="right")
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        if end - start > 1:
            yield np.arange(start, end)


def _boxes(members: Members, chosen: np.ndarray, kind: str, what: str, remedy: str) -> Finding | None:
    """A finding about single boxes, or None if `chosen` (N,) has none."""
    indices = np.flatnonzero(chosen)
    if not len(indices):
        return None
    count = len(indices)
    verb = "is" if count == 1 else "are"
    text = f"{plural(count, 'box', 'boxes')} {verb} {what}"
    return Finding(kind, "warning", count, text, _described(members, indices), remedy)


def _couples(
    members: Members, pairs: list[tuple[int, int]], kind: str, what: str, remedy: str, level: Level = "warning"
) -> Finding | None:
    """A finding about pairs of boxes, or None if there are none."""
    if not pairs:
        return None
    examples = []
    for one, other in pairs[:NAMED]:
        examples.append(f"{members.describe(one)} and {members.describe(other).split(': ', 1)[1]}")
    return Finding(kind, level, len(pairs), f"{plural(len(pairs), 'pair')} of boxes {what}", tuple(examples), remedy)


def _described(members: Members, boxes: Iterable[int]) -> tuple[str, ...]:
    return tuple(members.describe(int(box)) for box in list(boxes)[:NAMED])
