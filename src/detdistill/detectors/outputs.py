"""The one look of every dense detector: neck, towers, predictions, and where targets are given assignment and losses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detdistill.detectors.towers import Predict, TowerPair
from detdistill.distributed import mean_over_processes
from detdistill.geometry import centerness, centers, expected_distance, to_boxes
from detdistill.types import Assignment, DetectorOutput, Layout, Need, Predictions, Pyramid, Targets


@dataclass(frozen=True)
class DenseParts:
    """What differs from one dense detector to the next, bound to one batch.

    predict: last tower features to predictions. assign: targets to assignment. losses: predictions with their assignment, and targets, to task terms.
    """

    predict: Predict
    assign: Callable[[Targets], Assignment]
    losses: Callable[[Predictions, Assignment, Targets], Mapping[str, Tensor]]


def observe_dense(
    pyramid: Pyramid, towers: TowerPair, parts: DenseParts, targets: Targets | None, need: Need
) -> DetectorOutput:
    """See `types.Detector.observe`."""
    pyramids = {"neck": pyramid}
    if targets is None and not need.head:
        return DetectorOutput(pyramids)
    if targets is None and not need.predictions:
        return DetectorOutput(
            pyramids, towers=towers.states(pyramid.levels, parts.predict, need.towers), assign=parts.assign
        )
    stage, states = towers.run(pyramid.levels, parts.predict, need.towers)
    losses: Mapping[str, Tensor] = {}
    if targets is not None:
        assignment = parts.assign(targets)
        stage = replace(stage, assignment=assignment)
        losses = parts.losses(stage, assignment, targets)
    return DetectorOutput(pyramids, (stage,), losses, towers=states, assign=parts.assign)


def dense_layout(pyramid: Pyramid, anchors_per_cell: int = 1) -> Layout:
    """The layout of a head that predicts in every cell of every level."""
    return Layout(
        tuple((level.shape[-2], level.shape[-1]) for level in pyramid.levels), pyramid.strides, anchors_per_cell
    )


def row_strides(layout: Layout, device: torch.device) -> Tensor:
    """(N,) stride of each prediction's level."""
    pairs = zip(layout.counts, layout.strides, strict=True)
    return torch.cat([torch.full((count,), float(stride), device=device) for count, stride in pairs])


def edge_boxes(edges: Tensor, points: Tensor, strides: Tensor, least: float = 0.0) -> Tensor:
    """Boxes (B, N, 4) whose sides lie at the expected distances of edges (B, N, 4, R), at least `least`, in strides (N,) from points (N, 2)."""
    return to_boxes(points, expected_distance(edges).clamp(min=least) * strides[:, None])


def assemble(matched: Sequence[Tensor], valid: Tensor) -> Assignment:
    """Matches (N,) of each image, and valid (B, N), to an assignment; ambiguous and padded predictions are not valid."""
    rows = torch.stack(list(matched))
    positives = (rows >= 0).sum(1).clamp(min=1).sum().float()
    return Assignment(rows, valid & (rows > -2), mean_over_processes(positives))


def matched_boxes(assignment: Assignment, targets: Targets) -> Tensor:
    """(P, 4) ground-truth boxes of the positives, in the order of `assignment.positive`."""
    pairs = zip(targets.boxes, assignment.matched, strict=True)
    return torch.cat([boxes[rows[rows >= 0]] for boxes, rows in pairs])


def with_centerness(assignment: Assignment, anchors: Tensor, targets: Targets) -> Assignment:
    """The assignment with the centre-ness of the anchors' (N, 4) centres as the positives' quality."""
    positive = assignment.positive
    quality = torch.zeros(positive.shape, device=positive.device)
    quality[positive] = centerness(
        centers(anchors).expand(len(positive), -1, -1)[positive], matched_boxes(assignment, targets)
    )
    return replace(assignment, quality=quality)


def matched_labels(assignment: Assignment, targets: Targets) -> Tensor:
    """(P,) labels of the positives, in the order of `assignment.positive`."""
    pairs = zip(targets.labels, assignment.matched, strict=True)
    return torch.cat([labels[rows[rows >= 0]] for labels, rows in pairs])
