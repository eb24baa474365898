"""BCKD: bridging cross-task protocol inconsistency, for dense sigmoid heads. Yang et al., ICCV 2023, arXiv:2308.14286.

    class   w_c sum over rows and classes of |p_t - p_s| BCE(z_s, p_t) / number of positives,    p = sigmoid(z)
    box     w_b sum over rows of max_k |p_t - p_s| (1 - GIoU(b_s, b_t)) / number of positives

The classes of a sigmoid head do not compete, so each class is distilled independently, in every valid cell. The
gradient flows through the factor |p_t - p_s| in the class term, but not in the box term. The class term is
`quality_focal` with beta 1 and the teacher's scores as targets, as in CrossKD and mimicking. A row is one prediction of
the head.

We know of no difference between paper and code. The weights were published for GFL. Here they are used for all heads.
Rows in which the teacher's box has no area (torchvision's FCOS) get no box loss.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from detdistill.losses import quality_focal
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import PredictionConfig, box_distance, require_same_cells
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState, required

GIOU = PredictionConfig(box="giou")


@dataclass(frozen=True)
class BCKDConfig:
    """Options of BCKD.

    weight_class, weight_box: weights of the two terms. A term of weight 0 is not computed.
    """

    weight_class: Weight = 1.0
    weight_box: Weight = 4.0


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
        terms = {}
        if config.weight_class:
            rows = quality_focal(student_predictions.logits, teacher_scores, beta=1.0).sum(-1)  # (B, N, K) -> (B, N)
            total = (rows * assignment.valid).sum()
            terms["class"] = config.weight_class * total / assignment.num_positives
        if config.weight_box:
            gap = (student_predictions.scores().detach() - teacher_scores).abs().amax(-1)  # (B, N, K) -> (B, N)
            rows = box_distance(student_predictions, teacher_predictions, GIOU)  # (B, N)
            total = (rows * (gap * assignment.valid)).sum()
            terms["box"] = config.weight_box * total / assignment.num_positives
        return terms
