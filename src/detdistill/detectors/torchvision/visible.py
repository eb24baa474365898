"""The levels of a host's pyramid that methods see, where several levels have one stride.

Methods identify a level by its stride. The Faster R-CNNs of torchvision on MobileNetV3 have two levels of stride 32:
the maps of the last two stages. Both stay in the host's computation, with their predictions and losses. Methods see
the first one. It is the map from which regions are pooled, and the FPN adds the other one to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from detdistill.detectors.outputs import build_assignment
from detdistill.types import Assignment, Layout, Predictions, required

Item = TypeVar("Item")


@dataclass(frozen=True)
class VisibleLevels:
    """The first level of each stride. host_strides: of all levels of the host, fine to coarse."""

    host_strides: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the visible levels, all different."""
        return tuple(dict.fromkeys(self.host_strides))

    def of(self, levels: Sequence[Item]) -> tuple[Item, ...]:
        """The items of the visible levels. levels: one item per level of the host."""
        first = [self.host_strides.index(stride) for stride in self.strides]
        return tuple(levels[index] for index in first)

    def rows(self, values: Tensor, layout: Layout) -> Tensor:
        """The rows (B, n, ...) of the visible levels. values (B, N, ...): in the host's layout."""
        return torch.cat(self.of(values.split(layout.counts, dim=1)), dim=1)

    def assignment(self, assignment: Assignment, layout: Layout) -> Assignment:
        """The assignment of the visible levels. Its number of positives counts only these."""
        if self.strides == self.host_strides:
            return assignment
        matched, valid = self.rows(assignment.matched, layout), self.rows(assignment.valid, layout)
        deltas = None if assignment.deltas is None else self.rows(assignment.deltas, layout)
        return replace(build_assignment(list(matched), valid), deltas=deltas)

    def stage(self, stage: Predictions) -> Predictions:
        """The predictions of the visible levels. stage: of an RPN, in the host's layout."""
        if self.strides == self.host_strides:
            return stage
        layout = required(stage.layout)
        return replace(
            stage,
            logits=self.rows(stage.logits, layout),
            boxes=self.rows(stage.boxes, layout),
            valid=self.rows(stage.valid, layout),
            deltas=self.rows(required(stage.deltas), layout),
            layout=Layout(self.of(layout.shapes), self.strides, layout.anchors),
            assignment=None if stage.assignment is None else self.assignment(stage.assignment, layout),
        )
