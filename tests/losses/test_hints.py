"""ReviewKD's context loss, FitNets' hints and the sum under a mask: golden numbers, hand values, gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from detdistill.losses import hierarchical_context, hint_distance, masked_squares
from tests.losses.test_features import STUDENT, TEACHER, wave

CONTEXT = {
    (8, 8): 0.61858469,
    (4, 8): 0.59007066,
    (2, 2): 0.89950871,
    (1, 1): 0.09000265,
    (5, 13): 0.63914949,
    (3, 5): 0.64216357,
}


def waves(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return wave((1, 3, *shape), 0.37, 0.0), wave((1, 3, *shape), 0.91, 0.0)


@pytest.mark.parametrize("shape", CONTEXT)
def test_context_golden(shape: tuple[int, int]):
    # From running the published function in single precision. Of a map 4 high 2 x 2 and 1 x 1 are pooled, of one 2 high only 1 x 1; the width plays no part.
    student, teacher = waves(shape)
    assert hierarchical_context([student], [teacher]).item() == pytest.approx(CONTEXT[shape], abs=5e-7)
    assert hierarchical_context([student], [student.expand_as(teacher)]).item() == 0
    apart = hierarchical_context([torch.zeros_like(student)], [torch.ones_like(student)])
    assert apart.item() == pytest.approx(1.0, rel=1e-12)


def test_context_adds_levels_and_goes_without_pooling():
    pairs = [waves((8, 8)), waves((2, 2))]
    student, teacher = zip(*pairs, strict=True)
    assert hierarchical_context(student, teacher).item() == pytest.approx(CONTEXT[8, 8] + CONTEXT[2, 2], abs=1e-6)
    plain = sum((s - t).square().mean().item() for s, t in pairs)
    assert hierarchical_context(student, teacher, sizes=()).item() == pytest.approx(plain, rel=1e-12)
    with pytest.raises(ValueError, match="zip"):
        hierarchical_context(student, teacher[:1])
    with pytest.raises(ValueError, match="one shape"):
        hierarchical_context([student[0]], [teacher[0][:, :1]])


def test_context_by_hand():
    # 2 x 2 cells differ by 2 0 0 0: mse 1, pooled to one cell 1/2, so 1/4 at half weight: (1 + 1/8) / 1.5 = 0.75.
    student = torch.tensor([2.0, 0, 0, 0], dtype=torch.float64).view(1, 1, 2, 2)
    assert hierarchical_context([student], [torch.zeros_like(student)]).item() == pytest.approx(0.75, rel=1e-12)


def test_hints_golden():
    # From running RepDistiller's and mmrazor's functions.
    assert hint_distance(STUDENT, TEACHER).item() == pytest.approx(4.0694062589056506, rel=1e-12)
    assert hint_distance(STUDENT, TEACHER, "normalized").item() == pytest.approx(2.035188039005752, rel=1e-12)
    half = hint_distance(STUDENT, TEACHER, "half_sum").item()
    assert half == pytest.approx(4.0694062589056506 * STUDENT[0].numel() / 2, rel=1e-12)


def test_normalized_hints_know_direction_only():
    cosine = torch.nn.functional.cosine_similarity(STUDENT.flatten(1), TEACHER.flatten(1))
    assert hint_distance(7 * STUDENT, TEACHER / 3, "normalized").item() == pytest.approx(
        (2 - 2 * cosine).mean().item(), rel=1e-9
    )


def test_masked_squares_by_hand():
    # Two channels; cells differ by 3 and 1 in the first image's first cell (10), by 2 and 0 in the second image's last (4).
    student, teacher = torch.zeros(2, 2, 1, 2), torch.ones(2, 2, 1, 2)
    teacher[0, :, 0, 0], teacher[1, :, 0, 1] = torch.tensor([3.0, 1]), torch.tensor([2.0, 0])
    mask = torch.zeros(2, 1, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 0, 1] = True
    assert masked_squares(student, teacher, mask).item() == 14
    assert masked_squares(student, teacher, ~mask).item() == 4
    assert masked_squares(student, teacher, torch.zeros_like(mask)).item() == 0


def test_gradcheck_and_no_gradient_to_the_teacher():
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


def test_half_precision_is_summed_in_single():
    big = torch.full((1, 256, 16, 16), 300.0).half()
    zero = torch.zeros_like(big)
    assert masked_squares(big, zero, torch.ones(1, 16, 16)).item() == pytest.approx(300.0**2 * big.numel())
    assert hint_distance(big, zero, "half_sum").item() == pytest.approx(300.0**2 * big.numel() / 2)
    assert hint_distance(big, 2 * big, "normalized").item() == pytest.approx(0, abs=1e-6)
    assert hierarchical_context([big], [zero]).item() == pytest.approx(300.0**2)
