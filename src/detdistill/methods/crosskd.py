"""CrossKD: the student's tower features through the teacher's head. Wang et al., CVPR 2024, arXiv:2306.11369.

    p^ = the teacher's layers i+1.. and predictors, applied to the student's features after convolution i of its towers
    L  = the distances of `methods.shared.predictions` between p^ and the teacher's own predictions

The gradient passes through the frozen end of the teacher's head into the student's convolutions 1..i, its neck and its
backbone. The student's later convolutions and its predictors learn from the labels only.

Paper and published code:
- The code, but not the text, first gives the student's features the teacher's mean and deviation per channel and level
  (`align`).
- The code stores the tower's features before the activation, but an in-place ReLU overwrites them. So the published
  runs used the features after the ReLU and applied ReLU again (`tap: post_relu`, the default). `tap: pre_act` uses the
  features before the activation.
- The box term is weighted by the teacher's confidence. The divisors differ between detectors: see `methods.presets`.
- The code needs towers with equal channel counts. Here a 1x1 convolution is learned if they differ, as the authors
  recommend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from detdistill.losses import match_statistics, quality_focal
from detdistill.methods.method import Method, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import when_channels_differ
from detdistill.methods.shared.predictions import (
    PredictionConfig,
    box_distance,
    quality_distance,
    unmet_requirement,
    weighted_terms,
)
from detdistill.methods.shared.towers import require_towers, resolve_depth
from detdistill.types import Assignment, DetectorInfo, DetectorOutput, Need, Targets, TowerState, TrainState, required


@dataclass(frozen=True)
class CrossKDConfig(PredictionConfig):
    """Options of CrossKD.

    depth: position i at which the student's features enter the teacher's tower. A negative value counts from the end:
        -1 leaves one convolution and the predictors.
    student_depth: position at which the features leave the student's tower, counted in the same way; none: the same as
        depth.
    align: give the student's features the teacher's channel statistics.
    tap: `post_relu`: take the features after the ReLU, as the published runs did; `pre_act`: before the activation.
    """

    depth: int = -1
    student_depth: int | None = None
    align: bool = True
    tap: Literal["post_relu", "pre_act"] = "post_relu"


class CrossKD(Method):
    """See the module docstring. Terms: `class`, `box`, `quality`."""

    name = "crosskd"
    group = "dense predictions"
    paper = "arXiv:2306.11369"
    copies = "the teacher's predictions, through the teacher's own head"
    requires = "dense heads with towers on the same strides"
    reads = "tower features, the teacher's head"
    learns = "a 1x1 convolution per tower, only if the channel counts differ"
    gain = "GFL R50 40.2 to 43.7 (GFL R101)"
    Config = CrossKDConfig

    def __init__(
        self,
        config: CrossKDConfig,
        depths: tuple[int, int],
        channels: tuple[int, int],
        same_grid: bool,
        shared: SharedClasses,
    ):
        """depths, channels: of the towers of student and teacher.

        same_grid: the student's assignment also fits the teacher's predictions.
        """
        super().__init__()
        self.config, self.shared, self.same_grid = config, shared, same_grid
        self.student_depth, self.teacher_depth = depths
        student_channels, teacher_channels = channels
        self.connectors = nn.ModuleList(  # classification tower, regression tower
            when_channels_differ(student_channels, teacher_channels) for _ in range(2)
        )
        self.need = Need(towers=frozenset({self.teacher_depth}), predictions=True)
        self.student_need = Need(towers=frozenset({self.student_depth}))

    @classmethod
    def build(cls, config: CrossKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have towers of these depths on the same strides, and share a class."""
        two_stage = student.proposals is not None and teacher.proposals is not None
        remedy = "use crosskd_roi, its form for RoI heads" if two_stage else "use retinanet, fcos, atss or gfl"
        require_towers(cls.name, student, teacher, remedy)
        shared = SharedClasses.between(cls.name, student, teacher)
        strides = f"the student's strides are {student.strides}, the teacher's {teacher.strides}"
        remedy = "the teacher's head needs its own grid: give the student the teacher's --model.strides"
        require(student.strides == teacher.strides, cls.name, strides, remedy)
        remedy = "set methods.crosskd.depth, and student_depth if the depths differ"
        teacher_depth = resolve_depth(cls.name, config.depth, "teacher", teacher, remedy)
        student_depth = teacher_depth if config.student_depth is None else config.student_depth
        student_depth = resolve_depth(cls.name, student_depth, "student", student, remedy)
        # Both sides of the comparison come from the teacher's head.
        missing = unmet_requirement(config, teacher, teacher)
        require(not missing, cls.name, missing, "see the options of methods.crosskd")
        student_grid, teacher_grid = required(student.grid), required(teacher.grid)
        same_assigner = student_grid.assigner == teacher_grid.assigner
        same_grid = same_assigner and student_grid.cell_anchors == teacher_grid.cell_anchors
        channels = required(student.towers).channels, required(teacher.towers).channels
        return cls(config, (student_depth, teacher_depth), channels, same_grid, shared)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        teacher_towers = required(teacher_output.towers)
        student_state = required(student_output.towers).states[self.student_depth]
        teacher_state = teacher_towers.states[self.teacher_depth]
        entry = TowerState(
            self.teacher_depth,
            self._adapted(student_state.classification, teacher_state.classification, self.connectors[0]),
            self._adapted(student_state.regression, teacher_state.regression, self.connectors[1]),
        )
        crossed = self.shared.of_teacher(teacher_towers.resume(entry))  # predictions of the student's features
        teacher_predictions = self.shared.of_teacher(teacher_output.stages[-1])
        teacher_scores = teacher_predictions.scores().detach()  # (B, N, K)
        assignment = self._assignment(student_output, teacher_output, targets)
        return weighted_terms(
            self.config,
            teacher_scores,
            assignment,
            class_rows=lambda: quality_focal(crossed.logits, teacher_scores, self.config.beta).sum(-1),  # (B, N)
            box_rows=lambda: box_distance(crossed, teacher_predictions, self.config),
            quality=lambda: quality_distance(crossed, teacher_predictions, assignment),
        )

    def _adapted(
        self, student_levels: Sequence[Tensor], teacher_levels: Sequence[Tensor], connector: nn.Module
    ) -> tuple[Tensor, ...]:
        """The levels of a student's tower with the activation, channels and statistics of the teacher's tower."""
        levels = []
        for student_level, teacher_level in zip(student_levels, teacher_levels, strict=True):
            if self.config.tap == "post_relu":  # depth 0 is the neck, which has no activation
                student_level = student_level.relu() if self.student_depth else student_level
                teacher_level = teacher_level.relu() if self.teacher_depth else teacher_level
            level = connector(student_level)  # (B, C, H, W), C of the teacher
            has_statistics = level[:, 0].numel() > 1
            levels.append(match_statistics(level, teacher_level) if self.config.align and has_statistics else level)
        return tuple(levels)

    def _assignment(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets
    ) -> Assignment:
        """The student's assignment if it fits the teacher's predictions, else the assignment of the teacher's rule."""
        assignment = student_output.stages[-1].assignment
        if self.same_grid and assignment is not None:
            return assignment
        with torch.no_grad():
            return required(teacher_output.assign)(targets)
