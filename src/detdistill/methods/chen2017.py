"""Chen 2017: weighted soft targets, teacher-bounded regression and a hint, in both stages. Chen et al., NIPS 2017.

    class   (1 - mu) / mu * mean over rows of -sum_c w_c P_t[c] log P_s[c],    w = 1.5 for the background, inside the sum; T = 1
    box     nu * sum over positives of (d_s where d_s + m > d_t, else 0) / rows,    d = |R - y|^2, the student's and the teacher's
    hint    gamma * mean over levels of mean (V - a(Z))^2,    a: a 1x1 convolution, also where the widths agree

Rows are those of the student's own loss: sampled anchors in the RPN, sampled proposals in the second stage. The teacher's RPN answers on the
same anchors, its RoI head on the student's proposals. An RPN of one sigmoid is taken as a softmax over object and background.

The paper's class loss is mu hard + (1 - mu) soft; our hard (task) loss keeps its weight of 1, hence the ratio, and classes weigh 1 / mu as much
against boxes as there. There is no official code, and the paper gives neither mu nor the margin m. mu = 0.8 is what trained for others on SSD (0.5
diverged there); m = 0 is what reproductions take (0.01 one). The paper has one hint layer, guides it by an L2 or an L1 distance and doesn't say how
to reduce it; means over elements and levels are ours.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detdistill.losses import bounded_regression, soft_cross_entropy
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.levels import LevelConfig, PairedLevels, always
from detdistill.methods.shared.rois import Rows, require_one_code, require_roi_heads, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class Chen2017Config(LevelConfig):
    """mu: share of the labels in the class loss; the soft term's weight is (1 - mu) / mu, at 1 it is left out. background: w of the background.
    nu: of the box terms; margin: m. weight_rpn, weight_roi: of a stage's two terms, 0: left out. weight_hint: gamma. hint: its distance.
    The others: see `methods.shared.levels.LevelConfig`, for the hint."""

    mu: Annotated[float, Field(gt=0, le=1)] = 0.8
    background: Weight = 1.5
    nu: Weight = 0.5
    margin: Weight = 0.0
    weight_rpn: Weight = 1.0
    weight_roi: Weight = 1.0
    weight_hint: Weight = 0.5
    hint: Literal["l2", "l1"] = "l2"

    @property
    def heads(self) -> bool:
        """Whether any term of a head is left."""
        return (self.mu < 1 or self.nu > 0) and (self.weight_rpn > 0 or self.weight_roi > 0)


class Chen2017(Method):
    """See the module's head. Its terms: `rpn_class`, `rpn_box`, `roi_class`, `roi_box`, `hint`."""

    name = "chen2017"
    group = "RoI heads"
    paper = "NIPS 2017, Chen et al."
    reads = "RPN and RoI heads, neck features"
    learns = "a 1x1 convolution a level"
    Config = Chen2017Config

    def __init__(self, config: Chen2017Config, shared: SharedClasses, levels: PairedLevels | None):
        super().__init__()
        self.config, self.shared, self.levels = config, shared, levels
        self.need = Need(
            proposals=config.heads and config.weight_rpn > 0, classify=config.heads and config.weight_roi > 0
        )
        if levels is not None:
            self.need, self.student_need = self.need | levels.need, levels.need

    @classmethod
    def build(cls, config: Chen2017Config, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have two stages, the same anchors (with the RPN's terms), one box code, and a level to pair (with the hint)."""
        require_roi_heads(cls.name, student, teacher)
        require(
            config.heads or config.weight_hint > 0,
            cls.name,
            "all its weights are 0",
            "see the options of methods.chen2017",
        )
        if config.heads and config.weight_rpn:
            same = student.strides == teacher.strides and student.cell_anchors == teacher.cell_anchors
            lacking = f"the RPNs' anchors differ (strides {student.strides} and {teacher.strides})"
            require(
                same,
                cls.name,
                lacking,
                "give both the same --model.strides and anchors, or set methods.chen2017.weight_rpn=0",
            )
        if config.weight_roi and config.nu:
            require_one_code(cls.name, student, teacher)
        levels = PairedLevels.build(cls.name, config, student, teacher, always) if config.weight_hint else None
        return cls(config, SharedClasses.between(cls.name, student, teacher), levels)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        terms: dict[str, Tensor] = {}
        if self.config.heads and self.config.weight_rpn:
            terms |= self._terms(
                "rpn", self.config.weight_rpn, rpn_rows(student_output.stages[0], teacher_output.stages[0])
            )
        if self.config.heads and self.config.weight_roi:
            terms |= self._terms(
                "roi", self.config.weight_roi, roi_rows(student_output, teacher_output, targets, self.shared)
            )
        if self.levels is not None:
            distance = F.mse_loss if self.config.hint == "l2" else F.l1_loss
            distances = [
                distance(level.student, level.teacher) for level in self.levels(student_output, teacher_output)
            ]
            terms["hint"] = self.config.weight_hint * torch.stack(distances).mean()
        return terms

    def _terms(self, stage: str, weight: float, rows: Rows) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.mu < 1:
            weights = rows.student.new_ones(rows.student.shape[1])
            weights[-1] = config.background
            soft = soft_cross_entropy(rows.student, rows.teacher, weights)
            terms[f"{stage}_class"] = weight * (1 - config.mu) / config.mu * rows.mean(soft)
        if config.nu:
            row = rows.foreground.nonzero()[:, 0]
            place = row, rows.labels[row]
            bounded = bounded_regression(
                rows.student_deltas[place], rows.teacher_deltas[place], rows.aims[row], config.margin
            )
            terms[f"{stage}_box"] = weight * config.nu * rows.mean(bounded)
        return terms


def rpn_rows(student: Predictions, teacher: Predictions) -> Rows:
    """The anchors that the student's RPN loss was computed on, as rows of one class and the background; both (B, N, 1) on the same anchors."""
    assignment = required(student.assignment)
    kept = assignment.valid & teacher.valid
    logits = [
        F.pad(stage.logits[kept], (0, 1)) for stage in (student, teacher)
    ]  # softmax of (z, 0) is the sigmoid of z
    return Rows(
        student=logits[0],
        teacher=logits[1].detach(),
        student_deltas=required(student.deltas)[kept][:, None],
        teacher_deltas=required(teacher.deltas)[kept][:, None].detach(),
        labels=(~assignment.positive[kept]).long(),
        aims=required(assignment.deltas)[kept],
    )
