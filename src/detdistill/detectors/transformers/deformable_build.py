"""Building Deformable DETR of transformers from a config, and its published initial weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from detdistill.detectors.backbone import check_channels, check_strides
from detdistill.detectors.registry import NATIVE
from detdistill.detectors.transformers.host import (
    for_width,
    layer_counts,
    native_config,
    timm_config,
    unfreeze_backbone,
)
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig

GROUPS = 32  # groups of the group norms in the host's input projections
CLASS_WEIGHT = 2  # in the loss and in matching, as published
HOST_CLASS_COST = 1  # the default of `class_cost` in the host's config, also in the configs of published weights


def construct(
    config: ModelConfig, backbone: str, classes: Sequence[str], host: Mapping[str, Any]
) -> DeformableDetrForObjectDetection:
    """A model of transformers with published initial weights. Needs no network.

    backbone: a timm backbone, or the native one. host: fields of `DeformableDetrConfig`; they override all others.
    Raises UserError if strides, width or backbone do not fit.
    """
    strides, width = config.strides, config.channels
    heads = math.lcm(host.get("encoder_attention_heads", 8), host.get("decoder_attention_heads", 8))
    divisor = math.lcm(GROUPS, heads)
    check_strides(strides)
    check_channels("deformable_detr", width, divisor)
    if (config.decoder_layers or host.get("decoder_layers", 2)) < 2:
        raise UserError(
            "model.decoder_layers: transformers can't build a deformable_detr decoder of one layer; set at least 2 "
            "decoder layers"
        )
    fields: dict[str, Any] = {
        "num_labels": len(classes),
        "num_feature_levels": len(strides),
        "d_model": width,
        "num_queries": config.queries,
        "two_stage_num_proposals": config.queries,
        "auxiliary_loss": True,
        "class_cost": CLASS_WEIGHT,
        "with_box_refine": config.box_refine or config.two_stage,
        "two_stage": config.two_stage,
    }
    fields |= layer_counts(config)
    timm_backbone = None
    if backbone == NATIVE:
        available = tuple(stride for stride in strides if stride <= 32)
        blank = DeformableDetrConfig.from_dict({"use_timm_backbone": False}).backbone_config
        fields["backbone_config"] = native_config(blank, available, config.backbone_weights)
    else:
        timm_backbone, widths, fields["backbone_config"] = timm_config(config, backbone, strides)
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(**fields | dict(host)))
    if timm_backbone is not None:
        host_projections: Any = model.model.input_proj
        # Replaces the host's backbone, which has frozen parameters, changed norms and random weights.
        model.model.backbone.model = timm_backbone
        for projection, width in zip(host_projections, widths, strict=False):  # further levels come from the coarsest
            projection[0] = for_width(projection[0], width)
    unfreeze_backbone(model.model.backbone)
    initialize(model)
    return model


@torch.no_grad()
def initialize(model: DeformableDetrForObjectDetection) -> None:
    """Published initial weights, in place.

    The host draws query embeddings with deviation 0.02, which puts all reference points within a hundredth of the image
    around its center. Its class scores start at 0.5 instead of 0.01, the value for the focal loss.
    """
    host: Any = model.model
    for name, weight in [*host.encoder.named_parameters(), *host.decoder.layers.named_parameters()]:
        if weight.ndim > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
            # The published attention keeps query, key and value in one matrix with three times the rows.
            packed = "self_attn" in name and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.5) if packed else 1.0)
    for convolution, _ in host.input_proj:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    if not model.config.two_stage:
        nn.init.normal_(host.query_position_embeddings.weight)
    class_heads: Any = model.class_embed
    box_heads: Any = model.bbox_embed
    for class_head, box_head in zip(class_heads, box_heads, strict=True):
        class_head.reset_parameters()
        nn.init.constant_(class_head.bias, -math.log(99))  # score 0.01, arXiv:1708.02002
        for layer in box_head.layers:
            layer.reset_parameters()
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
    if not model.config.two_stage:
        box_heads[0].layers[-1].bias[2:] = -2.0  # sigmoid(-2): first boxes with about an eighth of the image's sides
