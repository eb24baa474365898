"""Prediction mimicking: the student's head copies the teacher's predictions. arXiv:2306.11369, section 3.

This is the baseline of CrossKD. The distances are CrossKD's (`methods.shared.predictions`), on the predictions of the
student's own head. No features of one detector enter the head of the other, and no features are aligned. The whole
student head gets the gradient. Ground truth and teacher supervise the same outputs and can contradict each other;
CrossKD avoids this conflict.
"""

from typing import Self

from torch import Tensor

from detdistill.losses import quality_focal
from detdistill.methods.method import Method, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import (
    PredictionConfig,
    box_distance,
    quality_distance,
    require_same_cells,
    unmet_requirement,
    weighted_terms,
)
from detdistill.types import DetectorInfo, DetectorOutput, Need, Targets, TrainState, required


class Mimicking(Method):
    """See the module docstring. Terms: `class`, `box`, `quality`."""

    name = "mimicking"
    group = "dense predictions"
    paper = "arXiv:2306.11369, section 3"
    copies = "the teacher's predictions, with the student's own head"
    requires = "dense heads with the same cells and anchors"
    reads = "dense predictions"
    Config = PredictionConfig

    def __init__(self, config: PredictionConfig, shared: SharedClasses):
        super().__init__()
        self.config, self.shared = config, shared
        self.need = self.student_need = Need(predictions=True)

    @classmethod
    def build(cls, config: PredictionConfig, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError unless both predict in the same cells with the same anchors, and share a class."""
        require_same_cells(cls.name, student, teacher)
        shared = SharedClasses.between(cls.name, student, teacher)
        missing = unmet_requirement(config, student, teacher)
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
        student_predictions = self.shared.of_student(student_output.stages[-1])
        teacher_predictions = self.shared.of_teacher(teacher_output.stages[-1])
        scores = teacher_predictions.scores().detach()  # (B, N, K)
        assignment = required(student_predictions.assignment)
        return weighted_terms(
            self.config,
            scores,
            assignment,
            class_rows=lambda: quality_focal(student_predictions.logits, scores, self.config.beta).sum(-1),  # (B, N)
            box_rows=lambda: box_distance(student_predictions, teacher_predictions, self.config),
            quality=lambda: quality_distance(student_predictions, teacher_predictions, assignment),
        )
