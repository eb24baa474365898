"""The depthwise-separable convolution of necks and towers, in place of a 3x3 convolution.

With C channels, it has (9 + C) C weights instead of 9 C^2, about an eighth, and as many multiplications per cell.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from detdistill.types import required


class SeparableConv(nn.Sequential):
    """A depthwise 3x3 convolution, a pointwise 1x1 convolution and a norm, in place of a 3x3 convolution and its norm.

    There is no activation between the two convolutions, as in Xception (arXiv:1610.02357) and EfficientDet
    (arXiv:1911.09070). NanoDet and PicoDet have a norm and an activation there, with which small detectors learned more
    slowly here. norm: makes the norm of a number of channels. None: the pointwise convolution has a bias instead.
    The weights start at Kaiming's values, so that the signal keeps its size. The deviation of published heads, 0.01,
    would shrink it to 3 percent in a depthwise convolution, which has only 9 weights per channel.
    """

    def __init__(self, channels: int, stride: int, norm: Callable[[int], nn.Module] | None):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, 1, bias=norm is None)
        nn.init.kaiming_normal_(depthwise.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(pointwise.weight, nonlinearity="relu")
        layers["depthwise"], layers["pointwise"] = depthwise, pointwise
        if norm is None:
            nn.init.zeros_(required(pointwise.bias))
        else:
            layers["norm"] = norm(channels)
        super().__init__(layers)
