"""DAB-DETR (arXiv:2201.12329) from transformers, taken apart into neck, encoder, decoder and heads.

The host's own forward is not called: its parts are, in its order, so that a look may stop early and the decoder may run again on other queries.
Equal to the host's forward (tests). The host's classification coefficient is 1, whatever its config says (published: 2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DabDetrConfig, DabDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss
from transformers.models.dab_detr.modeling_dab_detr import inverse_sigmoid

from detdistill.detectors.queries.detector import Features, QueryDetector, assemble, learn_stages
from detdistill.detectors.queries.frames import spread, to_pixels
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers import single_level
from detdistill.detectors.transformers.criterion import StageCriterion
from detdistill.detectors.transformers.host import keeps_norms, thaw
from detdistill.detectors.transformers.single_level import Memory, flat
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Predictions, QuerySet, Targets


class DABDETR:
    """The `Family` over a `DabDetrForObjectDetection` whose labels are `classes` in order, strides that of its one level.

    A query is its reference box, from which each decoder layer makes the position anew: one that is given is not read. A content is the
    decoder's start where it is given, else zeros as in the host.
    """

    def __init__(self, model: DabDetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        self.info = single_level.describe("dab_detr", config, classes, strides, "sigmoid", "reference")
        if config.num_patterns:
            raise UserError(
                f"dab_detr: num_patterns {config.num_patterns} is not served; take a model with num_patterns 0"
            )
        self.model = model
        self.matcher = Matcher(config.class_cost, config.bbox_cost, config.giou_cost)
        weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        host: Any = DeformableDetrImageLoss(None, len(classes), config.focal_alpha, [])
        self.losses = StageCriterion(host, weights)

    def body(self) -> nn.Module:
        return self.model.model.backbone

    def neck(self, batch: Batch) -> Features:
        host = self.model.model
        return single_level.project(host.backbone.conv_encoder, host.input_projection, batch)

    def encode(self, features: Features) -> Memory:
        host: Any = self.model.model
        (level,), (mask,) = features.levels, features.masks
        positions = flat(host.backbone.position_embedding(level, mask).to(level.dtype))
        encoded = host.encoder(
            inputs_embeds=flat(level), attention_mask=mask.flatten(1), object_queries=positions, return_dict=True
        )
        return single_level.remember(encoded.last_hidden_state, positions, features)

    def queries(self, memory: Memory) -> QuerySet:
        """The reference boxes, the same shares of every image's valid area."""
        return self._placed(spread(self.model.model.query_refpoint_embeddings.weight, len(memory.tokens)), memory)

    def sample(self, n: int, generator: torch.Generator, memory: Memory) -> QuerySet:
        """Boxes about the middle of the image and half its sides, as the published ones are at first: sigmoids of standard normals."""
        return self._placed(single_level.drawn(n, 4, generator, memory), memory)

    def decode(self, queries: QuerySet, memory: Memory) -> tuple[Predictions, ...]:
        reference, content = single_level.read(queries, "reference", 4, self.model.config.hidden_size)
        decoded = self.model.model.decoder(
            inputs_embeds=content,
            query_position_embeddings=inverse_sigmoid(reference / memory.fraction.repeat(1, 1, 2)),
            object_queries=memory.positions,
            encoder_hidden_states=memory.tokens,
            memory_key_padding_mask=memory.mask,
            return_dict=True,
        )
        stages = zip(
            decoded.intermediate_hidden_states, decoded.reference_points, strict=True
        )  # a stage corrects what the one before it said
        return tuple(self._predict(state, before, memory) for state, before in stages)

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher(stages, memory.sizes, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        return self.losses(stages, memory.sizes, targets)

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        return learn_stages(self, queries, memory, targets)

    def _placed(self, embeddings: Tensor, memory: Memory) -> QuerySet:
        """Reference boxes in 0..1 of the padded batch from embeddings (B, Q, 4), which are boxes of the valid area before the sigmoid."""
        return QuerySet(reference=embeddings.float().sigmoid() * memory.fraction.repeat(1, 1, 2))

    def _predict(self, state: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        relative = (self.model.bbox_predictor(state).float() + inverse_sigmoid(reference.float())).sigmoid()
        boxes = to_pixels(relative, memory.sizes)
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Predictions(self.model.class_embed(state).float(), "sigmoid", boxes, valid, embeddings=state)


def dab_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """From config, offline, on a timm backbone or the native one. host: fields of `DabDetrConfig` laid over all else.

    Raises UserError where strides, width or backbone don't fit.
    """
    body, fields = single_level.host_fields("dab_detr", config, backbone, classes, DabDetrConfig, host)
    model = DabDetrForObjectDetection(DabDetrConfig(**{"auxiliary_loss": True} | fields))
    encoder: Any = model.model.backbone.conv_encoder
    if body is not None:
        encoder.model._backbone = body  # in place of the host's: nothing frozen, norms whole, weights loaded
    norms = thaw(encoder, frozen_norms=keeps_norms(config))
    initialize(model)
    return assemble(DABDETR(model, classes, config.strides), config, norms)


@torch.no_grad()
def initialize(model: DabDetrForObjectDetection) -> None:
    """Starting weights as published, in place. A host built from config starts otherwise: its reference boxes are hardly told apart, with
    `random_refpoints_xy` too, and class scores start at 1 / (K + 1) instead of the focal loss's 0.01."""
    host: Any = model.model
    single_level.xavier(host.encoder, packed=True)
    single_level.xavier(host.decoder, packed=False)
    boxes = nn.init.normal_(host.query_refpoint_embeddings.weight)
    if model.config.random_refpoints_xy:
        boxes[:, :2] = inverse_sigmoid(torch.rand_like(boxes[:, :2]))
    single_level.reset_heads(
        host.input_projection, model.class_embed, model.bbox_predictor
    )  # the decoder's box head is tied to this one
    single_level.calm_heads(model.class_embed, model.bbox_predictor)
