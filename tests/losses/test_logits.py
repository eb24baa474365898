"""Score and distribution distances: golden numbers, values by hand, minima, no gradient to the teacher."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import (
    decoupled_kl,
    edge_kl,
    quality_focal,
    relation_match,
    soft_cross_entropy,
    softmax_kl,
)
from tests.losses.inputs import wave

STUDENT, TEACHER = wave((4, 10), 0.7, 0.1, 3.0), wave((4, 10), 1.3, 0.5, 3.0)
LABELS = torch.tensor([0, 3, 7, 9])
WEIGHTS = torch.ones(10, dtype=torch.float64)
WEIGHTS[0] = 1.5


@pytest.mark.parametrize(
    ("temperature", "golden"), [(1.0, 2.3697012326439073), (2.0, 3.5579301165715944), (4.0, 4.256155069292156)]
)
def test_softmax_kl_golden(temperature: float, golden: float):
    assert softmax_kl(STUDENT, TEACHER, temperature).mean().item() == pytest.approx(golden, rel=1e-9)


@pytest.mark.parametrize(("temperature", "golden"), [(2.0, 0.3557930116571593), (10.0, 0.4554144459070017)])
def test_edge_kl_golden(temperature: float, golden: float):
    # The published LD code takes the mean over bins, so our sum is divided by the number of bins.
    assert edge_kl(STUDENT, TEACHER, temperature).mean().item() / 10 == pytest.approx(golden, rel=1e-9)


def test_softmax_kl_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812.
    teacher = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    assert softmax_kl(torch.zeros(2, dtype=torch.float64), teacher).item() == pytest.approx(0.130812, abs=1e-6)


def test_quality_focal_golden():
    # Sums over classes of |p_t - p_s| BCE(s, p_t), which the published BCKD function gives for these rows.
    golden = [7.234353848440301, 7.3928393004694914, 7.342271598057469, 7.248755145388396]
    rows = quality_focal(STUDENT, TEACHER.sigmoid(), beta=1.0).sum(-1)
    torch.testing.assert_close(rows, torch.tensor(golden, dtype=torch.float64), rtol=1e-9, atol=0)


def test_quality_focal_by_hand():
    # Score 1/2, target 1: |1/2|^2 * ln 2. Score 1/2, target 1/2: 0.
    value = quality_focal(torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64), beta=2.0)
    assert value.tolist() == pytest.approx([math.log(2) / 4, 0.0])


def test_soft_cross_entropy_golden():
    assert soft_cross_entropy(STUDENT, TEACHER, WEIGHTS).mean().item() == pytest.approx(4.077532721627643, rel=1e-9)
    assert soft_cross_entropy(STUDENT, TEACHER).mean().item() == pytest.approx(3.860998022111025, rel=1e-9)


def test_soft_cross_entropy_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2), weights (2, 1): (2 * 3/4 + 1/4) ln 2. The weights apply to classes, not to
    # the row.
    teacher = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0], dtype=torch.float64)
    value = soft_cross_entropy(torch.zeros(2, dtype=torch.float64), teacher, weights).item()
    assert value == pytest.approx(1.75 * math.log(2))


def test_soft_cross_entropy_without_weights_is_kl_plus_the_teachers_entropy():
    entropy = soft_cross_entropy(TEACHER, TEACHER)
    torch.testing.assert_close(soft_cross_entropy(STUDENT, TEACHER) - entropy, softmax_kl(STUDENT, TEACHER))


def test_soft_cross_entropy_has_its_minimum_at_the_weighted_target():
    best = (TEACHER.softmax(-1) * WEIGHTS).log().requires_grad_()
    soft_cross_entropy(best, TEACHER, WEIGHTS).sum().backward()
    assert best.grad.abs().max() < 1e-12
    copied = TEACHER.clone().requires_grad_()  # a copy of the teacher is not the minimum
    soft_cross_entropy(copied, TEACHER, WEIGHTS).sum().backward()
    assert copied.grad.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("alpha", "beta", "golden"),
    [(1.0, 8.0, 36.26705886481297), (1.0, 0.0, 0.17337103858608266), (0.0, 1.0, 4.51171097827836)],
)
def test_decoupled_kl_golden(alpha: float, beta: float, golden: float):
    rows = decoupled_kl(STUDENT, TEACHER, LABELS, alpha, beta, 4.0)
    assert rows.shape == (4,)
    assert rows.mean().item() == pytest.approx(golden, rel=1e-9)


def test_decoupled_kl_by_hand():
    # Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), label 0. Label against the others: 1/2 ln 2 + 1/2 ln(2/3).
    # Among the others: 1/2 ln(3/2) + 1/2 ln(3/4).
    teacher = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log()
    label = torch.tensor([0])
    assert decoupled_kl(student, teacher, label, 1.0, 0.0, 1.0).item() == pytest.approx(math.log(4 / 3) / 2)
    assert decoupled_kl(student, teacher, label, 0.0, 1.0, 1.0).item() == pytest.approx(math.log(9 / 8) / 2)


def test_decoupled_kl_is_hintons_kl_if_the_others_are_weighted_by_their_probability():
    others_probability = 1 - (TEACHER / 2).softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    target, others = (decoupled_kl(STUDENT, TEACHER, LABELS, alpha, 1 - alpha, 2.0) for alpha in (1.0, 0.0))
    torch.testing.assert_close(target + others_probability * others, softmax_kl(STUDENT, TEACHER, 2.0))


def test_decoupled_kl_stays_finite_for_very_confident_logits():
    student = torch.tensor([[200.0, -200.0, -200.0], [-200.0, 200.0, -200.0]], requires_grad=True)
    rows = decoupled_kl(student, student.detach().flip(0), torch.tensor([0, 0]), 1.0, 8.0, 1.0)
    rows.sum().backward()
    assert rows.isfinite().all()
    assert student.grad.isfinite().all()
    with pytest.raises(ValueError, match="needs at least two classes, got 1"):
        decoupled_kl(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(("temperature", "golden"), [(1.0, 1.7972808857427602), (4.0, 30.98677860669806)])
def test_relation_match_golden(temperature: float, golden: float):
    assert relation_match(STUDENT, TEACHER, temperature).item() == pytest.approx(golden, rel=1e-9)


def test_relation_match_by_hand():
    # Rows (.2, .3, .5) and (.3, .2, .5) against (.2, .5, .3) and (.3, .5, .2). Every row has the mean 1/3 and squares
    # of 14/300. The products are 2/300 and -13/300: r = 1/7 and -13/14, mean -11/28. Along the first class r = 1. In
    # the other classes one side is constant: r = 0.
    student = torch.tensor([[2, 3, 5], [3, 2, 5]], dtype=torch.float64).log()
    teacher = torch.tensor([[2, 5, 3], [3, 5, 2]], dtype=torch.float64).log()
    assert relation_match(student, teacher, gamma=0.0).item() == pytest.approx(1 + 11 / 28)
    assert relation_match(student, teacher, beta=0.0).item() == pytest.approx(1 - 1 / 3, abs=1e-6)
    assert relation_match(student, teacher, beta=2.0, gamma=3.0).item() == pytest.approx(
        2 * 39 / 28 + 3 * 2 / 3, abs=1e-5
    )


def test_relation_match_ignores_scale_and_shift_of_scores():
    mixed = (0.3 * STUDENT.softmax(-1) + 0.07).log()  # scores 0.3 p + 0.07, whose sum is one
    torch.testing.assert_close(relation_match(mixed, TEACHER), relation_match(STUDENT, TEACHER), rtol=1e-4, atol=0)


def test_relation_match_of_a_single_row_or_class_is_finite():
    for rows in (STUDENT[:1], STUDENT[:, :1]):
        student = rows.clone().requires_grad_()
        relation_match(student, rows + 1).backward()
        assert student.grad.isfinite().all()


def test_the_minimum_is_zero_for_equal_logits():
    assert relation_match(TEACHER, TEACHER, 2.0).abs() < 1e-4  # not exactly 0, because 1e-8 is added to the norms
    assert decoupled_kl(TEACHER, TEACHER, LABELS).abs().max() < 1e-12
    assert quality_focal(TEACHER, TEACHER.sigmoid(), beta=1.0).abs().max() == 0
    assert edge_kl(TEACHER, TEACHER, 10.0).abs().max() < 1e-12
    assert edge_kl(TEACHER + 5.0, TEACHER, 1.0).abs().max() < 1e-12  # a shift does not change a softmax


def test_gradcheck():
    student = STUDENT[:2, :4].clone().requires_grad_()
    teacher = TEACHER[:2, :4]
    assert gradcheck(lambda s: quality_focal(s, teacher.sigmoid(), 1.0), student)
    assert gradcheck(lambda s: edge_kl(s, teacher, 4.0), student)
    assert gradcheck(lambda s: relation_match(s, teacher, 2.0), student)
    assert gradcheck(lambda s: decoupled_kl(s, teacher, LABELS[:2], 1.0, 8.0, 2.0), student)


def test_soft_cross_entropy_passes_gradcheck():
    assert gradcheck(lambda s: soft_cross_entropy(s, TEACHER, WEIGHTS), STUDENT.clone().requires_grad_())


def test_no_gradient_to_the_teacher():
    teacher = TEACHER.clone().requires_grad_()
    student = STUDENT.clone().requires_grad_()
    rows = softmax_kl(student, teacher) + decoupled_kl(student, teacher, LABELS) + relation_match(student, teacher)
    (rows + soft_cross_entropy(student, teacher, WEIGHTS)).sum().backward()
    assert teacher.grad is None


def test_no_rows_give_zero():
    empty = torch.zeros(0, 10, requires_grad=True)
    total = quality_focal(empty, empty.detach(), 1.0).sum() + edge_kl(empty, empty.detach()).sum()
    total = total + decoupled_kl(empty, empty.detach(), LABELS[:0]).sum() + relation_match(empty, empty.detach())
    total = total + soft_cross_entropy(empty, empty.detach(), torch.ones(10)).sum()
    total.backward()
    assert total.item() == 0
    assert empty.grad.shape == (0, 10)
