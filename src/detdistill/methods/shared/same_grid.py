"""Two detectors that predict on the same grid of cells: the check and the predictions that `gid` and `gid_ld` share."""

from dataclasses import dataclass
from typing import Self

from detdistill.methods.method import require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.types import DetectorInfo, DetectorOutput, Need, Predictions, required


@dataclass(frozen=True)
class SameGrid:
    """Two detectors with equal strides and equal anchors per cell.

    classes: the shared classes; None for two RPNs, which have no classes.
    """

    classes: SharedClasses | None

    @classmethod
    def build(cls, method: str, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError if a detector has no dense grid, if only one of them is two-stage, if the grids differ, or
        if two dense detectors share no class."""
        for side, info in (("student", student), ("teacher", teacher)):
            problem = f"the {side} ({info.kind}) has no dense grid of predictions"
            require(info.grid is not None, method, problem, "use a dense or a two-stage detector")
        student_has_rpn, teacher_has_rpn = student.proposals is not None, teacher.proposals is not None
        problem = (
            f"the student is {student.kind}, the teacher {teacher.kind}: an RPN and a dense head can't be compared"
        )
        require(
            student_has_rpn == teacher_has_rpn, method, problem, "use dense detectors or two-stage detectors for both"
        )
        student_anchors = required(student.grid).anchors_per_cell
        teacher_anchors = required(teacher.grid).anchors_per_cell
        problem = f"the student predicts at strides {student.strides} with {student_anchors} anchors per cell"
        problem += f", the teacher at {teacher.strides} with {teacher_anchors}"
        is_same = student.strides == teacher.strides and student_anchors == teacher_anchors
        remedy = "give the student the teacher's grid: the same head and the same --model.strides"
        require(is_same, method, problem, remedy)
        return cls(None if student_has_rpn else SharedClasses.between(method, student, teacher))

    @property
    def need(self) -> Need:
        """The parts of both outputs that are read: the neck and the predictions on the grid.

        For two-stage detectors these come with the proposals; the second stage does not run.
        """
        neck = frozenset({"neck"})
        return Need(pyramids=neck, proposals=True) if self.classes is None else Need(pyramids=neck, predictions=True)

    def predictions(
        self, student_output: DetectorOutput, teacher_output: DetectorOutput
    ) -> tuple[Predictions, Predictions]:
        """Dense (or RPN) predictions of student and teacher, on the shared classes."""
        student, teacher = student_output.stages[0], teacher_output.stages[0]
        if self.classes is None:
            return student, teacher
        return self.classes.of_student(student), self.classes.of_teacher(teacher)
