"""Proposal distillation: both RoI heads classify the student's proposals, each on its own pyramid, and the student's copies the teacher's.

The distances, of classes and of boxes, are those of `methods.shared.rois`, published for CrossKD's two-stage branch (arXiv:2306.11369), which
runs the teacher's head on both pyramids (`crosskd_roi`). Here the student's own head is the guess: its baseline, as mimicking is CrossKD's. The
whole student behind its proposals gets the gradient; ground truth and teacher pull at the same outputs.
"""

from typing import Self

from torch import Tensor

from detdistill.methods.method import Method
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.rois import RoIConfig, require_roi_heads, require_terms, roi_rows, roi_terms
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState


class ProposalKD(Method):
    """See the module's head. Its terms: `class`, `box`."""

    name = "proposal_kd"
    group = "RoI heads"
    paper = "arXiv:2306.11369, its two-stage code, not crossed"
    reads = "RoI class logits and box codes on the student's proposals"
    Config = RoIConfig
    need = Need(classify=True)

    def __init__(self, config: RoIConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared

    @classmethod
    def build(cls, config: RoIConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have RoI heads with a softmax and one box code, and share a class."""
        require_roi_heads(cls.name, student, teacher)
        require_terms(cls.name, config, student, teacher)
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
