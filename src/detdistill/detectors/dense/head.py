"""What ATSS and GFL share: anchors, assignment, towers, predictors with one scale per level, and candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detdistill.detectors.backbone import group_norm
from detdistill.detectors.candidates import Candidates, best_pairs, clip
from detdistill.detectors.images import normalize
from detdistill.detectors.outputs import build_assignment, with_centerness
from detdistill.detectors.statistics import pixel_statistics
from detdistill.detectors.towers import flatten_cells, separable_tower
from detdistill.geometry import atss_assign, square_anchors
from detdistill.recipe import ModelConfig
from detdistill.types import (
    Assignment,
    Batch,
    DetectorInfo,
    EdgeInfo,
    GridInfo,
    Predictions,
    Pyramid,
    Targets,
    TowerInfo,
    required,
)

ANCHOR_SIDE = 8.0  # strides
BOX_WEIGHT = 2.0  # of the GIoU term
MAX_CANDIDATES = 1000  # (prediction, class) pairs per level that enter the suppression, as published


def build_tower(config: ModelConfig) -> nn.Sequential:
    """Blocks of 3x3 convolution, group norm and ReLU. With norm `none`, a bias replaces the group norm.

    With `model.depthwise`, the convolutions are separable.
    """
    if config.depthwise:
        return separable_tower(config)
    has_norm = config.norm != "none"
    blocks: list[nn.Module] = []
    for _ in range(config.tower_depth):
        blocks.append(nn.Conv2d(config.channels, config.channels, 3, padding=1, bias=not has_norm))
        blocks += [group_norm(config.channels)] if has_norm else []
        blocks.append(nn.ReLU())
    return nn.Sequential(*blocks)


class DenseHead(nn.Module):
    """Two towers and their predictors, shared by all levels, and one learned scale of the regression per level.

    With `model.depthwise`, the predictors are 1x1 convolutions, as in NanoDet and PicoDet: plain 3x3 ones would need
    more operations than everything before them.
    regression: values per cell, 4 or 4 R. quality: True if the regression tower also predicts a centerness logit.
    """

    def __init__(self, config: ModelConfig, classes: int, regression: int, quality: bool):
        super().__init__()
        self.classification_tower = build_tower(config)
        self.regression_tower = build_tower(config)
        kernel = 1 if config.depthwise else 3
        self.classifier = nn.Conv2d(config.channels, classes, kernel, padding=kernel // 2)
        self.regressor = nn.Conv2d(config.channels, regression, kernel, padding=kernel // 2)
        self.quality = nn.Conv2d(config.channels, 1, kernel, padding=kernel // 2) if quality else None
        self.scales = nn.Parameter(torch.ones(len(config.strides)))
        # Separable towers have initial values of their own.
        modules = (self.classifier, self.regressor, self.quality) if config.depthwise else self.modules()
        for layer in modules:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        # Every score starts at 0.01, so that the loss of the background does not dominate the first steps.
        nn.init.constant_(required(self.classifier.bias), -4.595)

    def predict(
        self, classification: Sequence[Tensor], regression: Sequence[Tensor], *shape: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Apply the predictors to the last features of both towers.

        classification, regression: features (B, C, H, W) per level. shape: of the regression per prediction, 4 or 4, R.
        Returns logits (B, N, K), the scaled regression (B, N, *shape), and quality logits (B, N) or None. All are in
        single precision, because 16 bits are too few for box coordinates.
        """
        logits = [flatten_cells(self.classifier(level), self.classifier.out_channels) for level in classification]
        pairs = zip(regression, self.scales, strict=True)
        distances = [flatten_cells(self.regressor(level) * scale, *shape) for level, scale in pairs]
        quality = None
        if self.quality is not None:
            quality = torch.cat([flatten_cells(self.quality(level)) for level in regression], 1).float()
        return torch.cat(logits, 1).float(), torch.cat(distances, 1).float(), quality


def dense_info(
    kind: str, config: ModelConfig, classes: Sequence[str], quality: bool, edge_bins: int | None = None
) -> DetectorInfo:
    """The info of a detector with one square anchor per cell. edge_bins: R, or None without side distributions."""
    return DetectorInfo(
        kind=kind,
        classes=tuple(classes),
        strides=config.strides,
        channels={"neck": config.channels},
        activation="sigmoid",
        grid=GridInfo(
            anchors_per_cell=1,
            cell_anchors=tuple(((ANCHOR_SIDE * stride, ANCHOR_SIDE * stride),) for stride in config.strides),
            assigner="atss",
            quality=quality,
        ),
        towers=TowerInfo(config.tower_depth, config.channels),
        edges=None if edge_bins is None else EdgeInfo(edge_bins),
    )


def anchored_pyramid(neck: nn.Module, batch: Batch, config: ModelConfig) -> Pyramid:
    """The neck's levels on the batch, with one square anchor per cell, centered on the cell's top left corner."""
    levels = tuple(neck(normalize(batch, *pixel_statistics(config))).values())
    pairs = zip(levels, config.strides, strict=True)
    anchors = tuple(
        square_anchors(level.shape[-2], level.shape[-1], stride, ANCHOR_SIDE, level.device) for level, stride in pairs
    )
    return Pyramid(levels, config.strides, batch.sizes, anchors)


def assign_atss(level_anchors: Sequence[Tensor], valid: Tensor, counts: Sequence[int], targets: Targets) -> Assignment:
    """The ATSS assignment among the valid anchors of each image. Quality: centerness of the anchor's center.

    level_anchors: (n, 4) per level. valid (B, N): False for anchors in the padding. counts: anchors per level.
    """
    anchors = torch.cat(list(level_anchors))
    matched = []
    for image_valid, boxes in zip(valid, targets.boxes, strict=True):
        masks = image_valid.split(list(counts))
        candidates = [level[mask] for level, mask in zip(level_anchors, masks, strict=True)]
        matches = torch.full((len(anchors),), -1, device=anchors.device)
        matches[image_valid] = atss_assign(candidates, boxes)
        matched.append(matches)
    return with_centerness(build_assignment(matched, valid), anchors, targets)


def dense_candidates(stage: Predictions, batch: Batch, config: ModelConfig, nms_threshold: float) -> Candidates:
    """The candidates of a dense head: the best (prediction, class) pairs of each level.

    The score is the class score, times the quality if the head predicts one.
    """
    scores = stage.scores()  # (B, N, K)
    if stage.quality is not None:
        scores = scores * stage.quality.sigmoid()[..., None]
    scores = torch.where(stage.valid[..., None], scores, 0.0)
    boxes, scores, labels = best_pairs(stage.boxes, scores, required(stage.layout), MAX_CANDIDATES)
    return Candidates(
        clip(boxes, batch.sizes),
        scores,
        labels,
        threshold=config.score_threshold,
        nms=nms_threshold,
        limit=config.detections,
        classes=stage.logits.shape[-1],
    )
