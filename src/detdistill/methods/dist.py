"""DIST: the student's scores only have to correlate with the teacher's. Huang et al., NeurIPS 2022, arXiv:2205.10536.

    L = w T^2 [ beta (1 - mean over rows of r) + gamma (1 - mean over classes of r) ]

r is the Pearson correlation of softmax(z / T) of student and teacher. The first correlation is computed for each row,
over the classes. The second is computed for each class, over the rows of a batch. For two-stage pairs the rows are the
proposals of the student's second-stage loss, classified by both heads, and the background is one of the classes.

The paper gives no details for detectors, so these choices are ours. For two dense heads the rows are the student's
positives and the softmax is over the classes only, because a sigmoid head has no background. Rows of the background are
left out, because their correlation would be noise. Weight, T, beta and gamma are the values published for ImageNet
(2, 1, 1, 1); for detectors the paper gives results only. The correlation for a class uses the rows of one process, so N
processes do not give exactly the result of one large batch.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from detdistill.losses import relation_match
from detdistill.methods.method import Method, Temperature, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import require_same_cells
from detdistill.methods.shared.rois import require_roi_heads, roi_rows
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState, required


@dataclass(frozen=True)
class DISTConfig:
    """Options of DIST.

    weight: weight of the term.
    temperature: T.
    beta: weight of the part whose correlation is over the classes, for each row.
    gamma: weight of the part whose correlation is over the rows, for each class.
    """

    weight: Weight = 2.0
    temperature: Temperature = 1.0
    beta: Weight = 1.0
    gamma: Weight = 1.0


class DIST(Method):
    """See the module docstring. Terms: `relations`."""

    name = "dist"
    group = "RoI heads"
    paper = "arXiv:2205.10536"
    copies = "how the teacher's class scores relate to each other"
    requires = "RoI heads on both sides, or dense heads with the same cells and anchors"
    reads = "class scores of sampled proposals, or of a dense head's positives"
    gain = "RetinaNet R50 37.4 to 39.8 (RetinaNet X101)"
    Config = DISTConfig

    def __init__(self, config: DISTConfig, shared: SharedClasses, two_stage: bool):
        super().__init__()
        self.config, self.shared, self.two_stage = config, shared, two_stage
        self.need = Need(classify=True) if two_stage else Need(predictions=True)
        self.student_need = Need(proposals=True) if two_stage else Need(predictions=True)

    @classmethod
    def build(cls, config: DISTConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both are two-stage detectors that share a class, or both are dense detectors with the
        same cells that share two classes. Also raises it if all weights are 0."""
        two_stage = student.proposals is not None or teacher.proposals is not None
        if two_stage:
            require_roi_heads(cls.name, student, teacher)
        else:
            require_same_cells(cls.name, student, teacher)
        shared = SharedClasses.between(cls.name, student, teacher)
        enough_classes = two_stage or len(shared.student) > 1
        single = "a softmax over the one shared class is always 1"
        require(enough_classes, cls.name, single, "use bckd or mimicking, which distill each class by itself")
        largest_weight = config.weight * max(config.beta, config.gamma)
        require(largest_weight > 0, cls.name, "all its weights are 0", "see the options of methods.dist")
        return cls(config, shared, two_stage)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        config = self.config
        student_logits, teacher_logits = self._logits(student_output, teacher_output, targets)
        distance = relation_match(student_logits, teacher_logits, config.temperature, config.beta, config.gamma)
        return {"relations": config.weight * distance}

    def _logits(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Logits of student and teacher: (n, K + 1) with the background for two stages, (n, K) for dense heads."""
        if self.two_stage:
            rows = roi_rows(student_output, teacher_output, targets, self.shared)
            return rows.student, rows.teacher
        student_predictions = self.shared.of_student(student_output.stages[-1])
        teacher_predictions = self.shared.of_teacher(teacher_output.stages[-1])
        chosen = self.shared.assigned(required(student_predictions.assignment), targets) >= 0  # (B, N)
        return student_predictions.logits[chosen], teacher_predictions.logits[chosen]  # (B, N, K) -> (n, K)
