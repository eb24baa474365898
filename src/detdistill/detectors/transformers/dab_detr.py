"""DAB-DETR (arXiv:2201.12329) of transformers: what differs from the other detectors with one level.

Equal to the host's forward (tests). The weight of the class is 1 in the loss and 2 in matching, as published. The host
does the same; it does not read the `cls_loss_coefficient` of 2 in its config.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DabDetrConfig, DabDetrForObjectDetection
from transformers.models.dab_detr.modeling_dab_detr import inverse_sigmoid

from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.queries.frames import to_valid_frame
from detdistill.detectors.queries.stages import sigmoid_stage
from detdistill.detectors.transformers.criterion import focal_criterion
from detdistill.detectors.transformers.single_level import (
    Memory,
    SingleLevelDETR,
    SingleLevelSpec,
    build,
    flatten,
    reset_heads,
    set_prior,
    xavier,
)
from detdistill.recipe import ModelConfig
from detdistill.types import Predictions

CLASS_WEIGHT = 1.0  # in the loss, as published


def _encode(host: Any, level: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's tokens and their position embeddings; see `SingleLevelSpec.encode`."""
    positions = flatten(host.backbone.position_embedding(level, mask).to(level.dtype))
    encoded = host.encoder(
        inputs_embeds=flatten(level), attention_mask=mask.flatten(1), object_queries=positions, return_dict=True
    )
    return encoded.last_hidden_state, positions


def _decode(model: Any, reference: Tensor, content: Tensor, memory: Memory) -> tuple[Predictions, ...]:
    """One stage per decoder layer.

    A query is its reference box. Each layer computes the position embedding from the box, and reads no position of the
    query set.
    """
    decoded = model.model.decoder(
        inputs_embeds=content,
        query_position_embeddings=inverse_sigmoid(to_valid_frame(reference, memory.fraction)),
        object_queries=memory.positions,
        encoder_hidden_states=memory.tokens,
        memory_key_padding_mask=memory.mask,
        return_dict=True,
    )
    # `reference_points` holds the boxes before each layer. A stage refines the boxes of the stage before.
    layers = zip(decoded.intermediate_hidden_states, decoded.reference_points, strict=True)
    return tuple(_predict(model, state, before, memory) for state, before in layers)


def _predict(model: Any, state: Tensor, reference: Tensor, memory: Memory) -> Predictions:
    """Apply the heads to a state (B, Q, D). The box head refines the reference (B, Q, 4)."""
    boxes = (model.bbox_predictor(state).float() + inverse_sigmoid(reference.float())).sigmoid()
    return sigmoid_stage(model.class_embed(state), boxes, memory.frame, state)


@torch.no_grad()
def _initialize(model: DabDetrForObjectDetection) -> None:
    """Published initial weights, in place.

    The host's reference boxes are almost equal, with `random_refpoints_xy` too. Its class scores start at 1 / (K + 1)
    instead of 0.01, the value for the focal loss.
    """
    host: Any = model.model
    xavier(host.encoder, packed=True)
    xavier(host.decoder, packed=False)
    boxes = nn.init.normal_(host.query_refpoint_embeddings.weight)
    if model.config.random_refpoints_xy:
        boxes[:, :2] = inverse_sigmoid(torch.rand_like(boxes[:, :2]))
    # The box head of the decoder is tied to this one.
    reset_heads(host.input_projection, model.class_embed, model.bbox_predictor)
    set_prior(model.class_embed, model.bbox_predictor)


SPEC = SingleLevelSpec(
    kind="dab_detr",
    config=DabDetrConfig,
    model=DabDetrForObjectDetection,
    activation="sigmoid",
    part="reference",
    embeddings="query_refpoint_embeddings",
    timm_backbone="model.backbone.conv_encoder.model._backbone",
    decode=_decode,
    losses=partial(focal_criterion, class_weight=CLASS_WEIGHT),
    initialize=_initialize,
    encode=_encode,
    defaults={"auxiliary_loss": True},
    supported={"num_patterns": 0},
)


def dab_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """DAB-DETR with published initial weights; see `single_level.build`. host: fields of `DabDetrConfig`."""
    return build(SPEC, config, backbone, classes, host)


def adapt(model: DabDetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]) -> SingleLevelDETR:
    """The family over a given model; see `SingleLevelDETR`."""
    return SingleLevelDETR(SPEC, model, classes, strides)
