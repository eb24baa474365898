"""The objective: task terms of the student and terms of the methods, in one module for any training loop."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_

from torch import Tensor, nn

from detdistill.detectors.protocol import Detector
from detdistill.methods import Method
from detdistill.types import Batch, DetectorOutput, Moment, Need, Targets


class Distillation(nn.Module):
    """A student and the methods that teach it. The teacher is not in here: it comes with each call, as its lesson.

    need: what the lesson must hold: `teacher.observe(batch, need=distillation.need)`, under no_grad, never inference_mode.
    """

    def __init__(self, student: Detector, methods: Sequence[Method] = (), warmup_steps: int = 0):
        """warmup_steps: the methods' terms rise linearly from 0 over so many steps."""
        super().__init__()
        names = [method.name for method in methods]
        if len(set(names)) < len(names):
            raise ValueError(f"each method once, got {names}")
        self.student = student
        self.methods = nn.ModuleList(methods)
        self.warmup_steps = warmup_steps
        self.need = reduce(or_, (method.need for method in methods), Need())
        self.student_need = reduce(or_, (method.student_need for method in methods), Need())

    def forward(self, batch: Batch, targets: Targets, lesson: DetectorOutput | None = None, moment: Moment = Moment()) -> dict[str, Tensor]:
        """Terms (), weighted: `task_<name>` and `<method>_<part>`. Their plain sum is the objective."""
        if self.methods and lesson is None:
            raise ValueError("methods need a lesson: teacher.observe(batch, need=distillation.need)")
        output = self.student.observe(batch, targets, need=self.student_need)
        terms = {f"task_{name}": term for name, term in output.losses.items()}
        share = min(1.0, moment.step / self.warmup_steps) if self.warmup_steps else 1.0
        moment = moment if moment.ids is not None else replace(moment, ids=batch.ids)
        for method in self.methods:
            parts = method(output, lesson, targets, moment)
            terms |= {f"{method.name}_{part}": share * term for part, term in parts.items()}
        return terms
