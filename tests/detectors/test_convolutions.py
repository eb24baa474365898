"""Separable convolutions: their values and their number of parameters."""

import pytest
import torch
import torch.nn.functional as F

from detdistill.detectors.backbone import group_norm
from detdistill.detectors.convolutions import SeparableConv


@pytest.mark.parametrize("stride", [1, 2])
def test_a_separable_convolution_is_its_formula(stride: int):
    torch.manual_seed(0)
    layer = SeparableConv(8, stride, group_norm)
    x = torch.randn(2, 8, 5, 7)
    columns = [F.conv2d(x[:, [c]], layer.depthwise.weight[[c]], stride=stride, padding=1) for c in range(8)]
    mixed = torch.einsum("oi,bihw->bohw", layer.pointwise.weight[..., 0, 0], torch.cat(columns, 1))
    torch.testing.assert_close(layer(x), layer.norm(mixed), rtol=1e-4, atol=1e-5)


def test_the_parameters_counted_by_hand():
    # 16 channels: 9 weights each, 16 * 16 weights, and a norm of 32 values, or else a bias of 16.
    assert sum(value.numel() for value in SeparableConv(16, 1, group_norm).parameters()) == 9 * 16 + 16 * 16 + 32
    assert sum(value.numel() for value in SeparableConv(16, 1, None).parameters()) == 9 * 16 + 16 * 16 + 16
