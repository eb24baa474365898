"""Two class spaces, mapped by name.

A method that compares classes compares those both detectors know, in the student's order. With sigmoids the other columns are left out:
they are answers to other questions. With softmax the probability of a class only one side knows joins that side's background, so that the
shared classes and the background still add up to one: to the other detector such an object is background.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detdistill.errors import UserError
from detdistill.types import Assignment, DetectorInfo, Predictions, Targets


@dataclass(frozen=True)
class SharedClasses:
    """student, teacher: the column of each shared class on either side. sizes: number of classes of student and teacher."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    sizes: tuple[int, int]

    @classmethod
    def between(cls, method: str, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """Raises UserError where the two share no class."""
        shared = [name for name in student.classes if name in teacher.classes]
        if not shared:
            sides = f"the student knows {_some(student.classes)}, the teacher {_some(teacher.classes)}"
            raise UserError(f"method {method}: no class in common, {sides}; a feature method needs no classes")
        mine, theirs = (tuple(info.classes.index(name) for name in shared) for info in (student, teacher))
        return cls(mine, theirs, (len(student.classes), len(teacher.classes)))

    def of_student(self, predictions: Predictions) -> Predictions:
        """The student's predictions on the shared classes."""
        return select(predictions, self.student, self.sizes[0])

    def of_teacher(self, predictions: Predictions) -> Predictions:
        """The teacher's predictions on the shared classes, in the student's order. Also for what comes out of the teacher's head."""
        return select(predictions, self.teacher, self.sizes[1])

    def labels(self, labels: Tensor) -> Tensor:
        """Labels in the student's order, any shape, to places among the shared classes; -1 where the teacher does not know the class, and
        where the label was negative."""
        return torch.where(labels < 0, -1, self._places.to(labels.device)[labels.clamp(min=0)])

    def targets(self, targets: Targets) -> Targets:
        """The ground truth with the teacher's labels. Every class of the student's must be shared."""
        columns = torch.tensor(self.teacher)
        return replace(
            targets, labels=tuple(columns.to(labels.device)[self.labels(labels)] for labels in targets.labels)
        )

    def assigned(self, assignment: Assignment, targets: Targets) -> Tensor:
        """(B, N): place among the shared classes of the ground truth each prediction answers for; -1 for none, and for a class the teacher
        does not know."""
        matched = assignment.matched
        padded = pad_sequence(list(targets.labels), batch_first=True, padding_value=-1)
        labels = torch.cat([padded, padded.new_full((len(padded), 1), -1)], dim=1)  # the last column is no target's
        return self.labels(labels.gather(1, torch.where(matched < 0, padded.shape[1], matched)))

    @cached_property
    def _places(self) -> Tensor:
        places = torch.full((self.sizes[0],), -1)
        places[list(self.student)] = torch.arange(len(self.student))
        return places


def select(predictions: Predictions, columns: Sequence[int], size: int) -> Predictions:
    """The predictions with these of their `size` class columns; see the module's head for the background. Boxes stay as they are."""
    if list(columns) == list(range(size)):
        return predictions
    index = torch.tensor(list(columns), device=predictions.logits.device)
    others = torch.tensor(
        [column for column in range(size) if column not in columns], device=index.device, dtype=torch.long
    )
    background = predictions.background
    if background is not None:
        background = torch.cat([background[..., None], predictions.logits[..., others]], dim=-1).logsumexp(-1)
    deltas = predictions.deltas
    if deltas is not None and deltas.ndim == 4:  # a code for each class
        deltas = deltas[:, :, index]
    return replace(predictions, logits=predictions.logits[..., index], background=background, deltas=deltas)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
