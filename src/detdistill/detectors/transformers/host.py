"""Backbones inside models of transformers.

transformers treats backbones in ways that are wrong for training here (measured with version 5.23):

* DETR, Conditional and Deformable DETR freeze a native ResNet completely, and a timm ResNet up to its first stage.
* Every batch norm of a backbone becomes a frozen one, over random weights too. On timm's norms this drops the
  activation inside the norm.
* `use_pretrained_backbone` of a config loads nothing.

The rule here: every parameter trains, except what `detectors.freezing` freezes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detdistill.detectors.timm.backbone import build_backbone
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig


def native_config(config: Any, strides: Sequence[int], weights: str) -> Any:
    """The family's own backbone config, set to return maps of these strides.

    Raises UserError for a stride that the backbone does not have, and for weights other than `none`.
    """
    if weights != "none":
        raise UserError(
            f"model.backbone_weights {weights}: a native backbone starts from random weights; set it to none, or "
            "choose a timm backbone"
        )
    stages = {2 ** (index + 2): f"stage{index + 1}" for index in range(4)}
    if any(stride not in stages for stride in strides):
        raise UserError(f"model.strides {tuple(strides)}: the native backbone has {', '.join(map(str, stages))}")
    config.out_features = [stages[stride] for stride in strides]
    return config


def timm_config(
    config: ModelConfig, backbone: str, strides: tuple[int, ...]
) -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    """A timm backbone with the weights that the config names, the widths of its maps, and its backbone config for
    transformers.

    The backbone returns maps of those `strides` that it has. Raises UserError as `build_backbone` does, and if the
    backbone does not have the finest stride.
    """
    module, available, widths = build_backbone(backbone, strides, config.backbone_weights)
    if available != strides[: len(available)]:
        raise UserError(
            f"model.strides {strides}: backbone {backbone!r} has no map of stride {strides[0]}; it gives {available}"
        )
    features: Any = module.feature_info
    indices = list(features.out_indices)
    if len(indices) < len(widths):
        # A simple pyramid makes several maps of one. The host's own backbone has none, so it gives the maps of several
        # blocks. They only count, and `for_width` corrects the layers that read them.
        indices = list(range(indices[-1] + 1 - len(widths), indices[-1] + 1))
    return (
        module,
        widths,
        {
            "model_type": "timm_backbone",
            "backbone": backbone,
            "out_indices": indices,
            "use_pretrained_backbone": False,
        },
    )


def for_width(layer: nn.Conv2d, width: int) -> nn.Conv2d:
    """The host's input projection if it reads maps of this width, else a fresh one like it."""
    if layer.in_channels == width:
        return layer
    return nn.Conv2d(width, layer.out_channels, 1, bias=layer.bias is not None)


def layer_counts(config: ModelConfig) -> dict[str, int]:
    """The numbers of encoder and decoder layers that the recipe sets, by the names of a host's config."""
    counts = {"encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers}
    return {name: count for name, count in counts.items() if count is not None}


def conv_encoder(model: Any) -> Any:
    """The module of the host that turns images and masks into a list of (map, mask), fine to coarse."""
    backbone = model.model.backbone
    return getattr(backbone, "conv_encoder", backbone)  # DAB-DETR keeps it next to its position embedding


@torch.no_grad()
def unfreeze_backbone(backbone: nn.Module) -> None:
    """Let every parameter of the backbone train, in place.

    The host's frozen norms, which have no parameters, are replaced by batch norms with the same values.
    """
    backbone.requires_grad_(True)
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                norm = nn.BatchNorm2d(len(child.weight))  # type: ignore[arg-type]
                norm.load_state_dict(child.state_dict(), strict=False)  # a frozen norm has no num_batches_tracked
                setattr(module, name, norm)
