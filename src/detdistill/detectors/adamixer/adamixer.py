"""AdaMixer, our own: a backbone, a channel mapping, and a decoder of sampling and mixing stages, as a `Family` of set predictors.

Our frame is the padded batch in pixels, and so is the decoder's; a query's first box is its image's valid area, and targets are matched
relative to that. Its L1, of costs and losses, is of corners, as published, where that of DETRs is of cx cy w h.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.detectors.adamixer.boxes import to_xyzr
from detdistill.detectors.adamixer.criterion import WEIGHTS, set_terms
from detdistill.detectors.adamixer.decoder import Decoder, Sizes
from detdistill.detectors.adamixer.neck import ChannelMapping, build_body_and_neck
from detdistill.detectors.images import normalize
from detdistill.detectors.queries.detector import Features, QueryDetector, assemble, learn_stages
from detdistill.detectors.queries.frames import canvas_of, to_pixels
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers.host import keeps_norms, thaw
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, DetectorInfo, Predictions, QueryInfo, QuerySet, Targets

DEPTH = 6  # stages, as published


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads: the neck's levels (B, D, H, W), as there is no encoder. sizes (B, 2): valid (height, width). canvas: (height,
    width) of the padded batch."""

    maps: tuple[Tensor, ...]
    sizes: Tensor
    canvas: tuple[int, int]


class Model(nn.Module):
    """All parameters, and nothing else."""

    def __init__(self, backbone: nn.Module, neck: ChannelMapping, decoder: Decoder):
        super().__init__()
        self.backbone, self.neck, self.decoder = backbone, neck, decoder


class AdaMixer:
    """The `Family` over a `Model` for `classes` in order, strides those of its levels, width that of its queries and levels."""

    def __init__(self, model: Model, classes: Sequence[str], strides: Sequence[int], width: int):
        self.model, self.strides, self.width = model, tuple(strides), width
        self.matcher = Matcher(WEIGHTS["classification"], WEIGHTS["box"], WEIGHTS["giou"], corners=True)
        self.info = DetectorInfo(
            kind="adamixer",
            classes=tuple(classes),
            strides=self.strides,
            channels={"neck": width},
            activation="sigmoid",
            queries=QueryInfo(width, frozenset({"content"}), learned=True),
        )

    def body(self) -> nn.Module:
        return self.model.backbone

    def neck(self, batch: Batch) -> Features:
        levels = self.model.neck(self.model.backbone(normalize(batch)))
        return Features(levels, (), batch.sizes, (batch.images.shape[-2], batch.images.shape[-1]))

    def encode(self, features: Features) -> Memory:
        return Memory(features.levels, features.sizes, features.canvas)

    def queries(self, memory: Memory) -> QuerySet:
        """The embeddings, standardised, the same for every image; no reference: the decoder begins with the whole image."""
        return self._spread(self.model.decoder.content.weight, memory)

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """Standard normal, as the embeddings are at first, and standardised like them."""
        drawn = torch.randn(n, self.width, generator=generator, device=generator.device)
        return self._spread(drawn.to(memory.sizes.device), memory)

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        """The stages on any content; boxes begin at the reference (B, Q, 4), where it is None at each image's valid area. Position isn't read."""
        content = queries.content
        if content is None or content.shape[-1] != self.width:
            got = "no content" if content is None else f"{content.shape[-1]}"
            raise ValueError(f"the decoder asks for the content of queries, {self.width} wide; got {got}")
        found = self.model.decoder(
            content, self._start(queries.reference, memory, content.shape[1]), memory.maps, self.strides
        )
        valid = torch.ones(content.shape[:2], dtype=torch.bool, device=content.device)
        return tuple(
            Predictions(logits.float(), "sigmoid", boxes, valid, embeddings=state) for state, logits, boxes in found
        )

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher(stages, memory.sizes, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        return set_terms(stages, memory.sizes, targets)

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        return learn_stages(self, queries, memory, targets)

    def _spread(self, embeddings: Tensor, memory: Memory) -> QuerySet:
        """Embeddings (Q, D), standardised, for every image."""
        return QuerySet(F.layer_norm(embeddings, (self.width,)).expand(len(memory.sizes), -1, -1))

    def _start(self, reference: Tensor | None, memory: Memory, count: int) -> Tensor:
        """xyzr (B, Q, 4) that the first stage begins with. Raises ValueError for a reference of points, which have no size to begin with."""
        if reference is None:
            whole = memory.sizes.new_tensor([0.5, 0.5, 1.0, 1.0], dtype=torch.float).expand(len(memory.sizes), count, 4)
            return to_xyzr(to_pixels(whole, memory.sizes))
        if reference.shape[-1] != 4:
            raise ValueError(
                f"the decoder begins with boxes, cx cy w h; the reference has {reference.shape[-1]} numbers a query"
            )
        return to_xyzr(to_pixels(reference.float(), canvas_of(memory.sizes, *memory.canvas)))


def adamixer(config: ModelConfig, backbone: str, classes: Sequence[str], **sizes: Any) -> QueryDetector:
    """On a timm backbone. sizes: fields of `Sizes`, laid over the published ones. Raises UserError where strides, width or backbone don't fit."""
    shape = Sizes(**sizes)
    if config.channels % shape.multiple:
        raise UserError(f"model.channels {config.channels}: adamixer needs a multiple of {shape.multiple}, such as 256")
    body, neck = build_body_and_neck(config, backbone)
    norms = thaw(body, frozen_norms=keeps_norms(config))
    decoder = Decoder(config.channels, config.queries, config.decoder_layers or DEPTH, len(classes), shape)
    return assemble(AdaMixer(Model(body, neck, decoder), classes, config.strides, config.channels), config, norms)
