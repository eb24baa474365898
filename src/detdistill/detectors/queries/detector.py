"""The one look of every detector with queries: neck, memory, decoder, and where targets are given assignment and losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from detdistill.detectors.queries.frames import top_detections
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
    """The neck's output. levels (B, D, H, W), fine to coarse. masks: (B, H, W) bool of each level, True on the image; empty where a family
    knows no padding. sizes (B, 2): valid (height, width). canvas: (height, width) of the padded batch."""

    levels: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    sizes: Tensor
    canvas: tuple[int, int]


class Memory(Protocol):
    """What a decoder reads, in a family's own form. maps: the encoder's output, (B, D, H, W) of each level."""

    @property
    def maps(self) -> tuple[Tensor, ...]: ...


M = TypeVar("M")


class Family(Protocol[M]):
    """What differs from one family of set predictors to the next; it holds no parameters beside `model`.

    Its methods compose the host's own parts, in the host's order. Stages are one a decoder layer, in our frames, without denoising queries.
    """

    info: DetectorInfo

    @property
    def model(self) -> nn.Module:
        """All parameters and buffers."""
        ...

    def body(self) -> nn.Module:
        """The part of `model` below the neck."""
        ...

    def neck(self, batch: Batch) -> Features: ...

    def encode(self, features: Features) -> M: ...

    def queries(self, memory: M) -> QuerySet:
        """The detector's own."""
        ...

    def decode(self, queries: QuerySet, memory: M) -> tuple[Predictions, ...]:
        """Any queries on this memory. Raises ValueError for queries of another width, or without a part that can't be filled."""
        ...

    def sample(self, n: int, generator: torch.Generator, memory: M) -> QuerySet:
        """n random queries, the same for every image of the batch."""
        ...

    def match(self, stages: Sequence[Predictions], memory: M, targets: Targets) -> tuple[Assignment, ...]: ...

    def criterion(self, stages: Sequence[Predictions], memory: M, targets: Targets) -> dict[str, Tensor]:
        """Weighted terms of stages under their assignments: those of the last have plain names, those of an earlier stage i end in `_i`."""
        ...

    def learn(
        self, queries: QuerySet, memory: M, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        """The own queries' stages, matched, and all task terms of a training step: what the host trains on, denoising and encoder included."""
        ...


class QueryDetector(nn.Module):
    """A detector over a `Family`; see `types.Detector`. frozen_norms: norms of the body that keep their statistics in training."""

    def __init__(
        self, family: Family[Any], *, detections: int, score_threshold: float, frozen_norms: Sequence[nn.Module] = ()
    ):
        super().__init__()
        self.family, self.model, self.info = family, family.model, family.info
        self.detections, self.score_threshold = detections, score_threshold
        self.frozen_norms = tuple(frozen_norms)
        self.train(self.training)

    def train(self, mode: bool = True) -> "QueryDetector":
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the body below the neck."""
        return list(self.family.body().parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """Pyramids `neck` and, behind an encoder, `memory`; one stage a decoder layer; the queries where they are needed. With targets every
        stage is matched, and its losses are there."""
        _check_need(need, self.info)
        features = self.family.neck(batch)
        pyramids = {"neck": Pyramid(features.levels, self.info.strides, batch.sizes)}
        decoded = targets is not None or need.predictions
        if not (decoded or need.queries or "memory" in need.pyramids):
            return DetectorOutput(pyramids)
        memory = self.family.encode(features)
        if "memory" in self.info.channels:
            pyramids["memory"] = Pyramid(memory.maps, self.info.strides, batch.sizes)
        if not (decoded or need.queries):
            return DetectorOutput(pyramids)
        own = self.family.queries(memory)
        stages: tuple[Predictions, ...] = ()
        losses: dict[str, Tensor] = {}
        if targets is not None:
            stages, losses = self.family.learn(own, memory, targets)
        elif need.predictions:
            stages = self.family.decode(own, memory)
        return DetectorOutput(pyramids, stages, losses, queries=self._continue(own, memory) if need.queries else None)

    def _continue(self, own: QuerySet, memory: Any) -> Queries:
        family = self.family
        return Queries(
            own=own,
            redecode=lambda queries: family.decode(queries, memory),
            sample=lambda n, generator: family.sample(n, generator, memory),
            match=lambda stages, targets: family.match(stages, memory, targets),
            criterion=lambda stages, targets: family.criterion(stages, memory, targets),
        )

    @torch.no_grad()
    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """The published post-processing: the best of queries x classes of the last stage, no suppression."""
        last = self.observe(batch, need=Need(predictions=True)).stages[-1]
        return top_detections(last, batch.sizes, self.detections, self.score_threshold)


def assemble(family: Family[Any], config: ModelConfig, frozen_norms: Sequence[nn.Module] = ()) -> QueryDetector:
    """The detector over a family, with what the recipe says of its detections."""
    return QueryDetector(
        family, detections=config.detections, score_threshold=config.score_threshold, frozen_norms=frozen_norms
    )


def learn_stages(
    family: Family[M], queries: QuerySet, memory: M, targets: Targets
) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
    """`Family.learn` where nothing is trained but the stages."""
    stages = family.decode(queries, memory)
    found = family.match(stages, memory, targets)
    stages = tuple(replace(stage, assignment=own) for stage, own in zip(stages, found, strict=True))
    return stages, family.criterion(stages, memory, targets)


def by_stage(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The terms of all stages under one roof, named as `Family.criterion` says."""
    suffixes = [*(f"_{index}" for index in range(len(found) - 1)), ""]
    return {name + suffix: term for suffix, terms in zip(suffixes, found, strict=True) for name, term in terms.items()}


def token_maps(tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Tokens (B, S, D) of levels one after another to maps (B, D, H, W). shapes: rows and columns of each level."""
    parts = tokens.transpose(1, 2).split([rows * columns for rows, columns in shapes], dim=2)
    return tuple(part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True))


def _check_need(need: Need, info: DetectorInfo) -> None:
    """Raises ValueError where `need` asks for what this detector hasn't got."""
    wrong = [f"pyramid {name!r}" for name in sorted(need.pyramids - set(info.channels))]
    wrong += ["towers"] * bool(need.towers) + ["proposals"] * (need.proposals or need.classify)
    if wrong:
        has = ", ".join(sorted(info.channels))
        raise ValueError(f"{info.kind} has no {', '.join(wrong)}; it has the pyramids {has}, stages and queries")
