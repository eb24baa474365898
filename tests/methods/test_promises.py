"""What every method promises, asked of all of them alike: the teacher gets no gradient, a batch without objects is finite, and a batch seen
twice changes a term by its stated factor: 1 for means, 2 where the published sum has no normaliser, other words where an instance is compared
with all others of the batch."""

from functools import cache

import pytest
import torch

from detdistill.methods import METHODS, Method
from detdistill.types import Batch, Detector, Targets, TrainState
from tests.detectors.builders import scene
from tests.methods.pairs import built, looks, pair

SETS = {
    "detrdistill": "deformable_detr",
    "kddetr": "deformable_detr",
    "clockdistill": "deformable_detr",
    "go_lsd": "d_fine",
}
TWO_STAGE = ("kd", "dkd", "dist", "proposal_kd", "crosskd_roi", "chen2017")
SUMS = {"ld_edges": 2.0, "ld_valuable_edges": 2.0}  # L_ld is not divided by positives in the published code
DRAWN = ("mgd", "crd")  # what they draw is another for another batch; tested where they are
OF_THE_BATCH = {
    "pkt": "n/64 times a mean over pairs",
    "dist": "correlations over the rows",
    "gid": "one ten positions a level for all images",
}
SEEN_ONCE = {"features": 2e-2}  # deviations are unbiased: m - 1 becomes 2 m - 1


@cache
def trio(name: str) -> tuple[Detector, Detector, Method]:
    student, teacher = pair(SETS.get(name, "faster_rcnn" if name in TWO_STAGE else "gfl"))
    if name in TWO_STAGE:
        for stage in (student.model.rpn, student.model.roi_heads):  # type: ignore[attr-defined]
            stage.fg_bg_sampler.batch_size_per_image = 10**6  # all of them, or two batches would differ by the draw
    options = {"least_positions": 2} if name == "pkd" else {}
    return student, teacher, built(name, student, teacher, **options).eval()


def terms(name: str, scenery: tuple[Batch, Targets]) -> dict[str, torch.Tensor]:
    student, teacher, method = trio(name)
    for norm in method.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.train()  # as in training; statistics of a doubled batch are the same
    torch.manual_seed(5)
    mine, theirs, targets = looks(method, student, teacher, scenery)
    return method(mine, theirs, targets, TrainState(ids=scenery[0].ids, generator=torch.Generator().manual_seed(1)))


def twice(batch: Batch, targets: Targets) -> tuple[Batch, Targets]:
    parts = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.originals))
    return Batch(*parts, torch.arange(4), batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)


@pytest.mark.parametrize("name", METHODS)
def test_no_gradient_reaches_the_teacher_and_some_reaches_the_student(name: str) -> None:
    student, teacher, _ = trio(name)
    sum(terms(name, scene()).values(), torch.zeros(())).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())  # type: ignore[attr-defined]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    student.zero_grad()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_objects_is_finite(name: str) -> None:
    student = trio(name)[0]
    found = terms(name, scene(objects=False))
    assert all(term.isfinite() for term in found.values())
    total = sum(found.values(), torch.zeros(()))
    if total.requires_grad:
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())  # type: ignore[attr-defined]
        student.zero_grad()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DRAWN and name not in OF_THE_BATCH])
def test_a_batch_seen_twice_changes_a_term_by_its_stated_factor(name: str) -> None:
    batch, targets = scene()
    full = (
        batch,
        Targets((targets.boxes[0],) * 2, (targets.labels[0],) * 2),
    )  # no image without objects: their floors count images
    once, doubled = terms(name, full), terms(name, twice(*full))
    for part, value in once.items():
        factor = SUMS.get(f"{name}_{part}", 1.0)
        torch.testing.assert_close(doubled[part], factor * value, rtol=SEEN_ONCE.get(part, 1e-4), atol=1e-6)
