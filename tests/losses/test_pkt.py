"""PKT's distance: golden number, a value by hand, the gradient, and what must not change it."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import pkt


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    """scale * sin(step * i + phase) over the running index i: an input that needs no file."""
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((4, 6), 0.37, 0.2), wave((4, 9), 0.53, 0.4)


def test_golden():
    # From running the published function on these inputs; the widths differ.
    assert pkt(STUDENT, TEACHER).item() == pytest.approx(0.06352347610922657, rel=1e-6)


@pytest.mark.parametrize("diagonal", [True, False])
def test_by_hand(diagonal: bool):
    # Three unit vectors. The student's first two are equal and the third is across: likeness 1, 1, 1/2; the teacher's are all across: 1/2.
    student = torch.tensor([[2.0, 0], [3, 0], [0, 1]], dtype=torch.float64)
    teacher = torch.eye(3, dtype=torch.float64)
    if diagonal:  # rows: student (2 2 1)/5, (2 2 1)/5, (1 1 2)/4; teacher (2 1 1)/4 with the 2 on the diagonal
        first = 1 / 2 * math.log(5 / 4) + 1 / 4 * math.log(5 / 8) + 1 / 4 * math.log(5 / 4)
        expected = 2 * first / 9
    else:  # rows: student (2 1)/3, (2 1)/3, (1 1)/2; teacher (1 1)/2
        expected = 2 * (1 / 2 * math.log(3 / 4) + 1 / 2 * math.log(3 / 2)) / 9
    assert pkt(student, teacher, diagonal).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("diagonal", [True, False])
def test_gradient(diagonal: bool):
    assert gradcheck(lambda student: pkt(student, TEACHER, diagonal), STUDENT.clone().requires_grad_())
    taught = TEACHER.clone().requires_grad_()
    pkt(STUDENT.clone().requires_grad_(), taught, diagonal).backward()
    assert taught.grad is None


def test_zero_where_the_relations_agree_whatever_length_and_basis():
    turn = torch.linalg.qr(wave((6, 6), 1.1, 0.3)).Q
    lengths = torch.tensor([1.0, 2, 5, 0.5], dtype=torch.float64)[:, None]
    assert pkt(STUDENT, (STUDENT * lengths) @ turn).item() == pytest.approx(0, abs=1e-7)
    assert pkt(STUDENT, TEACHER) > 0.01


def test_twice_the_instances_halve_it():
    twice = pkt(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1))
    torch.testing.assert_close(twice, pkt(STUDENT, TEACHER) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_relate_to_nothing(count: int):
    student = STUDENT[:count].clone().requires_grad_()
    value = pkt(student, TEACHER[:count])
    assert value.item() == 0
    value.backward()
    assert student.grad is not None and not student.grad.any()


def test_a_dead_vector_and_half_precision_stay_finite():
    student = torch.cat([STUDENT[:3], torch.zeros(1, 6)]).requires_grad_()
    pkt(student, TEACHER).backward()
    assert student.grad.isfinite().all()
    assert pkt(STUDENT.bfloat16(), TEACHER.bfloat16()).dtype == torch.float32


def test_autocast_takes_no_precision_away():
    # Instances that are much alike, as neck features of boxes are: their cosines differ in the third digit.
    student, teacher = (1 + 0.1 * side.float() for side in (STUDENT, TEACHER))
    with torch.autocast("cpu", torch.bfloat16):
        half = pkt(student, teacher)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pkt(student, teacher))


@pytest.mark.parametrize("diagonal", [True, False])
def test_opposite_vectors_stay_finite(diagonal: bool):
    # In single precision some cosines come out below -1.
    for seed in range(20):
        vector = 100 * torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
        student = torch.cat([vector, -vector]).requires_grad_()
        other = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed + 100))
        value = pkt(student, other, diagonal) + pkt(student, student, diagonal) + pkt(other, student, diagonal)
        value.backward()
        assert value.isfinite() and student.grad.isfinite().all()
