"""Points, side distances and boxes by hand."""

import torch

from detdistill.geometry import centerness, side_distances, to_boxes


def test_centerness_by_hand():
    # (2, 5) in a 10 x 10 box: left 2, right 8, top 5, bottom 5: sqrt(2/8 * 1) = 0.5. Outside: 0.
    box = torch.tensor([0.0, 0, 10, 10])
    assert centerness(torch.tensor([2.0, 5]), box).item() == 0.5
    assert centerness(torch.tensor([-1.0, 5]), box).item() == 0
    points = torch.tensor([[2.0, 5], [7, 1]])
    torch.testing.assert_close(to_boxes(points, side_distances(points, box)), box.expand(2, 4))
