"""What a detector says of a batch, and the continuations that come with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from detdistill.types.data import Targets

Activation = Literal["sigmoid", "softmax"]
QueryPart = Literal["content", "position", "reference"]

Value = TypeVar("Value")


def required(value: Value | None) -> Value:
    """An optional part that this reader knows to be there; for the type checker, and for the one who was wrong."""
    if value is None:
        raise ValueError("an output lacks a part that was read; see detdistill.types.Need")
    return value


@dataclass(frozen=True)
class Layout:
    """Where the N predictions of a dense head sit: level, then row, then column, then anchor."""

    shapes: tuple[tuple[int, int], ...]  # (rows, columns) of each level, fine to coarse
    strides: tuple[int, ...]
    anchors: int = 1  # per cell

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of predictions of each level; they add up to N."""
        return tuple(rows * columns * self.anchors for rows, columns in self.shapes)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """(B, N, ...) to one (B, rows, columns, A, ...) per level."""
        parts = values.split(self.counts, dim=1)
        return tuple(
            part.unflatten(1, (rows, columns, self.anchors))
            for part, (rows, columns) in zip(parts, self.shapes, strict=True)
        )

    def valid(self, sizes: Tensor) -> Tensor:
        """(B, N) bool: the cell begins inside its image, whose valid sizes (B, 2) are given."""
        masks = []
        for (rows, columns), stride in zip(self.shapes, self.strides, strict=True):
            row = torch.arange(rows, device=sizes.device) * stride < sizes[:, :1]  # (B, rows)
            column = torch.arange(columns, device=sizes.device) * stride < sizes[:, 1:]  # (B, columns)
            cells = row[:, :, None, None] & column[:, None, :, None]
            masks.append(cells.expand(-1, -1, -1, self.anchors).flatten(1))
        return torch.cat(masks, dim=1)


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Feature maps (B, C, H, W), fine to coarse, with declared strides and the images' valid sizes (B, 2).

    anchors: (H, W, A, 4) of each level, in pixels of the padded batch, or None where the detector has none.
    """

    levels: tuple[Tensor, ...]
    strides: tuple[int, ...]
    sizes: Tensor
    anchors: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        if self.anchors is not None and len(self.anchors) != len(self.levels):
            raise ValueError(f"{len(self.levels)} levels have anchors on {len(self.anchors)}")
        if len(self.levels) != len(self.strides) or list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"{len(self.levels)} levels need as many strides, fine to coarse, got {self.strides}")


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which ground truth each prediction answers for.

    matched (B, N): index into the image's targets, -1 for none, -2 where the overlap is ambiguous. valid (B, N): False where the
    prediction takes no part (padding, ambiguous overlap). quality (B, N): the quality target (centre-ness, IoU) of positives, 0 elsewhere, or None.
    num_positives (): sum over images of max(positives, 1), averaged over processes. deltas (B, N, 4): the host's box code of the matched
    ground truth, 0 where there is none, or None where the host regresses no code (RPN and RoI heads have it).
    """

    matched: Tensor
    valid: Tensor
    num_positives: Tensor
    quality: Tensor | None = None
    deltas: Tensor | None = None

    @property
    def positive(self) -> Tensor:
        """(B, N) bool."""
        return self.matched >= 0


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a head says, one row a prediction, before any suppression.

    logits (B, N, K) in the shared class order. boxes (B, N, 4). valid (B, N) bool. background (B, N): logit of `no object`
    where the activation is softmax. quality (B, N): centre-ness or IoU logit. edges (B, N, 4, R): logits of the side-distance
    distributions, left, top, right, bottom. deltas (B, N, 4) or (B, N, K, 4): the host's box code. embeddings (B, N, D).
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
            got = f"{tuple(self.boxes.shape)} and {tuple(self.valid.shape)}"
            raise ValueError(f"logits {tuple(self.logits.shape)} need boxes (B, N, 4) and valid (B, N), got {got}")
        if self.layout is not None and sum(self.layout.counts) != rows[1]:
            raise ValueError(f"the layout has {sum(self.layout.counts)} cells for {rows[1]} predictions")
        if (self.activation == "softmax") != (self.background is not None):
            raise ValueError("the background logit goes with softmax, and only with it")

    def scores(self) -> Tensor:
        """(B, N, K) class probabilities; with softmax the mass of the background is left out."""
        if self.background is None:
            return self.logits.sigmoid()
        return torch.cat([self.logits, self.background[..., None]], dim=-1).softmax(-1)[..., :-1]


@dataclass(frozen=True, eq=False)
class TowerState:
    """The two towers of a dense head after `depth` convolutions (and norms), before the activation; depth 0 is the neck's output.

    classification, regression: (B, C, H, W) of each level, fine to coarse.
    """

    depth: int
    classification: tuple[Tensor, ...]
    regression: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Towers:
    """states: by depth, those that were asked for. resume(state): activation, the remaining convolutions and the predictors."""

    states: Mapping[int, TowerState]
    resume: Callable[[TowerState], Predictions]


@dataclass(frozen=True, eq=False)
class QuerySet:
    """Decoder queries: content (B, Q, D), position (B, Q, D), reference (B, Q, 2 or 4): points or boxes, cx cy (w h) in 0..1 of the padded
    batch. A part that is None is the decoder's to fill, as it does for queries of its own; which it reads says `DetectorInfo.query_parts`."""

    content: Tensor | None = None
    position: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Queries:
    """own: the queries this output came from. redecode(queries): the decoder again on the same memory, one Predictions a stage.

    sample(n, generator): n queries drawn at random in the detector's own parametrisation. match(stages, targets): the detector's own
    least-cost assignment of each stage to any targets. criterion(stages, targets): its own task terms, weighted, of stages under the
    assignment that each carries, whoever made it.
    """

    own: QuerySet
    redecode: Callable[[QuerySet], tuple[Predictions, ...]]
    sample: Callable[[int, torch.Generator], QuerySet]
    match: Callable[[Sequence[Predictions], Targets], tuple[Assignment, ...]]
    criterion: Callable[[Sequence[Predictions], Targets], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Proposals:
    """boxes (B, P, 4) and valid (B, P) of the region proposals; P is 0 where nothing but `Need.classify` was asked for. classify(boxes,
    pyramid=None): the second stage on given boxes (B, P, 4), on this detector's pyramid or another's."""

    boxes: Tensor
    valid: Tensor
    classify: Callable[..., Predictions]


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """One look at a batch. pyramids: "neck" always. stages: decoder layers; a dense head has one; two-stage RPN then RoI.
    losses: task terms, where targets were given. assign(targets): the detector's own assignment of any targets to its dense grid."""

    pyramids: Mapping[str, Pyramid]
    stages: tuple[Predictions, ...] = ()
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    towers: Towers | None = None
    queries: Queries | None = None
    proposals: Proposals | None = None
    assign: Callable[[Targets], Assignment] | None = None
