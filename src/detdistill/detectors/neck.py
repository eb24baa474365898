"""The parts of a neck: the feature pyramid network (FPN), a second path from fine to coarse, and coarser levels."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from detdistill.types import required

Convolution = Callable[[int, int], nn.Module]
"""Makes a convolution with padding 1 of (channels, stride)."""


def plain_convolution(channels: int, stride: int) -> nn.Conv2d:
    """A 3x3 convolution with a bias."""
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1)


def _convolutions(count: int, channels: int, stride: int, convolution: Convolution) -> nn.ModuleList:
    """`count` convolutions. Plain ones are initialized as those of torchvision's FPN."""
    layers = [convolution(channels, stride) for _ in range(count)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(required(layer.bias))
    return nn.ModuleList(layers)


class ExtraLevels(ExtraFPNBlock):
    """Adds coarser levels by convolutions of stride 2, as P6 and P7 of RetinaNet.

    The first convolution reads the coarsest map. Each further one reads the map before it, after a ReLU.
    """

    def __init__(self, channels: int, count: int, convolution: Convolution = plain_convolution):
        super().__init__()
        self.convolutions = _convolutions(count, channels, 2, convolution)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        coarsest = results[-1]
        for index, layer in enumerate(self.convolutions):
            coarsest = layer(coarsest if index == 0 else coarsest.relu())
            results, names = [*results, coarsest], [*names, f"extra{index}"]
        return results, names


class PooledLevels(ExtraFPNBlock):
    """Adds coarser levels by taking every second cell of the coarsest map, as the stride-64 level of Faster R-CNN."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        for index in range(self.count):
            results, names = [*results, results[-1][..., ::2, ::2]], [*names, f"pool{index}"]
        return results, names


class BottomUpPath(ExtraFPNBlock):
    """The second path of a path aggregation network (PAFPN), arXiv:1803.01534, on the levels P of an FPN.

        A_1 = P_1,  A_i = P_i + down_i(A_(i-1)),  N_1 = P_1,  N_i = out_i(A_i)

    Level 1 is the finest, N is the result, `down` a 3x3 convolution of stride 2, `out` one of stride 1. There are no
    activations and no norms, as in the FPN itself. This is the form that public one-stage detectors use (MMDetection's
    PAFPN). In the paper, `down` reads N_(i-1), and a ReLU follows each convolution.
    coarser: adds levels to N.
    """

    def __init__(self, channels: int, levels: int, coarser: ExtraFPNBlock | None, convolution: Convolution):
        super().__init__()
        self.down_blocks = _convolutions(levels - 1, channels, 2, convolution)
        self.out_blocks = _convolutions(levels - 1, channels, 1, convolution)
        self.coarser = coarser

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        sums, outputs = results[0], results[:1]
        for level, down, out in zip(results[1:], self.down_blocks, self.out_blocks, strict=True):
            step = down(sums)
            if step.shape != level.shape:  # a backbone that halves an odd size by rounding down
                step = F.interpolate(step, size=level.shape[-2:], mode="nearest")
            sums = level + step
            outputs.append(out(sums))
        return (outputs, names) if self.coarser is None else self.coarser(outputs, x, names)


def feature_pyramid(
    widths: Sequence[int],
    channels: int,
    extra: int,
    pooled: bool = False,
    bottom_up: bool = False,
    convolution: Convolution = plain_convolution,
) -> FeaturePyramidNetwork:
    """torchvision's FPN on maps of these widths, fine to coarse, with `extra` coarser levels.

    The coarser levels are `PooledLevels` if `pooled`, else `ExtraLevels`. bottom_up: adds a `BottomUpPath`.
    convolution: makes every 3x3 convolution. The lateral convolutions are 1x1 and always plain.
    """
    coarser: ExtraFPNBlock | None = None
    if extra:
        coarser = PooledLevels(extra) if pooled else ExtraLevels(channels, extra, convolution)
    if bottom_up:
        coarser = BottomUpPath(channels, len(widths), coarser, convolution)
    fpn = FeaturePyramidNetwork(list(widths), channels, coarser)
    if convolution is not plain_convolution:
        for block in fpn.layer_blocks:
            block[0] = convolution(channels, 1)
    return fpn
