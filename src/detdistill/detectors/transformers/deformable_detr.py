"""Deformable DETR (arXiv:2010.04159) of transformers as a `Family`.

The host's own forward is not called. Its parts are called in its order, so that `observe` can stop early and the
decoder can run again on other queries. Equal to the host's forward (tests), but for the weight of the class: it is 2 in
the loss and 2 in matching, as published. The host has 1 and 1. A `class_cost` of 1 in a config is the host's default
and stands for 2; any other value is used as it is.

Two-stage: the queries are the encoder's best proposals. The host has no loss for them, so its `enc_output` never gets a
gradient. Here the published loss is added: every token is a proposal, and is trained as object or not. Its terms end in
`_encoder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeformableDetrForObjectDetection
from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.queries.detector import Family, Features, QueryDetector, assemble
from detdistill.detectors.queries.frames import expand_queries, to_batch_frame, to_valid_frame, valid_fraction
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.queries.stages import (
    shape_table,
    sigmoid_stage,
    token_maps,
    with_assignments,
    with_suffix,
)
from detdistill.detectors.transformers.criterion import focal_criterion
from detdistill.detectors.transformers.deformable_build import CLASS_WEIGHT, HOST_CLASS_COST, construct
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, DetectorInfo, Predictions, QueryInfo, QuerySet, Targets, required


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads.

    tokens: the output of the encoder, one level after another, (B, S, D).
    mask: True inside the image, (B, S).
    shapes: (rows, columns) per level.
    ratios: the fraction of each level's width and height that the image fills, (B, levels, 2).
    fraction: the same for the whole padded batch, from exact sizes, (B, 1, 2).
    frame: valid (height, width), which boxes are relative to, (B, 2).
    """

    tokens: Tensor
    mask: Tensor
    shapes: tuple[tuple[int, int], ...]
    ratios: Tensor
    fraction: Tensor
    frame: Tensor

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The tokens of each level, (B, D, H, W)."""
        return token_maps(self.tokens, self.shapes)


class DeformableDETR(Family[Memory]):
    """The `Family` over a `DeformableDetrForObjectDetection`.

    classes: the labels of the model, in order. strides: the strides of its feature levels. Raises UserError if the
    model does not fit them.
    """

    def __init__(self, model: DeformableDetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        if config.num_labels != len(classes) or config.num_feature_levels != len(strides):
            raise UserError(
                f"deformable_detr: the model has {config.num_labels} labels and {config.num_feature_levels} levels, "
                f"but there are {len(classes)} classes and strides {strides}"
            )
        self.model = model
        self.two_stage = config.two_stage
        self.width = config.d_model
        class_cost = CLASS_WEIGHT if config.class_cost == HOST_CLASS_COST else config.class_cost
        self.matcher = Matcher(class_cost, config.bbox_cost, config.giou_cost)
        self.losses = focal_criterion(config, len(classes), CLASS_WEIGHT)
        self.info = DetectorInfo(
            kind="deformable_detr",
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": self.width, "memory": self.width},
            activation="sigmoid",
            queries=QueryInfo(
                width=self.width,
                parts=frozenset({"reference"}) if self.two_stage else frozenset({"content", "position"}),
                learned=not self.two_stage,
            ),
        )

    def neck(self, batch: Batch) -> Features:
        """The input projections of all levels. The mask of a cell is the mask of its first pixel.

        The first level coarser than the backbone comes from the backbone's last map, the next from that level, and so
        on.
        """
        host = self.model.model
        canvas = (batch.images.shape[-2], batch.images.shape[-1])
        inside = valid_mask(batch.sizes, *canvas)  # (B, H, W)
        maps = host.backbone(normalize(batch, *self.statistics), inside)
        levels = [projection(source) for projection, (source, _) in zip(host.input_proj, maps, strict=False)]
        masks = [mask for _, mask in maps]
        source = maps[-1][0]
        for projection in host.input_proj[len(maps) :]:
            source = projection(source)
            levels.append(source)
            masks.append(F.interpolate(inside[None].float(), size=source.shape[-2:])[0].bool())
        return Features(tuple(levels), tuple(masks), batch.sizes, canvas)

    def encode(self, features: Features) -> Memory:
        host, levels, masks = self.model.model, features.levels, features.masks
        positions = []
        for level, mask, embedding in zip(levels, masks, host.level_embed, strict=True):
            position = host.position_embedding(level.shape, level.device, torch.float32, mask).to(level.dtype)
            positions.append(position.flatten(2).transpose(1, 2) + embedding)  # (B, D, H, W) to (B, HW, D)
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        ratios = torch.stack([host.get_valid_ratio(mask) for mask in masks], dim=1)  # (B, levels, 2)
        inside = torch.cat([mask.flatten(1) for mask in masks], dim=1)  # (B, S)
        encoded = host.encoder(
            inputs_embeds=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),  # (B, S, D)
            attention_mask=inside,
            spatial_position_embeddings=torch.cat(positions, dim=1),
            **_layout(shapes, ratios),
        )
        fraction = valid_fraction(features.sizes, features.canvas)
        return Memory(encoded.last_hidden_state, inside, shapes, ratios, fraction, features.sizes)

    def queries(self, memory: Memory) -> QuerySet:
        """One-stage: the learned queries with their reference points. Two-stage: the best proposals."""
        if not self.two_stage:
            return self._from_embeddings(self.model.model.query_position_embeddings.weight, memory)
        tokens, boxes = self._proposals(memory)
        scores = self.model.model.decoder.class_embed[-1](tokens)[..., 0]  # (B, S)
        best = scores.topk(
            torch.sym_min(self.model.config.two_stage_num_proposals, scores.shape[1]), dim=1
        ).indices  # (B, Q)
        reference = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()
        return self._from_boxes(to_batch_frame(reference, memory.fraction), memory)

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """One-stage: embeddings from a standard normal distribution, like the published ones before training.

        Two-stage: boxes whose numbers are uniform in 0..1 of the valid area.
        """
        device = memory.tokens.device
        if self.two_stage:
            boxes = torch.rand(n, 4, generator=generator, device=generator.device).to(device)
            reference = boxes.expand(memory.tokens.shape[0], -1, -1)
            return self._from_boxes(to_batch_frame(reference, memory.fraction), memory)
        embeddings = torch.randn(n, 2 * self.width, generator=generator, device=generator.device)
        return self._from_embeddings(embeddings.to(device), memory)

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        """Run decoder and heads.

        One-stage: a missing reference is computed from the positions. Two-stage: content and position are computed from
        the reference if there is no content.
        """
        queries = self._fill(queries, memory)
        reference = to_valid_frame(required(queries.reference), memory.fraction)
        decoded = self.model.model.decoder(
            inputs_embeds=queries.content,
            object_queries_position_embeddings=queries.position,
            encoder_hidden_states=memory.tokens,
            encoder_attention_mask=memory.mask,
            reference_points=reference,
            **_layout(memory.shapes, memory.ratios),
        )
        # A stage refines the boxes of the stage before.
        references = [reference, *decoded.intermediate_reference_points.unbind(1)[:-1]]
        states = decoded.intermediate_hidden_states.unbind(1)
        depth = len(states)
        class_heads = self.model.class_embed[:depth]  # two-stage has one more head, for the proposals
        box_heads = self.model.bbox_embed[:depth]
        return tuple(
            _predict(state, before, class_head, box_head, memory)
            for state, before, class_head, box_head in zip(states, references, class_heads, box_heads, strict=True)
        )

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        """Two-stage also trains the proposals; their terms end in `_encoder`."""
        stages, terms = super().learn(queries, memory, targets)
        if self.two_stage:
            terms |= self._proposal_terms(memory, targets)
        return stages, terms

    def _from_embeddings(self, embeddings: Tensor, memory: Memory) -> QuerySet:
        """One-stage: queries for every image from embeddings (Q, 2 D), position then content."""
        position, content = expand_queries(embeddings, memory.tokens.shape[0]).chunk(2, dim=-1)
        return self._fill(QuerySet(content, position), memory)

    def _from_boxes(self, reference: Tensor, memory: Memory) -> QuerySet:
        """Two-stage: queries whose content and position are computed from reference boxes (B, Q, 4)."""
        host: Any = self.model.model
        embedded = host.get_proposal_pos_embed(inverse_sigmoid(to_valid_frame(reference, memory.fraction)))
        projected = host.pos_trans_norm(host.pos_trans(embedded.to(memory.tokens.dtype)))  # (B, Q, 2 D)
        position, content = projected.chunk(2, dim=-1)
        return QuerySet(content, position, reference)

    def _fill(self, queries: QuerySet, memory: Memory) -> QuerySet:
        """The queries with all parts. Raises ValueError if a part that can't be computed is missing or misfits."""
        if self.two_stage and queries.reference is not None and queries.content is None:
            return self._from_boxes(queries.reference, memory)
        if queries.content is None or queries.position is None or queries.content.shape[-1] != self.width:
            got = "no content" if queries.content is None else f"{queries.content.shape[-1]}"
            raise ValueError(f"the decoder needs queries with content and position, {self.width} wide; got {got}")
        if queries.reference is not None:
            return queries
        points = self.model.model.reference_points(queries.position).float().sigmoid()  # relative to the valid area
        return replace(queries, reference=to_batch_frame(points, memory.fraction))

    def _proposals(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Two-stage: vectors (B, S, D) of all tokens, and their boxes (B, S, 4).

        The boxes are cx cy w h of the valid area before the sigmoid.
        """
        host: Any = self.model.model
        tokens, anchors = host.gen_encoder_output_proposals(memory.tokens, ~memory.mask, list(memory.shapes))
        return tokens, host.decoder.bbox_embed[-1](tokens).float() + anchors

    def _proposal_terms(self, memory: Memory, targets: Targets) -> dict[str, Tensor]:
        """The loss terms of all tokens as proposals. Every object is of class 0, whatever its label."""
        tokens, boxes = self._proposals(memory)
        logits = self.model.model.decoder.class_embed[-1](tokens)
        stages = [sigmoid_stage(logits, boxes.sigmoid(), memory.frame)]
        objects = Targets(targets.boxes, tuple(torch.zeros_like(labels) for labels in targets.labels))
        stages = with_assignments(stages, self.match(stages, memory, objects))
        return with_suffix(self.criterion(stages, memory, objects), "_encoder")


def _layout(shapes: tuple[tuple[int, int], ...], ratios: Tensor) -> dict[str, Any]:
    """The arguments of encoder and decoder that describe how tokens are arranged in levels."""
    table = shape_table(shapes, ratios.device)
    starts = F.pad(table.prod(1).cumsum(0)[:-1], (1, 0))  # (levels,)
    return {
        "spatial_shapes": table,
        "spatial_shapes_list": list(shapes),
        "level_start_index": starts,
        "valid_ratios": ratios,
    }


def _predict(
    state: Tensor, reference: Tensor, class_head: nn.Module, box_head: nn.Module, memory: Memory
) -> Predictions:
    """Apply the heads to a state (B, Q, D). The box head refines reference: points (B, Q, 2) or boxes (B, Q, 4)."""
    shift = inverse_sigmoid(reference)
    shift = F.pad(shift, (0, 4 - shift.shape[-1]))  # (B, Q, 4)
    boxes = (box_head(state).float() + shift).sigmoid()  # in single precision: half precision is too coarse for pixels
    return sigmoid_stage(class_head(state), boxes, memory.frame, state)


def deformable_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """Deformable DETR with published initial weights; see `deformable_build.construct`.

    host: fields of `DeformableDetrConfig`.
    """
    model = construct(config, backbone, classes, host)
    return assemble(DeformableDETR(model, classes, config.strides), config)
