"""FRS: the teacher's confidence, both forms by hand, the class term, two-stage teachers, refusals."""

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
from tests.methods.pairs import built, method_inputs, pair

NO_TARGETS = Targets((), ())
HALF = torch.tensor(0.5).logit()


def predictions(logits: torch.Tensor, layout: Layout) -> Predictions:
    """Returns valid predictions with these logits (B, N, K) and boxes of 0."""
    shape = logits.shape[:2]
    return Predictions(logits, "sigmoid", torch.zeros(*shape, 4), torch.ones(shape, dtype=torch.bool), layout)


# Two levels of one image: a row of two cells, and one cell. There are two anchors per cell and one class.
SCORES = torch.tensor([0.1, 0.25, 0.75, 0.2, 0.5, 0.3])
LAYOUT = Layout(((1, 2), (1, 1)), (8, 16), anchors=2)
TEACHER_PREDICTIONS = predictions(SCORES.logit().view(1, 6, 1), LAYOUT)


def with_stage(levels: list[torch.Tensor], stage: Predictions) -> DetectorOutput:
    """Returns an output with these two levels and one stage."""
    return replace(output(*levels, strides=(8, 16), sizes=torch.tensor([[8, 16]])), stages=(stage,))


def test_confidence_is_the_best_score_of_the_anchors_and_classes_of_a_cell():
    masks = confidence(TEACHER_PREDICTIONS)
    assert list(masks) == [8, 16]
    torch.testing.assert_close(masks[8], torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(masks[16], torch.tensor([[[0.5]]]))
    classes = torch.tensor([[0.1, 0.6], [0.3, 0.2]]).logit().view(1, 2, 2)
    masks = confidence(predictions(classes, Layout(((1, 2),), (8,))))
    torch.testing.assert_close(masks[8], torch.tensor([[[0.6, 0.3]]]))


def test_both_forms_and_the_class_term_by_hand():
    dense = replace(info(2, (8, 16)), grid=GridInfo(2, "max_iou"), towers=TowerInfo(4, 2))
    student_levels = [torch.tensor([[[[1.0, 3]], [[2.0, 0]]]]), torch.tensor([[[[1.0]], [[1.0]]]])]
    teacher_levels = [torch.zeros_like(level) for level in student_levels]
    # Stride 8: squares 1 + 4 and 9, with weights 1/4 and 3/4: 8. Stride 16: 2. The sum is 10. The student's scores are
    # 1/2 everywhere, so each of two anchors has an entropy of ln 2.
    student_predictions = predictions(HALF.expand(1, 6, 1), LAYOUT)
    outputs = with_stage(student_levels, student_predictions), with_stage(teacher_levels, TEACHER_PREDICTIONS)
    method = FRS.build(FRSConfig(weight=0.5, weight_class=1.0), dense, dense)
    terms = method(*outputs, NO_TARGETS)
    torch.testing.assert_close(terms["features"], torch.tensor(5.0))
    torch.testing.assert_close(terms["class"], 2 * 2 * torch.tensor(2.0).log())
    method = FRS.build(FRSConfig(weight=0.5, form="ultralytics"), dense, dense)
    for connector in method.levels.connectors:  # with these weights the connector keeps values >= 0
        for layer in (connector[0], connector[2]):
            layer.weight.data.copy_(torch.eye(2)[:, :, None, None])
            layer.bias.data.zero_()
    terms = method(*outputs, NO_TARGETS)
    assert set(terms) == {"features"}
    torch.testing.assert_close(terms["features"], torch.tensor(2.5))  # divided by two channels


def test_the_term_is_the_weighted_sum_over_levels_and_zero_for_equal_maps():
    student, teacher = pair("fcos", "gfl")
    method = built("frs", student, teacher, weight=3.0)
    assert method.need == Need(pyramids=frozenset({"neck"}), predictions=True)
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scene(objects=False))
    masks = confidence(teacher_output.stages[-1]).values()
    levels = zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, masks, strict=True)
    term = method(student_output, teacher_output, targets)["features"]
    torch.testing.assert_close(term, 3 * sum(weighted_square(*level) for level in levels))
    assert method(teacher_output, teacher_output, targets)["features"] == 0
    term.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone_parameters())


def test_the_class_term_has_a_gradient_to_the_students_logits_only():
    student, teacher = pair("retinanet")
    method = built("frs", student, teacher, weight=0.0, weight_class=1.0)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    assert set(terms) == {"class"}
    (gradient,) = torch.autograd.grad(terms["class"], student_output.stages[-1].logits)
    masks = confidence(teacher_output.stages[-1]).values()
    weights = torch.cat([mask.flatten(1).repeat_interleave(9, 1) / mask.sum() for mask in masks], 1)  # (B, N)
    expected = weights[..., None] * (student_output.stages[-1].scores() - teacher_output.stages[-1].scores())
    torch.testing.assert_close(gradient, expected.detach())


def test_a_two_stage_teacher_gives_its_objectness_without_running_its_roi_head():
    student, teacher = pair("fcos", "faster_rcnn")
    method = built("frs", student, teacher, weight=1.0)
    assert method.need == Need(pyramids=frozenset({"neck"}), proposals=True)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assert len(teacher_output.stages) == 1
    rpn = teacher_output.stages[0]
    student_levels = student_output.pyramids["neck"].levels
    teacher_levels = teacher_output.pyramids["neck"].levels[1:]
    objectness = rpn.layout.split(rpn.logits.sigmoid())[1:]
    expected = 0.0
    for s, t, scores in zip(student_levels, teacher_levels, objectness, strict=True):
        mask = scores[..., 0].amax(-1)
        expected = expected + (mask * (s - t).square().sum(1)).sum() / mask.sum()
    torch.testing.assert_close(method(student_output, teacher_output, targets)["features"], expected)
    resized = built("frs", student, teacher, weight=1.0, pairing="index", resize="teacher")
    assert resized(student_output, teacher_output, targets)["features"].isfinite()


def test_padding_with_scores_of_zero_changes_nothing():
    dense = replace(info(2), grid=GridInfo(1, "fcos"))
    method = FRS.build(FRSConfig(weight=1.0), dense, dense)
    student_level = torch.rand((1, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    teacher_level = torch.rand((1, 2, 3, 4), generator=torch.Generator().manual_seed(0)) + 0.5
    scores = torch.rand((1, 3, 4), generator=torch.Generator().manual_seed(0))

    def term(student_level: torch.Tensor, teacher_level: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns the term for maps (B, C, H, W) and the teacher's scores (B, H, W)."""
        logits = scores.clamp(min=1e-12).logit().flatten(1)[..., None]  # (B, H, W) -> (B, N, 1)
        stage = predictions(logits, Layout((tuple(scores.shape[-2:]),), (8,)))
        student_output, teacher_output = (
            replace(output(level), stages=(stage,)) for level in (student_level, teacher_level)
        )
        return method(student_output, teacher_output, NO_TARGETS)["features"]

    once = term(student_level, teacher_level, scores)
    assert once > 0
    padding = (0, 3, 0, 2)
    padded_student, padded_teacher = F.pad(student_level, padding, value=5.0), F.pad(teacher_level, padding, value=1.0)
    torch.testing.assert_close(term(padded_student, padded_teacher, F.pad(scores, padding, value=0.0)), once)
    doubled = [torch.cat([tensor, tensor]) for tensor in (student_level, teacher_level, scores)]
    torch.testing.assert_close(term(*doubled), once)


def test_weight_and_connectors_depend_on_the_form():
    dense, wide = tiny("fcos").info, tiny("fcos", channels=64).info
    assert resolve({"frs": {}}, dense, dense)["frs"]["weight"] == 0.02
    assert resolve({"frs": {"form": "ultralytics"}}, dense, dense)["frs"]["weight"] == 6.0
    assert list(FRS.build(FRSConfig(), dense, dense).parameters()) == []
    method = FRS.build(FRSConfig(form="ultralytics"), wide, dense)
    shapes = [tuple(p.shape[:2]) for p in method.parameters() if p.ndim == 4]
    assert shapes == [(32, 64), (32, 32)] * 3


def test_build_refuses_unsuitable_detectors_and_options():
    fcos, retinanet = tiny("fcos").info, tiny("retinanet").info
    queries, two_stage = tiny("deformable_detr").info, tiny("faster_rcnn").info
    with pytest.raises(UserError, match=r"method frs: the teacher \(deformable_detr\) has no scores per cell"):
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
