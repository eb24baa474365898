"""DKD: Hinton's KL in its two parts, weighted apart. Zhao et al., CVPR 2022, arXiv:2203.08679.

    L = weight * T^2 * mean over regions of [alpha KL(b_t || b_s) + beta KL(q_t || q_s)]

b: probabilities of the region's label and of all else; q: softmax over all else. Hinton's KL is alpha 1 with beta 1 - p_t(label): the surer the
teacher, the less the other classes teach. Both RoI heads classify the student's sampled proposals, each on its own pyramid; columns are the
classes and the background, which is the label of a region that matched nothing, or a class that the teacher doesn't know.

Published for Faster R-CNN with an FPN: alpha 1, beta 0.25, T = 1, no warm-up (classifiers: beta 0.5 to 8, T = 4, a warm-up of 20 epochs). The
published code takes the logarithm of a softmax for b, which can be that of 0; here the sums stay logarithms (`losses.decoupled_kl`).
"""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field
from torch import Tensor

from detdistill.losses import decoupled_kl
from detdistill.methods.method import Method, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.rois import require_roi_heads, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState


@dataclass(frozen=True)
class DKDConfig:
    """alpha: weight of label against all else; beta: of the others among themselves. weight: of the whole."""

    alpha: Weight = 1.0
    beta: Weight = 0.25
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    weight: Weight = 1.0


class DKD(Method):
    """See the module's head. Its term: `class`."""

    name = "dkd"
    group = "RoI heads"
    paper = "arXiv:2203.08679"
    reads = "RoI class logits on the student's proposals"
    Config = DKDConfig
    need = Need(classify=True)

    def __init__(self, config: DKDConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared

    @classmethod
    def build(cls, config: DKDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have RoI heads with a softmax and share a class."""
        require_roi_heads(cls.name, student, teacher)
        weighs = config.weight * max(config.alpha, config.beta)
        require(weighs > 0, cls.name, "all its weights are 0", "see the options of methods.dkd")
        return cls(config, SharedClasses.between(cls.name, student, teacher))

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        rows = roi_rows(student_output, teacher_output, targets, self.shared)
        config = self.config
        distances = decoupled_kl(rows.student, rows.teacher, rows.labels, config.alpha, config.beta, config.temperature)
        return {"class": config.weight * rows.mean(distances)}
