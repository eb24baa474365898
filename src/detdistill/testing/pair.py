"""A student, a teacher and their methods for a few steps on one batch."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from detdistill.engine.distillation import Distillation
from detdistill.engine.optim import build_optimizer
from detdistill.methods import Method
from detdistill.recipe import TrainConfig
from detdistill.testing.expect import expect
from detdistill.testing.scene import Scene, scene
from detdistill.types import Detector


def check_pair(
    student: Detector,
    teacher: Detector,
    methods: Sequence[Method],
    example: Scene | None = None,
    steps: int = 10,
    lr: float = 3e-4,
) -> dict[str, tuple[float, float]]:
    """Trains a copy of the student on one batch by these methods: every term before and after, with `total` and a sum by method.

    Small steps, as a method and the labels may pull apart. Raises AssertionError where a term is not finite, the total or the sum of a
    method's terms did not fall, or the teacher changed.
    """
    lecturer = cast(Any, copy.deepcopy(teacher)).eval().requires_grad_(False)
    before = copy.deepcopy(lecturer.state_dict())
    rows = learn(copy.deepcopy(student), lecturer, copy.deepcopy(list(methods)), example, steps, lr)
    for name, value in lecturer.state_dict().items():
        expect(torch.equal(value, before[name]), f"the teacher's {name} changed")
    expect(
        all(parameter.grad is None for parameter in lecturer.parameters()), "a gradient reached the teacher's weights"
    )
    for step, row in enumerate(rows):
        odd = [name for name, value in row.items() if not torch.tensor(value).isfinite()]
        expect(not odd, f"{', '.join(odd)} not finite after {step} steps")
    for name in ("total", *(method.name for method in methods)):
        first, last = rows[0][name], rows[-1][name]
        expect(last < first, f"{name} did not fall in {steps} steps: {first:.4g} to {last:.4g}")
    return {name: (rows[0][name], rows[-1][name]) for name in rows[0]}


def learn(
    student: Detector,
    teacher: Detector | None,
    methods: Sequence[Method],
    example: Scene | None = None,
    steps: int = 10,
    lr: float = 3e-4,
) -> list[dict[str, float]]:
    """Trains `student` and the methods' own parts on one batch, in place: all terms before the first step and after each.

    Beside the terms: `total`, and the sum of each method's terms under its name. What a step draws (dropout, sampled proposals), every
    step draws alike.
    """
    distillation = Distillation(student, methods).train()
    batch, targets = example or scene(len(student.info.classes))
    optimizer = build_optimizer(distillation, TrainConfig(lr=lr))
    rows = []
    with torch.random.fork_rng():
        for step in range(steps + 1):
            torch.manual_seed(0)
            lesson = None
            if teacher is not None:
                with torch.no_grad():
                    lesson = teacher.observe(batch, need=distillation.need)
            terms = distillation(batch, targets, teacher_output=lesson)
            total = torch.stack(list(terms.values())).sum()
            rows.append({"total": total.item()} | _by_method(terms, methods))
            if step < steps and total.isfinite():
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(distillation.parameters(), 10.0)
                optimizer.step()
    return rows


def _by_method(terms: Mapping[str, Tensor], methods: Sequence[Method]) -> dict[str, float]:
    values = {name: term.item() for name, term in terms.items()}
    sums = {
        method.name: sum(value for name, value in values.items() if name.startswith(f"{method.name}_"))
        for method in methods
    }
    return values | sums
