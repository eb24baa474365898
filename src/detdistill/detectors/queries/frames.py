"""Frames of the boxes of a detector with queries, its learned queries per image, and its candidates.

Relative boxes are cx cy w h in 0..1 of a frame. The frame is the valid area of each image, or the whole padded batch.
Boxes in `Predictions` are always xyxy in pixels of the padded batch.

The frame of DETR, Conditional, Deformable and DAB-DETR is the valid area: their sine embeddings and reference points
are scaled by it, and the published post-processing multiplies by the size of each image. The frame of RT-DETR and
D-FINE is the padded batch, because these detectors ignore padding. The image processors of transformers scale ground
truth to the padded size for all families. For the first four families this does not fit the model if a batch is
padded, so this package does not do it.
"""

import torch
from torch import Tensor

from detdistill.detectors.candidates import Candidates, clip
from detdistill.detectors.images import size_tensor
from detdistill.types import Predictions


def canvas_of(sizes: Tensor, height: int, width: int) -> Tensor:
    """(height, width) of the padded batch as the frame of every image, (B, 2). sizes (B, 2): valid sizes."""
    return size_tensor([height, width], sizes).expand(sizes.shape[0], 2)


def valid_fraction(sizes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """The fraction of the padded batch's width and height that each image fills, (B, 1, 2).

    sizes (B, 2): valid (height, width). canvas: (height, width) of the padded batch.
    """
    return sizes.flip(-1)[:, None] / size_tensor(canvas, sizes).flip(-1)


def to_batch_frame(reference: Tensor, fraction: Tensor) -> Tensor:
    """Points (B, Q, 2) or boxes (B, Q, 4) in 0..1 of the valid area, converted to 0..1 of the padded batch.

    fraction (B, 1, 2): result of `valid_fraction`.
    """
    return reference * fraction.repeat(1, 1, reference.shape[-1] // 2)


def to_valid_frame(reference: Tensor, fraction: Tensor) -> Tensor:
    """The inverse of `to_batch_frame`."""
    return reference / fraction.repeat(1, 1, reference.shape[-1] // 2)


def expand_queries(embeddings: Tensor, count: int) -> Tensor:
    """Learned queries (Q, D) repeated for each of `count` images: (count, Q, D).

    Under no_grad the result is detached. A view of a parameter would still have requires_grad there, and torch's FLOP
    counter fails on a tensor that requires a gradient but has no graph.
    """
    learned = embeddings if torch.is_grad_enabled() else embeddings.detach()
    return learned.expand(count, -1, -1)


def best_queries(stage: Predictions, sizes: Tensor, count: int, threshold: float) -> Candidates:
    """The `count` highest scores over all (query, class) pairs of each image, best first.

    Boxes are clipped to the valid sizes (B, 2). With sigmoids one query can give detections of several classes. With
    softmax a query gives a detection of its best class only, as published. threshold: see `Candidates`.
    """
    scores = stage.scores()
    classes = scores.shape[-1]
    if stage.activation == "softmax":
        scores = torch.where(scores == scores.amax(-1, keepdim=True), scores, 0.0)
    best, index = scores.flatten(1).topk(torch.sym_min(count, scores.shape[1] * classes), dim=1)  # (B, count)
    boxes = clip(stage.boxes, sizes).gather(1, (index // classes)[..., None].expand(-1, -1, 4))
    return Candidates(boxes, best, index % classes, threshold=threshold, nms=None, limit=count, classes=classes)
