"""The feature pyramid network (FPN) on top of a backbone of timm, at the strides of the recipe."""

import itertools
import math
from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from detdistill.detectors.convolutions import SeparableConv
from detdistill.detectors.neck import Convolution, feature_pyramid, plain_convolution
from detdistill.detectors.timm.backbone import build_backbone
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig


class Neck(nn.Module):
    """A timm backbone with an FPN, see `feature_pyramid`.

    forward: images (B, 3, H, W) to an ordered dict of maps (B, out_channels, H/stride, W/stride), fine to coarse.
    body: the backbone. The attribute keeps torchvision's name, because weights are saved under it.
    reductions: the strides that come from the backbone. Coarser levels come from the FPN.
    """

    def __init__(self, backbone: nn.Module, reductions: tuple[int, ...], fpn: FeaturePyramidNetwork, channels: int):
        super().__init__()
        self.body = backbone
        self.fpn = fpn
        self.reductions = reductions
        self.out_channels = channels

    def train(self, mode: bool = True) -> "Neck":
        """Set the mode as usual, but keep frozen norms in eval mode."""
        super().train(mode)
        rest_norms(self.body)
        return self

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        levels = zip(self.reductions, self.body(images), strict=True)
        return self.fpn(OrderedDict((str(stride), level) for stride, level in levels))


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The batch norms inside a module that have parameters."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.affine]


def rest_norms(backbone: nn.Module) -> None:
    """Put the batch norms whose parameters are frozen into eval mode, so that they keep their statistics."""
    for norm in batch_norms(backbone):
        if not any(parameter.requires_grad for parameter in norm.parameters()):
            norm.eval()


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups as published, or gcd(32, channels) groups if 32 does not divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def check_strides(strides: tuple[int, ...]) -> None:
    """Raises UserError unless each stride is twice the one before, as in any feature pyramid."""
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise UserError(f"model.strides {strides}: each stride must be twice the one before, such as 8,16,32")


def check_channels(kind: str, channels: int, divisor: int) -> None:
    """Raises UserError unless the detector `kind` can split its width into parts of equal size."""
    if channels % divisor:
        multiple = divisor * max(1, round(channels / divisor))
        raise UserError(f"model.channels {channels}: {kind} needs a multiple of {divisor}, such as {multiple}")


def build_neck(
    name: str,
    strides: tuple[int, ...],
    channels: int,
    weights: str,
    pooled: bool = False,
    bottom_up: bool = False,
    convolution: Convolution = plain_convolution,
) -> Neck:
    """Build a timm backbone with an FPN that has one level per stride of `strides`, fine to coarse.

    weights: see `load_backbone`. pooled, bottom_up, convolution: see `feature_pyramid`.
    Raises UserError if the backbone does not fit the strides or the weights do not fit the backbone.
    """
    check_strides(strides)
    backbone, available, widths = build_backbone(name, strides, weights)
    if available != strides[: len(available)]:
        problem = f"backbone {name!r} has no map of stride {strides[0]}, only of strides {available}"
        raise UserError(f"model.strides {strides}: {problem}; begin with stride {available[0]}")
    fpn = feature_pyramid(widths, channels, len(strides) - len(available), pooled, bottom_up, convolution)
    return Neck(backbone, available, fpn, channels)


def neck_of(config: ModelConfig, backbone: str, pooled: bool = False) -> Neck:
    """Build the backbone and the neck of a detector. pooled: see `feature_pyramid`. Raises as `build_neck`."""
    return build_neck(
        backbone,
        config.strides,
        config.channels,
        config.backbone_weights,
        pooled,
        bottom_up=config.neck == "pafpn",
        convolution=partial(SeparableConv, norm=None) if config.depthwise else plain_convolution,
    )
