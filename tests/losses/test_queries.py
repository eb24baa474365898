"""Distances between two query sets: golden numbers of the published functions, values by hand, and gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_convert

from detdistill.geometry import pair_queries
from detdistill.losses import (
    giou_distance,
    query_costs,
    query_similarity,
    relation_contrast,
    soft_class_costs,
    soft_class_distance,
    soft_class_entropy,
    target_aware_distance,
)


def wave(count: int, rate: float, start: float = 0.0) -> Tensor:
    """sin(rate * (i + start)) for i in 0..count-1, in double precision."""
    return torch.sin(rate * (torch.arange(count, dtype=torch.double) + start))


def published() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student logits, teacher scores, student boxes and teacher boxes of the golden numbers."""
    logits, scores = 3 * wave(12, 0.7).view(4, 3), (3 * wave(12, 1.3, 2)).sigmoid().view(4, 3)
    return logits, scores, 0.15 * wave(16, 0.9).view(4, 4) + 0.4, 0.15 * wave(16, 1.7, 1).view(4, 4) + 0.4


def test_matching_and_losses_are_the_published_ones():
    logits, scores, student_boxes, teacher_boxes = published()
    costs = query_costs(logits, scores, student_boxes, teacher_boxes)
    rows, columns = pair_queries(costs)
    assert rows.tolist() == [0, 1, 2, 3]
    assert columns.tolist() == [1, 3, 0, 2]
    assert costs[rows, columns].sum().item() == pytest.approx(16.746353, abs=1e-5)
    assert soft_class_distance(logits, scores[columns]).mean().item() == pytest.approx(2.324916, abs=3e-6)
    l1 = (student_boxes - teacher_boxes[columns]).abs().sum(-1)
    assert 5 * l1.mean().item() == pytest.approx(2.307765, abs=3e-6)
    student_corners = box_convert(student_boxes, "cxcywh", "xyxy")
    teacher_corners = box_convert(teacher_boxes[columns], "cxcywh", "xyxy")
    assert 2 * giou_distance(student_corners, teacher_corners).mean().item() == pytest.approx(1.553907, abs=3e-6)


def test_autocast_rounds_neither_the_costs_nor_the_contrast():
    logits, scores, student_boxes, teacher_boxes = (values.float() for values in published())
    expected = query_costs(logits, scores, student_boxes, teacher_boxes)
    contrast = relation_contrast(logits, scores)
    with torch.autocast("cpu", torch.bfloat16):
        costs = query_costs(logits, scores, student_boxes, teacher_boxes)
        assert costs.dtype == torch.float32
        assert torch.equal(costs, expected)
        assert torch.equal(relation_contrast(logits, scores), contrast)


def test_the_feature_mask_and_its_loss_are_the_published_ones():
    teacher, student = 2 * wave(36, 0.33).view(1, 4, 3, 3), 2 * wave(36, 0.51).view(1, 4, 3, 3)
    cosines = query_similarity(teacher, wave(8, 0.77, 1).view(1, 2, 4), cosine=True)
    mask = (cosines * torch.tensor([0.6, 0.3], dtype=torch.double).view(1, 2, 1, 1)).sum(1).clamp(min=0.01)
    mask = mask / mask.max()
    expected = [0.199069, 0.754681, 1, 0.962869, 0.928621, 0.898872, 0.868477, 0.830678, 0.770310]
    assert mask.flatten().tolist() == pytest.approx(expected, abs=3e-6)
    every = torch.ones_like(mask)
    assert target_aware_distance(student, teacher, mask.square(), every).item() == pytest.approx(2.877771, abs=3e-6)
    half = every.clone()
    half[:, :, 2] = 0  # the mean is over the other six cells
    by_hand = ((student - teacher).square().mean(1) * mask.square())[:, :, :2].mean()
    assert target_aware_distance(student, teacher, mask.square(), half).item() == pytest.approx(by_hand.item())


def test_the_relation_contrast_is_the_published_one_and_not_symmetric():
    student, teacher = wave(40, 0.31).view(5, 8), wave(40, 0.57, 3).view(5, 8)
    assert relation_contrast(student, teacher).item() == pytest.approx(13.035109, abs=3e-6)
    assert relation_contrast(teacher, student).item() == pytest.approx(12.192032, abs=3e-6)
    assert relation_contrast(student[:0], teacher[:0]).item() == 0


def test_class_costs_by_hand():
    # Sigmoid, one class: logit 0 and score 0.25 give ln 2.
    assert soft_class_costs(torch.zeros(1, 1), torch.tensor([[0.25]])).item() == pytest.approx(math.log(2))
    # Softmax over one class and the background: equal logits and scores (0.9, 0.1) also give ln 2.
    softmax_cost = soft_class_costs(torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]), "softmax")
    assert softmax_cost.item() == pytest.approx(math.log(2))
    # Logits (ln 3, 0), so scores (3/4, 1/4), against (1, 0): -ln 3/4.
    distance = soft_class_distance(torch.tensor([math.log(3), 0.0]), torch.tensor([1.0, 0.0]), "softmax")
    assert distance.item() == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@given(seed=st.integers(0, 999))
def test_costs_equal_the_distance_of_pairs_and_the_entropy_is_the_minimum(activation, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (torch.randn(2, 5, 4, generator=generator, dtype=torch.double) for _ in range(2))
    scores = teacher.sigmoid() if activation == "sigmoid" else teacher.softmax(-1)
    costs = soft_class_costs(logits, scores, activation)
    for row in range(5):
        for column in range(5):
            distance = soft_class_distance(logits[:, row], scores[:, column], activation)
            torch.testing.assert_close(costs[:, row, column], distance)
    torch.testing.assert_close(soft_class_distance(teacher, scores, activation), soft_class_entropy(scores, activation))
    assert (soft_class_distance(logits, scores, activation) >= soft_class_entropy(scores, activation)).all()


def test_a_teacher_query_that_is_not_classified_has_no_class_cost():
    logits, scores, *boxes = published()
    classified = torch.tensor([True, False, True, True])
    costs = query_costs(logits, scores, *boxes, classified=classified)
    inverted_costs = query_costs(logits * 0 + 9, scores, *boxes, classified=~classified)
    box_costs = query_costs(logits, scores, *boxes, weights=(0.0, 5.0, 2.0))
    torch.testing.assert_close(costs[:, 1], box_costs[:, 1])
    torch.testing.assert_close(inverted_costs[:, 0], box_costs[:, 0])
    assert not torch.allclose(costs[:, 0], box_costs[:, 0])


def test_gradients():
    logits, scores, _, _ = (value.clone() for value in published())
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_class_distance(s, scores), logits)
    assert torch.autograd.gradcheck(
        lambda s: soft_class_distance(s, scores / scores.sum(-1, keepdim=True), "softmax"), logits
    )
    student, teacher = (wave(24, rate).view(6, 4).requires_grad_() for rate in (0.3, 0.8))
    assert torch.autograd.gradcheck(relation_contrast, (student, teacher))
    maps = wave(24, 0.4).view(1, 2, 3, 4).requires_grad_()
    teacher_maps = wave(24, 0.9).view(1, 2, 3, 4).requires_grad_()
    mask, valid = wave(12, 0.2).view(1, 3, 4), torch.ones(1, 3, 4, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda m: target_aware_distance(m, teacher_maps, mask, valid), maps)
    target_aware_distance(maps, teacher_maps, mask, valid).backward()
    assert teacher_maps.grad is None


def test_no_valid_cell_gives_zero():
    maps, none = torch.randn(1, 2, 3, 4, requires_grad=True), torch.zeros(1, 3, 4)
    distance = target_aware_distance(maps, torch.randn(1, 2, 3, 4), torch.ones(1, 3, 4), none)
    distance.backward()
    assert distance.item() == 0
    assert maps.grad is not None
    assert not maps.grad.any()
