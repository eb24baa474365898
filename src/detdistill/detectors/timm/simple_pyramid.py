"""A simple feature pyramid (ViTDet, arXiv:2203.16527, section 3) on a backbone whose maps all have one stride.

A plain ViT keeps one resolution, and only its last map is used. From a map of stride s with D channels come:

    stride s / 4: transposed convolution 2 x 2 (D/2 channels), layer norm, GELU, transposed convolution 2 x 2 (D/4)
    stride s / 2: transposed convolution 2 x 2 (D/2)
    stride s:     the map itself
    stride 2 s:   maximum over 2 x 2 cells, and so on

Different from the paper, where a 1x1 and a 3x3 convolution follow in each level, each with a layer norm, and no level
reads another one: here each level ends with its layer norm, and the detector's own neck follows (for dense and
two-stage heads, an FPN, which has these convolutions without norms and adds coarser levels to finer ones). Levels
coarser than stride 32 also come from the neck. Every block of the ViT attends to the whole image; the paper uses
windows in most blocks.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from detdistill.detectors.timm.extractor import feature_info


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of a map (B, C, H, W)."""

    def forward(self, level: Tensor) -> Tensor:
        return super().forward(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """A backbone with one map, and levels at `strides` made of it.

    forward: images (B, 3, H, W) to maps (B, C, H / stride, W / stride), fine to coarse.
    body: gives a list of one map (B, width, H / stride, W / stride). strides: powers of two, at least stride / 4.
    """

    def __init__(self, body: nn.Module, width: int, stride: int, strides: Sequence[int]):
        super().__init__()
        self.body = body
        self.feature_info = feature_info(body)
        self.branches = nn.ModuleList([_branch(width, stride, target) for target in strides])
        self.widths = tuple(width // max(1, stride // target) for target in strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        (level,) = self.body(images)
        return [branch(level) for branch in self.branches]


def _branch(width: int, stride: int, target: int) -> nn.Sequential:
    """The layers from a map of `stride` to a level of stride `target`."""
    if target >= stride:
        return nn.Sequential(nn.MaxPool2d(target // stride), ChannelNorm(width))
    layers: list[nn.Module] = []
    for _ in range(int(math.log2(stride // target))):
        if layers:
            layers += [ChannelNorm(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return nn.Sequential(*layers, ChannelNorm(width))


def pretrained_parameters(backbone: nn.Module) -> list[nn.Parameter]:
    """The parameters of a backbone, or of a module around it, that weights can be loaded into.

    Those of a simple pyramid are left out: they start from random weights, so they learn as fast as the neck.
    """
    pyramids = [module for module in backbone.modules() if isinstance(module, SimplePyramid)]
    fresh = {parameter for pyramid in pyramids for parameter in pyramid.branches.parameters()}
    return [parameter for parameter in backbone.parameters() if parameter not in fresh]
