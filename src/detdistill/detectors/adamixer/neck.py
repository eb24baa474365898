"""The channel mapping under AdaMixer's decoder: no pyramid, as the decoder reads between the levels for itself."""

from collections.abc import Sequence

from torch import Tensor, nn

from detdistill.detectors.backbone import build_body, check_strides, group_norm
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import required


class ChannelMapping(nn.Module):
    """A 1x1 convolution for each map of the backbone, `extra` coarser levels by mean pooling, and one group norm that all levels share."""

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
        """(B, C, H, W) of each map, fine to coarse, to (B, channels, H, W) of each level."""
        levels = [layer(one) for layer, one in zip(self.convolutions, maps, strict=True)]
        for _ in range(self.extra):
            levels.append(self.pool(levels[-1]))
        return tuple(self.norm(level) for level in levels)


def build_body_and_neck(config: ModelConfig, backbone: str) -> tuple[nn.Module, ChannelMapping]:
    """A timm backbone and the mapping to levels at exactly `config.strides`. Raises UserError where the backbone can't serve."""
    strides = config.strides
    check_strides(strides)
    body, given, widths = build_body(backbone, strides, config.backbone_weights)
    if given != strides[: len(given)]:
        raise UserError(
            f"model.strides {strides}: backbone {backbone!r} has no map of stride {strides[0]}; it gives {given}"
        )
    return body, ChannelMapping(widths, config.channels, len(strides) - len(given))
