"""Proposal distillation: the student's RoI head copies the teacher's RoI head on the student's proposals.

Each head reads its own pyramid. The distances of classes and boxes are those of `methods.shared.rois`. They were
published for the two-stage branch of CrossKD (arXiv:2306.11369), which applies the teacher's head to both pyramids
(`crosskd_roi`). Here the student's own head makes the student's predictions. So this method is the baseline of
crosskd_roi, as mimicking is the baseline of crosskd. The whole student except its RPN gets the gradient. Ground truth
and teacher supervise the same outputs.
"""

from typing import Self

from torch import Tensor

from detdistill.methods.method import Method
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.rois import RoIConfig, require_roi_heads, require_roi_terms, roi_rows, roi_terms
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState


class ProposalKD(Method):
    """See the module docstring. Terms: `class`, `box`."""

    name = "proposal_kd"
    group = "RoI heads"
    paper = "arXiv:2306.11369, its two-stage code, not crossed"
    copies = "the teacher's classes and boxes on the student's proposals"
    requires = "RoI heads on both sides"
    reads = "RoI class logits and box codes on the student's proposals"
    Config = RoIConfig
    need = Need(classify=True)

    def __init__(self, config: RoIConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared

    @classmethod
    def build(cls, config: RoIConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have RoI heads with a softmax and the same box code, and share a class."""
        require_roi_heads(cls.name, student, teacher)
        require_roi_terms(cls.name, config, student, teacher)
        return cls(config, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        return roi_terms(roi_rows(student_output, teacher_output, targets, self.shared), self.config)
