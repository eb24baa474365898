"""AdaMixer, our own implementation, as a `Family`: backbone, channel mapping, and a decoder that samples and mixes.

The decoder works in pixels of the padded batch. A query starts from the box of its image's valid area, and targets
are matched relative to the valid area. The L1 distance, in costs and losses, is of box corners, as published; in DETR
and its successors it is of cx cy w h.
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
from detdistill.detectors.adamixer.neck import ChannelMapping, build_backbone_and_neck
from detdistill.detectors.backbone import check_channels
from detdistill.detectors.images import normalize
from detdistill.detectors.queries.detector import Family, Features, QueryDetector, assemble
from detdistill.detectors.queries.frames import canvas_of
from detdistill.detectors.queries.matching import Matcher
from detdistill.geometry import to_pixels
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, DetectorInfo, Predictions, QueryInfo, QuerySet

DEPTH = 6  # stages, as published


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads. There is no encoder.

    maps: the levels of the neck, (B, D, H, W).
    frame: valid (height, width) of each image, which boxes are relative to in matching and losses, (B, 2).
    canvas: (height, width) of the padded batch.
    """

    maps: tuple[Tensor, ...]
    frame: Tensor
    canvas: tuple[int, int]


class Model(nn.Module):
    """Holds all parameters."""

    def __init__(self, backbone: nn.Module, neck: ChannelMapping, decoder: Decoder):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.decoder = decoder


class AdaMixer(Family[Memory]):
    """The `Family` over a `Model`.

    classes: the labels, in order. strides: the strides of the levels. width: channels of queries and levels.
    """

    def __init__(self, model: Model, classes: Sequence[str], strides: Sequence[int], width: int):
        self.model = model
        self.strides = tuple(strides)
        self.width = width
        self.matcher = Matcher(WEIGHTS["classification"], WEIGHTS["box"], WEIGHTS["giou"], corners=True)
        self.losses = set_terms
        self.info = DetectorInfo(
            kind="adamixer",
            classes=tuple(classes),
            strides=self.strides,
            channels={"neck": width},
            activation="sigmoid",
            queries=QueryInfo(width, frozenset({"content"}), learned=True),
        )

    def backbone(self) -> nn.Module:
        return self.model.backbone

    def neck(self, batch: Batch) -> Features:
        levels = self.model.neck(self.model.backbone(normalize(batch, *self.statistics)))
        return Features(levels, (), batch.sizes, (batch.images.shape[-2], batch.images.shape[-1]))

    def encode(self, features: Features) -> Memory:
        return Memory(features.levels, features.sizes, features.canvas)

    def queries(self, memory: Memory) -> QuerySet:
        """The learned queries, standardized, the same for every image.

        There is no reference: the decoder starts from the valid area of the image.
        """
        return self._from_embeddings(self.model.decoder.content.weight, memory)

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """Embeddings from a standard normal distribution, like the learned ones before training, and standardized."""
        embeddings = torch.randn(n, self.width, generator=generator, device=generator.device)
        return self._from_embeddings(embeddings.to(memory.frame.device), memory)

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        """The stages for any content (B, Q, D).

        The first boxes are the reference (B, Q, 4), or the valid area of each image if there is no reference. The
        position is not read. Raises ValueError if the content is missing or has another width, or if the reference has
        points.
        """
        content = queries.content
        if content is None or content.shape[-1] != self.width:
            got = "no content" if content is None else f"{content.shape[-1]}"
            raise ValueError(f"the decoder needs queries with a content {self.width} wide; got {got}")
        boxes = self._first_boxes(queries.reference, memory, content.shape[1])
        outputs = self.model.decoder(content, boxes, memory.maps, self.strides)
        valid = torch.ones(content.shape[:2], dtype=torch.bool, device=content.device)  # (B, Q)
        return tuple(
            Predictions(logits.float(), "sigmoid", boxes, valid, embeddings=state) for state, logits, boxes in outputs
        )

    def _from_embeddings(self, embeddings: Tensor, memory: Memory) -> QuerySet:
        """Queries for every image from embeddings (Q, D), standardized."""
        standardized = F.layer_norm(embeddings, (self.width,))
        return QuerySet(standardized.expand(memory.frame.shape[0], -1, -1))  # (B, Q, D)

    def _first_boxes(self, reference: Tensor | None, memory: Memory, count: int) -> Tensor:
        """The first boxes of `count` queries, as xyzr (B, Q, 4).

        Raises ValueError if the reference has points, which have no size.
        """
        if reference is None:
            whole = memory.frame.new_tensor([0.5, 0.5, 1.0, 1.0], dtype=torch.float)
            return to_xyzr(to_pixels(whole.expand(memory.frame.shape[0], count, 4), memory.frame))
        if reference.shape[-1] != 4:
            raise ValueError(
                f"the decoder starts from boxes cx cy w h; the reference has {reference.shape[-1]} numbers per query"
            )
        return to_xyzr(to_pixels(reference.float(), canvas_of(memory.frame, *memory.canvas)))


def adamixer(config: ModelConfig, backbone: str, classes: Sequence[str], **sizes: Any) -> QueryDetector:
    """AdaMixer on a timm backbone, with published initial weights.

    sizes: fields of `Sizes`. Raises UserError if strides, width or backbone do not fit.
    """
    decoder_sizes = Sizes(**sizes)
    check_channels("adamixer", config.channels, decoder_sizes.multiple)
    timm_backbone, neck = build_backbone_and_neck(config, backbone)
    depth = config.decoder_layers or DEPTH
    decoder = Decoder(config.channels, config.queries, depth, len(classes), decoder_sizes)
    family = AdaMixer(Model(timm_backbone, neck, decoder), classes, config.strides, config.channels)
    return assemble(family, config)
