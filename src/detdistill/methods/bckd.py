"""BCKD: bridging cross-task protocol inconsistency, for dense sigmoid heads. Yang et al., ICCV 2023, arXiv:2308.14286.

    class   w_c sum over rows and classes of |p_t - p_s| BCE(z_s, p_t) / number of positives,    p = sigmoid(z)
    box     w_b sum over rows of max_k |p_t - p_s| (1 - GIoU(b_s, b_t)) / number of positives

The classes of a sigmoid head do not compete, so each class is distilled independently. The gradient flows through the
factor |p_t - p_s| in the class term, but not in the box term. The class term is `quality_focal` with beta 1 and the
teacher's scores as targets, as in CrossKD and mimicking. A row is one prediction of the head.

Paper and published code: read literally, the sums run over the rows of all levels (`region: valid`). The released code
sums over the levels on which some anchor of the batch is positive (`region: positive_levels`, the default), because it
computes both terms next to the box loss, which it skips for a level without positives. The published results are those
of the code.

The weights were published for GFL. Here they are used for all heads. In the code, each process looks at the positives
of its own images. Here a level counts if any process has a positive on it. Rows in which the teacher's box has no area
(torchvision's FCOS) get no box loss.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses import quality_focal
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import PredictionConfig, box_distance, require_same_cells
from detdistill.types import Assignment, DetectorInfo, DetectorOutput, Layout, Need, Targets, TrainState, required

GIOU = PredictionConfig(box="giou")


@dataclass(frozen=True)
class BCKDConfig:
    """Options of BCKD.

    weight_class, weight_box: weights of the two terms. A term of weight 0 is not computed.
    region: rows that count. `positive_levels`: rows that take part in the student's task loss, on the levels with a
        positive, as in the released code; `valid`: those of all levels.
    """

    weight_class: Weight = 1.0
    weight_box: Weight = 4.0
    region: Literal["positive_levels", "valid"] = "positive_levels"


class BCKD(Method):
    """See the module docstring. Terms: `class`, `box`."""

    name = "bckd"
    group = "dense predictions"
    paper = "arXiv:2308.14286"
    copies = "the teacher's class scores as binary decisions, and its boxes"
    requires = "dense heads with the same cells and anchors, with sigmoid scores"
    reads = "dense predictions"
    gain = "GFL R50 40.1 to 43.2 (GFL R101)"
    Config = BCKDConfig

    def __init__(self, config: BCKDConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared
        self.need = self.student_need = Need(predictions=True)

    @classmethod
    def build(cls, config: BCKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both predict sigmoid scores in the same cells, and share a class."""
        require_same_cells(cls.name, student, teacher)
        for side, info in (("student", student), ("teacher", teacher)):
            softmax = f"the classes of the {side} ({info.kind}) compete in a softmax"
            require(info.activation == "sigmoid", cls.name, softmax, "use retinanet, fcos, atss or gfl")
        has_terms = bool(config.weight_class or config.weight_box)
        require(has_terms, cls.name, "all its weights are 0", "see the options of methods.bckd")
        return cls(config, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        config = self.config
        student_predictions = self.shared.of_student(student_output.stages[-1])
        teacher_predictions = self.shared.of_teacher(teacher_output.stages[-1])
        assignment = required(student_predictions.assignment)
        teacher_scores = teacher_predictions.scores().detach()  # (B, N, K)
        counted = assignment.valid
        if config.region == "positive_levels":
            counted = counted & on_positive_levels(assignment, required(student_predictions.layout))
        terms = {}
        if config.weight_class:
            rows = quality_focal(student_predictions.logits, teacher_scores, beta=1.0).sum(-1)  # (B, N, K) -> (B, N)
            total = (rows * counted).sum()
            terms["class"] = config.weight_class * total / assignment.num_positives
        if config.weight_box:
            gap = (student_predictions.scores().detach() - teacher_scores).abs().amax(-1)  # (B, N, K) -> (B, N)
            rows = box_distance(student_predictions, teacher_predictions, GIOU)  # (B, N)
            total = (rows * (gap * counted)).sum()
            terms["box"] = config.weight_box * total / assignment.num_positives
        return terms


def on_positive_levels(assignment: Assignment, layout: Layout) -> Tensor:
    """(N,) bool: True on the levels on which the batch has a positive, in any process."""
    levels = assignment.positive.split(layout.counts, dim=1)
    totals = torch.stack([level.sum() for level in levels]).float()  # (levels,)
    has_positive = mean_over_processes(totals, floor=0.0) > 0
    return torch.cat([level.expand(count) for level, count in zip(has_positive, layout.counts, strict=True)])
