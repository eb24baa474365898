"""Boxes of AdaMixer by hand."""

import math

import torch

from detdistill.detectors.adamixer.boxes import log_iof, position_embedding, refine, sides, to_boxes, to_xyzr


def test_xyzr_by_hand_and_back():
    box = torch.tensor([10.0, 20.0, 26.0, 84.0])  # 16 wide, 64 high
    xyzr = to_xyzr(box)
    torch.testing.assert_close(xyzr, torch.tensor([18.0, 52.0, 5.0, 2.0]))
    torch.testing.assert_close(sides(xyzr), torch.tensor([16.0, 64.0]))
    corner, size = torch.rand(50, 2, dtype=torch.double) * 300, torch.rand(50, 2, dtype=torch.double) * 200 + 1
    boxes = torch.cat([corner, corner + size], -1)
    torch.testing.assert_close(to_boxes(to_xyzr(boxes)), boxes)
    assert to_xyzr(torch.tensor([5.0, 5.0, 5.0, 5.0])).isfinite().all()


def test_refinement_by_hand():
    before = torch.tensor([18.0, 52.0, 5.0, 2.0])
    after = refine(before, torch.tensor([0.5, -0.25, 1.0, -2.0]))
    torch.testing.assert_close(after, torch.tensor([34.0, 44.0, 6.0, 0.0]))
    torch.testing.assert_close(to_boxes(after), torch.tensor([2.0, 12.0, 66.0, 76.0]))


def test_gradients_of_refinement():
    torch.manual_seed(1)
    xyzr = torch.tensor([[[20.0, 15.0, 3.7, 0.3], [27.0, 18.0, 3.1, -0.4]]], dtype=torch.double, requires_grad=True)
    delta = torch.randn(1, 2, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda xyzr, delta: to_boxes(refine(xyzr, delta)), (xyzr, delta))


def test_overlap_by_hand():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 20, 20], [50, 50, 60, 60]]])
    share = torch.tensor([[[1, 0.5, 1, 0], [0.5, 1, 1, 0], [0.25, 0.25, 1, 0], [0, 0, 0, 1]]])
    torch.testing.assert_close(log_iof(boxes), (share + 1e-7).log())


def test_position_embedding_by_hand():
    embedding = position_embedding(torch.tensor([500.0, 200.0, 7.0, -1.0]), 16)
    expected = []
    for value in (0.5, 0.2, 7.0, -1.0):
        expected += [math.sin(value), math.cos(value), math.sin(value / 100), math.cos(value / 100)]
    torch.testing.assert_close(embedding, torch.tensor(expected))
