"""CrossKD: the student's tower features through the teacher's head. Wang et al., CVPR 2024, arXiv:2306.11369.

    p^ = teacher's layers i+1.. and predictors on the student's features after its convolution i
    L  = distances of `methods.shared.predictions` between p^ and the teacher's own predictions

Gradient goes through the teacher's frozen tail into the student's convolutions 1..i, its neck and backbone; the student's convolutions after i
and its predictors learn from the labels alone.

Code and paper. The published code, not the text, gives the student's features the teacher's mean and deviation per channel and level first
(`align`). It is written to leave the tower before the activation, but an in-place ReLU overwrites what it keeps, so its published runs used
the features after it and applied ReLU again (`tap: post_relu`, the default; `pre_act` is the code as written). The region is weighted by the
teacher's confidence, and normalisers differ by detector (`methods.presets`). Equal widths are needed there; here a 1x1 convolution is learned
where they differ, as its authors advise.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from detdistill.losses import match_statistics
from detdistill.methods.method import Method, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import PredictionConfig, prediction_terms, unmet
from detdistill.methods.shared.towers import require_towers, tower_place
from detdistill.types import Assignment, DetectorInfo, DetectorOutput, Need, Targets, TowerState, TrainState, required


@dataclass(frozen=True)
class CrossKDConfig(PredictionConfig):
    """depth: position i, at which the teacher's tower is entered; negative: from its end, -1 leaves one convolution and the predictors.
    student_depth: at which the student's is left, likewise; none: the same. align: match channel statistics. tap: see the module's head."""

    depth: int = -1
    student_depth: int | None = None
    align: bool = True
    tap: Literal["post_relu", "pre_act"] = "post_relu"


class CrossKD(Method):
    """See the module's head. Its terms: `class`, `box`, `quality`."""

    name = "crosskd"
    group = "dense predictions"
    paper = "arXiv:2306.11369"
    reads = "tower features, the teacher's head"
    learns = "a 1x1 convolution a tower, only where the widths differ"
    gain = "GFL R50 40.2 to 43.7 (GFL R101)"
    Config = CrossKDConfig

    def __init__(
        self,
        config: CrossKDConfig,
        depths: tuple[int, int],
        widths: tuple[int, int],
        same_grid: bool,
        shared: SharedClasses,
    ):
        """depths and widths: (student, teacher). same_grid: the student's own assignment holds for the teacher's predictions."""
        super().__init__()
        self.config, self.shared = config, shared
        self.student_depth, self.teacher_depth = depths
        self.same_grid = same_grid
        same = widths[0] == widths[1]
        self.connectors = nn.ModuleList(
            nn.Identity() if same else nn.Conv2d(*widths, 1) for _ in range(2)
        )  # classification, regression
        self.need = Need(towers=frozenset({self.teacher_depth}), predictions=True)
        self.student_need = Need(towers=frozenset({self.student_depth}))

    @classmethod
    def build(cls, config: CrossKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have towers on the same strides, the same classes, and the depths exist."""
        two_stage = all(info.proposals is not None for info in (student, teacher))
        remedy = "take crosskd_roi, its form for RoI heads" if two_stage else "take retinanet, fcos, atss or gfl"
        require_towers(cls.name, student, teacher, remedy)
        shared = SharedClasses.between(cls.name, student, teacher)
        grids = f"the student's strides are {student.strides}, the teacher's {teacher.strides}"
        require(
            student.strides == teacher.strides,
            cls.name,
            grids,
            "the teacher's head needs its own grid: give the student its --model.strides",
        )
        remedy = "set methods.crosskd.depth, and student_depth where the two differ"
        entered = tower_place(cls.name, config.depth, "teacher", teacher, remedy)
        left = tower_place(
            cls.name, entered if config.student_depth is None else config.student_depth, "student", student, remedy
        )
        missing = unmet(config, teacher, teacher)  # both sides of the comparison come out of the teacher's head
        require(not missing, cls.name, missing, "see the options of methods.crosskd")
        mine, theirs = required(student.grid), required(teacher.grid)
        same_grid = (mine.assigner, mine.cell_anchors) == (theirs.assigner, theirs.cell_anchors)
        return cls(
            config,
            (left, entered),
            (required(student.towers).channels, required(teacher.towers).channels),
            same_grid,
            shared,
        )

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        continuation = required(teacher_output.towers)
        mine, theirs = (
            required(student_output.towers).states[self.student_depth],
            continuation.states[self.teacher_depth],
        )
        branches = (
            (mine.classification, theirs.classification, self.connectors[0]),
            (mine.regression, theirs.regression, self.connectors[1]),
        )
        entered = (
            tuple(self._carry(guess, taught, connector) for guess, taught in zip(s, t, strict=True))
            for s, t, connector in branches
        )
        crossed = self.shared.of_teacher(continuation.resume(TowerState(self.teacher_depth, *entered)))
        taught = self.shared.of_teacher(teacher_output.stages[-1])
        return prediction_terms(crossed, taught, self._assignment(student_output, teacher_output, targets), self.config)

    def _carry(self, student: Tensor, teacher: Tensor, connector: nn.Module) -> Tensor:
        """One level of the student's tower made fit for the teacher's."""
        if self.config.tap == "post_relu":  # depth 0 is the neck, which has no activation
            student = student.relu() if self.student_depth else student
            teacher = teacher.relu() if self.teacher_depth else teacher
        student = connector(student)
        has_statistics = student[:, 0].numel() > 1
        return match_statistics(student, teacher) if self.config.align and has_statistics else student

    def _assignment(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets
    ) -> Assignment:
        own = student_output.stages[-1].assignment
        if self.same_grid and own is not None:
            return own
        with torch.no_grad():
            return required(teacher_output.assign)(targets)
