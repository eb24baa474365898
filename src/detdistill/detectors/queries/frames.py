"""A set predictor's boxes are cx cy w h in 0..1 of a frame: each image's valid area, or the whole padded batch. Ours are xyxy in pixels.

DETR, Conditional, Deformable and DAB-DETR find positions relative to the valid area (their sine embeddings and reference points are scaled
by it, and their published post-processing multiplies by the image's own size). RT-DETR and D-FINE know no padding: their frame is the
padded batch. (The image processors of transformers scale ground truth to the padded size for all; that disagrees with the former as soon as
a batch is padded, and is not followed here.)
"""

import torch
from torch import Tensor

from detdistill.geometry import extents, to_pixels, to_relative
from detdistill.types import Detections, Predictions

__all__ = ["canvas_of", "extents", "spread", "to_pixels", "to_relative", "top_detections"]


def canvas_of(sizes: Tensor, height: int, width: int) -> Tensor:
    """(B, 2): the padded batch as the frame of every image."""
    return sizes.new_tensor([height, width]).expand(len(sizes), 2)


def spread(embeddings: Tensor, count: int) -> Tensor:
    """Learned queries (Q, D) for each of `count` images (count, Q, D). Where no graph is recorded, without the wish for a gradient: a view of a
    parameter keeps it under no_grad too, and torch's counter of operations stops at a tensor that has the wish and no graph."""
    learned = embeddings if torch.is_grad_enabled() else embeddings.detach()
    return learned.expand(count, -1, -1)


def top_detections(stage: Predictions, sizes: Tensor, count: int, threshold: float) -> tuple[Detections, ...]:
    """The `count` best of all queries x classes (a query may answer for several classes), those above `threshold`, clipped, best first.

    With softmax a query answers for its best class alone, as published.
    """
    scores = stage.scores()
    if stage.activation == "softmax":
        scores = torch.where(scores == scores.amax(-1, keepdim=True), scores, -1.0)
    best, index = scores.flatten(1).topk(min(count, scores[0].numel()), dim=1)
    queries, labels = index // scores.shape[-1], index % scores.shape[-1]
    boxes = stage.boxes.clamp(min=0).minimum(extents(sizes)).gather(1, queries[..., None].expand(-1, -1, 4))
    kept = best > threshold
    return tuple(
        Detections(box[keep], score[keep], label[keep])
        for box, score, label, keep in zip(boxes, best, labels, kept, strict=True)
    )
