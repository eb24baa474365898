"""DKD: Hinton's KL in two parts with separate weights. Zhao et al., CVPR 2022, arXiv:2203.08679.

    L = weight * T^2 * mean over regions of [alpha KL(b_t || b_s) + beta KL(q_t || q_s)]

b is the pair of the probability of the region's label and the probability of all other columns. q is the softmax over
all other columns. T is the temperature. Hinton's KL has alpha 1 and beta 1 - p_t(label): the larger the teacher's
probability of the label is, the smaller is the weight of the other classes. Both RoI heads classify the student's
sampled proposals, each on its own pyramid. The columns are the classes and the background. The label is the background
if a region is unmatched, or if the teacher does not have its class.

The values published for Faster R-CNN with an FPN are alpha 1, beta 0.25, T = 1 and no warm-up. The values published for
classifiers are beta 0.5 to 8, T = 4 and a warm-up of 20 epochs. The published code computes the probabilities b and
then their logarithm, which can be the logarithm of 0. Here b is computed in logarithms (`losses.decoupled_kl`).
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from detdistill.losses import decoupled_kl
from detdistill.methods.method import Method, Temperature, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.rois import require_roi_heads, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState


@dataclass(frozen=True)
class DKDConfig:
    """Options of DKD.

    alpha: weight of the part that compares the label with all other columns.
    beta: weight of the part that compares the other columns with each other.
    temperature: T.
    weight: weight of the term.
    """

    alpha: Weight = 1.0
    beta: Weight = 0.25
    temperature: Temperature = 1.0
    weight: Weight = 1.0


class DKD(Method):
    """See the module docstring. Terms: `class`."""

    name = "dkd"
    group = "RoI heads"
    paper = "arXiv:2203.08679"
    copies = "the teacher's class distribution on the student's proposals, true class and other classes separately"
    requires = "RoI heads on both sides"
    reads = "RoI class logits on the student's proposals"
    Config = DKDConfig
    need = Need(classify=True)

    def __init__(self, config: DKDConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared

    @classmethod
    def build(cls, config: DKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have RoI heads with a softmax, and share a class."""
        require_roi_heads(cls.name, student, teacher)
        largest_weight = config.weight * max(config.alpha, config.beta)
        require(largest_weight > 0, cls.name, "all its weights are 0", "see the options of methods.dkd")
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
        rows = roi_rows(student_output, teacher_output, targets, self.shared)
        # (n, K + 1) -> (n,)
        distances = decoupled_kl(rows.student, rows.teacher, rows.labels, config.alpha, config.beta, config.temperature)
        return {"class": config.weight * rows.mean(distances)}
