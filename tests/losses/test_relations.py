"""Attention maps and relations of instances: golden numbers, values by hand, what must not change them."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import attention_norm, attention_transfer, relation_distance


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    """scale * sin(step * i + phase) over the running index i: an input that needs no file."""
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((2, 3, 4, 4), 0.37, 0.2), wave((2, 5, 4, 4), 0.53, 0.4)


def test_attention_transfer_golden():
    # From running the published function on these inputs; the second with maps of two sizes.
    assert attention_transfer(STUDENT, TEACHER).item() == pytest.approx(0.02035065958651186, rel=1e-9)
    assert attention_transfer(STUDENT, wave((2, 5, 2, 2), 0.53, 0.4)).item() == pytest.approx(
        0.024681404415419498, rel=1e-9
    )


def test_attention_by_hand():
    # Two cells, one channel. Student (1, 0): squares (1, 0), of length 1. Teacher (0, 3): squares (0, 9), so (0, 1).
    # Differences (1, -1): mean of squares 1, norm sqrt 2.
    student, teacher = (torch.tensor(cells, dtype=torch.float64).view(1, 1, 1, 2) for cells in ([1.0, 0.0], [0.0, 3.0]))
    assert attention_transfer(student, teacher).item() == pytest.approx(1.0)
    assert attention_norm(student, teacher).item() == pytest.approx(math.sqrt(2))


def test_attention_ignores_scale_sign_width_and_the_order_of_channels():
    value = attention_transfer(STUDENT, TEACHER)
    torch.testing.assert_close(attention_transfer(-7 * STUDENT[:, [2, 0, 1]], TEACHER.repeat(1, 2, 1, 1)), value)
    assert attention_transfer(STUDENT, 5 * STUDENT.flip(1)).item() < 1e-30
    doubled = attention_transfer(STUDENT.repeat(2, 1, 1, 1), TEACHER.repeat(2, 1, 1, 1))
    torch.testing.assert_close(doubled, value)


def test_maps_need_not_be_square_and_the_smaller_side_counts():
    student, teacher = wave((1, 2, 4, 6), 0.7, 0.1), wave((1, 3, 2, 12), 0.9, 0.3)
    pooled = attention_transfer(student.view(1, 2, 2, 2, 6).mean(3), teacher.view(1, 3, 2, 6, 2).mean(4))
    torch.testing.assert_close(attention_transfer(student, teacher), pooled)


@pytest.mark.parametrize("loss", [attention_transfer, attention_norm])
def test_attention_gradients(loss):
    student, teacher = wave((2, 2, 3, 2), 0.7, 0.1).requires_grad_(), wave((2, 3, 3, 2), 1.1, 0.4).requires_grad_()
    assert gradcheck(lambda s: loss(s, teacher), student)
    dead = torch.zeros_like(STUDENT).requires_grad_()  # behind a ReLU, and equal to itself: no infinite slope
    (loss(dead, TEACHER) + loss(student, student) + loss(student, teacher)).backward()
    assert dead.grad.isfinite().all() and student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert loss(STUDENT.bfloat16(), TEACHER.bfloat16()).dtype == torch.float32


def test_relations_by_hand():
    # On a line, student 0 1 3: distances 1 3 2, mean 2, so 0.5 1.5 1. Teacher 0 1 2: 1 2 1, mean 4/3, so 0.75 1.5 0.75.
    # Differences 0.25 0 0.25: smooth L1 d^2/2 = 1/32 each, two pairs, both orders: 4/32.
    student, teacher = torch.tensor([[0.0], [1], [3]]), torch.tensor([[0.0], [1], [2]])
    assert relation_distance(student, teacher).item() == pytest.approx(4 / 32, rel=1e-5)


def test_relations_ignore_scale_shift_and_rotation():
    student, teacher = wave((5, 6), 0.7, 0.1), wave((5, 9), 1.3, 0.5)
    turn = torch.linalg.qr(wave((6, 6), 2.1, 0.3)).Q
    value = relation_distance(student, teacher)
    assert value > 0.01
    torch.testing.assert_close(relation_distance(3 * student @ turn + 2, teacher), value)
    assert relation_distance(4 * student @ turn, student).item() < 1e-20


def test_relation_gradients():
    student, teacher = wave((4, 3), 0.7, 0.1).requires_grad_(), wave((4, 5), 1.3, 0.5).requires_grad_()
    assert gradcheck(lambda s: relation_distance(s, teacher), student)
    relation_distance(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.ones(1, 3), torch.ones(3, 3)])
def test_nobody_one_alone_and_all_alike_have_no_relations(rows: torch.Tensor):
    student = rows.clone().requires_grad_()
    loss = relation_distance(student, rows)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.eq(0).all()
