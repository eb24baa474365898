"""Steps that all dense detectors share: run the towers as far as needed, predict, assign targets, compute losses.

A dense detector makes its pyramid, defines the three functions of `DenseParts`, and calls `observe_dense`. The other
functions here are the pieces from which `assign` and `losses` are usually written.
"""

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
    """The three functions in which dense detectors differ, for one batch. Usually closures over anchors and layout.

    predict: last features of both towers, per level, to predictions with a layout; see `towers.Predict`.
    assign: targets to the assignment of each prediction to a ground truth.
    losses: predictions, their assignment and the targets to the task's loss terms, by name. Each is a weighted scalar.
    """

    predict: Predict
    assign: Callable[[Targets], Assignment]
    losses: Callable[[Predictions, Assignment, Targets], Mapping[str, Tensor]]


def observe_dense(
    pyramid: Pyramid, towers: TowerPair, parts: DenseParts, targets: Targets | None, need: Need
) -> DetectorOutput:
    """`Detector.observe` of a dense detector, from its pyramid on.

    With targets, both towers run to the end, and the output holds the losses and the stage with its assignment. Without
    targets, the towers run only as far as `need` requires.
    """
    pyramids = {"neck": pyramid}
    if targets is None and not need.head:
        return DetectorOutput(pyramids)
    if targets is None and not need.predictions:
        states = towers.states(pyramid.levels, parts.predict, need.towers)
        return DetectorOutput(pyramids, towers=states, assign=parts.assign)
    stage, states = towers.run(pyramid.levels, parts.predict, need.towers)
    losses: Mapping[str, Tensor] = {}
    if targets is not None:
        assignment = parts.assign(targets)
        stage = replace(stage, assignment=assignment)
        losses = parts.losses(stage, assignment, targets)
    return DetectorOutput(pyramids, (stage,), losses, towers=states, assign=parts.assign)


def dense_layout(pyramid: Pyramid, anchors_per_cell: int = 1) -> Layout:
    """The layout of a head that predicts in every cell of every level of the pyramid."""
    shapes = tuple((level.shape[-2], level.shape[-1]) for level in pyramid.levels)
    return Layout(shapes, pyramid.strides, anchors_per_cell)


def prediction_strides(layout: Layout, device: torch.device) -> Tensor:
    """(N,) float: the stride of the level of each prediction, in pixels."""
    pairs = zip(layout.counts, layout.strides, strict=True)
    return torch.cat([torch.full((count,), float(stride), device=device) for count, stride in pairs])


def edges_to_boxes(edges: Tensor, points: Tensor, strides: Tensor, min_distance: float = 0.0) -> Tensor:
    """Boxes (B, N, 4) whose sides lie at the expected distances from their points.

    edges (B, N, 4, R): logits of the side-distance distributions, in strides. points (N, 2): x and y in pixels.
    strides (N,): in pixels. min_distance: the smallest distance of a side from its point, in strides.
    """
    return to_boxes(points, expected_distance(edges).clamp(min=min_distance) * strides[:, None])


def build_assignment(matched: Sequence[Tensor], valid: Tensor) -> Assignment:
    """Build the assignment of a batch from the matches of each image.

    matched: (N,) per image: index of the matched target, -1 for background, -2 for an ambiguous overlap.
    valid (B, N): False for predictions in the padding. Ambiguous predictions become invalid too.
    num_positives is the sum over images of max(positives, 1), averaged over the processes.
    """
    matches = torch.stack(list(matched))  # (B, N)
    positives = (matches >= 0).sum(1).clamp(min=1).sum().float()
    return Assignment(matches, valid & (matches > -2), mean_over_processes(positives))


def matched_boxes(assignment: Assignment, targets: Targets) -> Tensor:
    """(P, 4): the ground-truth box of each positive prediction, in the order of `values[assignment.positive]`."""
    pairs = zip(targets.boxes, assignment.matched, strict=True)
    return torch.cat([boxes[indices[indices >= 0]] for boxes, indices in pairs])


def matched_labels(assignment: Assignment, targets: Targets) -> Tensor:
    """(P,): the label of each positive prediction, in the order of `values[assignment.positive]`."""
    pairs = zip(targets.labels, assignment.matched, strict=True)
    return torch.cat([labels[indices[indices >= 0]] for labels, indices in pairs])


def with_centerness(assignment: Assignment, anchors: Tensor, targets: Targets) -> Assignment:
    """The assignment with centerness as the quality target of positives, and 0 elsewhere.

    It is the centerness of the anchor's center in the matched box. anchors: (N, 4).
    """
    positive = assignment.positive
    quality = torch.zeros(positive.shape, device=positive.device)
    points = centers(anchors).expand(len(positive), -1, -1)  # (B, N, 2)
    quality[positive] = centerness(points[positive], matched_boxes(assignment, targets))
    return replace(assignment, quality=quality)
