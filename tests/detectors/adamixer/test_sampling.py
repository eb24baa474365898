"""Sampling of AdaMixer by hand, and against a loop."""

import math

import torch
from torch import Tensor

from detdistill.detectors.adamixer.sampling import Sampling, level_weights, place, sample_levels
from tests.detectors.adamixer.plain import plain_sample


def ramp(rows: int, columns: int, stride: int) -> Tensor:
    """Maps (1, 4, rows, columns): x and y of the center of each cell in pixels, then 1 and 2."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) * stride, (torch.arange(columns) + 0.5) * stride, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x), torch.full_like(x, 2)])[None].double()


def test_points_are_placed_in_sides_and_octaves():
    xyzr = torch.tensor([[[18.0, 52.0, 5.0, 2.0]]])
    offsets = torch.tensor([0.5, -0.25, -1.0]).expand(1, 1, 2, 3, 3)
    torch.testing.assert_close(place(offsets, xyzr), torch.tensor([26.0, 36.0, 4.0]).expand(1, 1, 2, 3, 3))


def test_level_weights_by_hand():
    far, near = math.exp(-4 / 2), math.exp(-1 / 2)
    expected = torch.tensor([far, near, 1, near]) / (far + 2 * near + 1)
    torch.testing.assert_close(level_weights(torch.tensor([[4.0]]), (4, 8, 16, 32)), expected[None, None])


def test_sampling_a_map_of_coordinates_gives_the_points():
    levels, strides = [ramp(16, 24, 4), ramp(8, 12, 8)], (4, 8)
    points = torch.tensor(
        [[[[37.0, 21.5, 2.3], [50.25, 44.0, 3.0]], [[8.0, 30.0, 2.0], [70.0, 12.0, 9.0]]]], dtype=torch.double
    )[:, None]
    samples = sample_levels(levels, strides, points)
    assert samples.shape == (1, 1, 2, 2, 2)  # two groups of two points, each with two channels
    torch.testing.assert_close(samples[0, 0, 0], points[0, 0, 0, :, :2])  # the first group reads x and y
    torch.testing.assert_close(samples[0, 0, 1], torch.tensor([[1.0, 2.0]] * 2, dtype=torch.double))


def test_levels_are_weighted_by_z_and_points_outside_the_map_give_zero():
    levels = [torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 2, 2), 10.0)]
    points = torch.tensor([[8.0, 8.0, 2.0], [8.0, 8.0, 2.5], [-8.0, 8.0, 2.0], [40.0, 8.0, 2.0]])[None, None, None]
    samples = sample_levels(levels, (4, 8), points)[0, 0, 0, :, 0]
    fine = 1 / (1 + math.exp(-0.5))  # z is on the first level, and one octave from the second
    torch.testing.assert_close(samples, torch.tensor([fine + 10 * (1 - fine), 5.5, 0.0, 0.0]))


def test_sampling_equals_a_loop_over_images_queries_groups_and_points():
    """So each point reads its own image, place and channels."""
    torch.manual_seed(0)
    levels, strides = [torch.randn(2, 6, 5, 7), torch.randn(2, 6, 3, 4)], (8, 16)
    points = torch.rand(2, 3, 2, 4, 3) * torch.tensor([56.0, 40.0, 2.0]) + torch.tensor([0.0, 0.0, 3.0])
    samples = sample_levels(levels, strides, points)
    for index in torch.cartesian_prod(*map(torch.arange, (2, 3, 2, 4))).tolist():
        image, _, group, _ = index
        expected = plain_sample(levels, strides, points[tuple(index)], image, slice(3 * group, 3 * group + 3))
        torch.testing.assert_close(samples[tuple(index)], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_sampling():
    torch.manual_seed(1)
    levels = [
        torch.randn(1, 4, 4, 6, dtype=torch.double, requires_grad=True),
        torch.randn(1, 4, 2, 3, dtype=torch.double, requires_grad=True),
    ]
    offsets = (torch.rand(1, 2, 2, 2, 3, dtype=torch.double) - 0.5).requires_grad_()
    xyzr = torch.tensor([[[20.0, 15.0, 3.7, 0.3], [27.0, 18.0, 3.1, -0.4]]], dtype=torch.double, requires_grad=True)

    def samples(fine: Tensor, coarse: Tensor, offsets: Tensor, xyzr: Tensor) -> Tensor:
        return sample_levels([fine, coarse], (8, 16), place(offsets, xyzr))

    assert torch.autograd.gradcheck(samples, (*levels, offsets, xyzr))


def test_initial_points_are_inside_the_box_at_half_its_size():
    sampling = Sampling(16, 4, 5)
    offsets = sampling.offsets(torch.randn(3, 16)).detach().unflatten(-1, (4, 5, 3))
    assert (offsets == offsets[:1]).all()
    assert (offsets[..., 2] == -1).all()
    assert 0 < float(offsets[..., :2].abs().amax()) <= 0.5
    assert len(offsets[0, ..., 0].unique()) == 20
