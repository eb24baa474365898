"""Scored boxes before suppression, and how they become detections.

A detector gives candidates of a fixed number for all images of a batch, in operations that torch can export. `detect`
and every exported file make detections of them by the same rules.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detdistill.geometry import extents
from detdistill.types import Detections, Layout


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of a batch, M per image.

    boxes: (B, M, 4), clipped to the valid size of their image.
    scores: (B, M), in 0..1. A score of 0 marks a row without a candidate.
    labels: (B, M), integer class indices in the shared class order.
    threshold: only candidates with a higher score become detections.
    nms: of two overlapping candidates of one class, the one with the lower score is dropped if their IoU is above it.
        None: candidates are not suppressed.
    limit: largest number of detections per image.
    classes: number of classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    threshold: float
    nms: float | None
    limit: int
    classes: int

    def detections(self) -> tuple[Detections, ...]:
        """The detections of each image, best first."""
        images = zip(self.boxes, self.scores, self.labels, strict=True)
        return tuple(self._of_image(boxes, scores, labels) for boxes, scores, labels in images)

    def _of_image(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        kept = scores > self.threshold
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        if self.nms is None:
            order = scores.argsort(descending=True, stable=True)
        else:
            order = batched_nms(boxes.float(), scores.float(), labels, self.nms)
        order = order[: self.limit]
        return Detections(boxes[order], scores[order], labels[order])

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same detections in rows of a fixed number D, for export: boxes (B, D, 4), scores (B, D), labels (B, D).

        D is `limit`. Rows after the last detection have a box of zeros, score 0 and label -1.
        """
        scores = torch.where(self.scores > self.threshold, self.scores, 0.0)
        if self.nms is not None:
            scores = suppress(self.boxes, scores, self.labels, self.nms, self.classes)
        scores = F.pad(scores, (0, self.limit))  # so that there are always D rows
        boxes, labels = F.pad(self.boxes, (0, 0, 0, self.limit)), F.pad(self.labels, (0, self.limit))
        best, index = scores.sort(dim=1, descending=True, stable=True)
        best, index = best.narrow(1, 0, self.limit), index.narrow(1, 0, self.limit)  # (B, D)
        is_detection = best > 0
        boxes = torch.where(is_detection[..., None], boxes.gather(1, index[..., None].expand(-1, -1, 4)), 0.0)
        return boxes, best, torch.where(is_detection, labels.gather(1, index), -1)


_is_plain = ContextVar("suppression in operators of torch and torchvision", default=False)


@contextmanager
def plain_suppression() -> Iterator[None]:
    """Inside this context, `suppress` consists of operators of torch and torchvision only, for traces."""
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    """The scores (B, M), 0 for rows that overlap a better row of the same image and class by more than `iou`.

    boxes: (B, M, 4). scores: (B, M). Rows with score 0 suppress nothing. labels: (B, M), in 0..classes-1.
    """
    kept = _plain_suppress if _is_plain.get() else _suppress
    return kept(boxes, scores, labels, iou, classes)


# It is an operation of its own, so that an export can replace it by the suppression of its runtime.
@torch.library.custom_op("detdistill::suppress", mutates_args=())
def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    kept = torch.zeros_like(scores)
    for image, image_scores in enumerate(scores):
        rows = image_scores.nonzero()[:, 0]
        best = batched_nms(boxes[image, rows].float(), image_scores[rows].float(), labels[image, rows], iou)
        kept[image, rows[best]] = image_scores[rows[best]]
    return kept


@_suppress.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    return torch.empty_like(scores)


def _plain_suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    """As `suppress`: boxes of different images and classes are moved apart, so that they don't overlap.

    Double precision, because the moved coordinates are large.
    """
    count = scores.shape[0]
    flat = scores.flatten()
    rows = flat.nonzero()[:, 0]
    groups = (labels + classes * torch.arange(count, device=labels.device)[:, None]).flatten()[rows]
    distance = groups.double() * (boxes.abs().amax().double() + 1) * 2
    moved = boxes.flatten(0, 1)[rows].double() + distance[:, None]
    best = rows[nms(moved, flat[rows].double(), iou)]
    return torch.zeros_like(flat).index_put((best,), flat[best]).view_as(scores)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, M, 4) clipped to the valid (height, width) of their image, (B, 2)."""
    return boxes.clamp(min=0).minimum(extents(sizes).to(boxes.dtype))


def best_first(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best scores of each row of (B, M) and their places, or all M. Equal scores keep their order."""
    best, index = scores.sort(dim=1, descending=True, stable=True)
    size = torch.sym_min(count, scores.shape[1])
    return best.narrow(1, 0, size), index.narrow(1, 0, size)


def objectness(logits: Tensor) -> Tensor:
    """The sigmoid of logits, exact also where it is tiny.

    onnxruntime's sigmoid is 0 below about 1e-6, but proposals are ranked by it and not compared with a threshold.
    """
    return (1 + (-logits).exp()).reciprocal() if torch.compiler.is_exporting() else logits.sigmoid()


def large_boxes(boxes: Tensor, smallest: float) -> Tensor:
    """(B, M) bool: True for boxes (B, M, 4) with both sides of at least `smallest` pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= smallest).all(-1)


def best_pairs(boxes: Tensor, scores: Tensor, layout: Layout, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (prediction, class) pairs of each level, at most `count` per level.

    boxes: (B, N, 4). scores: (B, N, K). Returns boxes (B, M, 4), scores (B, M) and labels (B, M).
    """
    classes = scores.shape[-1]
    levels = []
    for level_boxes, level_scores in zip(boxes.split(layout.counts, 1), scores.split(layout.counts, 1), strict=True):
        pairs = level_scores.flatten(1)  # (B, n K)
        best, index = pairs.topk(torch.sym_min(count, pairs.shape[1]), dim=1)
        rows = (index // classes)[..., None].expand(-1, -1, 4)
        levels.append((level_boxes.gather(1, rows), best, index % classes))
    parts = zip(*levels, strict=True)
    all_boxes, all_scores, all_labels = [torch.cat(part, dim=1) for part in parts]
    return all_boxes, all_scores, all_labels
