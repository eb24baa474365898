"""Which boxes get a positive cell, computed with the assignment that the detector's loss uses."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from detdistill.data.transforms import MIN_SIDE
from detdistill.geometry import atss_assign, centers, fcos_assign, square_anchors
from detdistill.inspection.members import Members
from detdistill.types import MULTIPLE

ANCHOR = 8.0  # side of the anchors of ATSS and GFL in strides; FCOS gives a level the boxes of about this size
SAMPLED = 500  # images on which the assignment is computed

ASSIGNERS: dict[str, tuple[float, Callable[[Sequence[Tensor], Tensor], Tensor]]] = {
    "atss": (ANCHOR, atss_assign),
    "fcos": (1.0, fcos_assign),
}
"""By the name of the assigner: the side of its anchors in strides, and the function that assigns boxes to them."""
HEADS = {"atss": "atss", "gfl": "atss", "fcos": "fcos"}
"""The assigner of each head for which a box may get no positive cell. The other heads match every box."""


def uncovered(
    members: Members, fitted: np.ndarray, strides: Sequence[int], assigners: Sequence[str]
) -> tuple[dict[str, int], int]:
    """By assigner, how many boxes get no positive cell; and for how many boxes this was computed.

    fitted: (images, 2) height and width of the resized images. At most SAMPLED images are used, spread evenly. Boxes
    that training leaves out, because a side is below a pixel, are not counted as uncovered.
    """
    counts = dict.fromkeys(assigners, 0)
    with_boxes = np.unique(members.image)
    picked = with_boxes[np.linspace(0, len(with_boxes) - 1, min(SAMPLED, len(with_boxes)), dtype=int)]
    corners = members.corners * np.tile(resize_factors(members, fitted), 2)[members.image]
    starts = np.searchsorted(members.image, picked, side="left")
    ends = np.searchsorted(members.image, picked, side="right")
    for image, start, end in zip(picked, starts, ends, strict=True):
        boxes = torch.from_numpy(corners[start:end].astype(np.float32))
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) >= MIN_SIDE]
        for name in assigners:
            counts[name] += len(boxes) - _covered(boxes, fitted[image], strides, name)
    return counts, int((ends - starts).sum())


def resize_factors(members: Members, fitted: np.ndarray) -> np.ndarray:
    """(images, 2): the factors that x and y of a box are multiplied by when its image is resized."""
    return (fitted / members.sizes)[:, ::-1]


def _covered(boxes: Tensor, size: np.ndarray, strides: Sequence[int], assigner: str) -> int:
    """How many boxes (G, 4) of an image of (height, width) have a positive cell of their own."""
    side, assign = ASSIGNERS[assigner]
    height, width = (np.ceil(size / MULTIPLE) * MULTIPLE).astype(int).tolist()
    anchors = []
    for stride in strides:
        level = square_anchors(-(-height // stride), -(-width // stride), stride, side).reshape(-1, 4)
        is_inside = (centers(level) < torch.tensor([size[1], size[0]])).all(1)
        anchors.append(level[is_inside])
    matched = assign(anchors, boxes)
    return len(matched[matched >= 0].unique())
