"""Attention maps and relations of instances: golden numbers, values by hand, and what must not change the result."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import attention_norm, attention_transfer, pkt, relation_distance
from tests.losses.inputs import wave

STUDENT, TEACHER = wave((2, 3, 4, 4), 0.37, 0.2), wave((2, 5, 4, 4), 0.53, 0.4)


def test_attention_transfer_golden():
    # From running the published function on these inputs; the second case has maps of two sizes.
    assert attention_transfer(STUDENT, TEACHER).item() == pytest.approx(0.02035065958651186, rel=1e-9)
    assert attention_transfer(STUDENT, wave((2, 5, 2, 2), 0.53, 0.4)).item() == pytest.approx(
        0.024681404415419498, rel=1e-9
    )


def test_attention_by_hand():
    # Two cells, one channel. Student (1, 0): squares (1, 0), of length 1. Teacher (0, 3): squares (0, 9), so (0, 1).
    # Differences (1, -1): mean of squares 1, norm sqrt 2.
    student = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    teacher = torch.tensor([0.0, 3.0], dtype=torch.float64).view(1, 1, 1, 2)
    assert attention_transfer(student, teacher).item() == pytest.approx(1.0)
    assert attention_norm(student, teacher).item() == pytest.approx(math.sqrt(2))


def test_attention_ignores_scale_sign_width_and_the_order_of_channels():
    value = attention_transfer(STUDENT, TEACHER)
    torch.testing.assert_close(attention_transfer(-7 * STUDENT[:, [2, 0, 1]], TEACHER.repeat(1, 2, 1, 1)), value)
    assert attention_transfer(STUDENT, 5 * STUDENT.flip(1)).item() < 1e-30
    doubled = attention_transfer(STUDENT.repeat(2, 1, 1, 1), TEACHER.repeat(2, 1, 1, 1))
    torch.testing.assert_close(doubled, value)


def test_maps_need_not_be_square_and_are_pooled_to_the_smaller_side():
    student, teacher = wave((1, 2, 4, 6), 0.7, 0.1), wave((1, 3, 2, 12), 0.9, 0.3)
    pooled = attention_transfer(student.view(1, 2, 2, 2, 6).mean(3), teacher.view(1, 3, 2, 6, 2).mean(4))
    torch.testing.assert_close(attention_transfer(student, teacher), pooled)


@pytest.mark.parametrize("loss", [attention_transfer, attention_norm])
def test_attention_gradients(loss):
    student, teacher = wave((2, 2, 3, 2), 0.7, 0.1).requires_grad_(), wave((2, 3, 3, 2), 1.1, 0.4).requires_grad_()
    assert gradcheck(lambda s: loss(s, teacher), student)
    zero = torch.zeros_like(STUDENT).requires_grad_()  # possible behind a ReLU; its slope must not be infinite
    (loss(zero, TEACHER) + loss(student, student) + loss(student, teacher)).backward()
    assert zero.grad.isfinite().all() and student.grad.isfinite().all()
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
    rotation = torch.linalg.qr(wave((6, 6), 2.1, 0.3)).Q
    value = relation_distance(student, teacher)
    assert value > 0.01
    torch.testing.assert_close(relation_distance(3 * student @ rotation + 2, teacher), value)
    assert relation_distance(4 * student @ rotation, student).item() < 1e-20


def test_relation_gradients():
    student, teacher = wave((4, 3), 0.7, 0.1).requires_grad_(), wave((4, 5), 1.3, 0.5).requires_grad_()
    assert gradcheck(lambda s: relation_distance(s, teacher), student)
    relation_distance(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.ones(1, 3), torch.ones(3, 3)])
def test_no_instance_one_instance_and_equal_instances_have_no_relations(rows: torch.Tensor):
    student = rows.clone().requires_grad_()
    loss = relation_distance(student, rows)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.eq(0).all()


# PKT's distance

STUDENT_ROWS, TEACHER_ROWS = wave((4, 6), 0.37, 0.2), wave((4, 9), 0.53, 0.4)


def test_pkt_golden():
    # From running the published function on these inputs; the widths differ.
    assert pkt(STUDENT_ROWS, TEACHER_ROWS).item() == pytest.approx(0.06352347610922657, rel=1e-6)


@pytest.mark.parametrize("diagonal", [True, False])
def test_pkt_by_hand(diagonal: bool):
    # Three vectors per side. The student's first two have the same direction and the third is orthogonal: similarities
    # 1, 1, 1/2. The teacher's are all orthogonal: 1/2.
    student = torch.tensor([[2.0, 0], [3, 0], [0, 1]], dtype=torch.float64)
    teacher = torch.eye(3, dtype=torch.float64)
    if diagonal:  # rows: student (2 2 1)/5, (2 2 1)/5, (1 1 2)/4; teacher (2 1 1)/4 with the 2 on the diagonal
        first = 1 / 2 * math.log(5 / 4) + 1 / 4 * math.log(5 / 8) + 1 / 4 * math.log(5 / 4)
        expected = 2 * first / 9
    else:  # rows: student (2 1)/3, (2 1)/3, (1 1)/2; teacher (1 1)/2
        expected = 2 * (1 / 2 * math.log(3 / 4) + 1 / 2 * math.log(3 / 2)) / 9
    assert pkt(student, teacher, diagonal).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("diagonal", [True, False])
def test_pkt_gradient(diagonal: bool):
    assert gradcheck(lambda student: pkt(student, TEACHER_ROWS, diagonal), STUDENT_ROWS.clone().requires_grad_())
    teacher = TEACHER_ROWS.clone().requires_grad_()
    pkt(STUDENT_ROWS.clone().requires_grad_(), teacher, diagonal).backward()
    assert teacher.grad is None


def test_pkt_is_zero_for_equal_relations_of_any_length_and_basis():
    rotation = torch.linalg.qr(wave((6, 6), 1.1, 0.3)).Q
    lengths = torch.tensor([1.0, 2, 5, 0.5], dtype=torch.float64)[:, None]
    assert pkt(STUDENT_ROWS, (STUDENT_ROWS * lengths) @ rotation).item() == pytest.approx(0, abs=1e-7)
    assert pkt(STUDENT_ROWS, TEACHER_ROWS) > 0.01


def test_pkt_is_halved_by_twice_the_instances():
    repeated = pkt(STUDENT_ROWS.repeat(2, 1), TEACHER_ROWS.repeat(2, 1))
    torch.testing.assert_close(repeated, pkt(STUDENT_ROWS, TEACHER_ROWS) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [0, 1])
def test_pkt_of_fewer_than_two_instances_is_zero(count: int):
    student = STUDENT_ROWS[:count].clone().requires_grad_()
    value = pkt(student, TEACHER_ROWS[:count])
    assert value.item() == 0
    value.backward()
    assert student.grad is not None and not student.grad.any()


def test_pkt_stays_finite_for_a_zero_vector_and_for_half_precision():
    student = torch.cat([STUDENT_ROWS[:3], torch.zeros(1, 6)]).requires_grad_()
    pkt(student, TEACHER_ROWS).backward()
    assert student.grad.isfinite().all()
    assert pkt(STUDENT_ROWS.bfloat16(), TEACHER_ROWS.bfloat16()).dtype == torch.float32


def test_autocast_does_not_reduce_the_precision_of_pkt():
    # Similar instances, like neck features of boxes: their cosines differ in the third digit.
    student = 1 + 0.1 * STUDENT_ROWS.float()
    teacher = 1 + 0.1 * TEACHER_ROWS.float()
    with torch.autocast("cpu", torch.bfloat16):
        half = pkt(student, teacher)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pkt(student, teacher))


@pytest.mark.parametrize("diagonal", [True, False])
def test_pkt_stays_finite_for_opposite_vectors(diagonal: bool):
    # In single precision some cosines are below -1.
    for seed in range(20):
        vector = 100 * torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
        student = torch.cat([vector, -vector]).requires_grad_()
        teacher = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed + 100))
        value = pkt(student, teacher, diagonal) + pkt(student, student, diagonal) + pkt(teacher, student, diagonal)
        value.backward()
        assert value.isfinite() and student.grad.isfinite().all()
