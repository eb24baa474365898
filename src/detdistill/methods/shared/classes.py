"""The classes that student and teacher share, matched by name.

Methods that compare classes compare only the shared classes, in the student's order. With sigmoid scores the other
columns are left out, because sigmoid classes are independent of each other. With softmax scores the probability of a
class that only one detector has is added to the background of that detector, so that the shared classes and the
background still sum to one. For the other detector, an object of such a class is background.
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
    """The columns of the shared classes in the outputs of student and teacher.

    student: column of each shared class in the student's logits.
    teacher: column of each shared class in the teacher's logits.
    sizes: number of classes of student and teacher.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    sizes: tuple[int, int]

    @classmethod
    def between(cls, method: str, student: DetectorInfo, teacher: DetectorInfo) -> Self:
        """The shared classes of two detectors. Raises UserError if there are none."""
        shared = [name for name in student.classes if name in teacher.classes]
        if not shared:
            classes = f"the student has {_first(student.classes)}, the teacher {_first(teacher.classes)}"
            remedy = "rename the classes, or use a method on features, such as pkd"
            raise UserError(f"method {method}: no class in common, {classes}; {remedy}")
        student_columns = tuple(student.classes.index(name) for name in shared)
        teacher_columns = tuple(teacher.classes.index(name) for name in shared)
        return cls(student_columns, teacher_columns, (len(student.classes), len(teacher.classes)))

    def of_student(self, predictions: Predictions) -> Predictions:
        """The student's predictions on the shared classes."""
        return select(predictions, self.student, self.sizes[0])

    def of_teacher(self, predictions: Predictions) -> Predictions:
        """Predictions of the teacher's head on the shared classes, in the student's order."""
        return select(predictions, self.teacher, self.sizes[1])

    def labels(self, labels: Tensor) -> Tensor:
        """The index among the shared classes of labels in the student's order, of any shape.

        -1 if the teacher does not have the class or the label is negative.
        """
        return torch.where(labels < 0, -1, self._shared_index.to(labels.device)[labels.clamp(min=0)])

    def targets(self, targets: Targets) -> Targets:
        """The ground truth with the teacher's labels. Every class of the student must be shared."""
        columns = torch.tensor(self.teacher)
        return replace(
            targets, labels=tuple(columns.to(labels.device)[self.labels(labels)] for labels in targets.labels)
        )

    def assigned(self, assignment: Assignment, targets: Targets) -> Tensor:
        """The class of the ground truth that each prediction is matched with, (B, N): an index among shared classes.

        -1 if the prediction is not matched, or the teacher does not have the class.
        """
        matched = assignment.matched  # (B, N)
        labels = pad_sequence(list(targets.labels), batch_first=True, padding_value=-1)  # (B, G), G the largest count
        unmatched_column = labels.shape[1]
        labels = torch.cat([labels, labels.new_full((len(labels), 1), -1)], dim=1)  # (B, G) -> (B, G + 1)
        columns = torch.where(matched < 0, unmatched_column, matched)  # (B, N)
        return self.labels(labels.gather(1, columns))  # (B, G + 1) -> (B, N)

    @cached_property
    def _shared_index(self) -> Tensor:
        """The index among the shared classes of each class of the student, or -1; (K,)."""
        index = torch.full((self.sizes[0],), -1)
        index[list(self.student)] = torch.arange(len(self.student))
        return index


def select(predictions: Predictions, columns: Sequence[int], size: int) -> Predictions:
    """The predictions with only these of their `size` class columns, in this order. Boxes are unchanged.

    The probability of the other columns is added to the background if there is one. Returns the input if nothing
    changes.
    """
    if list(columns) == list(range(size)):
        return predictions
    index = torch.tensor(list(columns), device=predictions.logits.device)
    dropped = [column for column in range(size) if column not in columns]
    dropped_index = torch.tensor(dropped, device=index.device, dtype=torch.long)
    background = predictions.background
    if background is not None:
        dropped_logits = predictions.logits[..., dropped_index]  # (B, N, K) -> (B, N, dropped)
        background = torch.cat([background[..., None], dropped_logits], dim=-1).logsumexp(-1)  # (B, N)
    deltas = predictions.deltas
    if deltas is not None and deltas.ndim == 4:  # one box code per class
        deltas = deltas[:, :, index]  # (B, N, K, 4) -> (B, N, shared, 4)
    return replace(predictions, logits=predictions.logits[..., index], background=background, deltas=deltas)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
