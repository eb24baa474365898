"""check_pair: does a method train? A student, a teacher and their methods for a few steps on one batch."""

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
    """Trains a copy of the student with the methods for a few steps on one batch, and checks the methods.

    example: a batch and its targets. None: the built-in pictures of `scene`. lr: small, because a method and the task
    losses may pull in different directions.
    Returns each loss term before and after training, with two kinds of sums: `total`, of all terms, and under each
    method's name, of the method's terms.
    Raises AssertionError if a term is not finite at any step, if the sum of a method's terms did not fall, if the
    teacher's weights or buffers changed, or if a gradient reached them. The task losses and the total may rise: the
    targets of some detectors move with their predictions, as the IoU in GFL's quality focal loss.
    """
    frozen_teacher = cast(Any, copy.deepcopy(teacher)).eval().requires_grad_(False)
    state_before = copy.deepcopy(frozen_teacher.state_dict())
    rows = learn(copy.deepcopy(student), frozen_teacher, copy.deepcopy(list(methods)), example, steps, lr)
    for name, value in frozen_teacher.state_dict().items():
        message = f"the teacher's tensor {name!r} changed; a method must not train the teacher or write to its output"
        expect(torch.equal(value, state_before[name]), message)
    has_gradient = any(parameter.grad is not None for parameter in frozen_teacher.parameters())
    expect(not has_gradient, "a gradient reached the teacher's weights; leave their requires_grad at False")
    for step, row in enumerate(rows):
        wrong = [name for name, value in row.items() if not torch.tensor(value).isfinite()]
        expect(not wrong, f"{', '.join(wrong)}: not finite after {step} steps")
    for method in methods:
        first, last = rows[0][method.name], rows[-1][method.name]
        message = f"the sum of the terms of {method.name} did not fall in {steps} steps: from {first:.4g} to {last:.4g}"
        expect(last < first, f"{message}; check the signs of its terms, or raise steps or the method's weight")
    return {name: (rows[0][name], rows[-1][name]) for name in rows[0]}


def learn(
    student: Detector,
    teacher: Detector | None,
    methods: Sequence[Method],
    example: Scene | None = None,
    steps: int = 10,
    lr: float = 3e-4,
) -> list[dict[str, float]]:
    """Trains `student` and the modules of the methods on one batch, in place.

    teacher: None trains on the task losses alone. Every step uses the same random numbers (dropout, sampled proposals).
    Returns the loss terms before the first step and after each step, so steps + 1 rows. A row also has `total`, the sum
    of all terms, and under each method's name the sum of the method's terms.
    """
    distillation = Distillation(student, methods).train()
    batch, targets = example or scene(len(student.info.classes))
    optimizer = build_optimizer(distillation, TrainConfig(lr=lr))
    rows = []
    with torch.random.fork_rng():
        for step in range(steps + 1):
            torch.manual_seed(0)
            teacher_output = None
            if teacher is not None:
                with torch.no_grad():
                    teacher_output = teacher.observe(batch, need=distillation.need)
            terms = distillation(batch, targets, teacher_output=teacher_output)
            total = torch.stack(list(terms.values())).sum()
            rows.append({"total": total.item()} | _with_sums(terms, methods))
            if step < steps and total.isfinite():
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(distillation.parameters(), 10.0)
                optimizer.step()
    return rows


def _with_sums(terms: Mapping[str, Tensor], methods: Sequence[Method]) -> dict[str, float]:
    """The terms as numbers, and under each method's name the sum of the method's terms."""
    values = {name: term.item() for name, term in terms.items()}
    sums = {method.name: 0.0 for method in methods}
    for name, value in values.items():
        owners = [method.name for method in methods if name.startswith(f"{method.name}_")]
        if owners:  # the longest name, because crosskd_roi_class is a term of crosskd_roi and not of crosskd
            sums[max(owners, key=len)] += value
    return values | sums
