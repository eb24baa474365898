"""Distances between feature maps: golden numbers, values by hand, gradients, and what must not change the result."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from detdistill.losses import (
    decoupled_mse,
    hierarchical_context,
    hint_distance,
    masked_squares,
    match_statistics,
    pearson_distance,
    standardize,
)
from tests.losses.inputs import wave

STUDENT, TEACHER = wave((2, 4, 6, 8), 0.37, 0.2, 2.0), wave((2, 4, 6, 8), 0.53, 0.4, 2.0)

# PKD's distance and CrossKD's alignment


def test_pearson_distance_golden():
    # From running the published function on these inputs.
    assert pearson_distance(STUDENT, TEACHER).item() == pytest.approx(1.0067214906947168, rel=1e-9)


def test_pearson_distance_by_hand():
    # One channel, four cells: student 0 1 2 3, teacher 1 0 3 2. Means 1.5; covariance sum 3; variance sums 5 and 5;
    # r = 3/5. (m - 1)/m (1 - r) = 3/4 * 2/5 = 0.3.
    student = torch.tensor([0.0, 1, 2, 3], dtype=torch.float64).view(1, 1, 2, 2)
    teacher = torch.tensor([1.0, 0, 3, 2], dtype=torch.float64).view(1, 1, 2, 2)
    assert pearson_distance(student, teacher).item() == pytest.approx(0.3, rel=1e-5)


def test_pearson_distance_equals_an_independent_derivation():
    student_rows, teacher_rows = [m.transpose(0, 1).reshape(4, -1).numpy() for m in (STUDENT, TEACHER)]
    correlation = np.array([np.corrcoef(s, t)[0, 1] for s, t in zip(student_rows, teacher_rows, strict=True)])
    m = student_rows.shape[1]
    expected = ((m - 1) / m * (1 - correlation)).mean()
    assert pearson_distance(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_pearson_distance_ignores_positive_affine_maps(scale: float, shift: float):
    assert pearson_distance(STUDENT, scale * STUDENT + shift).item() < 1e-9
    assert pearson_distance(scale * STUDENT + shift, TEACHER).item() == pytest.approx(
        pearson_distance(STUDENT, TEACHER).item(), rel=1e-4
    )


def test_pearson_distance_of_the_negative_is_the_largest():
    m = STUDENT[:, 0].numel()
    assert pearson_distance(STUDENT, -STUDENT).item() == pytest.approx(2 * (m - 1) / m, rel=1e-5)


def test_pearson_gradient_is_the_published_formula():
    # dL/ds = weight/C * (r s^ - t^) / (m deviation). With the mean and deviation held constant it would be (s^ - t^),
    # which is wrong.
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pearson_distance(student, TEACHER), student)
    m, channels = STUDENT[:, 0].numel(), STUDENT.shape[1]
    standard_student, standard_teacher = standardize(STUDENT), standardize(TEACHER)
    correlation = (standard_student * standard_teacher).sum((0, 2, 3), keepdim=True) / (m - 1)
    deviation = STUDENT.std((0, 2, 3), keepdim=True)
    expected = (correlation * standard_student - standard_teacher) / (m * deviation) / channels
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)
    naive = (standard_student - standard_teacher) / (m * deviation) / channels
    assert (gradient - naive).abs().max() > 1e-4


def test_standardized_distances_pass_gradcheck():
    student, teacher = wave((2, 2, 3, 3), 0.7, 0.1).requires_grad_(), wave((2, 2, 3, 3), 1.1, 0.4)
    assert gradcheck(lambda s: pearson_distance(s, teacher), student)
    assert gradcheck(lambda s: match_statistics(s, teacher), student)


def test_standardized_distances_give_no_gradient_to_the_teacher():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    (pearson_distance(student, teacher) + match_statistics(student, teacher).square().mean()).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_match_statistics_gives_the_teachers_statistics():
    matched = match_statistics(STUDENT, TEACHER)
    torch.testing.assert_close(matched.mean((0, 2, 3)), TEACHER.mean((0, 2, 3)), atol=1e-9, rtol=0)
    torch.testing.assert_close(matched.std((0, 2, 3)), TEACHER.std((0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(match_statistics(3 * STUDENT + 7, TEACHER), matched, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(match_statistics(TEACHER, TEACHER), TEACHER, rtol=1e-5, atol=1e-5)


def test_match_statistics_by_hand():
    # Student 0 and 2: mean 1, unbiased deviation sqrt(2). Teacher 5 and 9: mean 7, deviation 2 sqrt(2).
    # So 0 becomes 5 and 2 becomes 9.
    student, teacher = (torch.tensor(pair, dtype=torch.float64).view(1, 1, 1, 2) for pair in ([0.0, 2.0], [5.0, 9.0]))
    torch.testing.assert_close(
        match_statistics(student, teacher).flatten(), torch.tensor([5.0, 9.0], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_pearson_distance_sums_half_precision_in_single():
    big = 300 + wave((2, 1, 64, 64), 0.01, 0.0).float()
    assert pearson_distance(big.bfloat16(), big.bfloat16()).dtype == torch.float32
    assert pearson_distance(big.half(), big.half()).item() == 0


def test_match_statistics_refuses_different_channels():
    with pytest.raises(ValueError, match="same number of channels, got"):
        match_statistics(STUDENT, TEACHER[:, :2])


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0])
def test_a_constant_channel_has_finite_gradients(value: float):
    # Behind a ReLU a whole channel may be 0. The square root of its variance must not give 0 times infinity.
    student, teacher = STUDENT.float().clone(), TEACHER.float().clone()
    student[:, 0] = teacher[:, -1] = value
    student.requires_grad_()
    (pearson_distance(student, teacher) + match_statistics(student, teacher).square().sum()).backward()
    assert student.grad.isfinite().all()
    assert student.grad[:, -1].any()


# ReviewKD's context loss, FitNets' hints and the masked sum

CONTEXT = {
    (8, 8): 0.61858469,
    (4, 8): 0.59007066,
    (2, 2): 0.89950871,
    (1, 1): 0.09000265,
    (5, 13): 0.63914949,
    (3, 5): 0.64216357,
}


def context_maps(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher maps (1, 3, H, W) of the golden numbers."""
    return wave((1, 3, *shape), 0.37, 0.0), wave((1, 3, *shape), 0.91, 0.0)


@pytest.mark.parametrize("shape", CONTEXT)
def test_context_golden(shape: tuple[int, int]):
    # From running the published function in single precision. A map of height 4 is pooled to 2 x 2 and 1 x 1, a map of
    # height 2 only to 1 x 1. The width has no influence.
    student, teacher = context_maps(shape)
    assert hierarchical_context([student], [teacher]).item() == pytest.approx(CONTEXT[shape], abs=5e-7)
    assert hierarchical_context([student], [student.expand_as(teacher)]).item() == 0
    distance = hierarchical_context([torch.zeros_like(student)], [torch.ones_like(student)])
    assert distance.item() == pytest.approx(1.0, rel=1e-12)


def test_context_adds_levels_and_works_without_pooling():
    pairs = [context_maps((8, 8)), context_maps((2, 2))]
    student, teacher = zip(*pairs, strict=True)
    assert hierarchical_context(student, teacher).item() == pytest.approx(CONTEXT[8, 8] + CONTEXT[2, 2], abs=1e-6)
    plain = sum((s - t).square().mean().item() for s, t in pairs)
    assert hierarchical_context(student, teacher, sizes=()).item() == pytest.approx(plain, rel=1e-12)
    with pytest.raises(ValueError, match="zip"):
        hierarchical_context(student, teacher[:1])
    with pytest.raises(ValueError, match="must be maps of one shape"):
        hierarchical_context([student[0]], [teacher[0][:, :1]])


def test_context_by_hand():
    # 2 x 2 cells differ by 2 0 0 0: mse 1. Pooled to one cell 1/2, so 1/4 at half weight: (1 + 1/8) / 1.5 = 0.75.
    student = torch.tensor([2.0, 0, 0, 0], dtype=torch.float64).view(1, 1, 2, 2)
    assert hierarchical_context([student], [torch.zeros_like(student)]).item() == pytest.approx(0.75, rel=1e-12)


def test_hints_golden():
    # From running RepDistiller's and mmrazor's functions.
    assert hint_distance(STUDENT, TEACHER).item() == pytest.approx(4.0694062589056506, rel=1e-12)
    assert hint_distance(STUDENT, TEACHER, "normalized").item() == pytest.approx(2.035188039005752, rel=1e-12)
    half = hint_distance(STUDENT, TEACHER, "half_sum").item()
    assert half == pytest.approx(4.0694062589056506 * STUDENT[0].numel() / 2, rel=1e-12)


def test_normalized_hints_depend_on_the_direction_only():
    cosine = torch.nn.functional.cosine_similarity(STUDENT.flatten(1), TEACHER.flatten(1))
    assert hint_distance(7 * STUDENT, TEACHER / 3, "normalized").item() == pytest.approx(
        (2 - 2 * cosine).mean().item(), rel=1e-9
    )


def test_masked_squares_by_hand():
    # Two channels. The first cell of the first image differs by 3 and 1 (10), the last cell of the second image by 2
    # and 0 (4).
    student, teacher = torch.zeros(2, 2, 1, 2), torch.ones(2, 2, 1, 2)
    teacher[0, :, 0, 0], teacher[1, :, 0, 1] = torch.tensor([3.0, 1]), torch.tensor([2.0, 0])
    mask = torch.zeros(2, 1, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 0, 1] = True
    assert masked_squares(student, teacher, mask).item() == 14
    assert masked_squares(student, teacher, ~mask).item() == 4
    assert masked_squares(student, teacher, torch.zeros_like(mask)).item() == 0


def test_squared_distances_pass_gradcheck_and_give_no_gradient_to_the_teacher():
    student, teacher = wave((2, 2, 5, 3), 0.7, 0.1).requires_grad_(), wave((2, 2, 5, 3), 1.1, 0.4).requires_grad_()
    mask = wave((2, 5, 3), 1.7, 0.0) > 0
    distances = [
        lambda s: hierarchical_context([s], [teacher]),
        lambda s: hint_distance(s, teacher, "half_sum"),
        lambda s: hint_distance(s, teacher, "normalized"),
        lambda s: masked_squares(s, teacher, mask),
    ]
    for distance in distances:
        assert gradcheck(distance, student)
        distance(student).backward()
    assert teacher.grad is None


def test_squared_distances_sum_half_precision_in_single():
    big = torch.full((1, 256, 16, 16), 300.0).half()
    zero = torch.zeros_like(big)
    assert masked_squares(big, zero, torch.ones(1, 16, 16)).item() == pytest.approx(300.0**2 * big.numel())
    assert hint_distance(big, zero, "half_sum").item() == pytest.approx(300.0**2 * big.numel() / 2)
    assert hint_distance(big, 2 * big, "normalized").item() == pytest.approx(0, abs=1e-6)
    assert hierarchical_context([big], [zero]).item() == pytest.approx(300.0**2)


# DeFeat's squared difference in two parts

REGION = torch.zeros(2, 6, 8, dtype=torch.bool)
REGION[0, 1:4, 2:5] = True
REGION[1, 0:2, 0:2] = True


def test_decoupled_mse_golden():
    inside, outside = decoupled_mse(STUDENT, TEACHER, REGION)
    assert inside.item() == pytest.approx(1.2930113604919489, rel=1e-6)
    assert outside.item() == pytest.approx(2.150871719771999, rel=1e-6)


def test_decoupled_mse_by_hand():
    # Two channels; differences 1 and 2 in the first cell, 3 and 0 in the second. Inside: 5 / (2 * 2 channels * 1 cell);
    # outside 9 / 4.
    student = torch.tensor([[1.0, 3], [2, 0]]).view(1, 2, 1, 2)
    zero = torch.zeros_like(student)
    region = torch.tensor([[[True, False]]])
    assert [part.item() for part in decoupled_mse(student, zero, region)] == [1.25, 2.25]
    assert [part.item() for part in decoupled_mse(student, zero, region, per_channel=False)] == [2.5, 4.5]


def test_decoupled_mse_is_zero_without_cells_and_the_same_for_a_repeated_batch():
    inside, outside = decoupled_mse(STUDENT, TEACHER, torch.zeros_like(REGION))
    assert inside.item() == 0
    assert outside.item() == pytest.approx((STUDENT - TEACHER).square().mean().item() / 2, rel=1e-6)
    repeated = decoupled_mse(*(part.repeat(2, 1, 1, 1) for part in (STUDENT, TEACHER)), REGION.repeat(2, 1, 1))
    torch.testing.assert_close(repeated, decoupled_mse(STUDENT, TEACHER, REGION))


def test_decoupled_mse_gradients():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    assert gradcheck(lambda s: sum(decoupled_mse(s, teacher, REGION)), student)
    inside, _ = decoupled_mse(student, teacher, REGION)
    inside.backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(1) > 0).eq(REGION).all()
