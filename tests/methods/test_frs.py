"""FRS: the teacher's confidence, both forms by hand, the class term, two-stage teachers, what it refuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from detdistill.errors import UserError
from detdistill.losses import weighted_square
from detdistill.methods.frs import FRS, FRSConfig, confidence
from detdistill.run.pairing import resolve
from detdistill.types import DetectorOutput, GridInfo, Layout, Need, Predictions, Targets, TowerInfo
from tests.detectors.builders import scene, tiny
from tests.methods.maps import info, output
from tests.methods.pairs import built, looks, pair

NO_TARGETS = Targets((), ())
HALF = torch.tensor(0.5).logit()


def predictions(logits: torch.Tensor, layout: Layout) -> Predictions:
    rows = logits.shape[:2]
    return Predictions(logits, "sigmoid", torch.zeros(*rows, 4), torch.ones(rows, dtype=torch.bool), layout)


# Two levels of one image: one row of two cells, and one cell; two anchors a cell, one class.
SCORES = torch.tensor([0.1, 0.25, 0.75, 0.2, 0.5, 0.3])
LAYOUT = Layout(((1, 2), (1, 1)), (8, 16), anchors=2)
TAUGHT = predictions(SCORES.logit().view(1, 6, 1), LAYOUT)


def with_stage(levels: list[torch.Tensor], stage: Predictions) -> DetectorOutput:
    return replace(output(*levels, strides=(8, 16), sizes=torch.tensor([[8, 16]])), stages=(stage,))


def test_confidence_is_the_best_of_a_cells_anchors_and_classes():
    masks = confidence(TAUGHT)
    assert list(masks) == [8, 16]
    torch.testing.assert_close(masks[8], torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(masks[16], torch.tensor([[[0.5]]]))
    classes = torch.tensor([[0.1, 0.6], [0.3, 0.2]]).logit().view(1, 2, 2)
    torch.testing.assert_close(
        confidence(predictions(classes, Layout(((1, 2),), (8,))))[8], torch.tensor([[[0.6, 0.3]]])
    )


def test_both_forms_and_the_class_term_by_hand():
    dense = replace(info(2, (8, 16)), grid=GridInfo(2, "max_iou"), towers=TowerInfo(4, 2))
    mine = [torch.tensor([[[[1.0, 3]], [[2.0, 0]]]]), torch.tensor([[[[1.0]], [[1.0]]]])]
    theirs = [torch.zeros_like(level) for level in mine]
    # Level 8: squares 1 + 4 and 9, weights 1/4 and 3/4: 8. Level 16: 2. So 10. The guess says 1/2 everywhere: each of two anchors costs ln 2.
    guess = predictions(HALF.expand(1, 6, 1), LAYOUT)
    outputs = with_stage(mine, guess), with_stage(theirs, TAUGHT)
    method = FRS.build(FRSConfig(weight=0.5, weight_class=1.0), dense, dense)
    terms = method(*outputs, NO_TARGETS)
    torch.testing.assert_close(terms["features"], torch.tensor(5.0))
    torch.testing.assert_close(terms["class"], 2 * 2 * torch.tensor(2.0).log())
    modern = FRS.build(FRSConfig(weight=0.5, form="ultralytics"), dense, dense)
    for connector in modern.levels.connectors:  # made to pass what is not negative
        for layer in (connector[0], connector[2]):
            layer.weight.data.copy_(torch.eye(2)[:, :, None, None])
            layer.bias.data.zero_()
    terms = modern(*outputs, NO_TARGETS)
    assert set(terms) == {"features"}
    torch.testing.assert_close(terms["features"], torch.tensor(2.5))  # over two channels


def test_it_is_the_weighted_sum_over_levels_zero_for_itself_and_the_same_for_everything_twice():
    student, teacher = pair("fcos", "gfl")
    method = built("frs", student, teacher, weight=3.0)
    assert method.need == Need(pyramids=frozenset({"neck"}), predictions=True)
    mine, theirs, targets = looks(method, student, teacher, scene(objects=False))
    masks = confidence(theirs.stages[-1]).values()
    levels = zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels, masks, strict=True)
    term = method(mine, theirs, targets)["features"]
    torch.testing.assert_close(term, 3 * sum(weighted_square(*level) for level in levels))
    assert method(theirs, theirs, targets)["features"] == 0
    term.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())


def test_the_class_term_pulls_at_the_students_head_and_never_at_the_mask():
    student, teacher = pair("retinanet")
    method = built("frs", student, teacher, weight=0.0, weight_class=1.0)
    mine, theirs, targets = looks(method, student, teacher)
    terms = method(mine, theirs, targets)
    assert set(terms) == {"class"}
    (gradient,) = torch.autograd.grad(terms["class"], mine.stages[-1].logits)
    masks = torch.cat(
        [mask.flatten(1).repeat_interleave(9, 1) / mask.sum() for mask in confidence(theirs.stages[-1]).values()], 1
    )
    expected = masks[..., None] * (mine.stages[-1].scores() - theirs.stages[-1].scores())
    torch.testing.assert_close(gradient, expected.detach())


def test_a_two_stage_teacher_lends_its_objectness_and_never_runs_its_roi_head():
    student, teacher = pair("fcos", "faster_rcnn")
    method = built("frs", student, teacher, weight=1.0)
    assert method.need == Need(pyramids=frozenset({"neck"}), proposals=True)
    mine, theirs, targets = looks(method, student, teacher)
    assert len(theirs.stages) == 1
    neck, objectness = theirs.pyramids["neck"], theirs.stages[0].logits.sigmoid()
    expected = 0.0
    for s, t, scores in zip(
        mine.pyramids["neck"].levels, neck.levels[1:], theirs.stages[0].layout.split(objectness)[1:], strict=True
    ):
        mask = scores[..., 0].amax(-1)
        expected = expected + (mask * (s - t).square().sum(1)).sum() / mask.sum()
    torch.testing.assert_close(method(mine, theirs, targets)["features"], expected)
    resized = built("frs", student, teacher, weight=1.0, pairing="index", resize="teacher")
    assert resized(mine, theirs, targets)["features"].isfinite()


def test_padding_with_an_unsure_teacher_changes_nothing():
    dense = replace(info(2), grid=GridInfo(1, "fcos"))
    mine, theirs, scores = (
        torch.rand(size, generator=torch.Generator().manual_seed(0)) for size in ((1, 2, 3, 4), (1, 2, 3, 4), (1, 3, 4))
    )

    def seen(levels: torch.Tensor, confident: torch.Tensor) -> DetectorOutput:
        stage = predictions(
            confident.clamp(min=1e-12).logit().flatten(1)[..., None], Layout((tuple(levels.shape[-2:]),), (8,))
        )
        return replace(output(levels), stages=(stage,))

    method = FRS.build(FRSConfig(weight=1.0), dense, dense)
    tight = method(seen(mine, scores), seen(theirs, scores), NO_TARGETS)["features"]
    wide = [F.pad(side, (0, 3, 0, 2), value=value) for side, value in ((mine, 5.0), (theirs, 1.0), (scores, 0.0))]
    torch.testing.assert_close(method(seen(wide[0], wide[2]), seen(wide[1], wide[2]), NO_TARGETS)["features"], tight)
    twice = [side.repeat(2, *[1] * (side.ndim - 1)) for side in (mine, theirs, scores)]
    torch.testing.assert_close(
        method(seen(twice[0], twice[2]), seen(twice[1], twice[2]), NO_TARGETS)["features"], tight
    )


def test_the_forms_have_their_own_weights_and_connectors():
    dense, wide = tiny("fcos").info, tiny("fcos", channels=64).info
    assert [resolve({"frs": given}, dense, dense)["frs"]["weight"] for given in ({}, {"form": "ultralytics"})] == [
        0.02,
        6.0,
    ]
    assert list(FRS.build(FRSConfig(), dense, dense).parameters()) == []
    shapes = [
        tuple(p.shape[:2]) for p in FRS.build(FRSConfig(form="ultralytics"), wide, dense).parameters() if p.ndim == 4
    ]
    assert shapes == [(32, 64), (32, 32)] * 3


def test_what_it_cannot_serve_is_refused_at_build():
    fcos, retinanet, queries, two_stage = (
        tiny(head).info for head in ("fcos", "retinanet", "deformable_detr", "faster_rcnn")
    )
    with pytest.raises(UserError, match=r"method frs: the teacher \(deformable_detr\) has no scores of its cells"):
        FRS.build(FRSConfig(), fcos, queries)
    FRS.build(FRSConfig(), queries, fcos)
    for teacher in (retinanet, two_stage):
        FRS.build(FRSConfig(), fcos, teacher)
        with pytest.raises(UserError, match="method frs"):
            FRS.build(FRSConfig(weight_class=1.0), fcos, teacher)
    with pytest.raises(UserError, match="no class in common"):
        FRS.build(FRSConfig(), fcos, replace(retinanet, classes=("x", "y", "z")))
    with pytest.raises(UserError, match="all its weights are 0"):
        FRS.build(FRSConfig(weight=0.0), fcos, fcos)
