"""The comparison of an exported file with the detector that it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.evaluation.evaluate import evaluating
from detdistill.exporting.card import ExportCard
from detdistill.types import Batch, Detections, Detector

GRAY = 127  # of the picture without any object


@dataclass(frozen=True)
class Tolerance:
    """How far two equal detections may be apart.

    score: of a detection. box: of a coordinate, in pixels. alone: share of the detections that may have no partner,
    because rounding decides which of two overlapping boxes is suppressed.
    """

    score: float
    box: float
    alone: float


TOLERANCES = {
    "fp32": Tolerance(score=1e-3, box=0.1, alone=0.01),
    "fp16": Tolerance(score=0.03, box=2.0, alone=0.05),
    "int8": Tolerance(score=0.1, box=4.0, alone=1.0),  # only reported
}


@dataclass(frozen=True)
class Difference:
    """The result of a comparison, summed over images.

    detections: number of detections of both sides. alone: of them, without a partner on the other side. score, box:
    the largest difference of two partners.
    """

    detections: int = 0
    alone: int = 0
    score: float = 0.0
    box: float = 0.0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.detections + other.detections,
            self.alone + other.alone,
            max(self.score, other.score),
            max(self.box, other.box),
        )

    def fits(self, tolerance: Tolerance) -> bool:
        """True if the two sides count as equal."""
        return self.alone <= tolerance.alone * self.detections

    def text(self) -> str:
        """The result in words."""
        if not self.detections:
            return "no detections on either side"
        return (
            f"{self.detections - self.alone} of {self.detections} detections have an equal partner (largest "
            f"difference: score {self.score:.1g}, box {self.box:.1g} pixels)"
        )


def compare(
    detector: Detector, exported: Detector, batches: Sequence[Tensor], card: ExportCard, tolerance: Tolerance
) -> Difference:
    """The difference of the detections of both on images.

    batches: each (B, 3, H, W) uint8, without padding.
    """
    total = Difference()
    with evaluating(detector), torch.no_grad():
        for images in batches:
            batch = padded(images, card)
            pairs = zip(detector.detect(batch), exported.detect(batch), strict=True)
            for own, other in pairs:
                total += difference(own, other, card, tolerance)
    return total


def difference(own: Detections, other: Detections, card: ExportCard, tolerance: Tolerance) -> Difference:
    """Pair the detections of two sides, best first, and count those without a partner.

    Partners have the same label, and a score and a box within the tolerance. A detection without a partner is not
    counted if its score is near the lowest one that the other side could return: rounding may have put it below.
    """
    distance = torch.cdist(own.boxes.float(), other.boxes.float(), p=float("inf"))  # (n, m)
    scores = (own.scores[:, None] - other.scores).abs()
    equal = (distance <= tolerance.box) & (scores <= tolerance.score) & (own.labels[:, None] == other.labels)
    distance = distance.masked_fill(~equal, float("inf"))
    partner = torch.full((len(own.scores),), -1)
    for row in range(len(own.scores)):
        if len(other.scores) and distance[row].min() < float("inf"):
            partner[row] = distance[row].argmin()
            distance[:, partner[row]] = float("inf")
    paired = partner >= 0
    is_taken = torch.zeros(len(other.scores), dtype=torch.bool)
    is_taken[partner[paired]] = True
    lone_scores = [(own.scores[~paired], other), (other.scores[~is_taken], own)]
    alone = sum(int((lone > _lowest(side, card) + tolerance.score).sum()) for lone, side in lone_scores)
    if not paired.any():
        return Difference(len(own.scores) + len(other.scores), alone)
    columns = partner[paired]
    return Difference(
        detections=len(own.scores) + len(other.scores),
        alone=alone,
        score=float(scores[paired.nonzero()[:, 0], columns].max()),
        box=float((own.boxes[paired] - other.boxes[columns]).abs().max()),
    )


def _lowest(side: Detections, card: ExportCard) -> float:
    """The lowest score that a side returns: its threshold, or that of its last detection if it has no place left."""
    is_full = len(side.scores) >= card.detections
    return max(card.threshold, float(side.scores.min())) if is_full else card.threshold


def sample_batches(images: Sequence[Tensor]) -> list[Tensor]:
    """Batches for a comparison: each image alone, three together, and a gray picture without any object.

    images: at least three, (3, H, W) uint8. Those of the batch of three are cut to a common size.
    """
    height, width = (min(image.shape[axis] for image in images[:3]) for axis in (1, 2))
    three = torch.stack([image[:, :height, :width] for image in images[:3]])
    return [*(image[None] for image in images), three, torch.full_like(three[:1], GRAY)]


def padded(images: Tensor, card: ExportCard) -> Batch:
    """A batch of images (B, 3, H, W) of one size, padded as the exported file pads them."""
    height, width = images.shape[-2:]
    rows, columns = card.padded_size(height, width)
    sizes = torch.tensor([[height, width]]).expand(len(images), 2)
    canvas = F.pad(images, (0, columns - width, 0, rows - height))
    return Batch(canvas, sizes, sizes, torch.arange(len(images)), ())


class Alone(nn.Module):
    """A detector that gets every image alone, padded as the exported file pads it. For an AP that is comparable."""

    def __init__(self, detector: Any, card: ExportCard):
        super().__init__()
        self.detector, self.card, self.info = detector, card, detector.info

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`."""
        found: list[Detections] = []
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True):
            found += self.detector.detect(padded(image[None, :, :height, :width], self.card))
        return tuple(found)
