"""What ATSS and GFL share: anchors, assignment, towers, predictors with a scale per level, and the way from scores to detections."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from detdistill.detectors.backbone import group_norm
from detdistill.detectors.images import normalize
from detdistill.detectors.outputs import assemble, with_centerness
from detdistill.detectors.towers import flatten_cells
from detdistill.geometry import atss_assign, square_anchors
from detdistill.recipe import ModelConfig
from detdistill.types import (
    Assignment,
    Batch,
    Detections,
    DetectorInfo,
    EdgeInfo,
    GridInfo,
    Predictions,
    Pyramid,
    Targets,
    TowerInfo,
    required,
)

OCTAVE = 8.0  # side of an anchor, in strides
BOX_WEIGHT = 2.0  # of the GIoU term
BEFORE_SUPPRESSION = 1000  # candidates a level, as published


def tower(channels: int, depth: int, norm: str) -> nn.Sequential:
    """`depth` times 3x3 convolution, group norm (unless norm is `none`) and ReLU. The convolution has a bias only without the norm."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"))
        layers += [] if norm == "none" else [group_norm(channels)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class DenseHead(nn.Module):
    """Two towers shared by all levels, predictors, and a learned scale of the regression on each level.

    regression: values a cell, 4 or 4 R. quality: whether the regression tower also gives a centre-ness logit.
    """

    def __init__(self, config: ModelConfig, classes: int, regression: int, quality: bool):
        super().__init__()
        self.classification_tower = tower(config.channels, config.tower_depth, config.norm)
        self.regression_tower = tower(config.channels, config.tower_depth, config.norm)
        self.classifier = nn.Conv2d(config.channels, classes, 3, padding=1)
        self.regressor = nn.Conv2d(config.channels, regression, 3, padding=1)
        self.quality = nn.Conv2d(config.channels, 1, 3, padding=1) if quality else None
        self.scales = nn.Parameter(torch.ones(len(config.strides)))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(
            required(self.classifier.bias), -4.595
        )  # a score of 0.01 everywhere, so that background does not swamp the first steps

    def rows(
        self, classification: Sequence[Tensor], regression: Sequence[Tensor], *shape: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Last tower features of each level to logits (B, N, K), scaled regression (B, N, *shape) and quality logits (B, N) or None; in
        single precision, as box arithmetic does not fit in 16 bits."""
        logits = [flatten_cells(self.classifier(level), self.classifier.out_channels) for level in classification]
        pairs = zip(regression, self.scales, strict=True)
        distances = [flatten_cells(self.regressor(level) * scale, *shape) for level, scale in pairs]
        quality = (
            None
            if self.quality is None
            else torch.cat([flatten_cells(self.quality(level)) for level in regression], 1).float()
        )
        return torch.cat(logits, 1).float(), torch.cat(distances, 1).float(), quality


def dense_info(
    kind: str, config: ModelConfig, classes: Sequence[str], quality: bool, edge_bins: int | None = None
) -> DetectorInfo:
    """What is known of a head with one square anchor a cell."""
    return DetectorInfo(
        kind=kind,
        classes=tuple(classes),
        strides=config.strides,
        channels={"neck": config.channels},
        activation="sigmoid",
        grid=GridInfo(
            anchors_per_cell=1,
            cell_anchors=tuple(((OCTAVE * stride, OCTAVE * stride),) for stride in config.strides),
            assigner="atss",
            quality=quality,
        ),
        towers=TowerInfo(config.tower_depth, config.channels),
        edges=None if edge_bins is None else EdgeInfo(edge_bins),
    )


def anchored_pyramid(neck: nn.Module, batch: Batch, config: ModelConfig) -> Pyramid:
    """The neck's levels with square anchors centred on cell corners."""
    levels = tuple(neck(normalize(batch)).values())
    pairs = zip(levels, config.strides, strict=True)
    anchors = tuple(
        square_anchors(level.shape[-2], level.shape[-1], stride, OCTAVE, level.device) for level, stride in pairs
    )
    return Pyramid(levels, config.strides, batch.sizes, anchors)


def assign_adaptively(levels: Sequence[Tensor], valid: Tensor, counts: Sequence[int], targets: Targets) -> Assignment:
    """ATSS over the valid anchors of each image; quality is the centre-ness of the anchor's centre. levels: (n, 4) anchors of each level."""
    anchors = torch.cat(list(levels))
    matched = []
    for inside, boxes in zip(valid, targets.boxes, strict=True):
        kept = [level[mask] for level, mask in zip(levels, inside.split(list(counts)), strict=True)]
        rows = torch.full((len(anchors),), -1, device=anchors.device)
        rows[inside] = atss_assign(kept, boxes)
        matched.append(rows)
    return with_centerness(assemble(matched, valid), anchors, targets)


def suppress(stage: Predictions, batch: Batch, config: ModelConfig, nms_threshold: float) -> tuple[Detections, ...]:
    """Scores (class, times quality where there is one) to detections: the best candidates of each level, clipped, suppressed per class."""
    counts = required(stage.layout).counts
    scores = stage.scores()
    if stage.quality is not None:
        scores = scores * stage.quality.sigmoid()[..., None]
    scores = torch.where(stage.valid[..., None], scores, 0.0)
    found = []
    for image, (height, width) in enumerate(batch.sizes.tolist()):
        boxes_kept, scores_kept, labels_kept = [], [], []
        levels = zip(scores[image].split(counts), stage.boxes[image].split(counts), strict=True)
        for level_scores, level_boxes in levels:
            best, index = level_scores.flatten().topk(min(BEFORE_SUPPRESSION, level_scores.numel()))
            index = index[best > config.score_threshold]
            boxes_kept.append(clip_boxes_to_image(level_boxes[index // scores.shape[-1]], (height, width)))
            scores_kept.append(best[: len(index)])
            labels_kept.append(index % scores.shape[-1])
        boxes, kept, labels = torch.cat(boxes_kept), torch.cat(scores_kept), torch.cat(labels_kept)
        keep = batched_nms(boxes.float(), kept.float(), labels, nms_threshold)[: config.detections]
        found.append(Detections(boxes[keep], kept[keep], labels[keep]))
    return tuple(found)
