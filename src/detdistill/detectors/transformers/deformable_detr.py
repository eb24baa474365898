"""Deformable DETR (arXiv:2010.04159) from transformers, taken apart into neck, encoder, decoder and heads.

The host's own forward is not called: its parts are, in its order, so that a look may stop early and the decoder may run again on other
queries. Equal to the host's forward (tests). One-stage only: the two-stage variant draws its queries from the image, which is another
parametrisation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

from detdistill.detectors.backbone import build_body, check_strides
from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.transformers.shared import StageCriterion, check_need, freeze_norms, to_pixels, top_detections
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Batch, Detections, DetectorInfo, DetectorOutput, Need, Predictions, Pyramid, Queries, QuerySet, Targets

GROUPS = 32  # of the group norm in the host's input projections


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder reads. tokens (B, S, D): the encoder's output, levels one after another. mask (B, S): True on the image.
    shapes: rows and columns of each level. ratios (B, levels, 2): valid share of width and height. fraction (B, 1, 2): the same of the
    whole padded batch, exact. sizes (B, 2)."""

    tokens: Tensor
    mask: Tensor
    shapes: tuple[tuple[int, int], ...]
    ratios: Tensor
    fraction: Tensor
    sizes: Tensor


def _layout(shapes: tuple[tuple[int, int], ...], ratios: Tensor) -> dict[str, Any]:
    """The arguments by which encoder and decoder find their way in the tokens."""
    table = torch.tensor(shapes, device=ratios.device)
    starts = F.pad(table.prod(1).cumsum(0)[:-1], (1, 0))
    return {"spatial_shapes": table, "spatial_shapes_list": list(shapes), "level_start_index": starts, "valid_ratios": ratios}


class DeformableDETR(nn.Module):
    """Adapter over a one-stage `DeformableDetrForObjectDetection`, with or without box refinement, whose labels are `classes` in order.

    strides: declared strides of its feature levels. frozen_norms: the backbone's batch norms keep their statistics and affine parameters.
    All else of the backbone is made trainable (the host freezes its stem and first stage; a ResNet of transformers' own, whole).
    """

    def __init__(
        self,
        model: DeformableDetrForObjectDetection,
        classes: Sequence[str],
        strides: Sequence[int],
        *,
        detections: int = 100,
        score_threshold: float = 0.0,
        frozen_norms: bool = False,
    ):
        super().__init__()
        config = model.config
        if config.two_stage:
            raise UserError(
                "deformable_detr: two_stage draws its queries from the image, which is not served; build it with two_stage=False"
            )
        if config.num_labels != len(classes) or config.num_feature_levels != len(strides):
            has = f"{config.num_labels} labels and {config.num_feature_levels} levels"
            raise UserError(f"deformable_detr: the model has {has}, but there are {len(classes)} classes and strides {strides}")
        self.model = model
        model.model.unfreeze_backbone()
        self.frozen_norms = freeze_norms(model.model.backbone) if frozen_norms else ()
        self.detections, self.score_threshold = detections, score_threshold
        matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
        weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        self.criterion = StageCriterion(DeformableDetrImageLoss(matcher, len(classes), config.focal_alpha, []), weights)
        self.info = DetectorInfo(
            kind="deformable_detr",
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": config.d_model, "memory": config.d_model},
            activation="sigmoid",
            continuations=frozenset({"queries"}),
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "DeformableDETR":
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the timm backbone, without the input projections."""
        return list(self.model.model.backbone.parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """Pyramids `neck` (the input projections' output) and `memory` (the encoder's), one stage a decoder layer, and the queries where
        they are needed. With targets every stage is matched, and its losses are there."""
        check_need(need, frozenset(self.info.channels), self.info.kind)
        levels, masks = self._neck(batch)
        pyramids = {"neck": Pyramid(levels, self.info.strides, batch.sizes)}
        decoded = targets is not None or need.predictions
        if not (decoded or need.queries or "memory" in need.pyramids):
            return DetectorOutput(pyramids)
        memory = self._encode(levels, masks, batch)
        pyramids["memory"] = self._unflatten(memory)
        own = self._queries(self.model.model.query_position_embeddings.weight, memory)
        stages = self._decode(own, memory) if decoded else ()
        losses = {}
        if targets is not None:
            stages = tuple(replace(stage, assignment=self.criterion.assign(stage, batch.sizes, targets)) for stage in stages)
            losses = self.criterion.losses(stages, batch.sizes, targets)
        queries = Queries(own, lambda given: self._decode(given, memory), lambda n, generator: self._sample(n, generator, memory))
        return DetectorOutput(pyramids, stages, losses, queries=queries if need.queries else None)

    @torch.no_grad()
    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """The published post-processing: best of queries x classes of the last stage, no suppression."""
        last = self.observe(batch, need=Need(predictions=True)).stages[-1]
        return top_detections(last, batch.sizes, self.detections, self.score_threshold)

    def _neck(self, batch: Batch) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Levels (B, D, H, W) and their masks (B, H, W), True on the image; a cell counts where its first pixel does."""
        host, inside = self.model.model, valid_mask(batch.sizes, *batch.images.shape[-2:])
        maps = host.backbone(normalize(batch), inside)
        levels = [project(source) for project, (source, _) in zip(host.input_proj, maps, strict=False)]
        masks = [mask for _, mask in maps]
        source = maps[-1][0]
        for project in host.input_proj[len(maps) :]:  # coarser levels: the first from the backbone's last map, then one from another
            source = project(source)
            levels.append(source)
            masks.append(F.interpolate(inside[None].float(), size=source.shape[-2:])[0].bool())
        return tuple(levels), masks

    def _encode(self, levels: Sequence[Tensor], masks: Sequence[Tensor], batch: Batch) -> Memory:
        host = self.model.model
        positions = []
        for level, mask, embedding in zip(levels, masks, host.level_embed, strict=True):
            position = host.position_embedding(level.shape, level.device, torch.float32, mask).to(level.dtype)
            positions.append(position.flatten(2).transpose(1, 2) + embedding)
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        ratios = torch.stack([host.get_valid_ratio(mask) for mask in masks], dim=1)
        inside = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        encoded = host.encoder(
            inputs_embeds=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),
            attention_mask=inside,
            spatial_position_embeddings=torch.cat(positions, dim=1),
            **_layout(shapes, ratios),
        )
        fraction = batch.sizes.flip(-1)[:, None] / batch.sizes.new_tensor(batch.images.shape[-2:]).flip(-1)
        return Memory(encoded.last_hidden_state, inside, shapes, ratios, fraction, batch.sizes)

    def _unflatten(self, memory: Memory) -> Pyramid:
        parts = memory.tokens.transpose(1, 2).split([rows * columns for rows, columns in memory.shapes], dim=2)
        maps = tuple(part.unflatten(2, shape) for part, shape in zip(parts, memory.shapes, strict=True))
        return Pyramid(maps, self.info.strides, memory.sizes)

    def _queries(self, embeddings: Tensor, memory: Memory) -> QuerySet:
        """Embeddings (Q, 2 D), position then content, for every image; the reference points come from the positions."""
        position, content = embeddings.expand(len(memory.tokens), -1, -1).chunk(2, dim=-1)
        return QuerySet(content, position, self._points(position) * memory.fraction)

    def _points(self, position: Tensor) -> Tensor:
        """Reference points (B, Q, 2) in 0..1 of the valid area."""
        return self.model.model.reference_points(position).float().sigmoid()

    def _sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """Standard normal, as the published embeddings are at first; the same queries for every image."""
        width = 2 * self.model.config.d_model
        drawn = torch.randn(n, width, generator=generator, device=generator.device)
        return self._queries(drawn.to(memory.tokens.device), memory)

    def _decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        """The decoder and the heads: one stage a layer. Without a reference, this detector's own layer makes it from the positions."""
        if queries.position is None or queries.content.shape[-1] != self.model.config.d_model:
            raise ValueError(
                f"the decoder asks for queries with positions, {self.model.config.d_model} wide; got {queries.content.shape[-1]}"
            )
        if queries.reference is None:
            reference = self._points(queries.position)
        else:
            reference = queries.reference / memory.fraction.repeat(1, 1, queries.reference.shape[-1] // 2)
        decoded = self.model.model.decoder(
            inputs_embeds=queries.content,
            object_queries_position_embeddings=queries.position,
            encoder_hidden_states=memory.tokens,
            encoder_attention_mask=memory.mask,
            reference_points=reference,
            **_layout(memory.shapes, memory.ratios),
        )
        references = [reference, *decoded.intermediate_reference_points.unbind(1)[:-1]]  # a stage corrects what the one before it said
        states = decoded.intermediate_hidden_states.unbind(1)
        heads = zip(states, references, self.model.class_embed, self.model.bbox_embed, strict=True)
        return tuple(self._predict(state, before, classify, regress, memory) for state, before, classify, regress in heads)

    def _predict(self, state: Tensor, reference: Tensor, classify: nn.Module, regress: nn.Module, memory: Memory) -> Predictions:
        shift = inverse_sigmoid(reference)
        relative = (regress(state).float() + F.pad(shift, (0, 4 - shift.shape[-1]))).sigmoid()  # half precision has no room for pixels
        boxes = to_pixels(relative, memory.sizes)
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Predictions(classify(state).float(), "sigmoid", boxes, valid, embeddings=state)


def deformable_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> DeformableDETR:
    """From config, offline, on a timm backbone. host: fields of `DeformableDetrConfig` laid over its defaults, such as encoder_layers=3.

    Of what the host does to a backbone only the norms' freezing is kept, and only over weights that were loaded: with
    `backbone_weights: none` the batch norms learn as usual. Every other parameter of the backbone trains.
    Raises UserError where strides, width or backbone don't fit.
    """
    strides, width = config.strides, config.channels
    heads = math.lcm(host.get("encoder_attention_heads", 8), host.get("decoder_attention_heads", 8))
    check_strides(strides)
    if width % math.lcm(GROUPS, heads):
        raise UserError(f"model.channels {width}: deformable_detr needs a multiple of {math.lcm(GROUPS, heads)}, such as 256")
    if host.get("decoder_layers", 2) < 2:
        raise UserError("deformable_detr: transformers can't build a decoder of one layer; take at least 2 decoder layers")
    body, given, _ = build_body(backbone, strides, config.backbone_weights)
    if given != strides[: len(given)]:
        raise UserError(f"model.strides {strides}: backbone {backbone!r} has no map of stride {strides[0]}; it gives {given}")
    features: Any = body.feature_info
    fields: dict[str, Any] = {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": backbone,
            "out_indices": list(features.out_indices),
            "use_pretrained_backbone": False,
        },
        "num_labels": len(classes),
        "num_feature_levels": len(strides),
        "d_model": width,
        "num_queries": config.queries,
        "auxiliary_loss": True,
    }
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(**fields | host))
    model.model.backbone.model = body  # in place of the host's: nothing frozen, norms whole, weights loaded
    detector = DeformableDETR(
        model,
        classes,
        strides,
        detections=config.detections,
        score_threshold=config.score_threshold,
        frozen_norms=config.backbone_weights != "none",
    )
    initialize(model)
    return detector


@torch.no_grad()
def initialize(model: DeformableDetrForObjectDetection) -> None:
    """Starting weights as published, in place. A host built from config starts otherwise: query embeddings of deviation 0.02 put all
    reference points within a hundredth of the image's centre, and class scores start at 0.5 instead of the focal loss's 0.01."""
    host: Any = model.model
    for name, weight in [*host.encoder.named_parameters(), *host.decoder.named_parameters()]:
        if weight.ndim > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
            # The published attention keeps query, key and value in one matrix, three times as high.
            packed = "self_attn" in name and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.5) if packed else 1.0)
    for convolution, _ in host.input_proj:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    nn.init.normal_(host.query_position_embeddings.weight)
    heads: Any = (model.class_embed, model.bbox_embed)
    for classify, regress in zip(*heads, strict=True):
        classify.reset_parameters()
        nn.init.constant_(classify.bias, -math.log(99))  # score 0.01, arXiv:1708.02002
        for layer in regress.layers:
            layer.reset_parameters()
        nn.init.zeros_(regress.layers[-1].weight)
        nn.init.zeros_(regress.layers[-1].bias)
    heads[1][0].layers[-1].bias[2:] = -2.0  # the first boxes have an eighth of the image's sides
