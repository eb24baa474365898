"""PKD's distance and CrossKD's alignment: golden numbers, the gradient formula, and what must not change them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from detdistill.losses import match_statistics, pearson_distance, standardize


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    """scale * sin(step * i + phase) over the running index i: an input that needs no file."""
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((2, 4, 6, 8), 0.37, 0.2, 2.0), wave((2, 4, 6, 8), 0.53, 0.4, 2.0)


def test_pearson_distance_golden():
    # From running the published function on these inputs.
    assert pearson_distance(STUDENT, TEACHER).item() == pytest.approx(1.0067214906947168, rel=1e-9)


def test_pearson_distance_by_hand():
    # One channel, four cells: student 0 1 2 3, teacher 1 0 3 2. Means 1.5; cov sum = 3; variances sum = 5 and 5; r = 3/5.
    # (m - 1)/m (1 - r) = 3/4 * 2/5 = 0.3.
    student = torch.tensor([0.0, 1, 2, 3], dtype=torch.float64).view(1, 1, 2, 2)
    teacher = torch.tensor([1.0, 0, 3, 2], dtype=torch.float64).view(1, 1, 2, 2)
    assert pearson_distance(student, teacher).item() == pytest.approx(0.3, rel=1e-5)


def test_pearson_distance_equals_an_independent_derivation():
    rows = [m.transpose(0, 1).reshape(4, -1).numpy() for m in (STUDENT, TEACHER)]
    correlation = np.array([np.corrcoef(s, t)[0, 1] for s, t in zip(*rows, strict=True)])
    m = rows[0].shape[1]
    assert pearson_distance(STUDENT, TEACHER).item() == pytest.approx(
        ((m - 1) / m * (1 - correlation)).mean(), rel=1e-5
    )


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
    # dL/ds = weight/C * (r s^ - t^) / (m deviation): with the mean and deviation held constant one would get (s^ - t^), which is wrong.
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pearson_distance(student, TEACHER), student)
    m, channels = STUDENT[:, 0].numel(), STUDENT.shape[1]
    mine, theirs = standardize(STUDENT), standardize(TEACHER)
    correlation = (mine * theirs).sum((0, 2, 3), keepdim=True) / (m - 1)
    deviation = STUDENT.std((0, 2, 3), keepdim=True)
    expected = (correlation * mine - theirs) / (m * deviation) / channels
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)
    naive = (mine - theirs) / (m * deviation) / channels
    assert (gradient - naive).abs().max() > 1e-4


def test_gradcheck():
    student, teacher = wave((2, 2, 3, 3), 0.7, 0.1).requires_grad_(), wave((2, 2, 3, 3), 1.1, 0.4)
    assert gradcheck(lambda s: pearson_distance(s, teacher), student)
    assert gradcheck(lambda s: match_statistics(s, teacher), student)


def test_no_gradient_to_the_teacher():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    (pearson_distance(student, teacher) + match_statistics(student, teacher).square().mean()).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_match_statistics_gives_the_teachers():
    matched = match_statistics(STUDENT, TEACHER)
    torch.testing.assert_close(matched.mean((0, 2, 3)), TEACHER.mean((0, 2, 3)), atol=1e-9, rtol=0)
    torch.testing.assert_close(matched.std((0, 2, 3)), TEACHER.std((0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(match_statistics(3 * STUDENT + 7, TEACHER), matched, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(match_statistics(TEACHER, TEACHER), TEACHER, rtol=1e-5, atol=1e-5)


def test_match_statistics_by_hand():
    # Student 0 and 2: mean 1, unbiased deviation sqrt(2). Teacher 5 and 9: mean 7, deviation 2 sqrt(2). So 0 becomes 5 and 2 becomes 9.
    student, teacher = (torch.tensor(pair, dtype=torch.float64).view(1, 1, 1, 2) for pair in ([0.0, 2.0], [5.0, 9.0]))
    torch.testing.assert_close(
        match_statistics(student, teacher).flatten(), torch.tensor([5.0, 9.0], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_half_precision_is_summed_in_single():
    big = 300 + wave((2, 1, 64, 64), 0.01, 0.0).float()
    assert pearson_distance(big.bfloat16(), big.bfloat16()).dtype == torch.float32
    assert pearson_distance(big.half(), big.half()).item() == 0


def test_different_widths_are_refused():
    with pytest.raises(ValueError, match="one width"):
        match_statistics(STUDENT, TEACHER[:, :2])


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0])
def test_a_dead_channel_has_finite_gradients(value: float):
    # Behind a ReLU whole channels are 0: the root of their variance must not make 0 times infinity of the gradient.
    student, teacher = STUDENT.float().clone(), TEACHER.float().clone()
    student[:, 0] = teacher[:, -1] = value
    student.requires_grad_()
    (pearson_distance(student, teacher) + match_statistics(student, teacher).square().sum()).backward()
    assert student.grad.isfinite().all()
    assert student.grad[:, -1].any()
