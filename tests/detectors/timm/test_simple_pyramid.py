"""The simple feature pyramid on a map of one stride."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from detdistill.detectors.timm.simple_pyramid import SimplePyramid, pretrained_parameters

WIDTH = 16


class OneMap(nn.Module):
    """Stands for a ViT with patches of 16 pixels: the mean of each patch, times one learned factor per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = timm.create_model("test_vit", features_only=True, pretrained=False).feature_info
        self.factor = nn.Parameter(torch.linspace(1, 3, WIDTH)[:, None, None])

    def forward(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(images[:, :1], 16) * self.factor]


@pytest.fixture
def pyramid() -> SimplePyramid:
    torch.manual_seed(0)
    return SimplePyramid(OneMap(), WIDTH, 16, (4, 8, 16, 32))


def normalized(level: Tensor) -> Tensor:
    """The layer norm over channels, from its definition."""
    deviation = level - level.mean(1, keepdim=True)
    return deviation / (deviation.square().mean(1, keepdim=True) + 1e-5).sqrt()


def test_levels_have_the_published_widths_and_strides(pyramid: SimplePyramid) -> None:
    levels = pyramid(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in levels] == [(4, 16, 24), (8, 8, 12), (16, 4, 6), (16, 2, 3)]
    assert pyramid.widths == (4, 8, 16, 16)


def test_the_middle_level_is_the_map_and_the_coarse_level_its_maximum(pyramid: SimplePyramid) -> None:
    images = torch.rand(1, 3, 64, 64)
    (level,) = pyramid.body(images)
    _, _, middle, coarse = pyramid(images)
    torch.testing.assert_close(middle, normalized(level))
    largest = torch.stack([level[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    torch.testing.assert_close(coarse, normalized(largest))


def test_a_fine_cell_reads_its_own_patch_only(pyramid: SimplePyramid) -> None:
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 16:32, 32:48] += 1
    for before, after, cells in zip(pyramid(images)[:2], pyramid(changed)[:2], (4, 2), strict=True):
        rows, columns = (before != after).any(1)[0].nonzero(as_tuple=True)
        assert (rows // cells).unique().tolist() == [1]
        assert (columns // cells).unique().tolist() == [2]


def test_the_finest_level_has_the_published_layers(pyramid: SimplePyramid) -> None:
    up, norm, gelu, again, last = pyramid.branches[0]
    assert [layer.weight.shape for layer in (up, again)] == [(16, 8, 2, 2), (8, 4, 2, 2)]
    assert isinstance(gelu, nn.GELU)
    assert (norm.normalized_shape, last.normalized_shape) == ((8,), (4,))


def test_other_base_strides() -> None:
    widths = {stride: SimplePyramid(OneMap(), WIDTH, stride, (8, 16, 32)).widths for stride in (8, 32)}
    assert widths == {8: (16, 16, 16), 32: (4, 8, 16)}


def test_parameters_of_the_pyramid_are_not_those_of_the_backbone(pyramid: SimplePyramid) -> None:
    around = nn.Sequential(nn.Linear(1, 1), pyramid)
    names = {id(parameter): name for name, parameter in around.named_parameters()}
    assert {names[id(parameter)] for parameter in pretrained_parameters(around)} == {
        "0.weight",
        "0.bias",
        "1.body.factor",
    }


def test_gradients_reach_the_map(pyramid: SimplePyramid) -> None:
    levels = pyramid(torch.rand(1, 3, 64, 64))
    generator = torch.Generator().manual_seed(1)
    sum((level * torch.rand(level.shape, generator=generator)).sum() for level in levels).backward()
    assert pyramid.body.factor.grad is not None
    assert math.isfinite(float(pyramid.body.factor.grad.sum()))
    assert all(parameter.grad is not None for parameter in pyramid.parameters())
