"""Deformable DETR (arXiv:2010.04159) from transformers, taken apart into neck, encoder, decoder and heads.

The host's own forward is not called: its parts are, in its order, so that a look may stop early and the decoder may run again on other
queries. Equal to the host's forward (tests).

Two-stage: the queries are the encoder's best proposals. The host leaves out what trains them, so that its `enc_output` never gets a gradient; here
the published loss of every token as a proposal, object or not, is added as terms that end in `_encoder`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss
from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

from detdistill.detectors.backbone import check_strides
from detdistill.detectors.images import normalize, valid_mask
from detdistill.detectors.queries.detector import Features, QueryDetector, assemble, learn_stages, token_maps
from detdistill.detectors.queries.frames import spread, to_pixels
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers.criterion import StageCriterion
from detdistill.detectors.transformers.host import NATIVE, depths, keeps_norms, native_config, thaw, timm_config
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, DetectorInfo, Predictions, QueryInfo, QuerySet, Targets, required

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

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The tokens of each level, (B, D, H, W)."""
        return token_maps(self.tokens, self.shapes)


def _layout(shapes: tuple[tuple[int, int], ...], ratios: Tensor) -> dict[str, Any]:
    """The arguments by which encoder and decoder find their way in the tokens."""
    table = torch.tensor(shapes, device=ratios.device)
    starts = F.pad(table.prod(1).cumsum(0)[:-1], (1, 0))
    return {
        "spatial_shapes": table,
        "spatial_shapes_list": list(shapes),
        "level_start_index": starts,
        "valid_ratios": ratios,
    }


class DeformableDETR:
    """The `Family` over a `DeformableDetrForObjectDetection` whose labels are `classes` in order, strides those of its feature levels."""

    def __init__(self, model: DeformableDetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        if config.num_labels != len(classes) or config.num_feature_levels != len(strides):
            has = f"{config.num_labels} labels and {config.num_feature_levels} levels"
            raise UserError(
                f"deformable_detr: the model has {has}, but there are {len(classes)} classes and strides {strides}"
            )
        self.model, self.two_stage = model, config.two_stage
        self.matcher = Matcher(config.class_cost, config.bbox_cost, config.giou_cost)
        weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        host: Any = DeformableDetrImageLoss(None, len(classes), config.focal_alpha, [])
        self.losses = StageCriterion(host, weights)
        self.info = DetectorInfo(
            kind="deformable_detr",
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": config.d_model, "memory": config.d_model},
            activation="sigmoid",
            queries=QueryInfo(
                width=config.d_model,
                parts=frozenset({"reference"}) if config.two_stage else frozenset({"content", "position"}),
                learned=not config.two_stage,
            ),
        )

    def body(self) -> nn.Module:
        return self.model.model.backbone

    def neck(self, batch: Batch) -> Features:
        """The input projections; a cell counts where its first pixel does."""
        host, inside = self.model.model, valid_mask(batch.sizes, *batch.images.shape[-2:])
        maps = host.backbone(normalize(batch), inside)
        levels = [project(source) for project, (source, _) in zip(host.input_proj, maps, strict=False)]
        masks = [mask for _, mask in maps]
        source = maps[-1][0]
        for project in host.input_proj[
            len(maps) :
        ]:  # coarser levels: the first from the backbone's last map, then one from another
            source = project(source)
            levels.append(source)
            masks.append(F.interpolate(inside[None].float(), size=source.shape[-2:])[0].bool())
        return Features(tuple(levels), tuple(masks), batch.sizes, (batch.images.shape[-2], batch.images.shape[-1]))

    def encode(self, features: Features) -> Memory:
        host, levels, masks = self.model.model, features.levels, features.masks
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
        fraction = features.sizes.flip(-1)[:, None] / features.sizes.new_tensor(features.canvas).flip(-1)
        return Memory(encoded.last_hidden_state, inside, shapes, ratios, fraction, features.sizes)

    def queries(self, memory: Memory) -> QuerySet:
        """One-stage: the embeddings, the same for every image, and the reference points made from them. Two-stage: the proposals."""
        if self.two_stage:
            tokens, boxes = self._proposals(memory)
            scores = self.model.model.decoder.class_embed[-1](tokens)[..., 0]
            best = scores.topk(min(self.model.config.two_stage_num_proposals, scores.shape[1]), dim=1).indices
            reference = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()
            return self._placed(QuerySet(reference=reference * memory.fraction.repeat(1, 1, 2)), memory)
        return self._embedded(self.model.model.query_position_embeddings.weight, memory)

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """One-stage: standard normal, as the published embeddings are at first. Two-stage: boxes of all places and sizes."""
        width = 4 if self.two_stage else 2 * self.model.config.d_model
        if self.two_stage:
            drawn = torch.rand(n, width, generator=generator, device=generator.device).to(memory.tokens.device)
            return self._placed(
                QuerySet(reference=drawn.expand(len(memory.tokens), -1, -1) * memory.fraction.repeat(1, 1, 2)), memory
            )
        drawn = torch.randn(n, width, generator=generator, device=generator.device)
        return self._embedded(drawn.to(memory.tokens.device), memory)

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        """The decoder and the heads. One-stage, a reference that is None is made from the positions; two-stage, the rest from the reference."""
        queries = self._filled(queries, memory)
        reference = required(queries.reference)
        reference = reference / memory.fraction.repeat(1, 1, reference.shape[-1] // 2)
        decoded = self.model.model.decoder(
            inputs_embeds=queries.content,
            object_queries_position_embeddings=queries.position,
            encoder_hidden_states=memory.tokens,
            encoder_attention_mask=memory.mask,
            reference_points=reference,
            **_layout(memory.shapes, memory.ratios),
        )
        references = [
            reference,
            *decoded.intermediate_reference_points.unbind(1)[:-1],
        ]  # a stage corrects what the one before it said
        states = decoded.intermediate_hidden_states.unbind(1)
        depth = len(states)  # two-stage has one more head, for the proposals
        heads = zip(states, references, self.model.class_embed[:depth], self.model.bbox_embed[:depth], strict=True)
        return tuple(
            self._predict(state, before, classify, regress, memory) for state, before, classify, regress in heads
        )

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher(stages, memory.sizes, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        return self.losses(stages, memory.sizes, targets)

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        stages, terms = learn_stages(self, queries, memory, targets)
        return stages, terms | (self._proposal_terms(memory, targets) if self.two_stage else {})

    def _embedded(self, embeddings: Tensor, memory: Memory) -> QuerySet:
        """Embeddings (Q, 2 D), position then content, for every image."""
        position, content = spread(embeddings, len(memory.tokens)).chunk(2, dim=-1)
        return self._filled(QuerySet(content, position), memory)

    def _filled(self, queries: QuerySet, memory: Memory) -> QuerySet:
        """With the parts that this detector makes from the others. Raises ValueError for missing or ill-fitting ones."""
        if self.two_stage and queries.reference is not None and queries.content is None:
            return self._placed(queries, memory)
        width = self.model.config.d_model
        if queries.content is None or queries.position is None or queries.content.shape[-1] != width:
            got = "no content" if queries.content is None else f"{queries.content.shape[-1]}"
            raise ValueError(f"the decoder asks for queries with positions, {width} wide; got {got}")
        if queries.reference is not None:
            return queries
        points = self.model.model.reference_points(queries.position).float().sigmoid()  # of the valid area
        return replace(queries, reference=points * memory.fraction)

    def _placed(self, queries: QuerySet, memory: Memory) -> QuerySet:
        """Two-stage: content and position from the reference boxes."""
        host: Any = self.model.model
        reference = required(queries.reference)
        embedded = host.get_proposal_pos_embed(inverse_sigmoid(reference / memory.fraction.repeat(1, 1, 2)))
        position, content = host.pos_trans_norm(host.pos_trans(embedded.to(memory.tokens.dtype))).chunk(2, dim=-1)
        return QuerySet(content, position, reference)

    def _proposals(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Two-stage: a vector (B, S, D) of each token, and its box (B, S, 4), cx cy w h of the valid area before the sigmoid."""
        host: Any = self.model.model
        tokens, anchors = host.gen_encoder_output_proposals(memory.tokens, ~memory.mask, list(memory.shapes))
        return tokens, host.decoder.bbox_embed[-1](tokens).float() + anchors

    def _proposal_terms(self, memory: Memory, targets: Targets) -> dict[str, Tensor]:
        tokens, boxes = self._proposals(memory)
        logits = self.model.model.decoder.class_embed[-1](tokens).float()
        stage = Predictions(logits, "sigmoid", to_pixels(boxes.sigmoid(), memory.sizes), torch.ones_like(memory.mask))
        objects = Targets(
            targets.boxes, tuple(torch.zeros_like(labels) for labels in targets.labels)
        )  # an object is class 0, whichever it is
        stage = replace(stage, assignment=self.matcher([stage], memory.sizes, objects)[0])
        return {f"{name}_encoder": term for name, term in self.losses([stage], memory.sizes, objects).items()}

    def _predict(
        self, state: Tensor, reference: Tensor, classify: nn.Module, regress: nn.Module, memory: Memory
    ) -> Predictions:
        shift = inverse_sigmoid(reference)
        relative = (
            regress(state).float() + F.pad(shift, (0, 4 - shift.shape[-1]))
        ).sigmoid()  # half precision has no room for pixels
        boxes = to_pixels(relative, memory.sizes)
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Predictions(classify(state).float(), "sigmoid", boxes, valid, embeddings=state)


def deformable_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """From config, offline, on a timm backbone or the native one. host: fields of `DeformableDetrConfig` laid over all else.

    Raises UserError where strides, width or backbone don't fit.
    """
    strides, width = config.strides, config.channels
    heads = math.lcm(host.get("encoder_attention_heads", 8), host.get("decoder_attention_heads", 8))
    check_strides(strides)
    if width % math.lcm(GROUPS, heads):
        raise UserError(
            f"model.channels {width}: deformable_detr needs a multiple of {math.lcm(GROUPS, heads)}, such as 256"
        )
    if (config.decoder_layers or host.get("decoder_layers", 2)) < 2:
        raise UserError(
            "model.decoder_layers: transformers can't build a deformable_detr decoder of one layer; take at least 2 decoder layers"
        )
    fields: dict[str, Any] = {
        "num_labels": len(classes),
        "num_feature_levels": len(strides),
        "d_model": width,
        "num_queries": config.queries,
        "two_stage_num_proposals": config.queries,
        "auxiliary_loss": True,
        "with_box_refine": config.box_refine or config.two_stage,
        "two_stage": config.two_stage,
    }
    fields |= depths(config)
    body = None
    if backbone == NATIVE:
        native = tuple(stride for stride in strides if stride <= 32)
        fields["backbone_config"] = native_config(
            DeformableDetrConfig().backbone_config, native, config.backbone_weights
        )
    else:
        body, fields["backbone_config"] = timm_config(config, backbone, strides)
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(**fields | host))
    if body is not None:
        model.model.backbone.model = body  # in place of the host's: nothing frozen, norms whole, weights loaded
    norms = thaw(model.model.backbone, frozen_norms=keeps_norms(config))
    initialize(model)
    return assemble(DeformableDETR(model, classes, strides), config, norms)


@torch.no_grad()
def initialize(model: DeformableDetrForObjectDetection) -> None:
    """Starting weights as published, in place. A host built from config starts otherwise: query embeddings of deviation 0.02 put all
    reference points within a hundredth of the image's centre, and class scores start at 0.5 instead of the focal loss's 0.01."""
    host: Any = model.model
    for name, weight in [*host.encoder.named_parameters(), *host.decoder.layers.named_parameters()]:
        if weight.ndim > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
            # The published attention keeps query, key and value in one matrix, three times as high.
            packed = "self_attn" in name and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.5) if packed else 1.0)
    for convolution, _ in host.input_proj:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    if not model.config.two_stage:
        nn.init.normal_(host.query_position_embeddings.weight)
    heads: Any = (model.class_embed, model.bbox_embed)
    for classify, regress in zip(*heads, strict=True):
        classify.reset_parameters()
        nn.init.constant_(classify.bias, -math.log(99))  # score 0.01, arXiv:1708.02002
        for layer in regress.layers:
            layer.reset_parameters()
        nn.init.zeros_(regress.layers[-1].weight)
        nn.init.zeros_(regress.layers[-1].bias)
    if not model.config.two_stage:
        heads[1][0].layers[-1].bias[2:] = -2.0  # the first boxes have an eighth of the image's sides
