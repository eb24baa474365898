"""Regions of interest: what two RoI heads say of the student's proposals, row by row, and the distances between the two.

    class   T^2 KL(softmax(z / T) || softmax(z' / T)),  mean over the n regions
    box     sum of u |d' - d|_1 / (4 sum of u),  d the codes of the teacher's likeliest class, u its probability (T = 1)

z', d' are the guess, z, d the teacher's; the softmax runs over classes and background, and the likeliest class is never the background, which has
no code. Both as in the two-stage branch of CrossKD's published code (arXiv:2306.11369), T = 3 and a class weight of 0.5 with them.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses import softmax_kl
from detdistill.methods.method import Weight, require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.types import DetectorInfo, DetectorOutput, Predictions, Pyramid, Targets, required


@dataclass(frozen=True)
class RoIConfig:
    """weight_class, weight_box: of the two terms; a term of weight 0 is not computed. temperature: of the class term. The box weight is ours."""

    weight_class: Weight = 0.5
    weight_box: Weight = 1.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0


@dataclass(frozen=True, eq=False)
class Rows:
    """The n regions of a batch that both heads classified, on the shared classes.

    student, teacher (n, K + 1): logits, the background last; no gradient to the teacher's. student_deltas, teacher_deltas (n, K, 4): box
    codes of each class. labels (n,): place among the shared classes of what the region was sampled for, K for background and for classes
    that the teacher doesn't know. aims (n, 4): box code of the matched ground truth, 0 where the label is K.
    """

    student: Tensor
    teacher: Tensor
    student_deltas: Tensor
    teacher_deltas: Tensor
    labels: Tensor
    aims: Tensor

    @property
    def foreground(self) -> Tensor:
        """(n,) bool."""
        return self.labels < self.student.shape[1] - 1

    def mean(self, values: Tensor) -> Tensor:
        """(): the sum of any values of the rows by the number of rows, which is averaged over processes and at least 1."""
        return values.sum() / mean_over_processes(values.new_tensor(float(len(self.labels))))


def require_roi_heads(
    method: str, student: DetectorInfo, teacher: DetectorInfo, remedy: str = "take faster_rcnn or mask_rcnn for both"
) -> None:
    """Raises UserError unless both have a second stage with a softmax over classes and background."""
    for side, info in (("student", student), ("teacher", teacher)):
        require(info.proposals is not None, method, f"the {side} ({info.kind}) has no RoI head", remedy)
        require(
            info.activation == "softmax", method, f"the {side} ({info.kind}) has no softmax over its classes", remedy
        )


def require_one_code(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError unless box codes of the two RoI heads mean the same."""
    mine, theirs = required(student.proposals).code, required(teacher.proposals).code
    codes = f"the RoI heads' box codes are weighted by {mine} (student) and {theirs} (teacher)"
    remedy = "they are compared number by number, so build both with the same bbox_reg_weights"
    require(mine == theirs, method, codes, remedy)


def require_terms(method: str, config: RoIConfig, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError where `roi_terms` has nothing to compute, or codes that can't be compared."""
    require(
        bool(config.weight_class or config.weight_box),
        method,
        "all its weights are 0",
        f"see the options of methods.{method}",
    )
    if config.weight_box:
        require_one_code(method, student, teacher)


def roi_terms(rows: Rows, config: RoIConfig) -> dict[str, Tensor]:
    """The terms `class` and `box` of the module's head, weighted, (). Sums are averaged over processes and at least 1."""
    terms = {}
    if config.weight_class:
        terms["class"] = config.weight_class * rows.mean(softmax_kl(rows.student, rows.teacher, config.temperature))
    if config.weight_box:
        trust, top = rows.teacher.softmax(-1)[:, :-1].max(-1)
        place = torch.arange(len(top), device=top.device), top
        gaps = (rows.student_deltas[place] - rows.teacher_deltas[place]).abs().sum(-1)
        terms["box"] = config.weight_box * (trust * gaps).sum() / (4 * mean_over_processes(trust.sum()))
    return terms


def roi_rows(
    student_output: DetectorOutput, teacher_output: DetectorOutput, targets: Targets, shared: SharedClasses
) -> Rows:
    """Both heads, each on its own pyramid, on the proposals that the student's loss was computed on."""
    taught = _taught(student_output, teacher_output, shared)
    return paired_rows(shared.of_student(student_output.stages[-1]), taught, student_output, targets, shared)


def crossed_rows(
    student_output: DetectorOutput,
    teacher_output: DetectorOutput,
    pyramid: Pyramid,
    targets: Targets,
    shared: SharedClasses,
) -> Rows:
    """The teacher's head twice: on `pyramid`, made of the student's levels (in the place of the student), and on its own."""
    guess = required(teacher_output.proposals).classify(required(student_output.proposals).boxes, pyramid)
    return paired_rows(
        shared.of_teacher(guess), _taught(student_output, teacher_output, shared), student_output, targets, shared
    )


def _taught(student_output: DetectorOutput, teacher_output: DetectorOutput, shared: SharedClasses) -> Predictions:
    """(B, P, ...): the teacher's head on its own pyramid, of the student's proposals."""
    with torch.no_grad():
        return shared.of_teacher(required(teacher_output.proposals).classify(required(student_output.proposals).boxes))


def paired_rows(
    guess: Predictions, taught: Predictions, student_output: DetectorOutput, targets: Targets, shared: SharedClasses
) -> Rows:
    """guess, taught: (B, P, ...) of the student's proposals on the shared classes. Rows that either head left out (no area) are left out."""
    assignment = required(student_output.stages[-1].assignment)
    kept = assignment.valid & guess.valid & taught.valid
    labels = shared.assigned(assignment, targets)[kept]
    return Rows(
        student=_with_background(guess)[kept],
        teacher=_with_background(taught)[kept].detach(),
        student_deltas=required(guess.deltas)[kept],
        teacher_deltas=required(taught.deltas)[kept].detach(),
        labels=torch.where(labels < 0, guess.logits.shape[-1], labels),
        aims=required(assignment.deltas)[kept].masked_fill((labels < 0)[:, None], 0.0),
    )


def _with_background(predictions: Predictions) -> Tensor:
    """(B, P, K + 1)."""
    return torch.cat([predictions.logits, required(predictions.background)[..., None]], dim=-1)
