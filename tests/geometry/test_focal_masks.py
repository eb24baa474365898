"""FGD's masks: by hand, against a loop over boxes, and padded further."""

import math

import torch

from detdistill.geometry import focal_masks


def test_by_hand():
    # Stride 10 on 4 x 5 cells. (12, 5, 25, 18): columns 1..3 and rows 0..2, nine cells. (30, 20, 39, 29): columns 3..4, rows 2..3, four.
    boxes = [torch.tensor([[12.0, 5, 25, 18], [30, 20, 39, 29]]), torch.zeros(0, 4)]
    foreground, background = focal_masks(boxes, (4, 5), 10, torch.tensor([[40, 50], [40, 50]]))
    ninth, quarter = 1 / 9, 1 / 4
    expected = [
        [0, ninth, ninth, ninth, 0],
        [0, ninth, ninth, ninth, 0],
        [0, ninth, ninth, quarter, quarter],
        [0, 0, 0, quarter, quarter],
    ]
    torch.testing.assert_close(foreground[0], torch.tensor(expected))
    torch.testing.assert_close(background[0], (torch.tensor(expected) == 0) / 8)
    assert not foreground[1].any()
    torch.testing.assert_close(background[1], torch.full((4, 5), 1 / 20))


def test_it_equals_a_loop_over_boxes():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(30, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(30, 2, generator=generator) * 40], dim=1)
    expected = torch.zeros(12, 13)
    for left, top, right, bottom in (boxes / 8).tolist():
        rows, columns = slice(int(top), math.ceil(bottom) + 1), slice(int(left), math.ceil(right) + 1)
        area = (math.ceil(bottom) + 1 - int(top)) * (math.ceil(right) + 1 - int(left))
        expected[rows, columns] = expected[rows, columns].clamp(min=1 / area)
    foreground, _ = focal_masks([boxes], (12, 13), 8, torch.tensor([[96, 104]]))
    torch.testing.assert_close(foreground[0], expected)


def test_padding_moves_nothing_but_what_is_stretched():
    boxes, sizes = [torch.tensor([[5.0, 7, 30, 40], [40, 30, 70, 50]])], torch.tensor([[50, 70]])
    tight, padded = focal_masks(boxes, (7, 9), 8, sizes), focal_masks(boxes, (16, 20), 8, sizes)
    for one, other in zip(tight, padded, strict=True):
        torch.testing.assert_close(other[:, :7, :9], one)
        assert not other[:, 7:].any()
        assert not other[:, :, 9:].any()
    stretched, _ = focal_masks(boxes, (14, 18), 8, sizes, stretched=True)
    # The box (5, 7, 30, 40) of 50 x 70 pixels: columns floor(5/70 18) .. ceil(30/70 18) = 1 .. 8, rows floor(7/50 14) .. ceil(40/50 14) = 1 .. 12.
    assert stretched[0, 1, 1] == 1 / (8 * 12)
    assert stretched[0, 0].sum() == 0


def test_no_boxes_and_no_background():
    sizes = torch.tensor([[16, 16]])
    foreground, background = focal_masks([torch.tensor([[0.0, 0, 16, 16]])], (2, 2), 8, sizes)
    torch.testing.assert_close(foreground, torch.full((1, 2, 2), 1 / 9))  # the extents are not cut at the border
    assert not background.any()
    assert not focal_masks([torch.zeros(0, 4)], (2, 2), 8, sizes)[0].any()
