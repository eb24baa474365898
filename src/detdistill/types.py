"""The language of the house: what flows between data, detectors, methods and the engine.

Every box is xyxy in pixels of the padded batch. Axes: B images, C channels, H W cells, N predictions, K classes, Q queries,
A anchors a cell, R bins, D embedding, G ground truths. Sizes are (height, width).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

Activation = Literal["sigmoid", "softmax"]
Continuation = Literal["towers", "queries", "proposals"]


Value = TypeVar("Value")


def present(value: Value | None) -> Value:
    """An optional part that this reader knows to be there; for the type checker, and for the one who was wrong."""
    if value is None:
        raise ValueError("an output lacks a part that was read; see detdistill.types.Need")
    return value


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented images as they are; every detector normalises them for itself.

    images (B, 3, H, W): RGB, uint8 in 0..255 or float in 0..1, zero-padded at the right and the bottom.
    sizes (B, 2): valid (height, width) of each image in the padded tensor.
    originals (B, 2): (height, width) of the image file; boxes go back to it by the ratio of the two sizes.
    ids (B,): the data set's image ids, which stay on the CPU. names: file names, for messages.
    """

    images: Tensor
    sizes: Tensor
    originals: Tensor
    ids: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.images)
        if (
            self.images.ndim != 4
            or self.images.shape[1] != 3
            or self.sizes.shape != (count, 2)
            or any(len(part) != count for part in (self.sizes, self.originals, self.ids, self.names))
        ):
            raise ValueError(f"a batch of {tuple(self.images.shape)} needs (B, 3, H, W) images and B sizes, originals, ids and names")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            originals=self.originals.to(device, non_blocking=True),
        )


@dataclass(frozen=True, eq=False)
class Targets:
    """Ground truth of a batch: boxes (G, 4) and labels (G,), in the shared class order from 0, per image. G may be 0."""

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for boxes, labels in zip(self.boxes, self.labels, strict=True):
            if boxes.shape != (len(labels), 4) or labels.is_floating_point():
                raise ValueError(
                    f"targets need boxes (G, 4) and whole labels (G,), got {tuple(boxes.shape)} and {labels.dtype} {tuple(labels.shape)}"
                )

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(
            tuple(boxes.to(device, non_blocking=True) for boxes in self.boxes),
            tuple(labels.to(device, non_blocking=True) for labels in self.labels),
        )


@dataclass(frozen=True, eq=False)
class Moment:
    """Where in a run a call stands.

    step: from 0. steps: of the whole run, None where it has no end. ids (B,): the data set's image ids, or None. generator: for what a
    method draws; None: torch's own, which `engine.fit` seeds anew each step.
    """

    step: int = 0
    steps: int | None = None
    ids: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1; 0 where it has no end."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


@dataclass(frozen=True, eq=False)
class Detections:
    """Final detections of one image, best first: boxes (D, 4), scores (D,), labels (D,) in the shared class order."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.scores), 4) or self.labels.shape != self.scores.shape:
            shapes = ", ".join(str(tuple(part.shape)) for part in (self.boxes, self.scores, self.labels))
            raise ValueError(f"detections need boxes (D, 4), scores (D,) and labels (D,), got {shapes}")


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
        return tuple(part.unflatten(1, (rows, columns, self.anchors)) for part, (rows, columns) in zip(parts, self.shapes, strict=True))

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
    """Decoder queries: content (B, Q, D), position (B, Q, D) or None, reference (B, Q, 2 or 4): points or boxes, cx cy (w h) in 0..1 of
    the padded batch."""

    content: Tensor
    position: Tensor | None
    reference: Tensor


@dataclass(frozen=True, eq=False)
class Queries:
    """own: the queries this output came from. redecode(queries): the decoder again on the same memory, one Predictions a stage.

    sample(n, generator): n queries drawn at random in the detector's own parametrisation.
    """

    own: QuerySet
    redecode: Callable[[QuerySet], tuple[Predictions, ...]]
    sample: Callable[[int, torch.Generator], QuerySet]


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


@dataclass(frozen=True)
class DetectorInfo:
    """What is known of a detector before any image is seen.

    kind: the head's name in DETECTORS. channels: width of each pyramid. cell_anchors: (width, height) in pixels of each anchor of a
    cell, per level; empty where predictions are points or queries. tower_depth, tower_channels: None without towers. edge_bins: R.
    roi_strides: of the levels that RoIs are cut from; roi_code: the weights that the RoI head's box codes are multiplied by; empty without.
    embedding_channels: width of the RoI head's embeddings, None without.
    """

    kind: str
    classes: tuple[str, ...]
    strides: tuple[int, ...]
    channels: Mapping[str, int]
    activation: Activation
    continuations: frozenset[Continuation] = frozenset()
    cell_anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    anchors_per_cell: int | None = None
    tower_depth: int | None = None
    tower_channels: int | None = None
    edge_bins: int | None = None
    quality: bool = False
    roi_strides: tuple[int, ...] = ()
    roi_code: tuple[float, ...] = ()
    embedding_channels: int | None = None


@dataclass(frozen=True)
class Need:
    """What is read of an output. A detector without targets stops as soon as it is met. classify: `proposals.classify` alone, on boxes of
    another detector, for which no region is proposed; proposals: that and this detector's own, and the stage they come from."""

    pyramids: frozenset[str] = frozenset()
    towers: frozenset[int] = frozenset()  # depths of the states to keep
    predictions: bool = False
    queries: bool = False
    proposals: bool = False
    classify: bool = False

    def __or__(self, other: "Need") -> "Need":
        return Need(**{item.name: getattr(self, item.name) | getattr(other, item.name) for item in fields(self)})

    @property
    def head(self) -> bool:
        """True where anything behind the neck is read."""
        return bool(self.towers) or self.predictions or self.queries or self.proposals or self.classify
