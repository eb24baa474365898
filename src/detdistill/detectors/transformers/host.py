"""Models of transformers around our backbones, and what is undone of that library's handling of backbones.

Its traps (measured with 5.23): DETR, Conditional and Deformable DETR freeze a native ResNet whole, and a timm one up to its first stage; every
batch norm of a backbone becomes a frozen one, over random weights too, and on timm's norms that drops the activation inside; and
`use_pretrained_backbone` of a config loads nothing. The policy here is one line: every parameter trains, but the norms of a backbone whose weights
were loaded, which keep their statistics and affine parameters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detdistill.detectors.backbone import build_body
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig

NATIVE = "native"  # in place of a timm backbone's name: the one that the family's own config has


def native_config(config: Any, strides: Sequence[int], weights: str) -> Any:
    """A family's own backbone config, giving maps of these strides. Raises UserError for a stride it hasn't got, and for weights other than `none`."""
    if weights != "none":
        raise UserError(
            f"model.backbone_weights {weights}: a native backbone begins at random; set it to none, or take a timm backbone"
        )
    stages = {2 ** (index + 2): f"stage{index + 1}" for index in range(4)}
    if any(stride not in stages for stride in strides):
        raise UserError(f"model.strides {tuple(strides)}: the native backbone has {', '.join(map(str, stages))}")
    config.out_features = [stages[stride] for stride in strides]
    return config


def timm_config(config: ModelConfig, backbone: str, strides: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """The timm backbone with those of `strides` that it has, the finest among them, its weights as asked for; and what transformers calls it.

    Raises UserError as `build_body`, and where it hasn't got the finest stride.
    """
    body, given, _ = build_body(backbone, strides, config.backbone_weights)
    if given != strides[: len(given)]:
        raise UserError(
            f"model.strides {strides}: backbone {backbone!r} has no map of stride {strides[0]}; it gives {given}"
        )
    features: Any = body.feature_info
    indices = list(features.out_indices)
    return body, {
        "model_type": "timm_backbone",
        "backbone": backbone,
        "out_indices": indices,
        "use_pretrained_backbone": False,
    }


def depths(config: ModelConfig) -> dict[str, int]:
    """Layers of encoder and decoder, as a host's config calls them, where the recipe says how many."""
    given = {"encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers}
    return {name: layers for name, layers in given.items() if layers is not None}


def keeps_norms(config: ModelConfig) -> bool:
    """Whether the backbone's weights are loaded, so that its norms keep their statistics."""
    return config.backbone_weights != "none"


@torch.no_grad()
def thaw(body: nn.Module, *, frozen_norms: bool) -> tuple[nn.Module, ...]:
    """Every parameter of the backbone trains; its norms too, unless `frozen_norms`: then these are returned, for the owner to keep in eval mode.

    The host's frozen norms, which hold no parameters, become batch norms again where they are to train.
    """
    body.requires_grad_(True)
    if frozen_norms:
        norms = tuple(module for module in body.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        for norm in norms:
            norm.requires_grad_(False)
        return norms
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                norm = nn.BatchNorm2d(len(child.weight))  # type: ignore[arg-type]
                norm.load_state_dict(child.state_dict(), strict=False)  # the counter of batches is new
                setattr(module, name, norm)
    return ()
