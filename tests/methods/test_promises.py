"""Properties that all methods have.

The teacher gets no gradient and the student some. A batch without objects is finite. A doubled batch changes a term by
a stated factor: 1 for means, 2 if the published sum has no divisor. Methods that compare rows with all others of the
batch are left out of the last.
"""

from functools import cache

import pytest
import torch

from detdistill.methods import METHODS, Method
from detdistill.types import Batch, Detector, Targets, TrainState
from tests.detectors.builders import scene
from tests.methods.pairs import built, method_inputs, pair

QUERIES = {
    "detrdistill": "deformable_detr",
    "kddetr": "deformable_detr",
    "clockdistill": "deformable_detr",
    "go_lsd": "d_fine",
}
TWO_STAGE = ("kd", "dkd", "dist", "proposal_kd", "crosskd_roi", "chen2017")
SUMS = {"ld_edges": 2.0, "ld_valuable_edges": 2.0}  # LD's published code does not divide them by positives
RANDOM = ("mgd", "crd")  # they draw random numbers that depend on the size of the batch; their own tests cover this
OF_THE_BATCH = {
    "pkt": "n/64 times a mean over pairs",
    "dist": "correlations over the rows",
    "gid_ld": "ten positions per level for all images",
}
TOLERANCE = {"features": 2e-2}  # deviations are unbiased: m - 1 becomes 2 m - 1


@cache
def pair_and_method(name: str) -> tuple[Detector, Detector, Method]:
    """Returns a student, a teacher and the method, in eval mode. All anchors and proposals are sampled."""
    student, teacher = pair(QUERIES.get(name, "faster_rcnn" if name in TWO_STAGE else "gfl"))
    if name in TWO_STAGE:
        for stage in (student.model.rpn, student.model.roi_heads):  # type: ignore[attr-defined]
            stage.fg_bg_sampler.batch_size_per_image = 10**6  # otherwise two batches would have different samples
    options = {"least_positions": 2} if name == "pkd" else {}
    return student, teacher, built(name, student, teacher, **options).eval()


def terms(name: str, scenery: tuple[Batch, Targets]) -> dict[str, torch.Tensor]:
    """Returns the terms of the method for this batch."""
    student, teacher, method = pair_and_method(name)
    for norm in method.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.train()  # as in training; a doubled batch has the same statistics
    torch.manual_seed(5)
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scenery)
    state = TrainState(ids=scenery[0].ids, generator=torch.Generator().manual_seed(1))
    return method(student_output, teacher_output, targets, state)


def doubled(batch: Batch, targets: Targets) -> tuple[Batch, Targets]:
    """Returns a batch with every image twice."""
    parts = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.originals))
    return Batch(*parts, torch.arange(4), batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_gets_no_gradient_and_the_student_some(name: str) -> None:
    student, teacher, _ = pair_and_method(name)
    sum(terms(name, scene()).values(), torch.zeros(())).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())  # type: ignore[attr-defined]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    student.zero_grad()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_objects_is_finite(name: str) -> None:
    student = pair_and_method(name)[0]
    values = terms(name, scene(objects=False))
    assert all(term.isfinite() for term in values.values())
    total = sum(values.values(), torch.zeros(()))
    if total.requires_grad:
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())  # type: ignore[attr-defined]
        student.zero_grad()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANDOM and name not in OF_THE_BATCH])
def test_a_doubled_batch_changes_a_term_by_its_stated_factor(name: str) -> None:
    batch, targets = scene()
    # Every image has objects: the floor of a number of positives counts images.
    with_objects = Targets((targets.boxes[0],) * 2, (targets.labels[0],) * 2)
    single, double = terms(name, (batch, with_objects)), terms(name, doubled(batch, with_objects))
    for part, value in single.items():
        factor = SUMS.get(f"{name}_{part}", 1.0)
        torch.testing.assert_close(double[part], factor * value, rtol=TOLERANCE.get(part, 1e-4), atol=1e-6)


class Unread:
    """Targets that must not be read."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"targets.{name} is read")


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_unlabeled_methods_read_no_targets_and_no_assignment(name: str) -> None:
    student, teacher, method = pair_and_method(name)
    batch, _ = scene()
    state = TrainState(ids=batch.ids, generator=torch.Generator().manual_seed(1))
    student_output = student.observe(batch, None, need=method.student_need)
    teacher_output = teacher.observe(batch, need=method.need)
    try:
        terms = method(student_output, teacher_output, Unread(), state)
    except (AssertionError, ValueError, IndexError):  # what it reads is not there
        terms = {}
    assert bool(terms) == method.unlabeled
