"""DIST: the student's scores need only correlate with the teacher's. Huang et al., NeurIPS 2022, arXiv:2205.10536.

    L = w T^2 [ beta (1 - mean over rows of r) + gamma (1 - mean over classes of r) ],    r: Pearson's, of softmax(z / T)

along a row between the classes, and down a class between the rows of a batch. A two-stage pair: rows are the proposals the student's second
stage learns from, classified by both heads, the background among the classes.

Ours, where the paper is silent. For two dense heads rows are the student's positives, and the softmax is over the classes alone: a sigmoid head
has no background, and rows that are all background would correlate in noise. Weight, T, beta and gamma are those published for ImageNet
(2, 1, 1, 1); for detectors the paper gives results only. The correlation down a class is of the rows of one process, so that N processes are not quite
one big batch.
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
    """weight: of the whole. temperature: T. beta: share of the correlation along rows; gamma: of that down the classes."""

    weight: Weight = 2.0
    temperature: Temperature = 1.0
    beta: Weight = 1.0
    gamma: Weight = 1.0


class DIST(Method):
    """See the module's head. Its term: `relations`."""

    name = "dist"
    group = "RoI heads"
    paper = "arXiv:2205.10536"
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
        """Raises UserError unless both are two-stage, or both dense with the same cells and two shared classes."""
        two_stage = any(info.proposals is not None for info in (student, teacher))
        if two_stage:
            require_roi_heads(cls.name, student, teacher)
        else:
            require_same_cells(cls.name, student, teacher)
        shared = SharedClasses.between(cls.name, student, teacher)
        alone = "a softmax over the one shared class says nothing"
        require(
            two_stage or len(shared.student) > 1,
            cls.name,
            alone,
            "use bckd or mimicking, which teach each class by itself",
        )
        weighs = config.weight * max(config.beta, config.gamma)
        require(weighs > 0, cls.name, "all its weights are 0", "see the options of methods.dist")
        return cls(config, shared, two_stage)

    def forward(
        self,
        student_output: DetectorOutput,
        teacher_output: DetectorOutput,
        targets: Targets,
        state: TrainState = TrainState(),
    ) -> dict[str, Tensor]:
        """See `Method.forward`."""
        guess, taught = self._rows(student_output, teacher_output, targets)
        config = self.config
        return {
            "relations": config.weight * relation_match(guess, taught, config.temperature, config.beta, config.gamma)
        }

    def _rows(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Logits of the student and of the teacher, (n, K), or (n, K + 1) with the background."""
        if self.two_stage:
            rows = roi_rows(student_output, teacher_output, targets, self.shared)
            return rows.student, rows.teacher
        mine, theirs = (
            self.shared.of_student(student_output.stages[-1]),
            self.shared.of_teacher(teacher_output.stages[-1]),
        )
        chosen = self.shared.assigned(required(mine.assignment), targets) >= 0
        return mine.logits[chosen], theirs.logits[chosen]
