"""BCKD: bridging cross-task protocol inconsistency, for dense heads with sigmoid scores. Yang et al., ICCV 2023, arXiv:2308.14286.

    class   w_c sum over rows and classes of |p_t - p_s| BCE(z_s, p_t) / positives,       p = sigmoid(z)
    box     w_b sum over rows of max_k |p_t - p_s| (1 - GIoU(b_s, b_t)) / positives

Classes don't compete in a sigmoid head, so each is taught by itself, in every valid cell. The factor of the class term carries gradient, that
of the box term does not. The class term is `quality_focal` with beta 1 and the teacher's scores as targets, as in CrossKD and mimicking.

Code and paper: no difference is known to us. Published for GFL; the weights are the same for all heads here. A teacher's box without area
(torchvision's FCOS) teaches nothing.
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
    """weight_class, weight_box: of the two terms; a term of weight 0 is not computed."""

    weight_class: Weight = 1.0
    weight_box: Weight = 4.0


class BCKD(Method):
    """See the module's head. Its terms: `class`, `box`."""

    name = "bckd"
    group = "dense predictions"
    paper = "arXiv:2308.14286"
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
            lacking = f"the classes of the {side} ({info.kind}) compete in a softmax"
            require(info.activation == "sigmoid", cls.name, lacking, "take retinanet, fcos, atss or gfl")
        require(
            bool(config.weight_class or config.weight_box),
            cls.name,
            "all its weights are 0",
            "see the options of methods.bckd",
        )
        return cls(config, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        mine, theirs = (
            self.shared.of_student(student_output.stages[-1]),
            self.shared.of_teacher(teacher_output.stages[-1]),
        )
        assignment = required(mine.assignment)
        scores = theirs.scores().detach()
        terms = {}
        if self.config.weight_class:
            rows = quality_focal(mine.logits, scores, beta=1.0).sum(-1) * assignment.valid
            terms["class"] = self.config.weight_class * rows.sum() / assignment.num_positives
        if self.config.weight_box:
            gap = (mine.scores().detach() - scores).abs().amax(-1) * assignment.valid
            terms["box"] = (
                self.config.weight_box * (box_distance(mine, theirs, GIOU) * gap).sum() / assignment.num_positives
            )
        return terms
