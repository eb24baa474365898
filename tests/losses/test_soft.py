"""Chen 2017's two losses: golden numbers, hand values, minima, isolation of the teacher."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import bounded_regression, soft_cross_entropy, softmax_kl


def wave(shape: tuple[int, ...], step: float, phase: float, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.sin(step * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).view(shape)


STUDENT, TEACHER = wave((4, 10), 0.7, 0.1, 3.0), wave((4, 10), 1.3, 0.5, 3.0)
GUESS, TAUGHT, AIM = wave((5, 4), 0.7, 0.1), wave((5, 4), 1.1, 0.5), wave((5, 4), 0.3, 0.9)
WEIGHTS = torch.ones(10, dtype=torch.float64)
WEIGHTS[0] = 1.5


def test_soft_cross_entropy_golden():
    assert soft_cross_entropy(STUDENT, TEACHER, WEIGHTS).mean().item() == pytest.approx(4.077532721627643, rel=1e-9)
    assert soft_cross_entropy(STUDENT, TEACHER).mean().item() == pytest.approx(3.860998022111025, rel=1e-9)


def test_soft_cross_entropy_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2), weights (2, 1): (2 * 3/4 + 1/4) ln 2. The weights stand on classes, not on the row.
    teacher = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert soft_cross_entropy(torch.zeros(2, dtype=torch.float64), teacher, weights).item() == pytest.approx(
        1.75 * math.log(2)
    )


def test_without_weights_it_is_kl_and_the_teachers_entropy():
    own = soft_cross_entropy(TEACHER, TEACHER)
    torch.testing.assert_close(soft_cross_entropy(STUDENT, TEACHER) - own, softmax_kl(STUDENT, TEACHER))


def test_its_minimum_is_at_the_weighted_target():
    best = (TEACHER.softmax(-1) * WEIGHTS).log().requires_grad_()
    soft_cross_entropy(best, TEACHER, WEIGHTS).sum().backward()
    assert best.grad.abs().max() < 1e-12
    copied = TEACHER.clone().requires_grad_()  # and not where the student copies the teacher
    soft_cross_entropy(copied, TEACHER, WEIGHTS).sum().backward()
    assert copied.grad.abs().max() > 1e-3


def test_bounded_regression_golden():
    rows = bounded_regression(GUESS, TAUGHT, AIM, 0.01)
    assert rows.mean().item() == pytest.approx(1.1942889471322256, rel=1e-9)
    assert 0.5 * rows.mean().item() == pytest.approx(0.5971444735661128, rel=1e-9)
    far = torch.full_like(GUESS, 1e9)  # a margin that none reaches: plain squared distances
    assert bounded_regression(GUESS, AIM, AIM).mean().item() == pytest.approx(3.2949687787974278, rel=1e-9)
    assert bounded_regression(GUESS, far, AIM, 1e30).mean().item() == pytest.approx(3.2949687787974278, rel=1e-9)
    assert bounded_regression(TAUGHT, AIM, AIM).mean().item() == pytest.approx(3.5585718294700173, rel=1e-9)


def test_bounded_regression_by_hand():
    # d_s = 1, 4, 4; d_t = 2: better, worse, worse. With a margin of 1.5 the first is not better by enough.
    student = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [1, 1, 1, 1]])
    teacher = torch.tensor([1.0, 1, 0, 0]).expand(3, 4)
    aim = torch.zeros(3, 4)
    assert bounded_regression(student, teacher, aim).tolist() == [0, 4, 4]
    assert bounded_regression(student, teacher, aim, 1.5).tolist() == [1, 4, 4]
    assert bounded_regression(teacher, teacher, aim).tolist() == [0, 0, 0]  # as good is good enough


def test_gradient_goes_through_the_students_distance_alone():
    student, teacher = GUESS.clone().requires_grad_(), TAUGHT.clone().requires_grad_()
    bounded_regression(student, teacher, AIM).sum().backward()
    worse = (GUESS - AIM).square().sum(-1) > (TAUGHT - AIM).square().sum(-1)
    assert 0 < worse.sum() < 5
    torch.testing.assert_close(student.grad, 2 * (GUESS - AIM) * worse[:, None])
    logits = TEACHER.clone().requires_grad_()
    soft_cross_entropy(STUDENT.clone().requires_grad_(), logits, WEIGHTS).sum().backward()
    assert teacher.grad is logits.grad is None


def test_gradcheck():
    assert gradcheck(lambda s: bounded_regression(s, TAUGHT, AIM, 0.01), GUESS.clone().requires_grad_())
    assert gradcheck(lambda s: soft_cross_entropy(s, TEACHER, WEIGHTS), STUDENT.clone().requires_grad_())


def test_nothing_gives_nothing():
    codes, logits = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    total = (
        bounded_regression(codes, codes, codes.detach()).sum() + soft_cross_entropy(logits, logits, torch.ones(3)).sum()
    )
    total.backward()
    assert total.item() == 0
