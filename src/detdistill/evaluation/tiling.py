"""Prediction in overlapping tiles: the windows of a large picture, and one list of boxes from all of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detdistill.types import Detections

Window = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture

OVERLAP = 0.2  # share of a tile's side that neighbors have in common, at least
MARGIN = 0.01  # share of a tile's side; a box this close to an inner border is taken as cut by it
COVERED = 0.5  # share of a cut box that must lie in a whole box to be a piece of it
SAME = 0.5  # IoU from which two boxes of a class are one object


def tile_windows(size: tuple[int, int], tile: int, overlap: float = OVERLAP) -> list[Window]:
    """The whole picture, then the tiles row by row.

    size: (height, width). tile: side of the tiles in pixels. The tiles are spread evenly, so they all have this side,
    except along an axis on which the picture is smaller. A picture that fits into one tile has no other window than
    itself.
    """
    height, width = size
    whole = (0, 0, width, height)
    rows, columns = _spans(height, tile, overlap), _spans(width, tile, overlap)
    tiles = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
    return [whole] if tiles == [whole] else [whole, *tiles]


def merge_windows(parts: Sequence[Detections], windows: Sequence[Window], size: tuple[int, int]) -> Detections:
    """The detections of all windows as those of the picture, best first, on the CPU.

    parts: of each window, boxes in pixels of the window. size: (height, width) of the picture.

    A box is cut if it reaches an inner border of its tile, which is one that is no border of the picture. A cut box is
    dropped if at least half of it lies in a box of its class that is not cut and has at least half its score: that box
    shows the same object whole, in the neighboring tile or in the picture as a whole. Other cut boxes stay, because
    nothing else shows their object. Then of two boxes of a class with an IoU above 0.5 the better one stays.
    """
    boxes, scores, labels, cut = [], [], [], []
    for part, window in zip(parts, windows, strict=True):
        local = part.boxes.cpu().double()
        cut.append(_is_cut(local, window, size))
        boxes.append(local + local.new_tensor([window[0], window[1], window[0], window[1]]))
        scores.append(part.scores.cpu())
        labels.append(part.labels.cpu())
    joined = Detections(torch.cat(boxes), torch.cat(scores), torch.cat(labels))
    joined = _take(joined, ~_is_piece(joined, torch.cat(cut)))
    return _take(joined, batched_nms(joined.boxes, joined.scores.double(), joined.labels, SAME))  # best first


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """The (start, end) of the tiles along one axis."""
    if length <= tile:
        return [(0, length)]
    shared = round(tile * overlap)
    count = math.ceil((length - shared) / (tile - shared))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    return [(start, start + tile) for start in starts]


def _is_cut(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """(D,) bool: True for boxes in pixels of the window that reach one of its inner borders."""
    left, top, right, bottom = window
    height, width = size
    margin = MARGIN * max(right - left, bottom - top)
    inner = torch.tensor([left > 0, top > 0, right < width, bottom < height])
    reached = torch.cat(
        [boxes[:, :2] <= margin, boxes[:, 2:] >= boxes.new_tensor([right - left - margin, bottom - top - margin])], 1
    )
    return (reached & inner).any(1)


def _is_piece(joined: Detections, is_cut: Tensor) -> Tensor:
    """(D,) bool: True for cut boxes that are a piece of an object that another box shows whole."""
    piece = torch.zeros_like(is_cut)
    whole = (~is_cut).nonzero().flatten()
    boxes, scores, labels = joined.boxes[whole], joined.scores[whole], joined.labels[whole]
    for index in is_cut.nonzero().flatten().tolist():
        box = joined.boxes[index]
        sides = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0)
        area = (box[2:] - box[:2]).prod().clamp(min=1e-6)
        covers = (sides.prod(1) >= COVERED * area) & (labels == joined.labels[index])
        piece[index] = bool((covers & (scores >= 0.5 * joined.scores[index])).any())
    return piece


def _take(detections: Detections, rows: Tensor) -> Detections:
    return Detections(detections.boxes[rows], detections.scores[rows], detections.labels[rows])
