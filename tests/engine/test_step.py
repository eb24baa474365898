"""The gradients of a step: micro-batches give those of the large batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from detdistill.engine.distillation import Distillation
from detdistill.engine.fit import fit
from detdistill.engine.schedule import Schedule
from detdistill.engine.step import Step
from detdistill.methods import Method
from detdistill.testing.scene import scene
from detdistill.types import Detector, TrainState
from tests.detectors.builders import CLASSES, shake, tiny
from tests.methods.pairs import built

from .fakes import (
    FakeLoader,
    Match,
    assert_identical,
    checkpoint_state,
    fake_distillation,
    fake_teacher,
    log_rows,
    small_detector,
    train_config,
)

BATCH, TARGETS = scene(len(CLASSES), (96, 128), count=4)
Gradients = dict[str, Tensor]


def step(
    student: Detector, methods: tuple[Method, ...] = (), teacher: Detector | None = None, **changes: Any
) -> tuple[dict[str, float], Gradients, Distillation]:
    """The terms and the gradients of one step on four images. changes: fields of TrainConfig."""
    distillation = Distillation(student, methods)
    accelerator = Accelerator(cpu=True)
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    training = Step(distillation, distillation, teacher, accelerator, train_config(**changes))
    terms = training.backward(BATCH, TARGETS, TrainState(0, 10), measure=False)
    gradients = {name: p.grad.clone() for name, p in distillation.named_parameters() if p.grad is not None}
    return {name: term.item() for name, term in terms.items()}, gradients, distillation


def difference(actual: Gradients, expected: Gradients) -> float:
    """The norm of the difference of two gradients, relative to the second one."""
    assert actual.keys() == expected.keys()
    squares = sum((actual[name] - expected[name]).square().sum() for name in expected)
    return float((squares / sum(value.square().sum() for value in expected.values())).sqrt())


def student_of(head: str) -> Detector:
    """A detector without dropout, whose norms have fixed statistics: those of a batch and of its parts differ."""
    return shake(tiny(head)).eval()


# AdaMixer and the DETRs count ground truths, ATSS and FCOS positives, GFL also sums its own scores; RetinaNet counts
# per image.
@pytest.mark.parametrize("head", ["retinanet", "fcos", "atss", "gfl", "detr", "deformable_detr", "rt_detr", "adamixer"])
def test_two_micro_batches_give_the_gradient_of_the_large_batch(head: str) -> None:
    terms, gradients, _ = step(student_of(head))
    split_terms, split_gradients, _ = step(student_of(head), accumulate=2)
    assert split_terms == pytest.approx(terms, rel=1e-5)
    assert difference(split_gradients, gradients) < 1e-5
    _, inexact, _ = step(student_of(head), accumulate=2, accumulate_exact=False)
    is_equal = difference(inexact, gradients) < 1e-5
    assert is_equal == (head == "retinanet")  # with each micro-batch's own counts, no other one would be equal


def test_faster_rcnn_differs_by_the_proposals_that_it_draws() -> None:
    terms, _, _ = step(student_of("faster_rcnn"))
    split_terms, _, _ = step(student_of("faster_rcnn"), accumulate=2)
    assert split_terms == pytest.approx(terms, rel=0.05)


@pytest.mark.parametrize("name", ["fgd", "defeat", "mimicking", "fgfi", "gid"])
def test_methods_count_over_all_micro_batches(name: str) -> None:
    results = []
    for accumulate in (1, 4):
        student, teacher = student_of("gfl"), shake(tiny("gfl", seed=1, backbone="resnet18"))
        torch.manual_seed(0)
        results.append(step(student, (built(name, student, teacher),), teacher, accumulate=accumulate))
    (terms, gradients, _), (split_terms, split_gradients, _) = results
    assert split_terms == pytest.approx(terms, rel=1e-4)
    assert difference(split_gradients, gradients) < 1e-4


def test_the_memory_of_a_method_is_written_once_with_the_rows_of_all_micro_batches() -> None:
    memories = []
    for accumulate in (1, 2):
        student, teacher = student_of("gfl"), shake(tiny("gfl", seed=1, backbone="resnet18"))
        torch.manual_seed(0)
        method = built("crd", student, teacher)
        step(student, (method,), teacher, accumulate=accumulate)
        memories.append(dict(method.named_buffers()))
    torch.testing.assert_close(memories[1], memories[0], rtol=1e-5, atol=1e-6)
    assert (memories[0]["bank.labels"] < 10).sum() == sum(len(labels) for labels in TARGETS.labels)


def test_norms_see_every_micro_batch_once_and_the_rehearsal_leaves_no_trace() -> None:
    """The running mean of the first norm, by hand."""
    for exact in (True, False):
        student: Any = tiny("fcos").train()
        norm = next(module for module in student.modules() if isinstance(module, nn.BatchNorm2d))
        inputs: list[Tensor] = []
        norm.register_forward_pre_hook(lambda module, arguments, inputs=inputs: inputs.append(arguments[0].detach()))
        step(student, accumulate=2, accumulate_exact=exact)
        assert len(inputs) == (3 if exact else 2)  # the last micro-batch needs no rehearsal
        means = [part.mean((0, 2, 3)) for part in inputs[-2:]]
        torch.testing.assert_close(norm.running_mean, 0.9 * 0.1 * means[0] + 0.1 * means[1])
        assert norm.num_batches_tracked == 2


def test_a_balance_measures_the_large_batch_and_changes_once_per_step(tmp_path: Path) -> None:
    runs = {}
    for accumulate in (1, 2, 4):
        distillation = Distillation(small_detector(), [Match(30.0)], {"match": Schedule(balance=0.5)}, balance_every=2)
        config = train_config(accumulate=accumulate, log_every=1, log_gradients=True)
        out = tmp_path / str(accumulate)
        fit(distillation, FakeLoader(), teacher=small_detector(1), config=config, out=out, console=Console(quiet=True))
        runs[accumulate] = log_rows(out)
        assert checkpoint_state(out)["distillation"]["balances.match.measurements"] == 8
    for accumulate in (2, 4):
        for row, whole in zip(runs[accumulate], runs[1], strict=True):
            assert row == pytest.approx(whole, rel=1e-3)  # with the gradient of every term at the neck


def test_a_run_with_micro_batches_equals_the_run_with_large_batches(tmp_path: Path) -> None:
    for name, accumulate, exact in (("whole", 1, True), ("split", 2, True), ("by itself", 2, False)):
        fit(
            fake_distillation(norm=False, dropout=0.0),
            FakeLoader(),
            teacher=fake_teacher(),
            config=train_config(accumulate=accumulate, accumulate_exact=exact),
            out=tmp_path / name,
            console=Console(quiet=True),
        )
    whole = checkpoint_state(tmp_path / "whole")
    for name in ("split", "by itself"):  # the terms of the fake are means over images
        state = checkpoint_state(tmp_path / name)
        torch.testing.assert_close(state["distillation"], whole["distillation"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state["average"], whole["average"], rtol=1e-5, atol=1e-6)
        assert (state["step"], state["images"]) == (15, 60)
        for row, expected in zip(log_rows(tmp_path / name), log_rows(tmp_path / "whole"), strict=True):
            assert row == pytest.approx(expected, rel=1e-4)


def test_a_run_with_micro_batches_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(out: Path, **changes: Any) -> None:
        config = train_config(accumulate=2, ema=0.9, **changes)
        resume = (out / "checkpoint").exists()
        distillation = fake_distillation(seed=3 if resume else 0)
        teacher, quiet = fake_teacher(), Console(quiet=True)
        fit(distillation, FakeLoader(), teacher=teacher, config=config, out=out, resume=resume, console=quiet)

    run(tmp_path / "whole")
    run(tmp_path / "resumed", max_steps=7)
    run(tmp_path / "resumed")
    assert_identical(checkpoint_state(tmp_path / "resumed"), checkpoint_state(tmp_path / "whole"))
    assert log_rows(tmp_path / "resumed") == log_rows(tmp_path / "whole")
