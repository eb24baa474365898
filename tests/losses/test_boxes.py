"""Box distances by hand, against torchvision, for degenerate boxes, and the bounded regression of Chen 2017."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torchvision.ops import generalized_box_iou

from detdistill.losses import bounded_regression, giou_distance, log_iou_distance, paired_iou, pairwise_giou
from tests.losses.inputs import wave

UNIT = torch.tensor([[0.0, 0, 2, 2]], dtype=torch.float64)


def test_by_hand():
    # Two 2x2 squares, shifted by one: intersection 1x2 = 2, union 6, hull 3x2 = 6. IoU = GIoU = 1/3.
    shifted = UNIT + torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    assert paired_iou(UNIT, shifted).item() == pytest.approx(1 / 3)
    assert giou_distance(UNIT, shifted).item() == pytest.approx(2 / 3)
    assert log_iou_distance(UNIT, shifted).item() == pytest.approx(math.log(3))
    # Shifted by three: no overlap, union 8, hull 5x2 = 10, GIoU = -0.2.
    separate = UNIT + torch.tensor([3.0, 0, 3, 0], dtype=torch.float64)
    assert giou_distance(UNIT, separate).item() == pytest.approx(1.2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 100), min_size=8, max_size=8))
def test_giou_equals_torchvision(numbers: list[float]):
    corners = torch.tensor(numbers, dtype=torch.float64).view(2, 2, 2)
    first, second = (torch.cat([c.amin(0), c.amax(0) + 0.5])[None] for c in corners)
    assert giou_distance(first, second).item() == pytest.approx(1 - generalized_box_iou(first, second).item(), abs=1e-6)
    assert 0 <= giou_distance(first, second).item() <= 2


def test_equal_boxes_have_no_distance_and_points_stay_finite():
    assert giou_distance(UNIT, UNIT).item() == 0
    assert log_iou_distance(UNIT, UNIT).item() == 0
    point = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (giou_distance(point, UNIT) + log_iou_distance(point, UNIT)).sum().backward()
    assert point.grad.isfinite().all()


def test_gradcheck_and_empty():
    boxes = torch.tensor([[0.1, 0.2, 2.1, 1.9]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda b: giou_distance(b, UNIT + 0.5), boxes)
    assert gradcheck(lambda b: log_iou_distance(b, UNIT + 0.5), boxes)
    assert giou_distance(torch.zeros(0, 4), torch.zeros(0, 4)).sum().item() == 0


@given(seed=st.integers(0, 999), rows=st.integers(0, 4), columns=st.integers(1, 4))
def test_pairwise_giou_equals_torchvision(seed: int, rows: int, columns: int):
    generator = torch.Generator().manual_seed(seed)
    corners, sides = (torch.rand(2, rows + columns, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    boxes = torch.cat([corners, corners + sides + 0.01], -1)
    table = pairwise_giou(boxes[:, :rows], boxes[:, rows:])
    assert table.shape == (2, rows, columns)
    for image in range(2):
        first, second = boxes[image, :rows], boxes[image, rows:]
        torch.testing.assert_close(table[image], generalized_box_iou(first, second))
        torch.testing.assert_close(table[image], 1 - giou_distance(first[:, None], second[None]))


# Chen 2017's bounded regression

STUDENT_CODES = wave((5, 4), 0.7, 0.1)
TEACHER_CODES = wave((5, 4), 1.1, 0.5)
TARGET_CODES = wave((5, 4), 0.3, 0.9)


def test_bounded_regression_golden():
    rows = bounded_regression(STUDENT_CODES, TEACHER_CODES, TARGET_CODES, 0.01)
    assert rows.mean().item() == pytest.approx(1.1942889471322256, rel=1e-9)
    assert 0.5 * rows.mean().item() == pytest.approx(0.5971444735661128, rel=1e-9)
    # A teacher without error, or a margin that no row reaches: the plain squared distances.
    plain = bounded_regression(STUDENT_CODES, TARGET_CODES, TARGET_CODES)
    assert plain.mean().item() == pytest.approx(3.2949687787974278, rel=1e-9)
    far = torch.full_like(STUDENT_CODES, 1e9)
    unreached = bounded_regression(STUDENT_CODES, far, TARGET_CODES, 1e30)
    assert unreached.mean().item() == pytest.approx(3.2949687787974278, rel=1e-9)
    teachers = bounded_regression(TEACHER_CODES, TARGET_CODES, TARGET_CODES)
    assert teachers.mean().item() == pytest.approx(3.5585718294700173, rel=1e-9)


def test_bounded_regression_by_hand():
    # d_s = 1, 4, 4; d_t = 2: better, worse, worse. With a margin of 1.5 the first row is not better by enough.
    student = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [1, 1, 1, 1]])
    teacher = torch.tensor([1.0, 1, 0, 0]).expand(3, 4)
    target = torch.zeros(3, 4)
    assert bounded_regression(student, teacher, target).tolist() == [0, 4, 4]
    assert bounded_regression(student, teacher, target, 1.5).tolist() == [1, 4, 4]
    assert bounded_regression(teacher, teacher, target).tolist() == [0, 0, 0]  # equal to the teacher is good enough


def test_the_gradient_of_bounded_regression_flows_through_the_students_distance_only():
    student, teacher = STUDENT_CODES.clone().requires_grad_(), TEACHER_CODES.clone().requires_grad_()
    bounded_regression(student, teacher, TARGET_CODES).sum().backward()
    student_distance = (STUDENT_CODES - TARGET_CODES).square().sum(-1)
    teacher_distance = (TEACHER_CODES - TARGET_CODES).square().sum(-1)
    worse = student_distance > teacher_distance
    assert 0 < worse.sum() < 5
    torch.testing.assert_close(student.grad, 2 * (STUDENT_CODES - TARGET_CODES) * worse[:, None])
    assert teacher.grad is None


def test_bounded_regression_passes_gradcheck():
    student = STUDENT_CODES.clone().requires_grad_()
    assert gradcheck(lambda s: bounded_regression(s, TEACHER_CODES, TARGET_CODES, 0.01), student)


def test_bounded_regression_of_no_rows_is_zero():
    codes = torch.zeros(0, 4, requires_grad=True)
    total = bounded_regression(codes, codes, codes.detach()).sum()
    total.backward()
    assert total.item() == 0
