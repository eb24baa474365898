"""Box distances by hand, against torchvision, and at the degenerate ends."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torchvision.ops import generalized_box_iou

from detdistill.distributed import mean_over_processes
from detdistill.losses import giou_distance, log_iou_distance, paired_iou, pairwise_giou

UNIT = torch.tensor([[0.0, 0, 2, 2]], dtype=torch.float64)


def test_by_hand():
    # Two 2x2 squares one apart: intersection 1x2 = 2, union 6, hull 3x2 = 6. IoU = GIoU = 1/3.
    shifted = UNIT + torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    assert paired_iou(UNIT, shifted).item() == pytest.approx(1 / 3)
    assert giou_distance(UNIT, shifted).item() == pytest.approx(2 / 3)
    assert log_iou_distance(UNIT, shifted).item() == pytest.approx(math.log(3))
    # Three apart: no overlap, union 8, hull 5x2 = 10, GIoU = -0.2.
    apart = UNIT + torch.tensor([3.0, 0, 3, 0], dtype=torch.float64)
    assert giou_distance(UNIT, apart).item() == pytest.approx(1.2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 100), min_size=8, max_size=8))
def test_giou_equals_torchvision(numbers: list[float]):
    corners = torch.tensor(numbers, dtype=torch.float64).view(2, 2, 2)
    first, second = (torch.cat([c.amin(0), c.amax(0) + 0.5])[None] for c in corners)
    assert giou_distance(first, second).item() == pytest.approx(1 - generalized_box_iou(first, second).item(), abs=1e-6)
    assert 0 <= giou_distance(first, second).item() <= 2


def test_equal_boxes_are_at_no_distance_and_points_stay_finite():
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


def test_a_normalizer_is_at_least_one():
    assert mean_over_processes(torch.tensor(0.0)).item() == 1
    assert mean_over_processes(torch.tensor(7.0)).item() == 7


@given(seed=st.integers(0, 999), rows=st.integers(0, 4), columns=st.integers(1, 4))
def test_every_row_with_every_row_is_torchvisions(seed: int, rows: int, columns: int):
    generator = torch.Generator().manual_seed(seed)
    corners, sides = (torch.rand(2, rows + columns, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    boxes = torch.cat([corners, corners + sides + 0.01], -1)
    table = pairwise_giou(boxes[:, :rows], boxes[:, rows:])
    assert table.shape == (2, rows, columns)
    for image in range(2):
        torch.testing.assert_close(table[image], generalized_box_iou(boxes[image, :rows], boxes[image, rows:]))
        torch.testing.assert_close(
            table[image], 1 - giou_distance(boxes[image, :rows, None], boxes[image, None, rows:])
        )
