"""Score and distribution distances: golden numbers, hand values, minima."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import decoupled_kl, edge_kl, quality_focal, relation_match, softmax_kl


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((4, 10), 0.7, 0.1, 3.0), wave((4, 10), 1.3, 0.5, 3.0)
LABELS = torch.tensor([0, 3, 7, 9])


@pytest.mark.parametrize(
    ("temperature", "golden"), [(1.0, 2.3697012326439073), (2.0, 3.5579301165715944), (4.0, 4.256155069292156)]
)
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


@pytest.mark.parametrize(
    ("alpha", "beta", "golden"),
    [(1.0, 8.0, 36.26705886481297), (1.0, 0.0, 0.17337103858608266), (0.0, 1.0, 4.51171097827836)],
)
def test_decoupled_kl_golden(alpha: float, beta: float, golden: float):
    rows = decoupled_kl(STUDENT, TEACHER, LABELS, alpha, beta, 4.0)
    assert rows.shape == (4,)
    assert rows.mean().item() == pytest.approx(golden, rel=1e-9)


def test_decoupled_kl_by_hand():
    # Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), label 0: 1/2 ln 2 + 1/2 ln(2/3), and among the others 1/2 ln(3/2) + 1/2 ln(3/4).
    teacher, student = (
        torch.tensor([shares], dtype=torch.float64).log() for shares in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5])
    )
    label = torch.tensor([0])
    assert decoupled_kl(student, teacher, label, 1.0, 0.0, 1.0).item() == pytest.approx(math.log(4 / 3) / 2)
    assert decoupled_kl(student, teacher, label, 0.0, 1.0, 1.0).item() == pytest.approx(math.log(9 / 8) / 2)


def test_decoupled_kl_is_hintons_where_the_others_weigh_their_probability():
    others = 1 - (TEACHER / 2).softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    parts = (decoupled_kl(STUDENT, TEACHER, LABELS, alpha, 1 - alpha, 2.0) for alpha in (1.0, 0.0))
    target, rest = parts
    torch.testing.assert_close(target + others * rest, softmax_kl(STUDENT, TEACHER, 2.0))


def test_decoupled_kl_stays_finite_however_sure_a_side_is():
    student = torch.tensor([[200.0, -200.0, -200.0], [-200.0, 200.0, -200.0]], requires_grad=True)
    rows = decoupled_kl(student, student.detach().flip(0), torch.tensor([0, 0]), 1.0, 8.0, 1.0)
    rows.sum().backward()
    assert rows.isfinite().all()
    assert student.grad.isfinite().all()
    with pytest.raises(ValueError, match="a label and others"):
        decoupled_kl(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(("temperature", "golden"), [(1.0, 1.7972808857427602), (4.0, 30.98677860669806)])
def test_relation_match_golden(temperature: float, golden: float):
    assert relation_match(STUDENT, TEACHER, temperature).item() == pytest.approx(golden, rel=1e-9)


def test_relation_match_by_hand():
    # Rows (.2, .3, .5) and (.3, .2, .5) against (.2, .5, .3) and (.3, .5, .2), all about a mean of 1/3 with squares of 14/300. Products are
    # 2/300 and -13/300: r = 1/7 and -13/14, in the mean -11/28. Down the first class r = 1; in the others one side is constant: 0.
    student, teacher = (
        torch.tensor(rows, dtype=torch.float64).log() for rows in ([[2, 3, 5], [3, 2, 5]], [[2, 5, 3], [3, 5, 2]])
    )
    assert relation_match(student, teacher, gamma=0.0).item() == pytest.approx(1 + 11 / 28)
    assert relation_match(student, teacher, beta=0.0).item() == pytest.approx(1 - 1 / 3, abs=1e-6)
    assert relation_match(student, teacher, beta=2.0, gamma=3.0).item() == pytest.approx(
        2 * 39 / 28 + 3 * 2 / 3, abs=1e-5
    )


def test_relation_match_sees_neither_scale_nor_shift_of_scores():
    mixed = (0.3 * STUDENT.softmax(-1) + 0.07).log()  # scores 0.3 p + 0.07, which add up to one
    torch.testing.assert_close(relation_match(mixed, TEACHER), relation_match(STUDENT, TEACHER), rtol=1e-4, atol=0)


def test_relation_match_of_a_single_row_or_class_is_finite():
    for rows in (STUDENT[:1], STUDENT[:, :1]):
        own = rows.clone().requires_grad_()
        relation_match(own, rows + 1).backward()
        assert own.grad.isfinite().all()


def test_minimum_is_zero_where_both_agree():
    assert relation_match(TEACHER, TEACHER, 2.0).abs() < 1e-4  # but for the 1e-8 beside the norms
    assert decoupled_kl(TEACHER, TEACHER, LABELS).abs().max() < 1e-12
    assert quality_focal(TEACHER, TEACHER.sigmoid(), beta=1.0).abs().max() == 0
    assert edge_kl(TEACHER, TEACHER, 10.0).abs().max() < 1e-12
    assert edge_kl(TEACHER + 5.0, TEACHER, 1.0).abs().max() < 1e-12  # a softmax does not see a shift


def test_gradcheck():
    student = STUDENT[:2, :4].clone().requires_grad_()
    target = TEACHER[:2, :4]
    assert gradcheck(lambda s: quality_focal(s, target.sigmoid(), 1.0), student)
    assert gradcheck(lambda s: edge_kl(s, target, 4.0), student)
    assert gradcheck(lambda s: relation_match(s, target, 2.0), student)
    assert gradcheck(lambda s: decoupled_kl(s, target, LABELS[:2], 1.0, 8.0, 2.0), student)


def test_no_gradient_to_the_teacher():
    teacher = TEACHER.clone().requires_grad_()
    own = STUDENT.clone().requires_grad_()
    (softmax_kl(own, teacher) + decoupled_kl(own, teacher, LABELS) + relation_match(own, teacher)).sum().backward()
    assert teacher.grad is None


def test_nothing_gives_nothing():
    empty = torch.zeros(0, 10, requires_grad=True)
    total = quality_focal(empty, empty.detach(), 1.0).sum() + edge_kl(empty, empty.detach()).sum()
    total = total + decoupled_kl(empty, empty.detach(), LABELS[:0]).sum() + relation_match(empty, empty.detach())
    total.backward()
    assert total.item() == 0
    assert empty.grad.shape == (0, 10)
