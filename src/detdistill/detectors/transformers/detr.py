"""DETR (arXiv:2005.12872) of transformers: what differs from the other detectors with one level.

The decoder runs layer by layer. Each stage applies the heads to the normed output of its layer, as published. The
host's decoder does not return these states. With `auxiliary_loss` it feeds the normed states to the next layer, which
changes every prediction. Without it, it returns the last state only. So this config field has no effect here. The last
stage equals the host's forward without `auxiliary_loss` (tests).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection
from transformers.loss.loss_for_object_detection import ImageLoss
from transformers.masking_utils import create_bidirectional_mask

from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.queries.stages import merge_terms
from detdistill.detectors.transformers.criterion import StageCriterion, detr_weights, host_labels, object_count
from detdistill.detectors.transformers.single_level import (
    Memory,
    SingleLevelDETR,
    SingleLevelSpec,
    build,
    reset_heads,
    xavier,
)
from detdistill.distributed import mean_over_processes
from detdistill.geometry import to_pixels, to_relative
from detdistill.recipe import ModelConfig
from detdistill.types import Predictions, Targets, required

CLASS_WEIGHT = 1.0  # in the loss, as published


def _decode(model: Any, position: Tensor, state: Tensor, memory: Memory) -> tuple[Predictions, ...]:
    """One stage per decoder layer. A query is its position embedding; this decoder reads no reference."""
    decoder = model.model.decoder
    mask = create_bidirectional_mask(decoder.config, state, memory.mask, memory.tokens)
    stages = []
    for layer in decoder.layers:
        state = layer(state, None, memory.positions, position, memory.tokens, encoder_attention_mask=mask)  # (B, Q, D)
        stages.append(_predict(model, decoder.layernorm(state), memory))
    return tuple(stages)


def _predict(model: Any, state: Tensor, memory: Memory) -> Predictions:
    """Apply the heads to a state (B, Q, D). The last class column is `no object`."""
    boxes = to_pixels(model.bbox_predictor(state).float().sigmoid(), memory.frame)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    logits = model.class_labels_classifier(state).float()  # (B, Q, K + 1)
    return Predictions(logits[..., :-1], "softmax", boxes, valid, background=logits[..., -1], embeddings=state)


class DETRCriterion:
    """The host's losses, with the cross entropy averaged over all processes.

    The host divides the cross entropy by the sum of class weights: 1 for an object, `eos_coefficient` for none. In the
    host each process divides by its own sum. Here the sum is averaged over processes.
    """

    def __init__(self, config: Any, classes: int):
        self.background_weight = config.eos_coefficient
        self.host: Any = ImageLoss(None, classes, config.eos_coefficient, [])
        self.losses = StageCriterion(self.host, detr_weights(config, CLASS_WEIGHT))

    def __call__(self, stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Weighted terms of every stage; see `StageCriterion`."""
        count = object_count(targets, frame)
        labels = host_labels(targets, frame)
        self.host.to(frame.device)  # the host's loss holds the class weights as a buffer
        positive = torch.stack([required(stage.assignment).positive for stage in stages]).flatten(1)  # (L, B Q)
        weight_sums = torch.where(positive, 1.0, self.background_weight).sum(1)  # (L,)
        factors = weight_sums / mean_over_processes(weight_sums, floor=1e-9)
        terms = []
        for stage, factor in zip(stages, factors, strict=True):
            logits = torch.cat([stage.logits, required(stage.background)[..., None]], dim=-1)  # (B, Q, K + 1)
            outputs = {"logits": logits, "pred_boxes": to_relative(stage.boxes, frame)}
            stage_terms = self.losses.stage(outputs, stage, labels, count)
            terms.append(stage_terms | {"classification": stage_terms["classification"] * factor})
        return merge_terms(terms)


@torch.no_grad()
def _initialize(model: DetrForObjectDetection) -> None:
    """Published initial weights, in place.

    The host draws all weights from a normal distribution with deviation 0.02. Its queries are then almost equal.
    """
    host: Any = model.model
    xavier(host.encoder, packed=True)
    xavier(host.decoder, packed=True)
    nn.init.normal_(host.query_position_embeddings.weight)
    reset_heads(host.input_projection, model.class_labels_classifier, model.bbox_predictor)


SPEC = SingleLevelSpec(
    kind="detr",
    config=DetrConfig,
    model=DetrForObjectDetection,
    activation="softmax",
    part="position",
    embeddings="query_position_embeddings",
    timm_backbone="model.backbone.model",
    decode=_decode,
    losses=DETRCriterion,
    initialize=_initialize,
)


def detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """DETR with published initial weights; see `single_level.build`. host: fields of `DetrConfig`."""
    return build(SPEC, config, backbone, classes, host)


def adapt(model: DetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]) -> SingleLevelDETR:
    """The family over a given model; see `SingleLevelDETR`."""
    return SingleLevelDETR(SPEC, model, classes, strides)
