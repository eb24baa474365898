"""The objective: task terms of the student and terms of the methods, in one module for any training loop."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any, cast

import torch
from torch import Tensor, nn

from detdistill.distributed import sum_over_processes
from detdistill.engine.balance import Balance
from detdistill.engine.gradients import neck_norms, shares, sum_of
from detdistill.engine.schedule import Schedule
from detdistill.methods import Method
from detdistill.types import Batch, Detector, DetectorOutput, Need, Targets, TrainState

Terms = dict[str, Tensor]


class Distillation(nn.Module):
    """A student and the methods that teach it. The teacher is not in here: it comes with each call, as its lesson.

    need: what the lesson must hold: `teacher.observe(batch, need=distillation.need)`, under no_grad, never inference_mode. scaler: torch's
    GradScaler where a loop has one, so that gradients are measured at its scale. ratios, gradients: what the last call with `measure` found, see
    `forward`.
    """

    def __init__(
        self,
        student: Detector,
        methods: Sequence[Method] = (),
        schedules: Mapping[str, Schedule] | None = None,
        balance_every: int = 10,
    ):
        """schedules: of a method's weight, by its name; one that isn't there stays as it is. balance_every: steps between two measurements of
        gradients, where a schedule has a `balance`."""
        super().__init__()
        names = [method.name for method in methods]
        if len(set(names)) < len(names):
            raise ValueError(f"each method once, got {names}")
        if strange := set(schedules or ()) - set(names):
            raise ValueError(
                f"schedules of {', '.join(sorted(strange))}, and the methods are {', '.join(names) or 'none'}"
            )
        self.student = student
        self.methods = nn.ModuleList(methods)
        self.schedules = {name: (schedules or {}).get(name, Schedule()) for name in names}
        targets = {name: schedule.balance for name, schedule in self.schedules.items()}
        self.balances = nn.ModuleDict(
            {name: Balance(name, target) for name, target in targets.items() if target is not None}
        )
        self.balance_every = balance_every
        self.need, self.student_need = _needs(methods)
        self.scaler: Any | None = None
        self.ratios: dict[str, float] = {}
        self.gradients: dict[str, float] = {}

    def need_at(self, state: TrainState) -> Need | None:
        """What the lesson must hold by now; None where all methods are silent, and no lesson is needed."""
        speaking = self.active(state)
        return _needs(speaking)[0] if speaking else None

    def active(self, state: TrainState) -> list[Method]:
        """The methods that have not stopped."""
        return [
            method for method in cast(Iterable[Method], self.methods) if not self.schedules[method.name].inactive(state)
        ]

    def forward(
        self,
        batch: Batch,
        targets: Targets,
        teacher_output: DetectorOutput | None = None,
        state: TrainState = TrainState(),
        measure: bool = False,
    ) -> Terms:
        """Terms (), weighted: `task_<name>` and `<method>_<part>`. Their plain sum is the objective.

        measure: leave the norm of every term's gradient at the neck in `gradients`, as `gradient_<term>` and its share of their sum as
        `share_<term>`, and in `ratios` that of each method's sum to the task's, as `ratio_<method>`. It costs a backward pass through
        the head for each, and changes nothing else.
        """
        speaking = self.active(state)
        if speaking and teacher_output is None:
            raise ValueError("methods need a lesson: teacher.observe(batch, need=distillation.need)")
        output = self.student.observe(batch, targets, need=_needs(speaking)[1])
        neck = output.pyramids["neck"].levels
        terms = {f"task_{name}": term for name, term in output.losses.items()}
        state = state if state.ids is not None else replace(state, ids=batch.ids)
        taught = {
            method.name: {
                f"{method.name}_{part}": term for part, term in method(output, teacher_output, targets, state).items()
            }
            for method in speaking
        }
        if self.training and torch.is_grad_enabled():
            self._balance(terms, self._due(taught, state), neck, targets)
        for name, parts in taught.items():
            factor: float | Tensor = self.schedules[name].factor(state)
            if name in self.balances:
                factor = (
                    factor * cast(Balance, self.balances[name]).factor
                )  # a tensor of its own: the buffer will change in place
            taught[name] = {part: factor * term for part, term in parts.items()}
        if measure:
            self._measure(terms, taught, neck)
        return reduce(or_, taught.values(), terms)

    def factors(self) -> dict[str, float]:
        """What balance multiplies each method's terms by: `balance_<method>`."""
        return {f"balance_{name}": cast(Balance, balance).factor.item() for name, balance in self.balances.items()}

    def _due(self, taught: Mapping[str, Terms], state: TrainState) -> dict[str, Terms]:
        """The terms of the balanced methods whose turn it is: at every `balance_every`th step, and until a first measurement succeeds."""
        turn = state.step % self.balance_every == 0
        return {
            name: taught[name]
            for name in self.balances
            if name in taught and (turn or cast(Balance, self.balances[name]).waiting())
        }

    def _balance(self, task: Terms, taught: Mapping[str, Terms], neck: Sequence[Tensor], targets: Targets) -> None:
        """Measure the gradients of the task and of these methods, and move their factors."""
        balanced = {name: sum_of(parts) for name, parts in taught.items()}
        if not balanced:
            return
        pull = sum_of(task)
        norms = neck_norms({"task": pull, **balanced}, neck, self.scaler)
        objects, _ = sum_over_processes(pull.new_tensor(sum(len(labels) for labels in targets.labels)))
        for name in balanced:
            cast(Balance, self.balances[name]).update(norms[name], norms["task"], objects=objects.item() > 0)

    def _measure(self, task: Terms, taught: Mapping[str, Terms], neck: Sequence[Tensor]) -> None:
        """See `forward`."""
        norms = neck_norms(reduce(or_, taught.values(), task), neck, self.scaler)
        sums = neck_norms(
            {"": sum_of(task), **{name: sum_of(parts) for name, parts in taught.items()}}, neck, self.scaler
        )
        whole = sums.pop("")
        self.ratios = {f"ratio_{name}": norm / whole if whole else 0.0 for name, norm in sums.items()}
        self.gradients = {f"gradient_{name}": norm for name, norm in norms.items()}
        self.gradients |= {f"share_{name}": share for name, share in shares(norms).items()}


def _needs(methods: Iterable[Method]) -> tuple[Need, Need]:
    """Of the teacher's output and of the student's."""
    methods = list(methods)
    return reduce(or_, (method.need for method in methods), Need()), reduce(
        or_, (method.student_need for method in methods), Need()
    )
