"""The objective: the task terms of the student and the terms of the methods, in one module for any training loop."""

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
from detdistill.errors import UserError
from detdistill.methods import METHODS, Method
from detdistill.methods.method import problems
from detdistill.types import Batch, Detector, DetectorOutput, Need, Targets, TrainState

Terms = dict[str, Tensor]


class Distillation(nn.Module):
    """A student and the methods that teach it. The teacher is not part of the module: its output comes with each call.

    need: what `teacher_output` must hold: `teacher.observe(batch, need=distillation.need)`, under no_grad, never under
    inference_mode. scaler: torch's GradScaler if the training loop has one, so that gradients are measured at its
    scale. ratios, gradients: results of the last call with `measure`; see `forward`. rehearsing: True while a call does
    not count, so that balances measure but do not change (`engine.step`).
    """

    def __init__(
        self,
        student: Detector,
        methods: Sequence[Method] = (),
        schedules: Mapping[str, Schedule] | None = None,
        balance_every: int = 10,
    ):
        """schedules: schedule of each method's weight, by the method's name; without a schedule the weight is constant.
        balance_every: number of steps between two measurements of gradients, for schedules with a `balance`. Raises
        TypeError if an entry of `methods` is not a method, and ValueError if a method is given twice or a schedule has
        no method.
        """
        super().__init__()
        for method in methods:
            if not isinstance(method, Method):
                faults = "; ".join(problems(type(method)))
                raise TypeError(f"{type(method).__name__} is not a method: {faults}")
        names = [method.name for method in methods]
        if len(set(names)) < len(names):
            raise ValueError(f"each method can be given once, got {', '.join(names)}")
        if unknown := set(schedules or ()) - set(names):
            chosen = ", ".join(names) or "none"
            raise ValueError(f"there are schedules for {', '.join(sorted(unknown))}, but the methods are {chosen}")
        self.student = student
        self.methods = nn.ModuleList(methods)
        self.schedules = {name: (schedules or {}).get(name, Schedule()) for name in names}
        targets = {name: schedule.balance for name, schedule in self.schedules.items()}
        balances = {name: Balance(name, target) for name, target in targets.items() if target is not None}
        self.balances = nn.ModuleDict(balances)
        self.balance_every = balance_every
        self.need, self.student_need = _needs(methods)
        self.scaler: Any | None = None
        self.rehearsing = False
        self.ratios: dict[str, float] = {}
        self.gradients: dict[str, float] = {}

    def active(self, state: TrainState) -> list[Method]:
        """The methods whose schedule has not stopped them at this step."""
        methods = cast(Iterable[Method], self.methods)
        return [method for method in methods if not self.schedules[method.name].inactive(state)]

    def need_at(self, state: TrainState) -> Need | None:
        """What `teacher_output` must hold at this step; None if no method is active, so that no teacher output is
        needed.
        """
        active = self.active(state)
        return _needs(active)[0] if active else None

    def due(self, state: TrainState) -> list[str]:
        """The balanced methods that are measured at this step: every `balance_every` steps, and until the first
        measurement succeeds.
        """
        regular = state.step % self.balance_every == 0
        names = [method.name for method in self.active(state) if method.name in self.balances]
        return [name for name in names if regular or cast(Balance, self.balances[name]).waiting()]

    def forward(
        self,
        batch: Batch,
        targets: Targets | None,
        teacher_output: DetectorOutput | None = None,
        state: TrainState = TrainState(),
        measure: bool = False,
        student_output: DetectorOutput | None = None,
    ) -> Terms:
        """Weighted scalar terms, named `task_<name>` and `<method>_<part>`. The objective is their plain sum.

        targets: None for a batch without labels. A detector then computes no task losses, and only methods that read
        no targets (`Method.unlabeled`) may be active. student_output: the student's output for this batch if the
        training loop has computed it (see `FeatureModel.output`); its `losses` are the task terms. Not for
        DistributedDataParallel, which must run the student itself.
        measure: also measure gradients at the student's neck. `gradients` then holds the norm of every term's gradient
        as `gradient_<term>` and its share of the sum of norms as `share_<term>`; `ratios` holds, as `ratio_<method>`,
        the norm of each method's summed terms divided by that of the task. This costs one backward pass through the
        head per term and does not change the terms. Raises ValueError if a method is active and there is no
        `teacher_output`, if an active method reads targets and there are none, if there is nothing to train on, and if
        a method is to be balanced with a task that has no terms.
        """
        active = self.active(state)
        unlabeled = targets is None
        _require_inputs(active, unlabeled, teacher_output)
        if student_output is None:
            student_output = self.student.observe(batch, targets, need=_needs(active)[1])
        targets = Targets.empty(batch) if targets is None else targets
        neck = student_output.pyramids["neck"].levels
        task = {f"task_{name}": term for name, term in student_output.losses.items()}
        if not task and not active:
            raise ValueError("there are no terms: the student has no task losses here, and no method is active")
        state = state if state.ids is not None else replace(state, ids=batch.ids)
        terms: dict[str, Terms] = {}
        for method in active:
            parts = _scalars(method.name, method(student_output, teacher_output, targets, state))
            terms[method.name] = {f"{method.name}_{part}": term for part, term in parts.items()}
        if self.training and torch.is_grad_enabled():
            due = {name: terms[name] for name in self.due(state)}
            self._update_balances(task, due, neck, len(batch) if unlabeled else sum(map(len, targets.labels)))
        for name, parts in terms.items():
            factor: float | Tensor = self.schedules[name].factor(state)
            if name in self.balances:
                # The product is a new tensor: the buffer changes in place before the backward pass needs it.
                factor = factor * cast(Balance, self.balances[name]).factor
            terms[name] = {part: factor * term for part, term in parts.items()}
        if measure:
            self._measure_gradients(task, terms, neck)
        return reduce(or_, terms.values(), task)

    def factors(self) -> dict[str, float]:
        """The factor of each balanced method's terms, as `balance_<method>`."""
        return {f"balance_{name}": cast(Balance, balance).factor.item() for name, balance in self.balances.items()}

    def _update_balances(self, task: Terms, terms: Mapping[str, Terms], neck: Sequence[Tensor], objects: int) -> None:
        """Measure the gradients of the task and of these methods, and update the methods' factors.

        objects: number of objects that the task is trained on; without targets, of images.
        """
        if not terms:
            return
        if not task:
            names = ", ".join(terms)
            raise ValueError(
                f"{names}: `balance` compares a method with the task, which has no terms here; leave it out, or give "
                "the task losses"
            )
        task_sum = sum_of(task)
        sums = {name: sum_of(parts) for name, parts in terms.items()}
        norms = neck_norms({"task": task_sum, **sums}, neck, self.scaler)
        total, _ = sum_over_processes(task_sum.new_tensor(objects))
        for name in () if self.rehearsing else sums:
            cast(Balance, self.balances[name]).update(norms[name], norms["task"], objects=total.item() > 0)

    def _measure_gradients(self, task: Terms, terms: Mapping[str, Terms], neck: Sequence[Tensor]) -> None:
        """Fill `ratios` and `gradients`; see `forward`."""
        norms = neck_norms(reduce(or_, terms.values(), task), neck, self.scaler)
        self.ratios = {}
        if task:
            sums = {name: sum_of(parts) for name, parts in terms.items()}
            sum_norms = neck_norms({"": sum_of(task), **sums}, neck, self.scaler)
            task_norm = sum_norms.pop("")
            self.ratios = {f"ratio_{name}": norm / task_norm if task_norm else 0.0 for name, norm in sum_norms.items()}
        self.gradients = {f"gradient_{name}": norm for name, norm in norms.items()}
        self.gradients |= {f"share_{name}": share for name, share in shares(norms).items()}


def _require_inputs(methods: Sequence[Method], unlabeled: bool, teacher_output: DetectorOutput | None) -> None:
    """Raises ValueError if there is no output of the teacher, or if there are no targets and a method reads them."""
    if methods and teacher_output is None:
        raise ValueError("methods need teacher_output=teacher.observe(batch, need=distillation.need)")
    readers = [method.name for method in methods if not method.unlabeled]
    if unlabeled and readers:
        free = ", ".join(name for name, method in METHODS.items() if method.unlabeled)
        raise ValueError(
            f"targets are None, but these methods read boxes, labels or an assignment: {', '.join(readers)}; pass "
            f"Targets, or use methods that read none: {free}"
        )


def _scalars(method: str, parts: Any) -> Terms:
    """The loss terms of a method. Raises UserError unless they are a mapping from names to scalar tensors."""
    if not isinstance(parts, Mapping):
        raise UserError(f"method {method}: `forward` returned {type(parts).__name__}; return a dict of scalar tensors")
    for name, term in parts.items():
        if not isinstance(term, Tensor) or term.ndim > 0:
            kind = f"a tensor of shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise UserError(f"method {method}: the term {name!r} of `forward` is {kind}; return a scalar tensor")
    return dict(parts)


def _needs(methods: Iterable[Method]) -> tuple[Need, Need]:
    """What the methods read of the teacher's output, and of the student's output."""
    methods = list(methods)
    teacher_need = reduce(or_, (method.need for method in methods), Need())
    student_need = reduce(or_, (method.student_need for method in methods), Need())
    return teacher_need, student_need
