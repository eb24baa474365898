"""The hybrid encoder of RT-DETR, RT-DETRv2 and D-FINE of transformers, and the queries chosen from its tokens.

These detectors ignore padding. Boxes are relative to the padded batch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detdistill.detectors.images import normalize
from detdistill.detectors.queries.detector import Family, Features
from detdistill.detectors.queries.frames import canvas_of, to_batch_frame, valid_fraction
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.queries.stages import shape_table, sigmoid_stage, token_maps
from detdistill.errors import UserError
from detdistill.types import Batch, DetectorInfo, EdgeInfo, Predictions, QueryInfo, QuerySet

# Config fields that must have this value, and why.
SUPPORTED: dict[str, tuple[Any, str]] = {
    "eval_size": (None, "transformers then drops the position embeddings in evaluation"),
    "learn_initial_query": (False, "the forward of transformers fails with it"),
    "use_focal_loss": (True, "its scores are sigmoids"),
}


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads. Q tokens are chosen as the detector's own queries.

    tokens: tokens of all levels, one level after another, (B, S, D).
    shapes: (rows, columns) per level.
    frame: (height, width) of the padded batch, which boxes are relative to, (B, 2).
    fraction: the fraction of the padded batch's width and height that the image fills, (B, 1, 2).
    content: the chosen tokens, detached, (B, Q, D).
    logits: their class logits, (B, Q, K).
    boxes: their boxes cx cy w h in 0..1 of the frame, (B, Q, 4).
    """

    tokens: Tensor
    shapes: tuple[tuple[int, int], ...]
    frame: Tensor
    fraction: Tensor
    content: Tensor
    logits: Tensor
    boxes: Tensor

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The tokens of each level, (B, D, H, W)."""
        return token_maps(self.tokens, self.shapes)

    def layout(self) -> dict[str, Any]:
        """The arguments of a decoder layer that hold the tokens and their arrangement in levels."""
        shapes = shape_table(self.shapes, self.tokens.device)
        return {
            "encoder_hidden_states": self.tokens,
            "spatial_shapes": shapes,
            "spatial_shapes_list": list(self.shapes),
        }

    def encoder_stage(self) -> Predictions:
        """The predictions of the encoder's heads for the chosen tokens."""
        return sigmoid_stage(self.logits, self.boxes, self.frame)


def describe(
    config: Any, classes: Sequence[str], strides: Sequence[int], edges: EdgeInfo | None = None
) -> DetectorInfo:
    """The description of a model with this config.

    Raises UserError if the config has an unsupported field, or does not fit classes and strides.
    """
    kind, levels = config.model_type, len(config.encoder_in_channels)
    if config.num_labels != len(classes) or levels != len(strides) or config.num_feature_levels != levels:
        raise UserError(
            f"{kind}: the model has {config.num_labels} labels, {levels} levels in its encoder and "
            f"{config.num_feature_levels} in its decoder, but there are {len(classes)} classes and strides "
            f"{tuple(strides)}"
        )
    for name, (value, reason) in SUPPORTED.items():
        if getattr(config, name) != value:
            raise UserError(
                f"{kind}: {name} {getattr(config, name)} is not supported ({reason}); choose a model with {name} "
                f"{value}"
            )
    return DetectorInfo(
        kind=kind,
        classes=tuple(classes),
        strides=tuple(strides),
        channels={"neck": config.encoder_hidden_dim, "memory": config.d_model},
        activation="sigmoid",
        edges=edges,
        queries=QueryInfo(config.d_model, frozenset({"content", "reference"})),
    )


def matcher(config: Any) -> Matcher:
    """The matcher with the costs of the host's config."""
    costs = (config.matcher_class_cost, config.matcher_bbox_cost, config.matcher_giou_cost)
    return Matcher(*costs, alpha=config.matcher_alpha, gamma=config.matcher_gamma)


def read(queries: QuerySet, memory: Memory) -> tuple[Tensor, Tensor]:
    """content (B, Q, D) and reference (B, Q, 4). Raises ValueError if one is missing or has another shape."""
    width, content, reference = memory.content.shape[-1], queries.content, queries.reference
    if (
        content is None
        or reference is None
        or content.shape[-1] != width
        or reference.shape != (*content.shape[:-1], 4)
    ):
        content_shape = None if content is None else tuple(content.shape)
        reference_shape = None if reference is None else tuple(reference.shape)
        raise ValueError(
            f"the decoder needs queries with a content {width} wide and a reference box each; got content "
            f"{content_shape}, reference {reference_shape}"
        )
    return content, reference


class HybridDETR(Family[Memory]):
    """The steps that RT-DETR and D-FINE share: neck, encoder, own queries and random queries.

    The class heads are trained with the varifocal loss; its term is `classification`.
    """

    def neck(self, batch: Batch) -> Features:
        """The maps of the hybrid encoder.

        Raises UserError unless each level has half the rows and columns of the level before.
        """
        host = self.model.model
        canvas = (batch.images.shape[-2], batch.images.shape[-1])
        images = normalize(batch, *self.statistics)
        sources = host.backbone.model(images).feature_maps
        levels = [projection(source) for projection, source in zip(host.encoder_input_proj, sources, strict=True)]
        sides = [(level.shape[-2], level.shape[-1]) for level in levels]
        if any(fine != (2 * coarse[0], 2 * coarse[1]) for fine, coarse in itertools.pairwise(sides)):
            raise UserError(
                f"{host.config.model_type}: images of {canvas[0]} x {canvas[1]} give levels of {sides} cells, which "
                "can't be added; pad the images to a multiple of the coarsest stride"
            )
        return Features(tuple(host.encoder(levels).last_hidden_state), (), batch.sizes, canvas)

    def encode(self, features: Features) -> Memory:
        """The projected tokens, and the tokens with the highest scores, which become the queries.

        If there are fewer tokens than queries, all tokens are chosen.
        """
        host = self.model.model
        maps = [projection(level) for projection, level in zip(host.decoder_input_proj, features.levels, strict=True)]
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # (B, S, D)
        # Anchors (1, S, 4) are cx cy w h before the sigmoid.
        anchors, inside = host.generate_anchors(shapes, device=tokens.device, dtype=torch.float32)
        vectors = host.enc_output(inside.to(tokens.dtype) * tokens)
        logits = host.enc_score_head(vectors).float()  # (B, S, K)
        count = torch.sym_min(host.config.num_queries, logits.shape[1])
        best = logits.amax(-1).topk(count, dim=1).indices[..., None]  # (B, Q, 1)
        content = vectors.gather(1, best.expand(-1, -1, vectors.shape[-1]))  # (B, Q, D)
        shift = host.enc_bbox_head(content).float()
        boxes = (
            shift + anchors.expand(tokens.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
        ).sigmoid()  # (B, Q, 4)
        return Memory(
            tokens=tokens,
            shapes=shapes,
            frame=canvas_of(features.sizes, *features.canvas),
            fraction=valid_fraction(features.sizes, features.canvas),
            content=content.detach(),
            logits=logits.gather(1, best.expand(-1, -1, logits.shape[-1])),
            boxes=boxes,
        )

    def queries(self, memory: Memory) -> QuerySet:
        """The tokens that the encoder chose, highest score first, detached."""
        return QuerySet(content=memory.content, reference=memory.boxes.detach())

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """Random content and boxes.

        The content is standard normal, because the encoder's tokens have that scale after their layer norm. Each
        number of a box is uniform in 0..1 of the image's valid area.
        """
        batch, device, width = len(memory.tokens), memory.tokens.device, memory.content.shape[-1]
        content = torch.randn(n, width, generator=generator, device=generator.device).to(device)
        boxes = torch.rand(n, 4, generator=generator, device=generator.device).to(device)
        reference = to_batch_frame(boxes.expand(batch, -1, -1), memory.fraction)
        return QuerySet(content=content.expand(batch, -1, -1), reference=reference)
