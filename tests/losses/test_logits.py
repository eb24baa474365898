"""Score and distribution distances: golden numbers, hand values, minima."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import edge_kl, quality_focal, softmax_kl


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((4, 10), 0.7, 0.1, 3.0), wave((4, 10), 1.3, 0.5, 3.0)


@pytest.mark.parametrize(("temperature", "golden"), [(1.0, 2.3697012326439073), (2.0, 3.5579301165715944), (4.0, 4.256155069292156)])
def test_softmax_kl_golden(temperature: float, golden: float):
    assert softmax_kl(STUDENT, TEACHER, temperature).mean().item() == pytest.approx(golden, rel=1e-9)


@pytest.mark.parametrize(("temperature", "golden"), [(2.0, 0.3557930116571593), (10.0, 0.4554144459070017)])
def test_edge_kl_golden(temperature: float, golden: float):
    # The published LD code takes the mean over bins: ours divided by their number.
    assert edge_kl(STUDENT, TEACHER, temperature).mean().item() / 10 == pytest.approx(golden, rel=1e-9)


def test_softmax_kl_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812.
    teacher = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    assert softmax_kl(torch.zeros(2, dtype=torch.float64), teacher).item() == pytest.approx(0.130812, abs=1e-6)


def test_quality_focal_golden():
    # Sums over classes of |p_t - p_s| BCE(s, p_t), which the published BCKD function gives on these rows.
    golden = [7.234353848440301, 7.3928393004694914, 7.342271598057469, 7.248755145388396]
    rows = quality_focal(STUDENT, TEACHER.sigmoid(), beta=1.0).sum(-1)
    torch.testing.assert_close(rows, torch.tensor(golden, dtype=torch.float64), rtol=1e-9, atol=0)


def test_quality_focal_by_hand():
    # Score 1/2, target 1: |1/2|^2 * ln 2; and target 1/2: nothing.
    value = quality_focal(torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64), beta=2.0)
    assert value.tolist() == pytest.approx([math.log(2) / 4, 0.0])


def test_minimum_is_zero_where_both_agree():
    assert quality_focal(TEACHER, TEACHER.sigmoid(), beta=1.0).abs().max() == 0
    assert edge_kl(TEACHER, TEACHER, 10.0).abs().max() < 1e-12
    assert edge_kl(TEACHER + 5.0, TEACHER, 1.0).abs().max() < 1e-12  # a softmax does not see a shift


def test_gradcheck():
    student = STUDENT[:2, :4].clone().requires_grad_()
    target = TEACHER[:2, :4]
    assert gradcheck(lambda s: quality_focal(s, target.sigmoid(), 1.0), student)
    assert gradcheck(lambda s: edge_kl(s, target, 4.0), student)


def test_no_gradient_to_the_teacher():
    teacher = TEACHER.clone().requires_grad_()
    softmax_kl(STUDENT.clone().requires_grad_(), teacher).sum().backward()
    assert teacher.grad is None


def test_nothing_gives_nothing():
    empty = torch.zeros(0, 10, requires_grad=True)
    total = quality_focal(empty, empty.detach(), 1.0).sum() + edge_kl(empty, empty.detach()).sum()
    total.backward()
    assert total.item() == 0
    assert empty.grad.shape == (0, 10)
