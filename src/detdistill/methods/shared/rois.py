"""Predictions of two RoI heads on the student's proposals, row by row, and the distances between them.

    class   T^2 KL(softmax(z / T) || softmax(z' / T)),    mean over the n regions
    box     sum of u |d' - d|_1 / (4 sum of u)

z' are the class logits and d' the box code of the student (or of the teacher's head on the student's pyramid); z and d
are the teacher's. The softmax is over the classes and the background, with temperature T. d and d' are the box codes of
the teacher's most probable class, and u is the probability of that class at T = 1. The background is not a candidate,
because it has no box code.

Source: the two-stage branch of CrossKD's published code (arXiv:2306.11369), with T = 3 and a class weight of 0.5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses import softmax_kl
from detdistill.methods.method import Temperature, Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.types import DetectorInfo, DetectorOutput, Predictions, Pyramid, Targets, required


@dataclass(frozen=True)
class RoIConfig:
    """Options of the two terms. A term of weight 0 is not computed.

    weight_class, weight_box: weights of the two terms. The weight of the box term is ours; no value was published.
    temperature: temperature of the class term.
    """

    weight_class: Weight = 0.5
    weight_box: Weight = 1.0
    temperature: Temperature = 3.0


@dataclass(frozen=True, eq=False)
class Rows:
    """The n regions of a batch that both heads classified, on the K shared classes. The teacher's tensors are detached.

    student, teacher: class logits (n, K + 1), the background last.
    student_deltas, teacher_deltas: box codes of each class (n, K, 4).
    labels: index among the shared classes of the region's ground truth (n,); K for background and for classes that the
        teacher does not have.
    target_deltas: box codes of the matched ground truth (n, 4); 0 if the label is K.
    """

    student: Tensor
    teacher: Tensor
    student_deltas: Tensor
    teacher_deltas: Tensor
    labels: Tensor
    target_deltas: Tensor

    @property
    def foreground(self) -> Tensor:
        """True for regions with a ground truth of a shared class, (n,)."""
        return self.labels < self.student.shape[1] - 1

    def mean(self, values: Tensor) -> Tensor:
        """The sum of `values` (any shape) divided by the number of rows, ().

        The number of rows is averaged over processes and at least 1.
        """
        return values.sum() / mean_over_processes(values.new_tensor(float(len(self.labels))))


def require_roi_heads(
    method: str, student: DetectorInfo, teacher: DetectorInfo, remedy: str = "use faster_rcnn or mask_rcnn for both"
) -> None:
    """Raises UserError unless both detectors have an RoI head with a softmax over classes and background."""
    for side, info in (("student", student), ("teacher", teacher)):
        require(info.proposals is not None, method, f"the {side} ({info.kind}) has no RoI head", remedy)
        has_softmax = info.activation == "softmax"
        require(has_softmax, method, f"the {side} ({info.kind}) has no softmax over its classes", remedy)


def require_same_code(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError unless the box codes of the two RoI heads have the same weights."""
    student_code, teacher_code = required(student.proposals).code, required(teacher.proposals).code
    codes = f"the RoI heads' box codes are weighted by {student_code} (student) and {teacher_code} (teacher)"
    remedy = "they are compared number by number, so build both with the same bbox_reg_weights"
    require(student_code == teacher_code, method, codes, remedy)


def require_roi_terms(method: str, config: RoIConfig, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError if both weights are 0, or if the box term compares codes of different weights."""
    has_terms = bool(config.weight_class or config.weight_box)
    require(has_terms, method, "all its weights are 0", f"see the options of methods.{method}")
    if config.weight_box:
        require_same_code(method, student, teacher)


def roi_terms(rows: Rows, config: RoIConfig) -> dict[str, Tensor]:
    """The terms `class` and `box` of the module docstring, weighted, each ().

    Divisors are averaged over processes and at least 1.
    """
    terms = {}
    if config.weight_class:
        terms["class"] = config.weight_class * rows.mean(softmax_kl(rows.student, rows.teacher, config.temperature))
    if config.weight_box:
        trust, top_class = rows.teacher.softmax(-1)[:, :-1].max(-1)  # (n, K) -> (n,), (n,)
        top = torch.arange(len(top_class), device=top_class.device), top_class
        distances = (rows.student_deltas[top] - rows.teacher_deltas[top]).abs().sum(-1)  # (n, K, 4) -> (n, 4) -> (n,)
        terms["box"] = config.weight_box * (trust * distances).sum() / (4 * mean_over_processes(trust.sum()))
    return terms


def roi_rows(
    student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets, shared: SharedClasses
) -> Rows:
    """The rows of both heads, each on its own pyramid, on the proposals of the student's task loss."""
    student_predictions = shared.of_student(student_output.stages[-1])
    teacher_predictions = _teacher_predictions(student_output, teacher_output, shared)
    return paired_rows(student_predictions, teacher_predictions, student_output, targets, shared)


def crossed_rows(
    student_output: DetectorOutput,
    teacher_output: DetectorOutput,
    pyramid: Pyramid,
    targets: Targets,
    shared: SharedClasses,
) -> Rows:
    """The rows of the teacher's head on two pyramids: `pyramid` and its own.

    `pyramid` is made of the student's levels. The predictions on it take the place of the student's predictions.
    """
    crossed = required(teacher_output.proposals).classify(required(student_output.proposals).boxes, pyramid)
    teacher_predictions = _teacher_predictions(student_output, teacher_output, shared)
    return paired_rows(shared.of_teacher(crossed), teacher_predictions, student_output, targets, shared)


def _teacher_predictions(
    student_output: DetectorOutput, teacher_output: DetectorOutput, shared: SharedClasses
) -> Predictions:
    """Predictions (B, P, ...) of the teacher's head on its own pyramid, for the student's proposals, under no_grad."""
    with torch.no_grad():
        return shared.of_teacher(required(teacher_output.proposals).classify(required(student_output.proposals).boxes))


def paired_rows(
    student_predictions: Predictions,
    teacher_predictions: Predictions,
    student_output: DetectorOutput,
    targets: Targets,
    shared: SharedClasses,
) -> Rows:
    """The rows of predictions (B, P, ...) for the student's proposals on the shared classes.

    A row is left out if it takes no part in the student's task loss or is not valid for one of the heads (a box without
    area).
    """
    assignment = required(student_output.stages[-1].assignment)
    kept = assignment.valid & student_predictions.valid & teacher_predictions.valid  # (B, P)
    labels = shared.assigned(assignment, targets)[kept]  # (B, P) -> (n,)
    return Rows(
        student=_with_background(student_predictions)[kept],
        teacher=_with_background(teacher_predictions)[kept].detach(),
        student_deltas=required(student_predictions.deltas)[kept],
        teacher_deltas=required(teacher_predictions.deltas)[kept].detach(),
        labels=torch.where(labels < 0, student_predictions.logits.shape[-1], labels),
        target_deltas=required(assignment.deltas)[kept].masked_fill((labels < 0)[:, None], 0.0),
    )


def _with_background(predictions: Predictions) -> Tensor:
    """The logits with the background as last column, (B, P, K + 1)."""
    return torch.cat([predictions.logits, required(predictions.background)[..., None]], dim=-1)
