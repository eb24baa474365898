"""Chen 2017: weighted soft targets, teacher-bounded regression and a hint, in both stages. Chen et al., NIPS 2017.

    class   (1 - mu) / mu * mean over rows of -sum_c w_c P_t[c] log P_s[c]
    box     nu * sum over positives of (d_s if d_s + m > d_t, else 0) / number of rows
    hint    gamma * mean over levels of mean (V - a(Z))^2

w is 1.5 for the background, 1 for the other classes, and is inside the sum. The temperature is 1. d_s and d_t are
|R - y|^2 of student and teacher. R is the predicted box code, y the box code of the ground truth. V is the teacher's
map, Z is the student's map. a is a learned 1x1 convolution, used even if the channel counts are equal.

Rows are the samples of the student's task loss: sampled anchors in the RPN, sampled proposals in the second stage. The
teacher's RPN predicts for the same anchors, and its RoI head for the student's proposals. The single sigmoid of an RPN
is treated as a softmax over object and background.

The class loss of the paper is mu hard + (1 - mu) soft. Here the hard (task) loss keeps its weight of 1, so the soft
loss has the weight (1 - mu) / mu. Relative to the box losses, the class losses are 1 / mu times those of the paper.

There is no official code, and the paper gives neither mu nor the margin m. Others trained SSD successfully
with mu = 0.8, while 0.5 diverged. Reproductions use m = 0 (one uses 0.01). The paper has one hint layer, compares it by
an L2 or an L1 distance and does not define the reduction. The means over elements and levels are our choice.
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
from detdistill.methods.shared.rois import Rows, require_roi_heads, require_same_code, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, Targets, TrainState, required


@dataclass(frozen=True)
class Chen2017Config(LevelConfig):
    """Options of Chen 2017. A term of weight 0 is not computed.

    mu: weight of the labels in the class loss. The soft term has the weight (1 - mu) / mu; 1 removes it.
    background: weight w of the background in the class terms.
    nu: weight of the box terms.
    margin: m, in the unit of d_s and d_t.
    weight_rpn, weight_roi: weight of the two terms of a stage.
    weight_hint: gamma, the weight of the hint.
    hint: distance of the hint. `l2`: mean squared difference. `l1`: mean absolute difference.
    The other options belong to the hint: see `methods.shared.levels.LevelConfig`.
    """

    mu: Annotated[float, Field(gt=0, le=1)] = 0.8
    background: Weight = 1.5
    nu: Weight = 0.5
    margin: Weight = 0.0
    weight_rpn: Weight = 1.0
    weight_roi: Weight = 1.0
    weight_hint: Weight = 0.5
    hint: Literal["l2", "l1"] = "l2"

    @property
    def distills_rpn(self) -> bool:
        """True if a term of the RPN is computed."""
        return self.weight_rpn > 0 and (self.mu < 1 or self.nu > 0)

    @property
    def distills_roi(self) -> bool:
        """True if a term of the RoI head is computed."""
        return self.weight_roi > 0 and (self.mu < 1 or self.nu > 0)


class Chen2017(Method):
    """See the module docstring. Terms: `rpn_class`, `rpn_box`, `roi_class`, `roi_box`, `hint`."""

    name = "chen2017"
    group = "RoI heads"
    paper = "NIPS 2017, Chen et al."
    copies = "classes and boxes of RPN and RoI head, and neck features"
    requires = "RoI heads on both sides, and RPNs with the same anchors"
    reads = "RPN and RoI heads, neck features"
    learns = "a 1x1 convolution per level"
    Config = Chen2017Config

    def __init__(self, config: Chen2017Config, shared: SharedClasses, levels: PairedLevels | None):
        """levels: the pairs of the hint, or None if there is no hint."""
        super().__init__()
        self.config, self.shared, self.levels = config, shared, levels
        self.need = Need(proposals=config.distills_rpn, classify=config.distills_roi)
        if levels is not None:
            self.need, self.student_need = self.need | levels.need, levels.need

    @classmethod
    def build(cls, config: Chen2017Config, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """The method for a pair of two-stage detectors that share a class.

        Raises UserError if the pair lacks what a term needs: equal anchors for the RPN terms, equal box codes for the
        box term of the RoI head, a pair of levels for the hint.
        """
        require_roi_heads(cls.name, student, teacher)
        has_terms = config.distills_rpn or config.distills_roi or config.weight_hint > 0
        require(has_terms, cls.name, "all its weights are 0", "see the options of methods.chen2017")
        if config.distills_rpn:
            same_anchors = student.strides == teacher.strides and student.cell_anchors == teacher.cell_anchors
            anchors = f"the RPNs' anchors differ (strides {student.strides} and {teacher.strides})"
            remedy = "give both the same --model.strides and anchors, or set methods.chen2017.weight_rpn=0"
            require(same_anchors, cls.name, anchors, remedy)
        if config.weight_roi and config.nu:
            require_same_code(cls.name, student, teacher)
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
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.distills_rpn:
            rows = rpn_rows(student_output.stages[0], teacher_output.stages[0])
            terms |= self._stage_terms("rpn", config.weight_rpn, rows)
        if config.distills_roi:
            rows = roi_rows(student_output, teacher_output, targets, self.shared)
            terms |= self._stage_terms("roi", config.weight_roi, rows)
        if self.levels is not None:
            distance = F.mse_loss if config.hint == "l2" else F.l1_loss
            pairs = self.levels(student_output, teacher_output)
            distances = [distance(level.student, level.teacher) for level in pairs]
            terms["hint"] = config.weight_hint * torch.stack(distances).mean()
        return terms

    def _stage_terms(self, stage: str, weight: float, rows: Rows) -> dict[str, Tensor]:
        """The class and box terms of one stage, weighted, each (). stage: `rpn` or `roi`."""
        config = self.config
        terms = {}
        if config.mu < 1:
            class_weights = rows.student.new_ones(rows.student.shape[1])  # (K + 1,)
            class_weights[-1] = config.background
            entropy = soft_cross_entropy(rows.student, rows.teacher, class_weights)  # (n, K + 1) -> (n,)
            terms[f"{stage}_class"] = weight * (1 - config.mu) / config.mu * rows.mean(entropy)
        if config.nu:
            positive = rows.foreground.nonzero()[:, 0]  # (positives,)
            code = positive, rows.labels[positive]  # the box code of the region's class
            bounded = bounded_regression(
                rows.student_deltas[code], rows.teacher_deltas[code], rows.target_deltas[positive], config.margin
            )  # (positives, 4) -> (positives,)
            terms[f"{stage}_box"] = weight * config.nu * rows.mean(bounded)
        return terms


def rpn_rows(student_predictions: Predictions, teacher_predictions: Predictions) -> Rows:
    """The anchors that the student's RPN loss sampled, as rows of one class and the background.

    Both predictions have logits (B, N, 1) on the same anchors.
    """
    assignment = required(student_predictions.assignment)
    kept = assignment.valid & teacher_predictions.valid  # (B, N)
    # The softmax of (z, 0) is the sigmoid of z.
    student_logits = F.pad(student_predictions.logits[kept], (0, 1))  # (B, N, 1) -> (n, 1) -> (n, 2)
    teacher_logits = F.pad(teacher_predictions.logits[kept], (0, 1))
    return Rows(
        student=student_logits,
        teacher=teacher_logits.detach(),
        student_deltas=required(student_predictions.deltas)[kept][:, None],  # (B, N, 4) -> (n, 1, 4)
        teacher_deltas=required(teacher_predictions.deltas)[kept][:, None].detach(),
        labels=(~assignment.positive[kept]).long(),
        target_deltas=required(assignment.deltas)[kept],
    )
