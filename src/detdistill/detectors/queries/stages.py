"""Helpers for the stages of a decoder: predictions, assignments, names of loss terms, and token maps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from detdistill.detectors.images import size_tensor
from detdistill.geometry import to_pixels
from detdistill.types import Assignment, Predictions

Stage = TypeVar("Stage", bound=Predictions)


def sigmoid_stage(logits: Tensor, boxes: Tensor, frame: Tensor, embeddings: Tensor | None = None) -> Predictions:
    """One stage in single precision, from logits (B, Q, K) for sigmoids and boxes (B, Q, 4).

    boxes: cx cy w h in 0..1 of the frame (B, 2). embeddings: (B, Q, D), or None.
    """
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)  # (B, Q)
    return Predictions(logits.float(), "sigmoid", to_pixels(boxes, frame), valid, embeddings=embeddings)


def with_assignments(stages: Sequence[Stage], assignments: Sequence[Assignment]) -> list[Stage]:
    """Each stage with its assignment."""
    return [replace(stage, assignment=assignment) for stage, assignment in zip(stages, assignments, strict=True)]


def merge_terms(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The loss terms of all stages in one dict.

    Terms of the last stage keep their names. Terms of an earlier stage i end in `_i`.
    """
    suffixes = [*(f"_{index}" for index in range(len(terms) - 1)), ""]
    merged: dict[str, Tensor] = {}
    for suffix, stage_terms in zip(suffixes, terms, strict=True):
        merged |= with_suffix(stage_terms, suffix)
    return merged


def with_suffix(terms: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """The same terms, each name followed by `suffix`."""
    return {name + suffix: term for name, term in terms.items()}


def token_maps(tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Tokens (B, S, D) of consecutive levels, as maps (B, D, H, W). shapes: (rows, columns) per level."""
    cells = [rows * columns for rows, columns in shapes]
    levels = tokens.transpose(1, 2).split(cells, dim=2)  # each (B, D, HW)
    return tuple(level.unflatten(2, shape) for level, shape in zip(levels, shapes, strict=True))


def shape_table(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(rows, columns) of each level as a tensor of integers, (levels, 2)."""
    integer = torch.zeros((), dtype=torch.long, device=device)
    return torch.stack([size_tensor(shape, integer) for shape in shapes])
