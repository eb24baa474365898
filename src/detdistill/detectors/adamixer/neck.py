"""The channel mapping below AdaMixer's decoder.

There is no pyramid network: the decoder itself samples across levels.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from detdistill.detectors.backbone import check_strides, group_norm
from detdistill.detectors.timm.backbone import build_backbone
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import required


class ChannelMapping(nn.Module):
    """Maps the backbone's maps to levels of the same width.

    Each map has a 1x1 convolution. `extra` coarser levels are made by average pooling. All levels share one group norm.
    """

    def __init__(self, widths: Sequence[int], channels: int, extra: int):
        super().__init__()
        layers = [nn.Conv2d(width, channels, 1) for width in widths]
        self.convolutions = nn.ModuleList(layers)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.norm = group_norm(channels)
        self.extra = extra
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(required(layer.bias))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C, H, W), fine to coarse, to levels (B, channels, H, W)."""
        levels = [layer(feature) for layer, feature in zip(self.convolutions, maps, strict=True)]
        for _ in range(self.extra):
            levels.append(self.pool(levels[-1]))
        return tuple(self.norm(level) for level in levels)


def build_backbone_and_neck(config: ModelConfig, backbone: str) -> tuple[nn.Module, ChannelMapping]:
    """A timm backbone, and the mapping to levels at exactly `config.strides`.

    Raises UserError if the backbone does not have the finest stride, or as `build_backbone` does.
    """
    strides = config.strides
    check_strides(strides)
    module, available, widths = build_backbone(backbone, strides, config.backbone_weights)
    if available != strides[: len(available)]:
        raise UserError(
            f"model.strides {strides}: backbone {backbone!r} has no map of stride {strides[0]}; it gives {available}"
        )
    return module, ChannelMapping(widths, config.channels, len(strides) - len(available))
