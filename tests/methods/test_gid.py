"""GID: instances of disagreement, and the three terms on them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from detdistill.errors import UserError
from detdistill.geometry import pool_rois
from detdistill.losses import giou_distance, quality_focal, relation_distance
from detdistill.methods.gid import GID, GIDConfig
from detdistill.types import Batch, DetectorOutput, Need, Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, method_inputs, pair

HEADS = ["retinanet", "fcos", "atss", "gfl", "faster_rcnn"]


def made(head: str, **options):
    """Returns the method, student, teacher, and the inputs of the method."""
    student, teacher = pair(head)
    method = built("gid", student, teacher, **options)
    return method, student, teacher, method_inputs(method, student, teacher)


def identity(method: GID) -> GID:
    """Returns the method with a connector that changes nothing."""
    nn.init.dirac_(method.connector.weight)
    nn.init.zeros_(method.connector.bias)
    return method


def instances_of(method: GID, student_output: DetectorOutput, teacher_output: DetectorOutput) -> Targets:
    """Returns the instances of all classes."""
    sizes = student_output.pyramids["neck"].sizes
    return method.instances(student_output.stages[0], teacher_output.stages[0], sizes)


@pytest.mark.parametrize("head", HEADS)
def test_terms_are_zero_for_equal_outputs_and_only_the_student_gets_a_gradient(head: str):
    method, student, teacher, (student_output, teacher_output, targets) = made(head)
    identity(method)
    assert all(term.abs() < 1e-5 for term in method(student_output, student_output, targets).values())
    terms = method(student_output, teacher_output, targets)
    assert terms.keys() == {"feature", "relation", "response"}
    assert terms["feature"] > 0 and terms["response"] > 0
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert method.connector.weight.grad.abs().sum() > 0
    reached = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("head" in name for name in reached) and any("head" not in name for name in reached)


def test_instances_are_apart_and_inside_their_image_and_do_not_depend_on_labels():
    method, _, _, (student_output, teacher_output, targets) = made("fcos")
    instances = instances_of(method, student_output, teacher_output)
    sizes = student_output.pyramids["neck"].sizes.tolist()
    for boxes, (height, width) in zip(instances.boxes, sizes, strict=True):
        assert 1 < len(boxes) <= 10
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.3 + 1e-5
    terms = method(student_output, teacher_output, targets)
    for name, term in method(student_output, teacher_output, scene(objects=False)[1]).items():
        assert term == terms[name]


def test_the_terms_are_the_formulas():
    weights = {"weight_feature": 2.0, "weight_relation": 3.0, "weight_response": 5.0}
    method, _, _, (student_output, teacher_output, targets) = made("retinanet", **weights, pairs="sum")
    terms = method(student_output, teacher_output, targets)
    instances = instances_of(method, student_output, teacher_output)
    student_rois, teacher_rois = (
        pool_rois(output.pyramids["neck"].levels, (8, 16, 32), instances.boxes)
        for output in (student_output, teacher_output)
    )
    s, t = method.connector(student_rois).flatten(1), teacher_rois.flatten(1)
    torch.testing.assert_close(terms["feature"], 2 * (s - t).square().sum(1).sqrt().mean())
    first = len(instances.boxes[0])
    relation = (relation_distance(s[:first], t[:first]) + relation_distance(s[first:], t[first:])) / 2
    assert relation > 0
    torch.testing.assert_close(terms["relation"], 3 * relation)
    student_stage, teacher_stage = student_output.stages[0], teacher_output.stages[0]
    mask = student_output.assign(instances).matched >= 0
    mask &= student_stage.valid
    classes = quality_focal(student_stage.logits[mask], teacher_stage.logits[mask].sigmoid()).sum()
    boxes = giou_distance(student_stage.boxes[mask], teacher_stage.boxes[mask]).sum()
    torch.testing.assert_close(terms["response"], 5 * (0.1 * classes + boxes) / mask.sum())


def test_relations_are_within_an_image_and_a_single_instance_has_none():
    method, _, _, (student_output, teacher_output, targets) = made("fcos", instances=1)
    terms = method(student_output, teacher_output, targets)
    assert terms["relation"] == 0
    assert terms["feature"] > 0
    sum(terms.values()).backward()
    summed, _, _, inputs = made("fcos", instances=3, pairs="sum")
    mean = built("gid", *pair("fcos"), instances=3, pairs="mean")
    assert [len(labels) for labels in instances_of(summed, *inputs[:2]).labels] == [3, 3]
    torch.testing.assert_close(mean(*inputs)["relation"] * 6, summed(*inputs)["relation"])


def test_terms_are_zero_without_valid_predictions():
    method, student, _, (student_output, teacher_output, targets) = made("gfl")
    stage = teacher_output.stages[0]
    invalid = replace(stage, valid=torch.zeros_like(stage.valid))
    terms = method(student_output, replace(teacher_output, stages=(invalid,)), targets)
    assert all(term == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_padding_takes_no_part():
    method, _, _, (student_output, teacher_output, targets) = made("fcos")
    terms, stage = method(student_output, teacher_output, targets), teacher_output.stages[0]
    assert not stage.valid.all()
    changed = replace(stage, logits=torch.where(stage.valid[..., None], stage.logits, 9.0))
    for name, term in method(student_output, replace(teacher_output, stages=(changed,)), targets).items():
        torch.testing.assert_close(term, terms[name])


def test_repeating_the_batch_does_not_change_the_terms():
    method, student, teacher, inputs = made("gfl")
    batch, targets = scene()
    parts = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.originals, batch.ids))
    repeated = Batch(*parts, batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    repeated_terms = method(*method_inputs(method, student, teacher, repeated))
    for name, term in method(*inputs).items():
        torch.testing.assert_close(repeated_terms[name], term, rtol=1e-3, atol=1e-6)


def test_two_stage_detectors_compare_the_rpn_and_the_teachers_second_stage_does_not_run():
    method, _, _, (_, teacher_output, _) = made("faster_rcnn")
    assert method.need == Need(pyramids=frozenset({"neck"}), proposals=True)
    assert len(teacher_output.stages) == 1


def test_classes_are_matched_by_name():
    method, student, teacher, (student_output, teacher_output, targets) = made("fcos")
    reordered_info = replace(teacher.info, classes=("cross", "plane", "square"))
    reordered = GID.build(method.config, student.info, reordered_info)
    assert (reordered.grid.classes.student, reordered.grid.classes.teacher) == ((1, 2), (2, 0))
    reordered.load_state_dict(method.state_dict())
    stage = teacher_output.stages[0]
    seen = []
    reordered.response = lambda student, teacher, output, instances: seen.append(instances) or student.logits.sum()
    stages = (replace(stage, logits=stage.logits[..., [2, 0, 1]]),)
    reordered(student_output, replace(teacher_output, stages=stages), targets)
    assert {label for labels in seen[0].labels for label in labels.tolist()} == {1, 2}


def test_unsupported_pairs_are_refused():
    fcos, retinanet = tiny("fcos").info, tiny("retinanet").info
    two_stage, queries = tiny("faster_rcnn").info, tiny("deformable_detr").info
    config = GIDConfig()
    with pytest.raises(UserError, match=r"the teacher \(deformable_detr\) has no dense grid"):
        GID.build(config, fcos, queries)
    with pytest.raises(UserError, match=r"with 1 anchors per cell, the teacher at .* with 9"):
        GID.build(config, fcos, retinanet)
    with pytest.raises(UserError, match=r"strides \(4, 8, 16\) .* --model.strides"):
        GID.build(config, replace(fcos, strides=(4, 8, 16)), fcos)
    with pytest.raises(UserError, match="an RPN and a dense head"):
        GID.build(config, fcos, two_stage)
    with pytest.raises(UserError, match="no class in common"):
        GID.build(config, replace(fcos, classes=("cat",)), fcos)
    GID.build(config, replace(two_stage, classes=("cat",)), two_stage)  # objectness has no class
