"""Anchors by hand."""

import torch

from detdistill.geometry import square_anchors, synthetic_anchors


def test_square_anchors_are_centered_at_cell_corners():
    anchors = square_anchors(2, 3, 8)
    assert anchors.shape == (2, 3, 1, 4)
    assert anchors[1, 2, 0].tolist() == [16 - 32, 8 - 32, 16 + 32, 8 + 32]


def test_synthetic_anchors_by_hand():
    anchors = synthetic_anchors(2, 3, 4)
    assert anchors.shape == (2, 3, 3, 4)
    torch.testing.assert_close(anchors[1, 2, 1], torch.tensor([10.0 - 16, 6 - 16, 10 + 16, 6 + 16]))
    width, height = (anchors[..., 2:] - anchors[..., :2]).unbind(-1)
    torch.testing.assert_close(width * height, torch.full_like(width, 32.0**2))
    torch.testing.assert_close((height / width)[0, 0], torch.tensor([0.5, 1, 2]))
