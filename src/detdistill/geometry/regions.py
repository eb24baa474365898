"""Regions of boxes: the cells or anchors of a level that a loss uses.

Boxes and anchors are xyxy in pixels of the padded batch. Cell (y, x) of a level covers the pixels from x * stride to
(x + 1) * stride, and the same for y. Therefore more padding does not move a region.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import distance_box_iou

from detdistill.geometry.boxes import centers, side_distances
from detdistill.geometry.match import adaptive_thresholds

ValuableRegion = Literal["iof_compat", "diou", "inside"]
ThinBoxes = Literal["cell", "strip"]
PAIRS = 2**22  # pairs of anchor and box in memory at a time: about 100 MB of temporaries in single precision


def imitation_region(anchors: Tensor, boxes: Tensor, factor: float = 0.5, legacy: bool = False) -> Tensor:
    """Cells near any object: anchors (H, W, A, 4) and boxes (G, 4) to bool (H, W). FGFI, arXiv:1906.03609.

    See `imitation_cells`.
    """
    return imitation_cells(anchors, boxes, factor, legacy).any(0)


@torch.no_grad()
def imitation_cells(
    anchors: Tensor, boxes: Tensor, factor: float = 0.5, legacy: bool = False, valid: Tensor | None = None
) -> Tensor:
    """Cells near each object: anchors (H, W, A, 4) and boxes (G, 4) to bool (G, H, W). FGFI, arXiv:1906.03609.

    A cell is near a box if the IoU of one of its anchors with the box is strictly above `factor` times the best IoU of
    all anchors.
    A box that overlaps no anchor has no cells.
    legacy: compute areas and overlaps with widths of x2 - x1 + 1, as the published code does.
    valid: (G, H, W) bool, the cells that take part, also in the best IoU. None means all cells.
    Memory grows with G H W, not with A.
    """
    grid = anchors.shape[:3]
    flat_anchors = anchors.flatten(0, 2)  # (H, W, A, 4) -> (HWA, 4)
    region = torch.zeros((len(boxes), *grid[:2]), dtype=torch.bool, device=boxes.device)
    if len(flat_anchors) == 0:
        return region
    step = max(1, PAIRS // len(flat_anchors))
    for first in range(0, len(boxes), step):
        chunk = slice(first, first + step)
        ious = _pairwise_iou(boxes[chunk], flat_anchors, float(legacy))  # (g, HWA)
        cell_ious = ious.unflatten(1, grid).amax(-1)  # (g, H, W)
        if valid is not None:
            cell_ious = cell_ious * valid[chunk]
        region[chunk] = cell_ious > factor * cell_ious.amax((1, 2), keepdim=True)
    return region


def covered_cells(boxes: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    """Cells that share some area with each box: boxes (G, 4) to bool (G, rows, columns).

    A box without area has no cells.
    """
    bounds = boxes / stride
    row = torch.arange(rows, device=boxes.device)
    column = torch.arange(columns, device=boxes.device)
    in_columns = (column < bounds[:, 2:3]) & (column + 1 > bounds[:, 0:1])  # (G, columns)
    in_rows = (row < bounds[:, 3:4]) & (row + 1 > bounds[:, 1:2])  # (G, rows)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return in_rows[:, :, None] & in_columns[:, None, :] & has_area[:, None, None]


def valuable_region(
    anchors: Sequence[Tensor],
    boxes: Tensor,
    gamma: float = 0.25,
    region: ValuableRegion = "iof_compat",
    candidates: int = 9,
) -> Tensor:
    """LD's valuable localization region: the weight of each anchor in 0..1, (N,). LD, arXiv:2102.12252.

    It is a ring around the positives. anchors: (n, 4) per level, the valid anchors of one image. boxes: (G, 4); G may
    be 0. An anchor belongs to a box if gamma t <= d < t, where t is ATSS's threshold of the box. Its weight is the
    largest IoU with a box that it belongs to.
    region: how d is computed.
    diou: as in the paper, d = IoU - (distance of the centers / diagonal of the hull)^2.
    iof_compat: as in the published code, with the intersection divided by the anchor's area instead of the IoU. So an
    anchor inside a large box is left out.
    inside: no ring, but weight 1 if the anchor's center is inside a box, as that code does for FCOS. The caller removes
    the positives.
    """
    all_anchors = torch.cat(list(anchors))  # (N, 4)
    if len(boxes) == 0 or len(all_anchors) == 0:
        return all_anchors.new_zeros(len(all_anchors))
    if region == "inside":
        is_inside = side_distances(centers(all_anchors)[:, None], boxes).amin(-1) > 0  # (N, G)
        return is_inside.any(1).to(all_anchors.dtype)
    ious, _, thresholds = adaptive_thresholds(anchors, boxes, candidates)
    closeness = distance_box_iou(all_anchors, boxes)  # (N, G)
    if region == "iof_compat":
        closeness = closeness - ious + _covered_shares(all_anchors, boxes)
    in_ring = (closeness >= gamma * thresholds) & (closeness < thresholds)
    return torch.where(in_ring, ious, 0.0).amax(1)


def focal_masks(
    boxes: Sequence[Tensor], shape: tuple[int, int], stride: int, sizes: Tensor, stretched: bool = False
) -> tuple[Tensor, Tensor]:
    """FGD's foreground mask and background mask of a level, (B, H, W) each. FGD, arXiv:2111.11837.

    boxes: (G_i, 4) per image; all of them are drawn. shape: (H, W).
    sizes: (B, 2), the valid (height, width) of each image.
    Foreground: a box covers the cells from floor(first side / stride) to ceil(last side / stride), both included. Each
    of them gets 1 / (number of these cells, counted before the box is cut at the border). Where boxes overlap, the
    largest value is used, which is the value of the smallest box.
    Background: 1 / (number of cells without a box) in each cell without a box.
    Cells that begin outside their image are in neither mask, so that padding changes nothing.
    stretched: as published, divide a box by the image size and multiply it by the size of the padded map. Padding then
    belongs to the background.
    """
    rows, columns = shape
    device = sizes.device
    # The appended row makes sure that there is at least one box; it belongs to no image.
    padded_boxes = [F.pad(image_boxes, (0, 0, 0, 1)) for image_boxes in boxes]
    cells = pad_sequence(padded_boxes, batch_first=True)  # (B, G, 4)
    counts = torch.tensor([len(image_boxes) for image_boxes in boxes], device=device)
    is_box = torch.arange(cells.shape[1], device=device) < counts[:, None]  # (B, G)
    extent = cells.new_tensor([columns, rows] * 2)
    cells = cells / sizes.flip(1).repeat(1, 2)[:, None] * extent if stretched else cells / stride
    first, last = cells[..., :2].floor(), cells[..., 2:].ceil()  # (B, G, 2) each, x and y
    value = is_box / (last - first + 1).prod(-1)  # (B, G)
    x = torch.arange(columns, device=device)
    y = torch.arange(rows, device=device)
    in_columns = (x >= first[..., :1]) & (x <= last[..., :1])  # (B, G, W)
    in_rows = (y >= first[..., 1:]) & (y <= last[..., 1:])  # (B, G, H)
    box_values = (in_rows * value[..., None])[..., None] * in_columns[:, :, None]  # (B, G, H, W)
    foreground = box_values.amax(1)
    is_empty = foreground == 0
    if not stretched:
        in_image = (y * stride < sizes[:, :1])[:, :, None] & (x * stride < sizes[:, 1:])[:, None]  # (B, H, W)
        foreground, is_empty = foreground * in_image, is_empty & in_image
    return foreground, is_empty / is_empty.sum((1, 2), keepdim=True).clamp(min=1)


def decoupled_regions(
    boxes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    base: float | None = 56.0,
    thin: ThinBoxes = "cell",
) -> tuple[Tensor, ...]:
    """Cells inside ground truth, bool (B, H, W) per level; each box is on one level only. DeFeat, arXiv:2103.14475.

    boxes: (G, 4) per image. shapes, strides: of the levels, fine to coarse.
    As in the published code, a box of width w and height h belongs to level floor(log2(sqrt((w + 1)(h + 1)) / base)),
    limited to the existing levels. It covers the cells from trunc(x1 / stride) to trunc(x2 / stride), without the last
    one, and the same for y.
    thin: a box that covers no cell on one axis. As in the published code, it gets the one `cell` of its first corner,
    however long it is on the other axis. `strip`: it is widened to one cell on that axis only.
    base: pixels. None means 14 strides of the finest level, which is the published 56 if the strides begin at 4.
    """
    padded = pad_sequence(list(boxes), batch_first=True)  # (B, G, 4)
    is_box = pad_sequence([image_boxes.new_ones(len(image_boxes)) for image_boxes in boxes], batch_first=True) > 0
    sides = (padded[..., 2:] - padded[..., :2] + 1).clamp(min=0).prod(-1).sqrt()  # (B, G)
    level_index = torch.log2(sides / (base or 14.0 * strides[0]) + 1e-6).floor().clamp(0, len(strides) - 1)
    regions = []
    for index, (shape, stride) in enumerate(zip(shapes, strides, strict=True)):
        regions.append(_fill(padded / stride, is_box & (level_index == index), shape, thin))
    return tuple(regions)


def _pairwise_iou(boxes: Tensor, anchors: Tensor, pixel: float) -> Tensor:
    """IoU (G, N) of boxes (G, 4) with anchors (N, 4). `pixel` is added to every width and height.

    It works coordinate by coordinate, with a third of the memory of torchvision's `box_iou`.
    """
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (G, 1) each
    a1, b1, a2, b2 = anchors.unbind(1)  # (N,) each
    intersection = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).add_(pixel).clamp_(min=0)  # (G, N)
    intersection *= (torch.minimum(y2, b2) - torch.maximum(y1, b1)).add_(pixel).clamp_(min=0)
    union = (x2 - x1 + pixel) * (y2 - y1 + pixel) + (a2 - a1 + pixel) * (b2 - b1 + pixel) - intersection
    return intersection / union.clamp_(min=1e-6)


def _covered_shares(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(N, G): the share of the area of each anchor (N, 4) that lies in each box (G, 4)."""
    corner = torch.maximum(anchors[:, None, :2], boxes[:, :2])  # (N, G, 2)
    sides = (torch.minimum(anchors[:, None, 2:], boxes[:, 2:]) - corner).clamp(min=0)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(-1, keepdim=True)
    return sides.prod(-1) / area


def _fill(boxes: Tensor, used: Tensor, shape: tuple[int, int], thin: ThinBoxes) -> Tensor:
    """Bool (B, H, W): the union of the boxes (B, G, 4), in units of cells, that are `used` (B, G)."""
    limit = boxes.new_tensor(shape[::-1])  # x, y
    first = boxes[..., :2].trunc().clamp(min=0).minimum(limit - 1)  # (B, G, 2)
    last = boxes[..., 2:].trunc().minimum(limit)
    is_empty = last <= first
    if thin == "cell":
        is_empty = is_empty.any(-1, keepdim=True)
    last = torch.where(is_empty, first + 1, last)
    spans = []
    for axis, count in ((1, shape[0]), (0, shape[1])):  # rows along y, then columns along x
        cells = torch.arange(count, device=boxes.device)
        spans.append((cells >= first[..., axis, None]) & (cells < last[..., axis, None]))  # (B, G, count)
    in_rows, in_columns = spans
    return torch.einsum("bgh,bgw->bhw", (in_rows & used[..., None]).float(), in_columns.float()) > 0
