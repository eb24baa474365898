"""The output of a detector for a batch, and the functions that continue from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from detdistill.types.data import Targets

Activation = Literal["sigmoid", "softmax"]
QueryPart = Literal["content", "position", "reference"]

Value = TypeVar("Value")


def required(value: Value | None) -> Value:
    """Assert that an optional part of an output or an info is there, and return it. Raises ValueError if it is None."""
    if value is None:
        raise ValueError(
            "a part of a detector output or info is None; a part of an output must be in the Need that observe gets"
        )
    return value


@dataclass(frozen=True)
class Layout:
    """Positions of the N predictions of a dense head. Their order: level, then row, then column, then anchor.

    shapes: (rows, columns) of each level, fine to coarse.
    strides: of each level.
    anchors: A, the number of anchors per cell.
    """

    shapes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    anchors: int = 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of predictions of each level. Their sum is N."""
        return tuple(rows * columns * self.anchors for rows, columns in self.shapes)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split (B, N, ...) into one (B, rows, columns, A, ...) per level."""
        levels = []
        for part, (rows, columns) in zip(values.split(self.counts, dim=1), self.shapes, strict=True):
            levels.append(part.unflatten(1, (rows, columns, self.anchors)))  # (B, n, ...) -> (B, rows, columns, A, ...)
        return tuple(levels)

    def valid(self, sizes: Tensor) -> Tensor:
        """(B, N) bool: True if the cell begins inside its image. sizes: (B, 2), the valid size of each image."""
        masks = []
        for (rows, columns), stride in zip(self.shapes, self.strides, strict=True):
            row = torch.arange(rows, device=sizes.device) * stride < sizes[:, :1]  # (B, rows)
            column = torch.arange(columns, device=sizes.device) * stride < sizes[:, 1:]  # (B, columns)
            cells = row[:, :, None, None] & column[:, None, :, None]  # (B, rows, columns, 1)
            masks.append(cells.expand(-1, -1, -1, self.anchors).flatten(1))  # (B, n)
        return torch.cat(masks, dim=1)


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Feature maps of several levels.

    levels: (B, C, H, W) each, fine to coarse.
    strides: the declared stride of each level, fine to coarse, all different.
    sizes: (B, 2), the valid (height, width) of each image, in pixels.
    anchors: (H, W, A, 4) per level, or None if the detector has no anchors.
    """

    levels: tuple[Tensor, ...]
    strides: tuple[int, ...]
    sizes: Tensor
    anchors: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        if self.anchors is not None and len(self.anchors) != len(self.levels):
            raise ValueError(
                f"a pyramid needs anchors for each level, got {len(self.levels)} levels and {len(self.anchors)} anchors"
            )
        if len(self.levels) != len(self.strides) or list(self.strides) != sorted(set(self.strides)):
            raise ValueError(
                "a pyramid needs one stride per level in ascending order, "
                f"got {len(self.levels)} levels and strides {self.strides}"
            )


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which ground truth each of the N predictions of a stage is trained on.

    All tensors are on the device of the predictions and carry no gradient.

    matched: (B, N) integers. 0 or more: the index of the ground truth in the image's targets, and the prediction is a
        positive. -1: no ground truth (background). -2: ignored, because the overlap is ambiguous. This happens in
        detectors with two thresholds, such as RetinaNet and the RPN.
    valid: (B, N) bool. False if the prediction takes no part in any loss: it is in the padding, or its match is -2.
    num_positives: () float, the divisor of losses over positives. For each image take max(number of positives, 1), sum
        over the images of the batch, and average over all processes. So it is at least 1. To compute it:
            positives = (matched >= 0).sum(1).clamp(min=1).sum().float()
            num_positives = detdistill.distributed.mean_over_processes(positives)
    quality: (B, N), the target of the quality branch (centerness or IoU) for positives and 0 elsewhere. None if the
        detector has no such branch.
    deltas: (B, N, 4), the detector's box code of the matched ground truth, and 0 for predictions without one. None if
        the detector does not regress such a code. RPN and RoI heads have it.
    """

    matched: Tensor
    valid: Tensor
    num_positives: Tensor
    quality: Tensor | None = None
    deltas: Tensor | None = None

    @property
    def positive(self) -> Tensor:
        """(B, N) bool: True for predictions with a ground truth."""
        return self.matched >= 0


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one stage, before any suppression.

    logits: (B, N, K), in the order of the detector's classes, without the background.
    activation: the function that converts logits to scores.
    boxes: (B, N, 4).
    valid: (B, N) bool, False for predictions in the padding and for rows that only fill up the batch.
    layout: the positions of the predictions of a dense head, or None.
    background: (B, N), the logit of `no object`. Present if and only if the activation is softmax.
    quality: (B, N), the logit of centerness or IoU, or None.
    edges: (B, N, 4, R), the logits of the distance distributions of left, top, right, bottom, or None.
    deltas: (B, N, 4) or per class (B, N, K, 4), the detector's box code, or None.
    embeddings: (B, N, D), the feature vector of each prediction, or None.
    assignment: the assignment to the targets, or None if there were no targets.
    """

    logits: Tensor
    activation: Activation
    boxes: Tensor
    valid: Tensor
    layout: Layout | None = None
    background: Tensor | None = None
    quality: Tensor | None = None
    edges: Tensor | None = None
    deltas: Tensor | None = None
    embeddings: Tensor | None = None
    assignment: Assignment | None = None

    def __post_init__(self) -> None:
        rows = self.logits.shape[:2]
        if self.boxes.shape != (*rows, 4) or self.valid.shape != rows:
            raise ValueError(
                "predictions need logits (B, N, K), boxes (B, N, 4) and valid (B, N), got logits "
                f"{tuple(self.logits.shape)}, boxes {tuple(self.boxes.shape)} and valid {tuple(self.valid.shape)}"
            )
        if self.layout is not None and sum(self.layout.counts) != rows[1]:
            raise ValueError(f"the layout has {sum(self.layout.counts)} predictions, but the logits have {rows[1]}")
        if (self.activation == "softmax") != (self.background is not None):
            raise ValueError(
                f"activation is {self.activation!r} {'without' if self.background is None else 'with'} a background "
                "logit; softmax needs it and sigmoid must not have it"
            )

    def scores(self) -> Tensor:
        """(B, N, K) class probabilities. With softmax, the probability of the background is left out."""
        if self.background is None:
            return self.logits.sigmoid()
        return torch.cat([self.logits, self.background[..., None]], dim=-1).softmax(-1)[..., :-1]


@dataclass(frozen=True, eq=False)
class TowerState:
    """The features of the two towers of a dense head after `depth` convolutions.

    depth: number of convolutions (with their norms) that are done; the activation behind the last one is not done.
        Depth 0 is the neck's output.
    classification: (B, C, H, W) per level, fine to coarse.
    regression: (B, C, H, W) per level, fine to coarse.
    """

    depth: int
    classification: tuple[Tensor, ...]
    regression: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Towers:
    """The towers of a dense head.

    states: the states at the depths in `Need.towers`, by depth.
    resume: resume(state) applies the activation, the remaining convolutions and the predictors.
    """

    states: Mapping[int, TowerState]
    resume: Callable[[TowerState], Predictions]


@dataclass(frozen=True, eq=False)
class QuerySet:
    """Input queries of a decoder. `DetectorInfo.queries.parts` lists the parts that a decoder reads.

    A part that is None is filled in by the decoder, in the same way as for its own queries.

    content: (B, Q, D).
    position: (B, Q, D).
    reference: (B, Q, 2) points cx cy, or (B, Q, 4) boxes cx cy w h, in 0..1 of the padded batch.
    """

    content: Tensor | None = None
    position: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries of a set predictor, and functions that use them.

    own: the detector's own queries, which produced this output.
    redecode: redecode(queries) runs the decoder again on the same memory. Returns one Predictions per stage.
    sample: sample(n, generator) returns n random queries in the detector's own parametrization.
    match: match(stages, targets) returns the detector's own lowest-cost assignment of each stage to the targets.
    criterion: criterion(stages, targets) returns the detector's own weighted task losses. Each stage must carry an
        assignment; any detector may have made it.
    """

    own: QuerySet
    redecode: Callable[[QuerySet], tuple[Predictions, ...]]
    sample: Callable[[int, torch.Generator], QuerySet]
    match: Callable[[Sequence[Predictions], Targets], tuple[Assignment, ...]]
    criterion: Callable[[Sequence[Predictions], Targets], dict[str, Tensor]]


class Classify(Protocol):
    """The second stage of a two-stage detector as a function of boxes."""

    def __call__(self, boxes: Tensor, pyramid: Pyramid | None = None) -> Predictions:
        """Classify and refine boxes (B, P, 4).

        pyramid: the pyramid to pool features from. None means the detector's own pyramid. The pyramid of another
        detector is possible too.
        """
        ...


@dataclass(frozen=True, eq=False)
class Proposals:
    """The region proposals of a two-stage detector, and its second stage.

    boxes: (B, P, 4). P is 0 if only `Need.classify` was requested.
    valid: (B, P) bool, False for rows that only fill up the batch.
    classify: classify(boxes, pyramid=None) applies the second stage to other boxes. See `Classify`.
    """

    boxes: Tensor
    valid: Tensor
    classify: Classify


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """The output of a detector for one batch. Parts that `Need` does not name may be empty or None.

    pyramids: pyramids by name. "neck" is always present.
    stages: one Predictions per decoder layer. A dense head has one stage; a two-stage detector has RPN, then RoI.
    losses: the task losses by name, () each. Empty if there were no targets.
    towers: the towers of a dense head.
    queries: the queries of a set predictor.
    proposals: the proposals of a two-stage detector.
    assign: assign(targets) returns the detector's own assignment of any targets to its dense grid. None if it has no
        dense grid.
    """

    pyramids: Mapping[str, Pyramid]
    stages: tuple[Predictions, ...] = ()
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    towers: Towers | None = None
    queries: Queries | None = None
    proposals: Proposals | None = None
    assign: Callable[[Targets], Assignment] | None = None
