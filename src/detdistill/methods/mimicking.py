"""Prediction mimicking: the student's own head copies the teacher's predictions, the baseline of CrossKD (arXiv:2306.11369, section 3).

The distances are CrossKD's (`methods.shared.predictions`), on the student's own predictions: nothing crosses heads, nothing is aligned, and the whole
student head gets the gradient. Ground truth and teacher pull at the same outputs, which is the conflict CrossKD avoids.
"""

from typing import Self

from torch import Tensor

from detdistill.methods.method import Method, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import PredictionConfig, prediction_terms, require_same_cells, unmet
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState, required


class Mimicking(Method):
    """See the module's head. Its terms: `class`, `box`, `quality`."""

    name = "mimicking"
    group = "dense predictions"
    paper = "arXiv:2306.11369, section 3"
    reads = "dense predictions"
    Config = PredictionConfig

    def __init__(self, config: PredictionConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared
        self.need = self.student_need = Need(predictions=True)

    @classmethod
    def build(cls, config: PredictionConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both predict the same classes in the same cells with the same anchors."""
        require_same_cells(cls.name, student, teacher)
        shared = SharedClasses.between(cls.name, student, teacher)
        missing = unmet(config, student, teacher)
        require(not missing, cls.name, missing, "see the options of methods.mimicking")
        return cls(config, shared)

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
        return prediction_terms(mine, theirs, required(mine.assignment), self.config)
