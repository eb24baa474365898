"""DETR (arXiv:2005.12872) from transformers, taken apart into neck, encoder, decoder and heads.

The decoder is run layer by layer, and every stage is the heads on the norm of a layer's own output, as published. The host's decoder gives no such
states: with `auxiliary_loss` it feeds each normed state to the next layer, which changes every prediction, without it it gives only the last. So
that field has no say here. The last stage equals the host's forward without it (tests).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection
from transformers.loss.loss_for_object_detection import ImageLoss
from transformers.masking_utils import create_bidirectional_mask

from detdistill.detectors.queries.detector import Features, QueryDetector, assemble, by_stage, learn_stages
from detdistill.detectors.queries.frames import spread, to_pixels, to_relative
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers import single_level
from detdistill.detectors.transformers.criterion import StageCriterion, host_labels, object_count
from detdistill.detectors.transformers.host import keeps_norms, thaw
from detdistill.detectors.transformers.single_level import Memory
from detdistill.distributed import mean_over_processes
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Predictions, QuerySet, Targets, required


class DETR:
    """The `Family` over a `DetrForObjectDetection` whose labels are `classes` in order, strides that of its one level.

    A query is its position embedding; a content is the decoder's start where it is given, else zeros as in the host; a reference has no
    meaning to this decoder, which knows no points, and is not read.
    """

    def __init__(self, model: DetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]):
        config = model.config
        self.info = single_level.describe("detr", config, classes, strides, "softmax", "position")
        self.model = model
        self.matcher = Matcher(config.class_cost, config.bbox_cost, config.giou_cost)
        weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        self.host_loss: Any = ImageLoss(None, len(classes), config.eos_coefficient, [])
        self.losses = StageCriterion(self.host_loss, weights)

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
        stages = []
        for layer in host.layers:
            state = layer(state, None, memory.positions, position, memory.tokens, encoder_attention_mask=mask)
            stages.append(self._predict(host.layernorm(state), memory))
        return tuple(stages)

    def match(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> tuple[Assignment, ...]:
        return self.matcher(stages, memory.sizes, targets)

    def criterion(self, stages: Sequence[Predictions], memory: Memory, targets: Targets) -> dict[str, Tensor]:
        """The host's cross entropy is a mean by class weights (1 for an object, `eos_coefficient` for none); their sum is averaged over processes
        here, each of which has its own there."""
        count, labels = object_count(targets, memory.sizes), host_labels(targets, memory.sizes)
        self.host_loss.to(memory.sizes.device)  # it keeps the class weights
        positive = torch.stack([required(stage.assignment).positive for stage in stages]).flatten(1)  # (L, B Q)
        mass = torch.where(positive, 1.0, self.model.config.eos_coefficient).sum(1)
        shares = mass / mean_over_processes(mass, floor=1e-9)
        found = []
        for stage, share in zip(stages, shares, strict=True):
            logits = torch.cat([stage.logits, required(stage.background)[..., None]], dim=-1)
            outputs = {"logits": logits, "pred_boxes": to_relative(stage.boxes, memory.sizes)}
            terms = self.losses.stage(outputs, stage, labels, count)
            found.append(terms | {"classification": terms["classification"] * share})
        return by_stage(found)

    def learn(
        self, queries: QuerySet, memory: Memory, targets: Targets
    ) -> tuple[tuple[Predictions, ...], dict[str, Tensor]]:
        return learn_stages(self, queries, memory, targets)

    def _predict(self, state: Tensor, memory: Memory) -> Predictions:
        boxes = to_pixels(self.model.bbox_predictor(state).float().sigmoid(), memory.sizes)
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        logits = self.model.class_labels_classifier(state).float()
        return Predictions(logits[..., :-1], "softmax", boxes, valid, background=logits[..., -1], embeddings=state)


def detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """From config, offline, on a timm backbone or the native one. host: fields of `DetrConfig` laid over all else.

    Raises UserError where strides, width or backbone don't fit.
    """
    body, fields = single_level.host_fields("detr", config, backbone, classes, DetrConfig, host)
    model = DetrForObjectDetection(DetrConfig(**fields))
    if body is not None:
        model.model.backbone.model = body  # in place of the host's: nothing frozen, norms whole, weights loaded
    norms = thaw(model.model.backbone, frozen_norms=keeps_norms(config))
    initialize(model)
    return assemble(DETR(model, classes, config.strides), config, norms)


@torch.no_grad()
def initialize(model: DetrForObjectDetection) -> None:
    """Starting weights as published, in place. A host built from config starts otherwise: all weights normal of deviation 0.02, the queries too,
    which are then hardly told apart."""
    host: Any = model.model
    single_level.xavier(host.encoder, packed=True)
    single_level.xavier(host.decoder, packed=True)
    nn.init.normal_(host.query_position_embeddings.weight)
    single_level.reset_heads(host.input_projection, model.class_labels_classifier, model.bbox_predictor)
