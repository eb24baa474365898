"""Mixing of AdaMixer by hand."""

import math

import torch
from torch import Tensor

from detdistill.detectors.adamixer.mixing import Mixing, mix


def standardized(values: list[float]) -> Tensor:
    """The layer norm of a list of numbers."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
    return torch.tensor([(value - mean) / deviation for value in values])


def test_mixing_by_hand():
    samples = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    spatial = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    first = standardized([2, 1, 4, 3]).clamp(min=0)  # channels swapped, normalized over points and channels together
    a, b, c, d = first.tolist()
    assert (a, b) == (0, 0)
    expected = standardized([c, d, a, b, a + c, b + d]).clamp(min=0).view(3, 2)
    torch.testing.assert_close(mix(samples, swap, spatial), expected)

    mixing = Mixing(4, groups=2, in_points=2, out_points=3)
    assert not mixing.generator.weight.any()
    with torch.no_grad():  # the second group does not change channels
        mixing.generator.bias.copy_(
            torch.cat([swap.flatten(), spatial.flatten(), torch.eye(2).flatten(), spatial.flatten()])
        )
        mixing.project.weight.zero_()
        mixing.project.bias.zero_()
        for output, (group, point, channel) in enumerate([(0, 0, 1), (0, 2, 0), (1, 0, 1), (1, 2, 0)]):
            mixing.project.weight[output, (group * 3 + point) * 2 + channel] = 1
    content = torch.randn(1, 1, 4)
    mixed = mixing(samples.expand(1, 1, 2, 2, 2), content)[0, 0] - content[0, 0]
    plain = mix(samples, torch.eye(2), spatial)
    selected = torch.stack([expected[0, 1], expected[2, 0], plain[0, 1], plain[2, 0]])
    torch.testing.assert_close(mixed, selected, rtol=1e-4, atol=1e-5)


def test_gradients_of_mixing():
    torch.manual_seed(1)
    shapes = ((2, 3, 2), (2, 2, 2), (2, 4, 3))
    parts = [torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(mix, parts)
