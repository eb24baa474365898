"""Conditional DETR (arXiv:2108.06152) from transformers, taken apart into neck, encoder, decoder and heads.

The decoder is run layer by layer for the same reason as DETR's: the host's `auxiliary_loss` would feed each normed state to the next layer. The
last stage equals the host's forward without it (tests). The host's classification coefficient is 1, whatever its config says (published: 2).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.conditional_detr.modeling_conditional_detr import (
    encode_sinusoidal_position_embedding,
    inverse_sigmoid,
)

from detdistill.detectors.queries.detector import Features, QueryDetector, assemble, learn_stages
from detdistill.detectors.queries.frames import spread, to_pixels
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers import single_level
from detdistill.detectors.transformers.criterion import StageCriterion
from detdistill.detectors.transformers.host import keeps_norms, thaw
from detdistill.detectors.transformers.single_level import Memory
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Predictions, QuerySet, Targets


class ConditionalDETR:
    """The `Family` over a `ConditionalDetrForObjectDetection` whose labels are `classes` in order, strides that of its one level.

    A query is its position embedding, from which this detector makes the reference point, of its own and of other queries: one that is given
    is not read. A content is the decoder's start where it is given, else zeros as in the host.
    """

    def __init__(self, model: ConditionalDetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        self.info = single_level.describe("conditional_detr", config, classes, strides, "sigmoid", "position")
        self.model = model
        self.matcher = Matcher(config.class_cost, config.bbox_cost, config.giou_cost)
        weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        host: Any = DeformableDetrImageLoss(None, len(classes), config.focal_alpha, [])
        self.losses = StageCriterion(host, weights)

    def body(self) -> nn.Module:
        return self.model.model.backbone

    def neck(self, batch: Batch) -> Features:
        host = self.model.model
        return single_level.project(host.backbone, host.input_projection, batch)

    def encode(self, features: Features) -> Memory:
        return single_level.encode(self.model.model, features)

    def queries(self, memory: Memory) -> QuerySet:
        """The embeddings, the same for every image."""
        return QuerySet(position=spread(self.model.model.query_position_embeddings.weight, len(memory.tokens)))

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """Standard normal, as the published embeddings are at first."""
        return QuerySet(position=single_level.drawn(n, self.model.config.d_model, generator, memory))

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        host: Any = self.model.model.decoder
        width = self.model.config.d_model
        position, state = single_level.read(queries, "position", width, width)
        mask = create_bidirectional_mask(host.config, state, memory.mask, memory.tokens)
        reference = host.ref_point_head(position).float().sigmoid()  # (B, Q, 2), of the valid area
        place = encode_sinusoidal_position_embedding(reference, num_pos_feats=width // 2)
        stages = []
        for index, layer in enumerate(host.layers):
            asked = place * host.query_scale(state) if index else place
            state = layer(
                state,
                None,
                memory.positions,
                position,
                asked,
                memory.tokens,
                encoder_attention_mask=mask,
                is_first=index == 0,
            )
            stages.append(self._predict(host.layernorm(state), reference, memory))
        return tuple(stages)

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher(stages, memory.sizes, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        return self.losses(stages, memory.sizes, targets)

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        return learn_stages(self, queries, memory, targets)

    def _predict(self, state: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        relative = (self.model.bbox_predictor(state).float() + F.pad(inverse_sigmoid(reference), (0, 2))).sigmoid()
        boxes = to_pixels(relative, memory.sizes)
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Predictions(self.model.class_labels_classifier(state).float(), "sigmoid", boxes, valid, embeddings=state)


def conditional_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """From config, offline, on a timm backbone or the native one. host: fields of `ConditionalDetrConfig` laid over all else.

    Raises UserError where strides, width or backbone don't fit.
    """
    body, fields = single_level.host_fields("conditional_detr", config, backbone, classes, ConditionalDetrConfig, host)
    model = ConditionalDetrForObjectDetection(ConditionalDetrConfig(**fields))
    if body is not None:
        model.model.backbone.model = body  # in place of the host's: nothing frozen, norms whole, weights loaded
    norms = thaw(model.model.backbone, frozen_norms=keeps_norms(config))
    initialize(model)
    return assemble(ConditionalDETR(model, classes, config.strides), config, norms)


@torch.no_grad()
def initialize(model: ConditionalDetrForObjectDetection) -> None:
    """Starting weights as published, in place. A host built from config starts otherwise: queries of deviation 0.02 put all reference points next
    to the image's centre, and class scores start at 0.5 instead of the focal loss's 0.01."""
    host: Any = model.model
    single_level.xavier(host.encoder, packed=True)
    single_level.xavier(host.decoder, packed=False)
    nn.init.normal_(host.query_position_embeddings.weight)
    single_level.reset_heads(host.input_projection, model.class_labels_classifier, model.bbox_predictor)
    single_level.calm_heads(model.class_labels_classifier, model.bbox_predictor)
