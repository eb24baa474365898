"""Regions of interest: what two RoI heads say of the student's proposals, row by row, and the features of boxes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detdistill.methods.method import require
from detdistill.methods.shared.classes import SharedClasses
from detdistill.types import DetectorInfo, DetectorOutput, Predictions, Pyramid, Targets, present


@dataclass(frozen=True, eq=False)
class Rows:
    """The n regions of a batch that both heads classified, on the shared classes.

    student, teacher (n, K + 1): logits, the background last; no gradient to the teacher's. student_deltas, teacher_deltas (n, K, 4): box
    codes of each class. labels (n,): place among the shared classes of what the region was sampled for, K for background.
    aims (n, 4): box code of the matched ground truth, 0 for background.
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


def require_roi_heads(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raises UserError unless both have a second stage."""
    for side, info in (("student", student), ("teacher", teacher)):
        lacking = f"the {side} ({info.kind}) has no RoI head"
        require("proposals" in info.continuations, method, lacking, "take faster_rcnn or mask_rcnn for both")


def roi_rows(student: DetectorOutput, teacher: DetectorOutput, targets: Targets, shared: SharedClasses) -> Rows:
    """Both heads, each on its own pyramid, on the proposals that the student's loss was computed on."""
    boxes = present(student.proposals).boxes
    with torch.no_grad():
        taught = present(teacher.proposals).classify(boxes)
    return paired_rows(student.stages[-1], taught, student, targets, shared)


def crossed_rows(student: DetectorOutput, teacher: DetectorOutput, pyramid: Pyramid, targets: Targets, shared: SharedClasses) -> Rows:
    """The teacher's head twice: on `pyramid`, made of the student's levels (in the place of the student), and on its own."""
    boxes, classify = present(student.proposals).boxes, present(teacher.proposals).classify
    with torch.no_grad():
        taught = classify(boxes)
    guess = shared.of_teacher(classify(boxes, pyramid))
    return paired_rows(guess, taught, student, targets, shared, guess_is_shared=True)


def paired_rows(
    guess: Predictions, taught: Predictions, student: DetectorOutput, targets: Targets, shared: SharedClasses, guess_is_shared: bool = False
) -> Rows:
    """guess, taught: (B, P, ...) of the student's proposals; rows that either head left out (no area) are left out."""
    assignment = present(student.stages[-1].assignment)
    guess = guess if guess_is_shared else shared.of_student(guess)
    taught = shared.of_teacher(taught)
    kept = assignment.valid & guess.valid & taught.valid
    classes = guess.logits.shape[-1]
    labels = torch.full_like(assignment.matched, -1)
    for image, own in enumerate(targets.labels):
        matched = assignment.matched[image]
        labels[image, matched >= 0] = own[matched[matched >= 0]]
    labels = shared.labels(labels)[kept]
    return Rows(
        student=_with_background(guess)[kept],
        teacher=_with_background(taught)[kept].detach(),
        student_deltas=present(guess.deltas)[kept],
        teacher_deltas=present(taught.deltas)[kept].detach(),
        labels=torch.where(labels < 0, classes, labels),
        aims=present(assignment.deltas)[kept],
    )


def _with_background(predictions: Predictions) -> Tensor:
    """(B, P, K + 1)."""
    return torch.cat([predictions.logits, present(predictions.background)[..., None]], dim=-1)
