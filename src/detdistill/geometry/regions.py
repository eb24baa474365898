"""Which cells of a level count: regions of boxes. Boxes and anchors are xyxy in pixels of the padded batch; cell (y, x) of a level covers the
pixels x stride to (x + 1) stride, so that a region stays where it is when the batch is padded further.
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
PAIRS = 2**22  # of anchor and box held at a time: some 100 MB of temporaries in single precision


def imitation_region(anchors: Tensor, boxes: Tensor, factor: float = 0.5, legacy: bool = False) -> Tensor:
    """Cells near objects, FGFI, arXiv:1906.03609: anchors (H, W, A, 4), boxes (G, 4) to bool (H, W). See `imitation_cells`."""
    return imitation_cells(anchors, boxes, factor, legacy).any(0)


@torch.no_grad()
def imitation_cells(
    anchors: Tensor, boxes: Tensor, factor: float = 0.5, legacy: bool = False, valid: Tensor | None = None
) -> Tensor:
    """The region of each box: cells with an anchor whose IoU with it is strictly above `factor` times the best of all anchors.

    anchors (H, W, A, 4), boxes (G, 4) to bool (G, H, W). A box that no anchor touches has no cell. legacy: the published code's widths,
    x2 - x1 + 1, for areas and overlaps. valid (G, H, W): cells that take part, also in the best; none: all. Memory grows with G H W, not with A.
    """
    grid, flat = anchors.shape[:3], anchors.flatten(0, 2)
    region = torch.zeros((len(boxes), *grid[:2]), dtype=torch.bool, device=boxes.device)
    step = max(1, PAIRS // max(1, len(flat)))
    for first in range(0, len(boxes), step) if len(flat) else ():
        rows = slice(first, first + step)
        overlap = _overlaps(boxes[rows], flat, float(legacy)).unflatten(1, grid).amax(-1)  # (g, H, W)
        if valid is not None:
            overlap = overlap * valid[rows]
        region[rows] = overlap > factor * overlap.amax((1, 2), keepdim=True)
    return region


def covered_cells(boxes: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    """Cells that share some area with a box: boxes (G, 4) to bool (G, rows, columns). A box without area has no cell."""
    bounds = boxes / stride
    row, column = (torch.arange(count, device=boxes.device) for count in (rows, columns))
    across = (column < bounds[:, 2:3]) & (column + 1 > bounds[:, 0:1])  # (G, columns)
    down = (row < bounds[:, 3:4]) & (row + 1 > bounds[:, 1:2])  # (G, rows)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return down[:, :, None] & across[:, None, :] & has_area[:, None, None]


def valuable_region(
    anchors: Sequence[Tensor],
    boxes: Tensor,
    gamma: float = 0.25,
    region: ValuableRegion = "iof_compat",
    candidates: int = 9,
) -> Tensor:
    """LD's valuable localisation region, arXiv:2102.12252: the ring around the positives, as a weight in 0..1 of each anchor, (N,).

    anchors: (n, 4) of each level, the valid ones of one image; boxes (G, 4), G may be 0. An anchor belongs to a box where
    gamma t <= d < t, t ATSS's threshold of the box; its weight is the largest IoU with a box it belongs to.
    region: `diou`: d = IoU - (distance of centres / diagonal of the hull)^2, as the paper says. `iof_compat`: as the published code
    computes it, the intersection over the anchor's own area in the place of the IoU, so that an anchor inside a large box is left out.
    `inside`: 1 where the anchor's centre lies in a box, as that code does for FCOS; the caller takes out the positives.
    """
    every = torch.cat(list(anchors))
    if len(boxes) == 0 or len(every) == 0:
        return every.new_zeros(len(every))
    if region == "inside":
        return (side_distances(centers(every)[:, None], boxes).amin(-1) > 0).any(1).to(every.dtype)
    overlaps, _, threshold = adaptive_thresholds(anchors, boxes, candidates)
    near = distance_box_iou(every, boxes)  # (N, G)
    if region == "iof_compat":
        near = near - overlaps + _covered(every, boxes)
    chosen = (near >= gamma * threshold) & (near < threshold)
    return torch.where(chosen, overlaps, 0.0).amax(1)


def focal_masks(
    boxes: Sequence[Tensor], shape: tuple[int, int], stride: int, sizes: Tensor, stretched: bool = False
) -> tuple[Tensor, Tensor]:
    """FGD's foreground and background of a level, (B, H, W) each. boxes: (G_i, 4) of each image, all of which are drawn. shape: (H, W).

    A box covers the cells from floor(first side / stride) to ceil(last side / stride), both included, and gives each 1 / (their number,
    before the border cuts any off); the largest value, the smallest box's, wins. Background: 1 / (number of cells without a box) in each of
    them. Cells that begin outside their image, whose valid sizes are (B, 2), are in neither, so that padding moves nothing.
    stretched: as published, a box divided by the image's size and multiplied by the padded map's, and padding is background.
    """
    (rows, columns), device = shape, sizes.device
    cells = pad_sequence([F.pad(own, (0, 0, 0, 1)) for own in boxes], batch_first=True)  # at least one row, of no image
    there = (
        torch.arange(cells.shape[1], device=device) < torch.tensor([len(own) for own in boxes], device=device)[:, None]
    )  # (B, G)
    extent = cells.new_tensor([columns, rows] * 2)
    cells = cells / sizes.flip(1).repeat(1, 2)[:, None] * extent if stretched else cells / stride
    first, last = cells[..., :2].floor(), cells[..., 2:].ceil()  # x y
    value = there / (last - first + 1).prod(-1)  # (B, G)
    x, y = torch.arange(columns, device=device), torch.arange(rows, device=device)
    wide = (x >= first[..., :1]) & (x <= last[..., :1])  # (B, G, W)
    high = (y >= first[..., 1:]) & (y <= last[..., 1:])  # (B, G, H)
    foreground = ((high * value[..., None])[..., None] * wide[:, :, None]).amax(1)
    empty = foreground == 0
    if not stretched:
        inside = (y * stride < sizes[:, :1])[:, :, None] & (x * stride < sizes[:, 1:])[:, None]
        foreground, empty = foreground * inside, empty & inside
    return foreground, empty / empty.sum((1, 2), keepdim=True).clamp(min=1)


def decoupled_regions(
    boxes: Sequence[Tensor], shapes: Sequence[tuple[int, int]], strides: Sequence[int], base: float | None = 56.0
) -> tuple[Tensor, ...]:
    """Cells inside ground truth, (B, H, W) bool of each level, each box on one level only. DeFeat, arXiv:2103.14475, as in its code.

    boxes: (G, 4) of each image. shapes, strides: of the levels, fine to coarse. A box belongs to level floor(log2(sqrt((w + 1)(h + 1)) / base)),
    within those there are, and covers the cells from trunc(x1 / stride) to trunc(x2 / stride), the last one not, but always one.
    base: pixels; none: 14 strides of the finest level, which is the published 56 where strides begin at 4.
    """
    padded = pad_sequence(list(boxes), batch_first=True)  # (B, G, 4)
    there = pad_sequence([own.new_ones(len(own)) for own in boxes], batch_first=True) > 0
    sides = (padded[..., 2:] - padded[..., :2] + 1).clamp(min=0).prod(-1).sqrt()
    place = torch.log2(sides / (base or 14.0 * strides[0]) + 1e-6).floor().clamp(0, len(strides) - 1)
    return tuple(
        _filled(padded / stride, there & (place == index), shape)
        for index, (shape, stride) in enumerate(zip(shapes, strides, strict=True))
    )


def _overlaps(boxes: Tensor, anchors: Tensor, pixel: float) -> Tensor:
    """(G, 4) and (N, 4) to IoU (G, N); `pixel` is added to every width and height. Coordinate by coordinate: a third of `box_iou`'s memory."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (G, 1) each
    a1, b1, a2, b2 = anchors.unbind(1)  # (N,) each
    shared = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).add_(pixel).clamp_(min=0)
    shared *= (torch.minimum(y2, b2) - torch.maximum(y1, b1)).add_(pixel).clamp_(min=0)
    union = (x2 - x1 + pixel) * (y2 - y1 + pixel) + (a2 - a1 + pixel) * (b2 - b1 + pixel) - shared
    return shared / union.clamp_(min=1e-6)


def _covered(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(N, G): share of each anchor (N, 4) that lies in each box (G, 4)."""
    corner = torch.maximum(anchors[:, None, :2], boxes[:, :2])
    sides = (torch.minimum(anchors[:, None, 2:], boxes[:, 2:]) - corner).clamp(min=0)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(-1, keepdim=True)
    return sides.prod(-1) / area


def _filled(boxes: Tensor, kept: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, H, W) bool: the union of boxes (B, G, 4), in cells, of those `kept` (B, G)."""
    spans = []
    for axis, count in ((1, shape[0]), (0, shape[1])):  # rows by y, columns by x
        first = boxes[..., axis].trunc().clamp(0, count - 1)
        last = boxes[..., axis + 2].trunc().clamp(max=count).maximum(first + 1)
        cells = torch.arange(count, device=boxes.device)
        spans.append((cells >= first[..., None]) & (cells < last[..., None]))  # (B, G, count)
    rows, columns = spans
    return torch.einsum("bgh,bgw->bhw", (rows & kept[..., None]).float(), columns.float()) > 0
