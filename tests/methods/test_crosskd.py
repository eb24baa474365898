"""CrossKD: minimum, gradients, taps, alignment, grids, divisors, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detdistill.errors import UserError
from detdistill.methods.crosskd import CrossKD, CrossKDConfig
from detdistill.methods.shared.predictions import box_distance
from detdistill.types import Need, Targets
from tests.detectors.builders import DENSE, scene, shake, tiny
from tests.methods.pairs import built, method_inputs, pair


def entropy(quality_logits: Tensor) -> Tensor:
    """Returns the entropy of sigmoid scores, elementwise."""
    p = quality_logits.sigmoid()
    return -(p * p.log() + (1 - p) * (1 - p).log())


@pytest.mark.parametrize("head", DENSE)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_terms_are_at_their_minimum_if_the_student_is_the_teacher(head: str, depth: int):
    _, teacher = pair(head)
    method = built("crosskd", teacher, teacher, depth=depth)
    student_output, teacher_output, targets = method_inputs(method, teacher, teacher)
    terms = method(student_output, teacher_output, targets)
    assert terms["class"] < 1e-4
    assert terms["box"] < 1e-2  # -log IoU is the most sensitive to the 1e-6 that is added to the deviation
    if head == "atss":  # its centerness term is a cross-entropy: the minimum is the entropy of the target
        teacher_predictions = teacher_output.stages[-1]
        assignment = student_output.stages[-1].assignment
        minimum = entropy(teacher_predictions.quality[assignment.positive]).sum() / assignment.num_positives
        torch.testing.assert_close(terms["quality"], minimum, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", DENSE)
def test_only_the_first_part_of_the_towers_learns(head: str):
    student, teacher = pair(head)
    method = built("crosskd", student, teacher, depth=1)
    sum(method(*method_inputs(method, student, teacher)).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    for blocks in (student.towers.classification, student.towers.regression):
        assert all(p.grad.abs().sum() > 0 for layer in blocks[0] for p in layer.parameters() if p.ndim == 4)
        assert all(p.grad is None for layer in blocks[1] for p in layer.parameters())
    predictors = ("cls_logits", "bbox_reg", "bbox_ctrness", "classifier", "regressor", "quality")
    parameters = [p for name, p in student.named_parameters() if name.split(".")[-2] in predictors]
    assert parameters
    assert all(p.grad is None for p in parameters)
    assert all(p.grad is not None for p in student.backbone_parameters())


@pytest.mark.parametrize("depth", range(5))
def test_every_depth_of_a_published_tower(depth: int):
    # Four convolutions: depth 0 leaves the whole head to the teacher, depth 4 only its predictors. Only the part of the
    # student before the depth learns.
    student = shake(tiny("gfl", seed=1, tower_depth=4)).eval()
    teacher = shake(tiny("gfl", seed=2, tower_depth=4)).eval().requires_grad_(False)
    method = built("crosskd", student, teacher, depth=depth)
    terms = method(*method_inputs(method, student, teacher))
    assert all(term > 0 for term in terms.values())
    sum(terms.values()).backward()
    for blocks in (student.towers.classification, student.towers.regression):
        learned = [
            any(p.grad is not None and bool(p.grad.any()) for layer in block for p in layer.parameters())
            for block in blocks
        ]
        assert learned == [index < depth for index in range(4)]
    assert any(bool(p.grad.any()) for p in student.backbone_parameters())


def test_a_detector_can_teach_a_copy_of_itself():
    teacher = shake(tiny("fcos", seed=1)).eval().requires_grad_(False)
    student = shake(tiny("fcos", seed=1)).train()  # a copy with the same weights
    method = built("crosskd", student, teacher)
    terms = method(*method_inputs(method, student, teacher))
    sum(terms.values()).backward()
    assert all(term.isfinite() and term > 0 for term in terms.values())
    assert all(p.grad is None for p in teacher.parameters())


def test_it_reads_the_depth_of_each_side():
    student, teacher = pair("gfl")
    method = built("crosskd", student, teacher, depth=2, student_depth=1)
    assert method.need == Need(towers=frozenset({2}), predictions=True)
    assert method.student_need == Need(towers=frozenset({1}))
    assert all(term.isfinite() for term in method(*method_inputs(method, student, teacher)).values())
    assert built("crosskd", student, teacher).teacher_depth == 1  # published 3 of 4: one convolution before the end
    assert built("crosskd", *pair("fcos")).teacher_depth == 0  # published 2 of 4


def test_alignment_removes_the_scale_and_shift_of_channels():
    student, teacher = pair("atss")
    method = built("crosskd", student, teacher, depth=1, tap="pre_act")
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    state = student_output.towers.states[1]
    scaled = replace(state, classification=tuple(4 * level + 3 for level in state.classification))
    scaled_output = replace(student_output, towers=replace(student_output.towers, states={1: scaled}))
    before = method(student_output, teacher_output, targets)["class"]
    after = method(scaled_output, teacher_output, targets)["class"]
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-6)
    not_aligned = built("crosskd", student, teacher, depth=1, tap="pre_act", align=False)
    before = not_aligned(student_output, teacher_output, targets)["class"]
    after = not_aligned(scaled_output, teacher_output, targets)["class"]
    assert (before - after).abs() > 1e-3


def test_the_taps_differ_and_post_relu_has_no_negative_values(monkeypatch: pytest.MonkeyPatch):
    student, teacher = pair("gfl")
    terms, minima = {}, {}
    for tap in ("post_relu", "pre_act"):
        method = built("crosskd", student, teacher, depth=1, tap=tap)
        arguments = method_inputs(method, student, teacher)
        minima[tap] = []

        def record(student_level: Tensor, teacher_level: Tensor, minima: list = minima[tap]) -> Tensor:
            minima.append((student_level.min(), teacher_level.min()))
            return student_level

        with monkeypatch.context() as patched:
            patched.setattr("detdistill.methods.crosskd.match_statistics", record)
            method(*arguments)
        terms[tap] = method(*arguments)["class"]
    assert minima["post_relu"]
    assert all(student_min >= 0 and teacher_min >= 0 for student_min, teacher_min in minima["post_relu"])
    assert any(student_min < 0 for student_min, _ in minima["pre_act"])
    assert (terms["post_relu"] - terms["pre_act"]).abs() > 1e-6


@pytest.mark.parametrize(
    ("student_head", "teacher_head"), [("fcos", "gfl"), ("gfl", "fcos"), ("gfl", "retinanet"), ("retinanet", "atss")]
)
def test_different_detectors_are_compared_in_the_teachers_space(student_head: str, teacher_head: str):
    student, teacher = pair(student_head, teacher_head)
    method = built("crosskd", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assignment = method._assignment(student_output, teacher_output, targets)
    assert assignment.matched.shape == teacher_output.stages[-1].logits.shape[:2]
    assert torch.equal(assignment.matched, teacher_output.assign(targets).matched)
    total = sum(method(student_output, teacher_output, targets).values())
    assert total.isfinite()
    assert total > 0


def test_distributions_are_compared_if_both_have_them_else_boxes():
    _, gfl = pair("gfl")
    _, atss = pair("atss")
    batch, _ = scene()
    need = Need(predictions=True)
    with torch.no_grad():
        gfl_predictions = gfl.observe(batch, need=need).stages[0]
        atss_predictions = atss.observe(batch, need=need).stages[0]
    config = CrossKDConfig()
    assert box_distance(gfl_predictions, gfl_predictions, config).abs().max() < 1e-5
    mixed = box_distance(gfl_predictions, atss_predictions, config)
    assert mixed.shape == gfl_predictions.logits.shape[:2]
    assert mixed.max() <= 2  # 1 - GIoU


@pytest.mark.parametrize("normalizer", ["positives", "trust"])
def test_mean_terms_do_not_change_if_the_batch_is_doubled(normalizer: str):
    student, teacher = pair("gfl")
    method = built("crosskd", student, teacher, box_normalizer=normalizer)
    batch, targets = scene()
    tensors = {name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")}
    doubled_scene = replace(batch, **tensors, names=batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    single = method(*method_inputs(method, student, teacher))
    doubled = method(*method_inputs(method, student, teacher, doubled_scene))
    for name, term in single.items():
        torch.testing.assert_close(doubled[name], term, rtol=2e-2, atol=1e-5)  # alignment: m - 1 against 2m - 1


@pytest.mark.parametrize("head", DENSE)
def test_a_batch_without_objects_is_finite(head: str):
    student, teacher = pair(head)
    method = built("crosskd", student, teacher)
    terms = method(*method_inputs(method, student, teacher, scene(objects=False)))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())


def test_different_widths_get_a_learned_connector():
    student, teacher = pair("fcos", channels=48)
    method = built("crosskd", student, teacher, depth=1)
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 48, 1, 1)] * 2
    sum(method(*method_inputs(method, student, teacher)).values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters() if p.ndim == 4)


def test_unsupported_pairs_are_refused_at_build():
    student, teacher, two_stage = (tiny(head).info for head in ("fcos", "gfl", "faster_rcnn"))
    for config, student_info, teacher_info, message in (
        (CrossKDConfig(), two_stage, teacher, "no towers; use retinanet"),
        (CrossKDConfig(), student, replace(teacher, strides=(8, 16)), "needs its own grid"),
        (CrossKDConfig(), student, replace(teacher, classes=("ring", "oval")), "no class in common"),
        (CrossKDConfig(depth=-3), student, teacher, "beyond the teacher's towers"),
        (CrossKDConfig(weight_class=0, weight_box=0), student, teacher, "all its weights are 0"),
        (CrossKDConfig(depth=5), student, teacher, "beyond the teacher's towers"),
        (CrossKDConfig(student_depth=3), student, teacher, "beyond the student's towers, which have 2"),
        (CrossKDConfig(weight_quality=1.0), student, teacher, "centerness"),
        (CrossKDConfig(box="edges"), student, student, "distance distributions"),
    ):
        with pytest.raises(UserError, match=message):
            CrossKD.build(config, student_info, teacher_info)


def test_only_valid_rows_count_for_the_class_term():
    # RetinaNet's ambiguous anchors and all padded cells take no part: high teacher scores there change nothing.
    student, teacher = pair("retinanet")
    method = built("crosskd", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    valid = student_output.stages[-1].assignment.valid
    assert not valid.all()
    teacher_predictions = teacher_output.stages[-1]
    high_logits = teacher_predictions.logits.masked_fill(~valid[..., None], 20.0)
    high_output = replace(teacher_output, stages=(replace(teacher_predictions, logits=high_logits),))
    for name, term in method(student_output, teacher_output, targets).items():
        torch.testing.assert_close(method(student_output, high_output, targets)[name], term)
