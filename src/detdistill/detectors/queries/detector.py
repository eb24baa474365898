"""`QueryDetector`, the class of every detector with queries, and `Family`, which each kind of detector implements.

A `Family` has the steps neck, encoder, decoder, matching and losses. `QueryDetector` calls these steps in order and
stops as soon as `Need` is met.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from detdistill.detectors.backbone import rest_norms
from detdistill.detectors.candidates import Candidates
from detdistill.detectors.queries.frames import best_queries
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.queries.stages import with_assignments
from detdistill.detectors.statistics import PixelStatistics, pixel_statistics
from detdistill.detectors.timm.simple_pyramid import pretrained_parameters
from detdistill.recipe import ModelConfig
from detdistill.types import (
    Assignment,
    Batch,
    Detections,
    DetectorInfo,
    DetectorOutput,
    Need,
    Predictions,
    Pyramid,
    Queries,
    QuerySet,
    Targets,
)


@dataclass(frozen=True, eq=False)
class Features:
    """The output of the neck.

    levels: maps (B, D, H, W), fine to coarse.
    masks: (B, H, W) bool per level, True inside the image; empty if the family ignores padding.
    sizes: valid (height, width) of each image, (B, 2).
    canvas: (height, width) of the padded batch.
    """

    levels: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    sizes: Tensor
    canvas: tuple[int, int]


class Memory(Protocol):
    """What the decoder of a family reads. Each family adds fields of its own."""

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The output of the encoder, (B, D, H, W) per level, fine to coarse."""
        ...

    @property
    def frame(self) -> Tensor:
        """(height, width) that relative boxes refer to in matching and losses, (B, 2)."""
        ...


M = TypeVar("M", bound=Memory)


class Family(ABC, Generic[M]):
    """The steps of one kind of detector with queries. It holds no parameters besides those of `model`.

    The steps call the parts of the host library in the host's order. There is one stage per decoder layer. Stages do
    not contain denoising queries, and their boxes are xyxy in pixels of the padded batch.

    info: the description of the detector.
    model: the nn.Module with all parameters and buffers.
    matcher: matches stages and targets.
    losses: (stages, frame, targets) to weighted loss terms; see `criterion`.
    statistics: mean and standard deviation of the pixels, which `assemble` sets.
    """

    info: DetectorInfo
    model: Any
    matcher: Matcher
    losses: Callable[[Sequence[Predictions], Tensor, Targets], dict[str, Tensor]]
    statistics: PixelStatistics

    def backbone(self) -> nn.Module:
        """The part of `model` below the neck."""
        return self.model.model.backbone

    @abstractmethod
    def neck(self, batch: Batch) -> Features:
        """Run backbone and neck."""

    @abstractmethod
    def encode(self, features: Features) -> M:
        """Run the encoder, and prepare what the decoder reads."""

    @abstractmethod
    def queries(self, memory: M) -> QuerySet:
        """The queries of this detector for these images."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator, memory: M) -> QuerySet:
        """n random queries, the same for every image of the batch."""

    @abstractmethod
    def decode(self, queries: QuerySet, memory: M) -> tuple[Predictions, ...]:
        """The stages of any queries on this memory.

        Raises ValueError if the queries have another width, or lack a part that the decoder needs and can't fill.
        """

    def match(self, stages: Sequence[Predictions], memory: M, targets: Targets) -> tuple[Assignment, ...]:
        """The least-cost assignment of each stage to the targets."""
        return self.matcher(stages, memory.frame, targets)

    def criterion(self, stages: Sequence[Predictions], memory: M, targets: Targets) -> dict[str, Tensor]:
        """Weighted loss terms of all stages, each with its own assignment.

        Terms of the last stage have plain names. Terms of an earlier stage i end in `_i`.
        """
        return self.losses(stages, memory.frame, targets)

    def learn(
        self, queries: QuerySet, memory: M, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        """The matched stages of the detector's own queries, and all task losses of a training step.

        A family overrides this if the host also trains other parts, such as denoising queries or encoder proposals.
        """
        stages = self.decode(queries, memory)
        matched = tuple(with_assignments(stages, self.match(stages, memory, targets)))
        return matched, self.criterion(matched, memory, targets)


class QueryDetector(nn.Module):
    """A detector with queries; see `types.Detector`.

    family: the steps of this kind of detector.
    detections: largest number of detections per image.
    score_threshold: only detections with a higher score are returned.
    """

    def __init__(self, family: Family[Any], *, detections: int, score_threshold: float):
        super().__init__()
        self.family = family
        self.model = family.model
        self.info = family.info
        self.detections = detections
        self.score_threshold = score_threshold

    def train(self, mode: bool = True) -> "QueryDetector":
        """Set the mode as usual, but keep the frozen norms of the backbone in eval mode."""
        super().train(mode)
        rest_norms(self.family.backbone())
        return self

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters below the neck."""
        return pretrained_parameters(self.family.backbone())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """Run the detector on a batch; without targets it stops as soon as `need` is met.

        The output has the pyramid `neck`, the pyramid `memory` if the detector has an encoder, one stage per decoder
        layer, and the queries if `need` names them. With targets, every stage is matched and the losses are added.
        Raises ValueError if `need` names something that this detector does not have.
        """
        _check_need(need, self.info)
        features = self.family.neck(batch)
        pyramids = {"neck": Pyramid(features.levels, self.info.strides, batch.sizes)}
        needs_stages = targets is not None or need.predictions
        if not (needs_stages or need.queries or "memory" in need.pyramids):
            return DetectorOutput(pyramids)
        memory = self.family.encode(features)
        if "memory" in self.info.channels:
            pyramids["memory"] = Pyramid(memory.maps, self.info.strides, batch.sizes)
        if not (needs_stages or need.queries):
            return DetectorOutput(pyramids)
        queries = self.family.queries(memory)
        stages: tuple[Predictions, ...] = ()
        losses: dict[str, Tensor] = {}
        if targets is not None:
            stages, losses = self.family.learn(queries, memory, targets)
        elif need.predictions:
            stages = self.family.decode(queries, memory)
        continuation = self._continuation(queries, memory) if need.queries else None
        return DetectorOutput(pyramids, stages, losses, queries=continuation)

    def _continuation(self, queries: QuerySet, memory: Any) -> Queries:
        """The queries of this output, with functions that use the same memory again."""
        family = self.family
        return Queries(
            own=queries,
            redecode=lambda queries: family.decode(queries, memory),
            sample=lambda n, generator: family.sample(n, generator, memory),
            match=lambda stages, targets: family.match(stages, memory, targets),
            criterion=lambda stages, targets: family.criterion(stages, memory, targets),
        )

    def candidates(self, batch: Batch) -> Candidates:
        """The best (query, class) pairs of the last stage, as published. They are not suppressed."""
        last = self.observe(batch, need=Need(predictions=True)).stages[-1]
        return best_queries(last, batch.sizes, self.detections, self.score_threshold)

    @torch.no_grad()
    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`."""
        return self.candidates(batch).detections()


def assemble(family: Family[Any], config: ModelConfig) -> QueryDetector:
    """The detector of a family, with the pixel statistics, the number of detections and the score threshold of the
    config.
    """
    family.statistics = pixel_statistics(config)
    return QueryDetector(family, detections=config.detections, score_threshold=config.score_threshold)


def _check_need(need: Need, info: DetectorInfo) -> None:
    """Raises ValueError if `need` names a part that this detector does not have."""
    missing = [f"pyramid {name!r}" for name in sorted(need.pyramids - set(info.channels))]
    if need.towers:
        missing.append("towers")
    if need.proposals or need.classify:
        missing.append("proposals")
    if missing:
        pyramids = ", ".join(sorted(info.channels))
        raise ValueError(f"{info.kind} has no {', '.join(missing)}; it has the pyramids {pyramids}, stages and queries")
