"""DeFeat's squared difference in two parts."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import decoupled_mse


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((2, 4, 6, 8), 0.37, 0.2, 2.0), wave((2, 4, 6, 8), 0.53, 0.4, 2.0)
REGION = torch.zeros(2, 6, 8, dtype=torch.bool)
REGION[0, 1:4, 2:5] = True
REGION[1, 0:2, 0:2] = True


def test_golden():
    inside, outside = decoupled_mse(STUDENT, TEACHER, REGION)
    assert inside.item() == pytest.approx(1.2930113604919489, rel=1e-6)
    assert outside.item() == pytest.approx(2.150871719771999, rel=1e-6)


def test_by_hand():
    # Two channels; differences 1 and 2 in the first cell, 3 and 0 in the second. Inside: 5 / (2 * 2 channels * 1 cell); outside 9 / 4.
    student = torch.tensor([[1.0, 3], [2, 0]]).view(1, 2, 1, 2)
    region = torch.tensor([[[True, False]]])
    assert [part.item() for part in decoupled_mse(student, torch.zeros_like(student), region)] == [1.25, 2.25]
    assert [part.item() for part in decoupled_mse(student, torch.zeros_like(student), region, per_channel=False)] == [
        2.5,
        4.5,
    ]


def test_a_part_without_cells_is_zero_and_batches_may_double():
    inside, outside = decoupled_mse(STUDENT, TEACHER, torch.zeros_like(REGION))
    assert inside.item() == 0
    assert outside.item() == pytest.approx((STUDENT - TEACHER).square().mean().item() / 2, rel=1e-6)
    twice = decoupled_mse(*(part.repeat(2, 1, 1, 1) for part in (STUDENT, TEACHER)), REGION.repeat(2, 1, 1))
    torch.testing.assert_close(twice, decoupled_mse(STUDENT, TEACHER, REGION))


def test_gradients():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert gradcheck(lambda s: sum(decoupled_mse(s, teacher, REGION)), student)
    inside, _ = decoupled_mse(student, teacher, REGION)
    inside.backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(1) > 0).eq(REGION).all()
