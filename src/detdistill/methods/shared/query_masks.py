"""Where on a teacher's map its queries look: the masks of DETRDistill's feature part (arXiv:2211.10156)."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detdistill.losses import paired_iou, query_similarity
from detdistill.types import Predictions, Targets, required

BEST = 100  # (query, class) pairs that the published code keeps
FLOOR = 0.01  # of its mask


def query_quality(stage: Predictions, scores: Tensor, targets: Targets, gamma: float | None) -> Tensor:
    """c^gamma IoU^(1 - gamma) of each query, c IoU where gamma is None: (B, M). scores (B, M): c. IoU: with the best ground truth of any class; where
    an image has none, IoU counts as 1."""
    truths = pad_sequence(list(targets.boxes), batch_first=True)  # (B, G, 4)
    if truths.shape[1] == 0:
        overlap = torch.ones_like(scores)
    else:
        overlap = paired_iou(stage.boxes.detach()[:, :, None], truths[:, None]).amax(-1)
        empty = torch.tensor([len(boxes) == 0 for boxes in targets.boxes], device=scores.device)
        overlap = torch.where(empty[:, None], 1.0, overlap)
    return scores * overlap if gamma is None else scores**gamma * overlap ** (1 - gamma)


def query_mask(features: Tensor, stage: Predictions, targets: Targets, gamma: float | None) -> Tensor:
    """Mean over queries of q <F, Q>^2, (B, H, W): the paper's masks, one a query, squared and averaged. features (B, D, H, W): the teacher's."""
    scores = stage.scores().detach().amax(-1)
    quality = query_quality(stage, scores, targets, gamma)
    squares = query_similarity(features, required(stage.embeddings).detach()).square()  # (B, M, H, W)
    return (quality[..., None, None] * squares).mean(1)


def aggregated_mask(
    features: Tensor, stage: Predictions, targets: Targets, gamma: float | None, valid: Tensor
) -> Tensor:
    """The square of the sum over the best (query, class) of q cos(F, Q), at least 0.01 and divided by its maximum over the image's valid cells,
    (B, H, W): the released code's one mask. valid (B, H, W)."""
    scores = stage.scores().detach()
    best, index = scores.flatten(1).topk(min(BEST, scores[0].numel()), dim=1)
    rows = index // scores.shape[-1]  # (B, 100)
    quality = query_quality(stage, torch.ones_like(scores[..., 0]), targets, None).gather(1, rows)  # the IoU alone
    quality = best * quality if gamma is None else best**gamma * quality ** (1 - gamma)
    weights = torch.zeros_like(scores[..., 0]).scatter_add_(
        1, rows, quality
    )  # a query is there once for each of its classes
    cosines = query_similarity(features, required(stage.embeddings).detach(), cosine=True)
    mask = (weights[..., None, None] * cosines).sum(1).clamp(min=FLOOR)
    return (mask / (mask * valid).amax((1, 2), keepdim=True).clamp(min=FLOOR)).square()
