"""KD: Hinton's logit distillation on RoI heads. Hinton et al., arXiv:1503.02531.

    L = weight * T^2 * mean over regions of KL(softmax(z_t / T) || softmax(z_s / T)),    over classes and background

z_t and z_s are the logits of teacher and student, T is the temperature. Both heads classify the student's sampled
proposals, each on its own pyramid. The boxes are constants. The paper is about image classifiers. The effect of a
weight depends on the reduction over the columns, which differs in published detection code. Each reduction therefore
has its own default weight and temperature:

- `classes_sum` (the paper's reduction): weight 0.5, T = 3, as in the two-stage branch of CrossKD's code
  (arXiv:2306.11369).
- `classes_mean` (LD's code and code derived from it): weight 10, T = 2, published for one-stage sigmoid heads. It is
  `classes_sum` divided by the number of columns.

Detectors with sigmoid scores, and detectors whose softmax has no background, are refused, because this distance does
not fit them.
"""

from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from detdistill.losses import softmax_kl
from detdistill.methods.method import Method, Temperature, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.rois import require_roi_heads, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState

PUBLISHED = {"classes_sum": (0.5, 3.0), "classes_mean": (10.0, 2.0)}  # weight and temperature


@dataclass(frozen=True)
class KDConfig:
    """Options of KD.

    reduction: over the columns of a region. `classes_sum`: sum, as in the paper; `classes_mean`: mean, as in LD's code.
    weight, temperature: weight of the term, and T; none: the values published with the reduction.
    """

    reduction: Literal["classes_sum", "classes_mean"] = "classes_sum"
    weight: Weight | None = None
    temperature: Temperature | None = None


class KD(Method):
    """See the module docstring. Terms: `class`."""

    name = "kd"
    group = "RoI heads"
    paper = "arXiv:1503.02531"
    copies = "the teacher's class distribution on the student's proposals"
    requires = "RoI heads on both sides"
    reads = "RoI class logits on the student's proposals"
    Config = KDConfig
    need = Need(classify=True)

    def __init__(self, config: KDConfig, shared: SharedClasses):
        super().__init__()
        weight, temperature = PUBLISHED[config.reduction]
        self.config, self.shared = config, shared
        self.weight = weight if config.weight is None else config.weight
        self.temperature = temperature if config.temperature is None else config.temperature

    @classmethod
    def build(cls, config: KDConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both have RoI heads with a softmax, and share a class."""
        remedy = "use faster_rcnn or mask_rcnn for both; for sigmoid scores use mimicking or bckd"
        require_roi_heads(cls.name, student, teacher, remedy)
        require(config.weight != 0, cls.name, "its weight is 0", "set methods.kd.weight")
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
        distances = softmax_kl(rows.student, rows.teacher, self.temperature)  # (n, K + 1) -> (n,)
        if self.config.reduction == "classes_mean":
            distances = distances / rows.student.shape[1]
        return {"class": self.weight * rows.mean(distances)}
