"""DETRDistill's masks: weights of the cells of a teacher map, from the teacher's queries (arXiv:2211.10156)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detdistill.geometry import focal_masks
from detdistill.losses import paired_iou, query_similarity
from detdistill.methods.shared.levels import Level
from detdistill.types import Predictions, Targets, required

Mask = Literal["query", "aggregated", "box", "off"]
BEST = 100  # number of (query, class) pairs that the released code keeps
FLOOR = 0.01  # lowest value of the released code's mask


def feature_mask(
    mask: Mask,
    gamma: float | None,
    level: Level,
    stages: Sequence[Predictions],
    targets: Targets,
    sizes: Tensor,
    valid: Tensor,
) -> Tensor:
    """The factor of each cell in the feature term, (B, H, W).

    mask, gamma: options of `DETRDistillConfig`. stages: the teacher's, on the shared classes; not read for `box` and
    `off`. sizes (B, 2): of the images. valid (B, H, W): cells inside their image.
    """
    if mask == "off":
        return torch.ones_like(level.teacher[:, 0])  # (B, C, H, W) -> (B, H, W)
    if mask == "box":
        rows, columns = level.teacher.shape[-2:]
        foreground, _ = focal_masks(targets.boxes, (rows, columns), level.stride, sizes)
        return (foreground > 0).to(level.teacher)
    if mask == "query":
        return query_mask(level.teacher, stages[-1], targets, gamma)
    masks = [aggregated_mask(level.teacher, stage, targets, gamma, valid) for stage in stages]
    return torch.stack(masks).sum(0)


def query_mask(features: Tensor, stage: Predictions, targets: Targets, gamma: float | None) -> Tensor:
    """The paper's masks <F, Q>, one per query: mean over queries of q <F, Q>^2, (B, H, W). features F (B, D, H, W)."""
    scores = stage.scores().detach().amax(-1)  # (B, M, K) -> (B, M)
    quality = query_quality(scores, best_iou(stage, targets), gamma)
    squares = query_similarity(features, required(stage.embeddings).detach()).square()  # (B, M, H, W)
    return (quality[..., None, None] * squares).mean(1)


def aggregated_mask(
    features: Tensor, stage: Predictions, targets: Targets, gamma: float | None, valid: Tensor
) -> Tensor:
    """The released code's mask, (B, H, W): the square of the sum over the best (query, class) pairs of q cos(F, Q).

    Before it is squared, the sum is raised to at least 0.01 and divided by its maximum over the image's valid cells.
    features F (B, D, H, W). valid (B, H, W).
    """
    scores = stage.scores().detach()  # (B, M, K)
    best_scores, index = scores.flatten(1).topk(min(BEST, scores[0].numel()), dim=1)  # (B, M K) -> (B, 100)
    queries = index // scores.shape[-1]  # (B, 100)
    quality = query_quality(best_scores, best_iou(stage, targets).gather(1, queries), gamma)
    # A query is added once for each of its classes among the best.
    weights = torch.zeros_like(scores[..., 0]).scatter_add_(1, queries, quality)  # (B, 100) -> (B, M)
    cosines = query_similarity(features, required(stage.embeddings).detach(), cosine=True)  # (B, M, H, W)
    mask = (weights[..., None, None] * cosines).sum(1).clamp(min=FLOOR)  # (B, H, W)
    return (mask / (mask * valid).amax((1, 2), keepdim=True).clamp(min=FLOOR)).square()


def query_quality(scores: Tensor, overlap: Tensor, gamma: float | None) -> Tensor:
    """score^gamma IoU^(1 - gamma), or score * IoU if gamma is None. Both inputs and the result have the same shape."""
    return scores * overlap if gamma is None else scores**gamma * overlap ** (1 - gamma)


def best_iou(stage: Predictions, targets: Targets) -> Tensor:
    """IoU of each query's box with the best ground truth of any class, (B, M). 1 for images without ground truth."""
    truths = pad_sequence(list(targets.boxes), batch_first=True)  # (B, G, 4)
    boxes = stage.boxes.detach()
    if truths.shape[1] == 0:
        return torch.ones_like(boxes[..., 0])
    overlap = paired_iou(boxes[:, :, None], truths[:, None]).amax(-1)  # (B, M, G) -> (B, M)
    is_empty = torch.tensor([len(image_boxes) == 0 for image_boxes in targets.boxes], device=boxes.device)
    return torch.where(is_empty[:, None], 1.0, overlap)
