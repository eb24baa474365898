"""The channel mapping of AdaMixer."""

import torch
import torch.nn.functional as F

from detdistill.detectors.adamixer.neck import ChannelMapping


def test_the_neck_has_one_shared_norm_and_pools_coarser_levels():
    neck = ChannelMapping((3, 5), 8, extra=2)
    maps = [torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6)]
    levels = neck(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3), (2, 8, 1, 2)]
    last = neck.convolutions[1](maps[1])
    torch.testing.assert_close(levels[2], neck.norm(F.avg_pool2d(last, 3, 2, 1)))
    assert sum(parameter.numel() for parameter in neck.parameters()) == 3 * 8 + 8 + 5 * 8 + 8 + 16
