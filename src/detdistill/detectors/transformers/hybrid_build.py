"""Building RT-DETR, RT-DETRv2 and D-FINE of transformers from a config, and their published initial weights."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

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


def construct(
    config_class: type[Any],
    model_class: type[Any],
    config: ModelConfig,
    backbone: str,
    classes: Sequence[str],
    host: dict[str, Any],
) -> Any:
    """A model of transformers with published initial weights. Needs no network.

    config_class, model_class: classes of transformers. backbone: a timm backbone, or the family's native one. host:
    fields of the host's config; they override all others. Raises UserError if strides, width or backbone do not fit.
    """
    kind, strides, width = config_class.model_type, config.strides, config.channels
    levels = len(strides)
    check_strides(strides)
    divisor = math.lcm(4, host.get("encoder_attention_heads", 8), host.get("decoder_attention_heads", 8))
    check_channels(kind, width, divisor)
    if kind != "rt_detr" and (config.decoder_layers or host.get("decoder_layers", 2)) < 2:
        raise UserError(
            f"model.decoder_layers: transformers can't build a {kind} decoder of one layer; set at least 2 decoder "
            "layers"
        )
    fields: dict[str, Any] = {
        "num_labels": len(classes),
        "num_queries": config.queries,
        "encoder_hidden_dim": width,
        "d_model": width,
        "encoder_in_channels": [width] * levels,
        "decoder_in_channels": [width] * levels,
        "feat_strides": list(strides),
        "num_feature_levels": levels,
        "encode_proj_layers": [levels - 1],
        "freeze_backbone_batch_norms": False,
    }
    if kind == "rt_detr_v2":
        fields["decoder_n_levels"] = levels
    fields |= layer_counts(config)
    timm_backbone = None
    if backbone == NATIVE:
        fields["backbone_config"] = native_config(config_class().backbone_config, strides, config.backbone_weights)
    else:
        timm_backbone, widths, fields["backbone_config"] = timm_config(config, backbone, strides)
        if len(fields["backbone_config"]["out_indices"]) < levels:
            raise UserError(
                f"model.strides {strides}: {kind} uses levels of the backbone only, and {backbone!r} has none of "
                f"{strides[-1]}"
            )
    model = model_class(config_class(**fields | host))
    model.config.encoder_in_channels = list(model.model.backbone.intermediate_channel_sizes)
    if timm_backbone is not None:
        _replace_backbone(model, timm_backbone, widths)
    unfreeze_backbone(model.model.backbone)
    initialize(model)
    return model


def _replace_backbone(model: Any, backbone: nn.Module, widths: Sequence[int]) -> None:
    """Put a backbone with maps of these widths in the place of the host's, which has random weights."""
    model.model.backbone.model._backbone = backbone
    model.config.encoder_in_channels = list(widths)
    for projection, width in zip(model.model.encoder_input_proj, widths, strict=True):
        projection[0] = for_width(projection[0], width)


@torch.no_grad()
def initialize(model: Any) -> None:
    """Published initial weights, in place.

    The host draws weights with deviation 0.01. In RT-DETR the weights of batch norms are drawn so too, around 0. Its
    class scores start at 1 / (K + 1) instead of 0.01, the value for the focal loss. Its deformable attention and its
    gates start as published, so they are left unchanged.
    """
    host, decoder = model.model, model.model.decoder
    for name, module in host.named_modules():
        is_kept = name.startswith("backbone") or "encoder_attn" in name or "gateway" in name
        if not is_kept and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, weight in host.named_parameters():
        if "self_attn." in name and weight.ndim == 1:
            nn.init.zeros_(weight)
        elif "self_attn." in name and "o_proj" not in name:
            # The published attention keeps query, key and value in one matrix with three times the rows.
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.5))
    for layer in (host.enc_output[0], *decoder.query_pos_head.layers):
        nn.init.xavier_uniform_(layer.weight)
    for class_head in (host.enc_score_head, *decoder.class_embed):
        nn.init.constant_(class_head.bias, -math.log(99))  # score 0.01, arXiv:1708.02002
    for perceptron in _zero_perceptrons(host):
        nn.init.zeros_(perceptron.layers[-1].weight)
        nn.init.zeros_(perceptron.layers[-1].bias)


def _zero_perceptrons(host: Any) -> Iterator[Any]:
    """The perceptrons whose output is zero at first."""
    yield host.enc_bbox_head
    yield from host.decoder.bbox_embed
    if host.config.model_type == "d_fine":
        yield host.decoder.pre_bbox_head
        for estimator in host.decoder.lqe_layers:
            yield estimator.reg_conf
