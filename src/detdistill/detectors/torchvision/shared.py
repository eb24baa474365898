"""What the torchvision adapters share: class columns, anchors, targets, and candidates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models import detection as host
from torchvision.models.detection.image_list import ImageList

from detdistill.detectors.candidates import Candidates, best_pairs, clip
from detdistill.detectors.images import normalize
from detdistill.detectors.statistics import pixel_statistics
from detdistill.detectors.towers import separable_tower
from detdistill.distributed import mean_over_processes
from detdistill.geometry import centers
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, Predictions, Pyramid, Targets, required


class ClassColumns(nn.Module):
    """Selects the host's class columns of our classes, in the shared class order.

    columns: the host's column of each class. host_columns: number of the host's columns. They differ for weights
    trained on COCO, which have one column per category id, with gaps.
    The buffer is not saved, because the columns belong to the classes of the run and not to the weights.
    """

    index: Tensor

    def __init__(self, columns: Sequence[int], host_columns: int):
        super().__init__()
        self.register_buffer("index", torch.tensor(list(columns)), persistent=False)
        self.identity = list(columns) == list(range(host_columns))
        self.host_columns = host_columns

    def select(self, logits: Tensor) -> Tensor:
        """Logits (..., host columns) to (..., K)."""
        return logits if self.identity else logits.index_select(-1, self.index)


def edge_predictor(regressor: nn.Conv2d, bins: int) -> nn.Conv2d:
    """A fresh convolution that predicts `bins` logits for each value that `regressor` predicts.

    All bins start nearly alike, so that the expected distance starts at the middle bin.
    """
    kernel = regressor.kernel_size[0]
    layer = nn.Conv2d(regressor.in_channels, regressor.out_channels * bins, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(required(layer.bias))
    return layer


def make_separable(branch: nn.Module, config: ModelConfig) -> None:
    """Give a branch of a one-stage host's head a separable tower, and 1x1 predictors with the same biases, in place.

    See `dense.head.DenseHead` for the reason of the 1x1 predictors.
    """
    branch.conv = separable_tower(config)
    for name, predictor in list(branch.named_children()):
        if isinstance(predictor, nn.Conv2d):
            pointwise = nn.Conv2d(predictor.in_channels, predictor.out_channels, 1)
            nn.init.normal_(pointwise.weight, std=0.01)
            pointwise.bias = predictor.bias
            setattr(branch, name, pointwise)


def host_targets(targets: Targets) -> list[dict[str, Tensor]]:
    """The targets as torchvision's list of dicts. Labels are in the shared class order, as are selected columns."""
    return [{"boxes": boxes, "labels": labels} for boxes, labels in zip(targets.boxes, targets.labels, strict=True)]


def one_stage_candidates(
    model: host.RetinaNet | host.FCOS, stage: Predictions, scores: Tensor, batch: Batch
) -> Candidates:
    """The candidates of a one-stage host, with its thresholds: the best (prediction, class) pairs of each level.

    scores: (B, N, K).
    """
    boxes, pair_scores, labels = best_pairs(stage.boxes, scores, required(stage.layout), model.topk_candidates)
    return Candidates(
        clip(boxes, batch.sizes),
        pair_scores,
        labels,
        threshold=model.score_thresh,
        nms=model.nms_thresh,
        limit=model.detections_per_img,
        classes=scores.shape[-1],
    )


def host_anchors(generator: nn.Module, images: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """The host's anchors (N, 4), the same for every image of the batch, in pixels.

    They must be the host's, because its weights were trained with integer steps (image size // grid size), which differ
    from the nominal strides on coarse levels. The host makes anchors in the precision of the maps, and the 8 bits of a
    bfloat16 can't represent coordinates above 256. It therefore gets empty maps in single precision.
    """
    empty_maps = [level.new_empty((1, 1, *level.shape[-2:]), dtype=torch.float32) for level in levels]
    return generator(ImageList(images, [(images.shape[-2], images.shape[-1])]), empty_maps)[0]


def valid_anchors(anchors: Tensor, sizes: Tensor) -> Tensor:
    """(B, N) bool, True if the anchor's center lies inside the image. The center is the top left corner of its cell.

    anchors: (N, 4). sizes (B, 2): valid (height, width). It is `Layout.valid`, but with the host's steps, which are not
    the nominal strides on coarse levels.
    """
    return (centers(anchors)[None] < sizes[:, None].flip(-1)).all(-1)


def split_anchors(anchors: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Anchors (N, 4) to (H, W, A, 4) per level. levels: the maps, for their sizes."""
    cells = [level.shape[-2] * level.shape[-1] for level in levels]
    per_cell = anchors.shape[0] // sum(cells)
    parts = anchors.split([count * per_cell for count in cells])
    return tuple(part.view(*level.shape[-2:], per_cell, 4) for part, level in zip(parts, levels, strict=True))


def flatten_anchors(level_anchors: Sequence[Tensor]) -> Tensor:
    """Anchors (H, W, A, 4) per level to (N, 4), the inverse of `split_anchors`."""
    return torch.cat([level.reshape(-1, 4) for level in level_anchors])


def host_statistics(config: ModelConfig) -> dict[str, Any]:
    """The arguments of torchvision's detectors for the mean and standard deviation of pixels."""
    mean, std = pixel_statistics(config)
    return {"image_mean": list(mean), "image_std": list(std)}


def host_pyramid(model: host.RetinaNet | host.FCOS, batch: Batch, strides: Sequence[int]) -> Pyramid:
    """The neck's levels of a one-stage host, with the host's normalization and anchors, and the declared strides."""
    images = normalize(batch, model.transform.image_mean, model.transform.image_std)
    levels = tuple(model.backbone(images).values())
    anchors = host_anchors(model.anchor_generator, images, levels)
    return Pyramid(levels, tuple(strides), batch.sizes, split_anchors(anchors, levels))


def unpadded_rows(image_rows: Sequence[Tensor]) -> Tensor:
    """(B, P) bool, False for the rows that `pad_sequence` adds to `image_rows`, a tensor (P_i, ...) per image."""
    masks = [torch.ones(len(rows), dtype=torch.bool, device=rows.device) for rows in image_rows]
    return pad_sequence(masks, batch_first=True)


def scatter_rows(rows: Tensor, valid: Tensor) -> Tensor:
    """Put rows (n, ...) into the n places where `valid` (B, P) is True. Returns (B, P, ...), 0 elsewhere."""
    scattered = rows.new_zeros((*valid.shape, *rows.shape[1:]))
    scattered[valid] = rows
    return scattered


def rescale_to_process_mean(count: int, like: Tensor) -> Tensor:
    """The factor () that turns a mean over `count` local rows into their sum divided by the processes' mean count.

    With it, every process's share of the rows has the same weight. like: gives device and dtype.
    """
    local = like.new_tensor(float(count))
    return local / mean_over_processes(local)
