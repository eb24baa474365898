"""Conditional DETR (arXiv:2108.06152) of transformers: what differs from the other detectors with one level.

The decoder runs layer by layer for the same reason as in `detr`: with `auxiliary_loss` the host feeds the normed states
to the next layer. The last stage equals the host's forward without `auxiliary_loss` (tests). So do the losses, but for
the weight of the class loss: it is 2 as published, and 1 in the host, whatever its config contains.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.conditional_detr.modeling_conditional_detr import (
    encode_sinusoidal_position_embedding,
    inverse_sigmoid,
)

from detdistill.detectors.queries.detector import QueryDetector
from detdistill.detectors.queries.stages import sigmoid_stage
from detdistill.detectors.transformers.criterion import focal_criterion
from detdistill.detectors.transformers.single_level import (
    Memory,
    SingleLevelDETR,
    SingleLevelSpec,
    build,
    reset_heads,
    set_prior,
    xavier,
)
from detdistill.recipe import ModelConfig
from detdistill.types import Predictions

CLASS_WEIGHT = 2.0  # in the loss, as published; in matching, the host's config has the published 2, too


def _decode(model: Any, position: Tensor, state: Tensor, memory: Memory) -> tuple[Predictions, ...]:
    """One stage per decoder layer.

    A query is its position embedding. The decoder computes the reference point of any query from it, and reads no
    reference of the query set.
    """
    decoder = model.model.decoder
    mask = create_bidirectional_mask(decoder.config, state, memory.mask, memory.tokens)
    reference = decoder.ref_point_head(position).float().sigmoid()  # (B, Q, 2), relative to the valid area
    sine = encode_sinusoidal_position_embedding(reference, num_pos_feats=position.shape[-1] // 2)  # (B, Q, D)
    stages = []
    for index, layer in enumerate(decoder.layers):
        scaled_sine = sine * decoder.query_scale(state) if index else sine
        state = layer(
            state,
            None,
            memory.positions,
            position,
            scaled_sine,
            memory.tokens,
            encoder_attention_mask=mask,
            is_first=index == 0,
        )
        stages.append(_predict(model, decoder.layernorm(state), reference, memory))
    return tuple(stages)


def _predict(model: Any, state: Tensor, reference: Tensor, memory: Memory) -> Predictions:
    """Apply the heads to a state (B, Q, D). The box head predicts w h, and cx cy relative to reference (B, Q, 2)."""
    boxes = (model.bbox_predictor(state).float() + F.pad(inverse_sigmoid(reference), (0, 2))).sigmoid()
    return sigmoid_stage(model.class_labels_classifier(state), boxes, memory.frame, state)


@torch.no_grad()
def _initialize(model: ConditionalDetrForObjectDetection) -> None:
    """Published initial weights, in place.

    The host draws queries with deviation 0.02, which puts all reference points near the center of the image. Its class
    scores start at 0.5 instead of 0.01, the value for the focal loss.
    """
    host: Any = model.model
    xavier(host.encoder, packed=True)
    xavier(host.decoder, packed=False)
    nn.init.normal_(host.query_position_embeddings.weight)
    reset_heads(host.input_projection, model.class_labels_classifier, model.bbox_predictor)
    set_prior(model.class_labels_classifier, model.bbox_predictor)


SPEC = SingleLevelSpec(
    kind="conditional_detr",
    config=ConditionalDetrConfig,
    model=ConditionalDetrForObjectDetection,
    activation="sigmoid",
    part="position",
    embeddings="query_position_embeddings",
    timm_backbone="model.backbone.model",
    decode=_decode,
    losses=partial(focal_criterion, class_weight=CLASS_WEIGHT),
    initialize=_initialize,
)


def conditional_detr(config: ModelConfig, backbone: str, classes: Sequence[str], **host: Any) -> QueryDetector:
    """Conditional DETR with published initial weights; see `single_level.build`.

    host: fields of `ConditionalDetrConfig`.
    """
    return build(SPEC, config, backbone, classes, host)


def adapt(model: ConditionalDetrForObjectDetection, classes: Sequence[str], strides: Sequence[int]) -> SingleLevelDETR:
    """The family over a given model; see `SingleLevelDETR`."""
    return SingleLevelDETR(SPEC, model, classes, strides)
